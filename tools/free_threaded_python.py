"""Build a CPython without the GIL from Debian's sources, in a folder of the checkout.

    python tools/free_threaded_python.py

Neither Debian nor the Python index has one ready. ``tools/build_wheels.py`` finds it where it
is put, below build/. Needs gcc, make and the headers of OpenSSL, zlib and libffi; takes two
minutes on two cores, because nothing is optimised beyond -O2.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

from debian_roots import download_source, run

ROOT = Path(__file__).resolve().parent.parent
RELEASE, PACKAGE = "trixie", "python3.13"
PREFIX = ROOT / "build" / "free-threaded"
PYTHON = PREFIX / "bin" / "python3"
CONFIGURE = ("--disable-gil", "--disable-test-modules", f"--prefix={PREFIX}", "CFLAGS=-O2")


def main():
    """Fetch, compile and install it, unless that is done; print the interpreter's path."""
    if not PYTHON.exists():
        work = PREFIX.with_name("free-threaded-sources")
        shutil.rmtree(work, ignore_errors=True)
        with tarfile.open(download_source(work, RELEASE, PACKAGE)) as archive:
            archive.extractall(work / "unpacked", filter="data")
        (source,) = (work / "unpacked").iterdir()
        with (work / "build.log").open("w") as log:
            for command in (
                ("./configure", *CONFIGURE),
                ("make", f"-j{os.cpu_count()}"),
                ("make", "install"),
            ):
                run(*command, cwd=source, stdout=log, stderr=log)
        shutil.rmtree(work)
    print(PYTHON)


if __name__ == "__main__":
    main()
