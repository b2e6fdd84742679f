"""What runs and with how many threads: version, backend, thread count.

The policy of the whole package lives here; kernels are only ever told a number.
"""

from __future__ import annotations

import operator
import os
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _kernels
from ._checks import MOST_THREADS
from ._cpus import usable_cpus
from ._version import __version__
from .errors import InvalidConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

__all__ = [
    "backend",
    "current_threads",
    "get_include",
    "get_num_threads",
    "info",
    "num_threads",
    "set_num_threads",
    "version",
]


def _default_threads() -> int:
    # OMP_NUM_THREADS may list one number per nesting level; the outermost counts.
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if first.isdecimal() and int(first) > 0:
        return int(first)
    return usable_cpus()


_default = _default_threads()
_process_threads = _default
_context_threads: ContextVar[int] = ContextVar("ruvector_num_threads", default=0)
_forked = False


def current_threads() -> int:
    """Return how many threads this call was given, for the facades to hand to a kernel.

    Returns
    -------
    int
        At least 1. Kernels use fewer where threadpoolctl limits OpenMP or BLAS.
    """
    # On the path of the smallest calls, so it asks nobody else.
    return 1 if _forked else _context_threads.get() or _process_threads


def _after_fork_in_child() -> None:
    # The threads of an OpenMP pool do not survive a fork, and libgomp would wait for them
    # for ever.
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _checked_threads(n: int) -> int:
    try:
        threads = 0 if isinstance(n, bool) else operator.index(n)
    except TypeError:
        threads = 0
    if threads < 1:
        raise InvalidConfigError(f"n must be an integer of at least 1, got {n!r}")
    return min(threads, MOST_THREADS)


def get_num_threads() -> int:
    """Return how many threads a call made here and now may use.

    Returns
    -------
    int
        What :func:`num_threads` says for this thread or task, else what
        :func:`set_num_threads` said, else the value of ``OMP_NUM_THREADS`` when the package
        was imported, else the number of CPUs this process may use (affinity and cgroup
        quota); never more than a limit that threadpoolctl has put on OpenMP. Always 1 in a
        forked child, where OpenMP cannot start threads.

    Examples
    --------
    >>> import ruvector
    >>> with ruvector.num_threads(1):
    ...     ruvector.get_num_threads()
    1
    """
    threads = current_threads()
    openmp = _kernels.openmp
    if openmp is None or not openmp.OPENMP:
        return threads
    # OpenMP's own maximum is where threadpoolctl leaves its limits. It starts at the
    # default of this module or above, so only a smaller value is somebody's limit.
    limit: int = openmp.max_threads()
    return min(threads, limit) if limit < _default else threads


def set_num_threads(n: int) -> None:
    """Set how many threads a call may use, for the whole process.

    Results on the native backend are the same bit for bit whatever the number.

    Parameters
    ----------
    n : int
        At least 1. It has no effect in a forked child, which runs single-threaded, nor
        where :func:`num_threads` is active.

    Raises
    ------
    InvalidConfigError
        If n is not an integer or smaller than 1.

    Examples
    --------
    >>> import ruvector
    >>> before = ruvector.get_num_threads()
    >>> ruvector.set_num_threads(1)
    >>> ruvector.get_num_threads()
    1
    >>> ruvector.set_num_threads(before)
    """
    global _process_threads
    _process_threads = _checked_threads(n)


def num_threads(n: int) -> AbstractContextManager[None]:
    """Limit calls in this thread and its asyncio tasks to n threads while inside ``with``.

    Parameters
    ----------
    n : int
        At least 1.

    Returns
    -------
    context manager
        Restores the former number on leaving; nests.

    Raises
    ------
    InvalidConfigError
        If n is not an integer or smaller than 1.

    Examples
    --------
    >>> import ruvector
    >>> with ruvector.num_threads(1):
    ...     ruvector.get_num_threads()
    1
    """
    return _num_threads(_checked_threads(n))


@contextmanager
def _num_threads(threads: int) -> Iterator[None]:
    token = _context_threads.set(threads)
    try:
        yield
    finally:
        _context_threads.reset(token)


def version() -> str:
    """Return the version of the package.

    Returns
    -------
    str
        The same as ``ruvector.__version__``.
    """
    return __version__


def backend() -> str:
    """Return which kernels run.

    Returns
    -------
    str
        ``"native"`` for the compiled kernels, ``"python"`` for their NumPy twins.
    """
    return _kernels.backend


def get_include() -> str:
    """Return the folder of the C headers, for extensions that call the compiled kernels.

    Returns
    -------
    str
        Where ``ruvector.h`` lies, on either backend.

    Examples
    --------
    >>> import ruvector
    >>> from pathlib import Path
    >>> Path(ruvector.get_include(), "ruvector.h").is_file()
    True
    """
    return str(Path(_kernels.__file__).parent / "include")


def info() -> dict[str, Any]:
    """Describe this installation and what it runs with.

    Returns
    -------
    dict
        Of plain strings, numbers, lists and None, so that it goes through JSON:

        ``version``, ``python``, ``numpy``
            Versions of the package, the interpreter and NumPy.
        ``backend``
            ``"native"`` or ``"python"``.
        ``isa``, ``available_isas``
            The instruction set in use (None on the python backend) and those this build
            and CPU have, worst first.
        ``openmp``
            Whether the compiled kernels are built with OpenMP; None where none are loaded.
        ``c_abi``
            Version of the C interface (``ruvector.h``); None on the python backend, and where
            the interface did not load.
        ``threads``
            :func:`get_num_threads` at this moment.
        ``mechanisms``
            Type names of the attention mechanisms.
        ``native_error``
            Why installed compiled kernels, or their C interface, did not load; None where
            nothing is wrong.

    Examples
    --------
    >>> import ruvector
    >>> ruvector.info()["backend"] in ("native", "python")
    True
    """
    import numpy as np

    from .utils import available_mechanisms

    openmp, c_abi, native_error = _kernels.openmp, None, _kernels.import_error
    if _kernels.backend == "native":
        try:
            c_abi = import_module("ruvector._kernels.capi").ABI_VERSION
        except ImportError as error:
            native_error = f"ruvector's C interface cannot be loaded: {error}"
    return {
        "version": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "numpy": np.__version__,
        "backend": _kernels.backend,
        "isa": _kernels.isa,
        "available_isas": [isa for _, isa in _kernels.available() if isa is not None],
        "openmp": None if openmp is None else bool(openmp.OPENMP),
        "c_abi": c_abi,
        "threads": get_num_threads(),
        "mechanisms": list(available_mechanisms()),
        "native_error": native_error,
    }
