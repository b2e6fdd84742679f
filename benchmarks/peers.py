"""Which peers are present, how to get the missing ones, and how to reach them."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .core import UnavailableError
from .sides import Child

__all__ = ["NPM", "UPSTREAM", "Peers", "Status", "default_cache", "equal_threads"]

NPM = "@ruvector/attention"
UPSTREAM = "ruvector-attention"
NPM_VERSION = "0.1.1"
UPSTREAM_VERSION = "0.2.0"
_HERE = Path(__file__).parent
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")

# import name -> distribution, for the peers that run in this process
_PACKAGES = {
    "numpy": "numpy",
    "torch": "torch",
    "onnxruntime": "onnxruntime",
    "onnx": "onnx",
    "torch_geometric": "torch_geometric",
    "performer_pytorch": "performer-pytorch",
    "geoopt": "geoopt",
    "ml_dtypes": "ml_dtypes",
    "pytorch_metric_learning": "pytorch-metric-learning",
}


@dataclass(frozen=True, slots=True)
class Status:
    """Whether a peer is here, and else how to get it."""

    name: str
    version: str | None
    how: str


def default_cache() -> Path:
    """Return the folder outside the tree where ``--install-peers`` puts what it installs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ruvector-benchmarks"


@contextlib.contextmanager
def equal_threads(count: int) -> Iterator[None]:
    """Give ruvector, the BLAS of NumPy and torch the same number of threads."""
    from threadpoolctl import threadpool_limits

    with contextlib.ExitStack() as stack:
        if importlib.util.find_spec("torch") is not None:
            # before the limits, which reach only the thread pools that are loaded
            torch = importlib.import_module("torch")
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(count)
        stack.enter_context(threadpool_limits(count))
        stack.enter_context(importlib.import_module("ruvector").num_threads(count))
        yield


class Peers:
    """The peers of one run. Children start on first use; `close` ends them."""

    def __init__(self, cache: Path | None = None, threads: int = 1) -> None:
        self.cache = cache or default_cache()
        self._threads = threads
        self._children: dict[str, Child] = {}

    @property
    def npm_modules(self) -> Path:
        """The ``node_modules`` folder of the cache."""
        return self.cache / "node" / "node_modules"

    @property
    def upstream_python(self) -> Path:
        """The interpreter of the environment that holds ``ruvector-attention``."""
        scripts, suffix = ("Scripts", ".exe") if os.name == "nt" else ("bin", "")
        return self.cache / "upstream" / scripts / f"python{suffix}"

    def module(self, name: str) -> Any:
        """Import a peer that shares this process."""
        try:
            return importlib.import_module(name)
        except ImportError as error:
            package = _PACKAGES.get(name, name)
            message = f"{package} is not here (pip install {package}): {error}"
            raise UnavailableError(message) from error

    def npm(self) -> Child:
        """Return the Node child that holds ``@ruvector/attention``."""
        node = shutil.which("node")
        if node is None:
            raise UnavailableError("node is not on the PATH")
        if not (self.npm_modules / NPM).is_dir():
            raise UnavailableError(f"npm {NPM} is not here: --install-peers")
        env = {"NODE_PATH": str(self.npm_modules)}
        return self._child(NPM, NPM_VERSION, [node, str(_HERE / "node" / "driver.js")], env)

    def upstream(self) -> Child:
        """Return the child that holds ``ruvector-attention``."""
        if not self.upstream_python.exists():
            raise UnavailableError(f"{UPSTREAM} is not here: --install-peers")
        # -I keeps this project's ruvector off the child's path
        command = [str(self.upstream_python), "-I", str(_HERE / "upstream_child.py")]
        return self._child(UPSTREAM, UPSTREAM_VERSION, command, {})

    def _child(self, name: str, version: str, command: list[str], env: dict[str, str]) -> Child:
        if name not in self._children:
            threads = dict.fromkeys(_THREAD_VARIABLES, str(self._threads))
            child = Child(command, {**os.environ, **threads, **env})
            self._children[name] = child
            if child.version != version:
                message = f"{name} {child.version} is here, {version} is meant: --install-peers"
                raise UnavailableError(message)
        return self._children[name]

    def close(self) -> None:
        """End the children."""
        for child in self._children.values():
            child.close()
        self._children.clear()

    def status(self) -> list[Status]:
        """Look for every peer without importing any."""
        found = []
        for module, package in _PACKAGES.items():
            version = None
            if importlib.util.find_spec(module) is not None:
                version = _distribution_version(package)
            found.append(Status(package, version, f"pip install {package}"))
        found.append(Status(f"npm {NPM}", self._npm_version(), "--install-peers (needs npm)"))
        found.append(Status(UPSTREAM, self._upstream_version(), "--install-peers"))
        return found

    def _npm_version(self) -> str | None:
        manifest = self.npm_modules / NPM / "package.json"
        if shutil.which("node") is None or not manifest.exists():
            return None
        return str(json.loads(manifest.read_text(encoding="utf-8"))["version"])

    def _upstream_version(self) -> str | None:
        if not self.upstream_python.exists():
            return None
        code = f"import importlib.metadata as m; print(m.version({UPSTREAM!r}))"
        done = subprocess.run(
            [str(self.upstream_python), "-I", "-c", code], capture_output=True, text=True
        )
        return done.stdout.strip() or None if done.returncode == 0 else None

    def install(self) -> None:
        """Install the npm package and the environment of ``ruvector-attention``."""
        npm = shutil.which("npm")
        if npm is None:
            print(f"npm is not on the PATH: {NPM} left out")
        else:
            folder = self.npm_modules.parent
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(_HERE / "node" / "package.json", folder)
            subprocess.run([npm, "install", "--no-audit", "--no-fund"], cwd=folder, check=True)
        environment = self.upstream_python.parents[1]
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        requirement = f"{UPSTREAM}=={UPSTREAM_VERSION}"
        command = [str(self.upstream_python), "-m", "pip", "install", "--quiet", requirement]
        subprocess.run(command, check=True)


def _distribution_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
