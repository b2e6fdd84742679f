"""Parts of a Debian release, unpacked from its packages without installing them.

An old release's C library, headers and libgomp are what makes a wheel run on old systems; a
foreign architecture's Python is what tests a wheel under qemu; the sources of Python make a
free-threaded one. Packages come through apt, from the mirror that this machine is set up with,
and apt checks their signatures.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
TOOLCHAIN = (
    "libc6",
    "libc6-dev",
    "libcrypt1",
    "libcrypt-dev",
    "libgcc-s1",
    "libgomp1",
    "linux-libc-dev",
)
PYTHON = (
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "libgomp1",
    "libcrypt1",
    "libexpat1",
    "libffi8",
    "zlib1g",
    "libssl3",
    "libbz2-1.0",
    "liblzma5",
    "libsqlite3-0",
    "libuuid1",
    "libncursesw6",
    "libtinfo6",
    "libreadline8",
    "libdb5.3",
    "media-types",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "python3.11-minimal",
    "python3.11",
)
DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}
TRIPLET = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}


def run(*command, **options):
    """Run a command that must succeed."""
    return subprocess.run([str(part) for part in command], check=True, **options)


def mirror():
    """Return the address of the Debian mirror that apt is set up with here."""
    listing = ("apt-get", "indextargets", "--format", "$(SITE)", "Origin: Debian")
    sites = run(*listing, capture_output=True, text=True).stdout.split()
    if not sites:
        run("apt-get", "update", "-qq")
        sites = run(*listing, capture_output=True, text=True).stdout.split()
    for site in sites:
        if "security" not in site:
            return site
    raise SystemExit("apt knows no Debian mirror here")


def apt(folder, kind, release, architecture):
    """Return an apt command line for a release, whatever this machine itself runs."""
    for name in ("lists/partial", "cache/archives/partial", "files"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    source = f"{kind} [arch={architecture} signed-by={KEYRING}] {mirror()} {release} main\n"
    (folder / "sources.list").write_text(source)
    (folder / "status").touch()
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
    }
    command = ["apt-get", "-qq"]
    for name, setting in options.items():
        command += ["-o", f"{name}={setting}"]
    run(*command, "update")
    return command


def download(folder, release, architecture, packages):
    """Fetch packages of a release."""
    run(*apt(folder, "deb", release, architecture), "download", *packages, cwd=folder / "files")
    return sorted((folder / "files").glob("*.deb"))


def download_source(folder, release, package):
    """Fetch the upstream sources of a package of a release."""
    command = apt(folder, "deb-src", release, DEBIAN[os.uname().machine])
    run(*command, "source", "--download-only", "--tar-only", package, cwd=folder / "files")
    (tarball,) = (folder / "files").glob("*.orig.tar.xz")
    return tarball


def unpack(debs, root):
    """Lay packages out under a root; links that start at / are made to stay inside it."""
    root.mkdir(parents=True)
    for deb in debs:
        run("dpkg-deb", "-x", deb, root)
    for link in root.rglob("*"):
        if link.is_symlink() and link.readlink().is_absolute():
            inside = root / link.readlink().relative_to("/")
            target = os.path.relpath(inside, link.parent)
            link.unlink()
            link.symlink_to(target)


def debian_root(folder, release, machine, packages):
    """Return a root with these packages of a release, made on the first call."""
    root = folder / "root"
    if not (folder / "complete").exists():
        unpack(download(folder, release, DEBIAN[machine], packages), root)
        (folder / "complete").touch()
    return root
