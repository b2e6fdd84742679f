"""How many CPUs this process may use: affinity and cgroup quota."""

from __future__ import annotations

import os
from math import ceil

__all__ = ["cgroup_quota", "usable_cpus"]


def usable_cpus() -> int:
    """Return the number of CPUs that this process may keep busy.

    Returns
    -------
    int
        The CPUs of its affinity mask, or fewer where a cgroup quota allows less time
        (rounded up to whole CPUs); at least 1.
    """
    if hasattr(os, "process_cpu_count"):
        cpus = os.process_cpu_count()
    elif hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count()
    quota = cgroup_quota()
    return max(1, min(cpus or 1, ceil(quota) if quota is not None else cpus or 1))


def cgroup_quota(
    membership: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup"
) -> float | None:
    """Return the CPU time per wall time that the cgroups of this process leave it.

    Parameters
    ----------
    membership : str
        The file that lists the cgroups of the process.
    mount : str
        Where the cgroup file systems are mounted.

    Returns
    -------
    float or None
        The smallest quota along the path, in CPUs; None where nothing limits it. Both
        cgroup versions are understood.
    """
    quotas = []
    for line in _read(membership).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            quotas += [_quota_v2(folder) for folder in _ancestors(mount, path)]
        elif "cpu" in controllers.split(","):
            for name in {"cpu", controllers}:
                folders = _ancestors(os.path.join(mount, name), path)
                quotas += [_quota_v1(folder) for folder in folders]
    return min((quota for quota in quotas if quota is not None), default=None)


def _ancestors(mount: str, path: str) -> list[str]:
    # Inside a container the path may be the host's, so that only the mount itself exists.
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [os.path.join(mount, *parts[:depth]) for depth in range(len(parts) + 1)]


def _quota_v2(folder: str) -> float | None:
    fields = _read(os.path.join(folder, "cpu.max")).split()
    return _ratio(*fields) if len(fields) == 2 else None


def _quota_v1(folder: str) -> float | None:
    return _ratio(
        _read(os.path.join(folder, "cpu.cfs_quota_us")),
        _read(os.path.join(folder, "cpu.cfs_period_us")),
    )


def _ratio(quota: str, period: str) -> float | None:
    try:
        ratio = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return ratio if ratio > 0 else None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""
