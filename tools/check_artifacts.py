"""Check what is inside wheels and source distributions.

    python tools/check_artifacts.py wheelhouse/*.whl wheelhouse/*.tar.gz

A wheel holds the package, its types and what ``cimport`` reads, and no other source; under
3 MB; compiled exactly if its name says so. A source distribution holds what is under version
control, so that its tests pass too, and nothing that Cython wrote; under 5 MB, of which most
are the examples' data.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 3_000_000
SDIST_LIMIT = 5_000_000
COMPILED = (".so", ".pyd")
# A second OpenMP runtime in one process: the reason why these platforms build without.
FOREIGN_OPENMP = ("libomp", "libiomp", "vcomp")


def sources(root=ROOT):
    """Return the names of the package's files that a build needs, without generated C."""
    package = root / "ruvector"
    generated = {path.with_suffix(".c") for path in package.rglob("*.pyx")}
    kinds = {".py", ".pyi", ".pyx", ".pxd", ".typed", ".h", ".c"}
    return {
        path.relative_to(root).as_posix()
        for path in package.rglob("*")
        if (path.suffix in kinds or path.name == "py.typed") and path not in generated
    }


def tracked(root=ROOT):
    """Return the names of the files under version control, none outside a checkout."""
    command = ("git", "-C", str(root), "ls-files", "-z")
    names = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return set(filter(None, names.split("\0"))) - {".gitignore"}


def missing_headers(archive, names):
    """Return the headers that a ``.pxd`` inside includes and that are not beside it."""
    present, missing = set(names), set()
    for name in names:
        if not name.endswith(".pxd"):
            continue
        folder = PurePosixPath(name).parent
        text = archive.read(name).decode()
        for header in re.findall(r'cdef extern from "([^"]+)"', text):
            places = (folder / header, folder / "include" / header, folder / "simd" / header)
            if present.isdisjoint(map(str, places)):
                missing.add(f"{name}: {header}")
    return sorted(missing)


def wheel_problems(path, root=ROOT):
    """Return what is wrong with a wheel, in words."""
    problems = []
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        compiled = [name for name in names if name.endswith(COMPILED)]
        own = [name for name in compiled if name.startswith("ruvector/")]
        foreign = [name for name in names if any(lib in name for lib in FOREIGN_OPENMP)]
        strays = [
            name
            for name in names
            if name.endswith((".c", ".pyx", ".inc.h", ".pyc"))
            or not re.match(r"ruvector(/|\.libs/|-[^/]+\.dist-info/)", name)
        ]
        if strays:
            problems.append(f"needless files: {', '.join(strays)}")
        if foreign:
            problems.append(f"a second OpenMP runtime: {', '.join(foreign)}")
        needed = {
            name for name in sources(root) if name.endswith((".py", ".pyi", ".pxd", ".typed"))
        }
        absent = sorted(needed - set(names))
        if absent:
            problems.append(f"missing: {', '.join(absent)}")
        headers = missing_headers(archive, names)
        if headers:
            problems.append(f"headers missing: {', '.join(headers)}")
        if bool(own) == path.name.endswith("-none-any.whl"):
            problems.append(f"{len(own)} compiled modules under the tag of {path.name}")
        # What a wheel of this machine alone, not yet repaired, says about it is nobody's harm.
        shared = "-linux_" not in path.name
        marks = [str(root).encode(), str(Path.home()).encode() + b"/"] if shared else []
        told = [name for name in own if any(mark in archive.read(name) for mark in marks)]
        if told:
            problems.append(f"paths of the building machine: {', '.join(told)}")
    return problems


def sdist_problems(path, root=ROOT):
    """Return what is wrong with a source distribution, in words."""
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = sources(root) | tracked(root)
    written = {name.removesuffix(".pyx") + ".c" for name in names if name.endswith(".pyx")}
    generated = written & names
    problems = []
    if needed - names:
        problems.append(f"missing: {', '.join(sorted(needed - names))}")
    if generated:
        problems.append(f"generated: {', '.join(sorted(generated))}")
    return problems


def problems(path, root=ROOT):
    """Return what is wrong with one artefact."""
    found = (sdist_problems if path.name.endswith(".tar.gz") else wheel_problems)(path, root)
    size = path.stat().st_size
    limit = SDIST_LIMIT if path.name.endswith(".tar.gz") else LIMIT
    if size >= limit:
        found.append(f"{size} bytes, the limit is {limit}")
    return found


def main(paths):
    """Check every path and print one line each; fail if anything is wrong."""
    failed = not paths
    for path in map(Path, paths):
        known = path.name.endswith((".whl", ".tar.gz"))
        found = problems(path) if known else ["neither a wheel nor a source distribution"]
        failed |= bool(found)
        state = "; ".join(found) or "ok"
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, {state}")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
