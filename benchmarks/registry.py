"""The registry: every module of :mod:`benchmarks.families` with a ``rows()`` is a family."""

from __future__ import annotations

import importlib
import pkgutil

from . import families as _package
from .core import Family

__all__ = ["families", "select"]


def families() -> dict[str, Family]:
    """Return all families by name, in alphabetical order."""
    found = {}
    for info in sorted(pkgutil.iter_modules(_package.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{_package.__name__}.{info.name}")
        if hasattr(module, "rows"):
            summary = (module.__doc__ or "").strip().split("\n", 1)[0]
            found[info.name] = Family(info.name, summary, module)
    return found


def select(names: str | None) -> list[Family]:
    """Return the families of a comma-separated list, all of them for None."""
    known = families()
    if names is None:
        return list(known.values())
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"unknown family {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in wanted]
