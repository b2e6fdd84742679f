"""The one selector between the compiled kernels and their NumPy twins.

Callers reach a kernel through this package at call time, as in
``_kernels.softmax.attend(...)``, and never learn which twin answered. The environment
decides once, at import:

``RUVECTOR_BACKEND``
    ``native`` or ``python``; what is asked for and missing is an :class:`ImportError`.
    Under ``python`` the compiled modules are never loaded. Unset takes the compiled
    modules where they load and the twins elsewhere.
``RUVECTOR_ISA``
    The instruction set of the compiled kernels. It asks for compiled kernels, so it is an
    :class:`ImportError` where there are none, unless ``RUVECTOR_BACKEND=python`` stands
    beside it.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    from .fallback import cache as cache
    from .fallback import graph as graph
    from .fallback import graph_backward as graph_backward
    from .fallback import hyperbolic as hyperbolic
    from .fallback import linear as linear
    from .fallback import linear_backward as linear_backward
    from .fallback import optim as optim
    from .fallback import ragged as ragged
    from .fallback import rotary as rotary
    from .fallback import softmax as softmax
    from .fallback import softmax_backward as softmax_backward
    from .fallback import utils as utils

__all__ = [
    "available",
    "backend",
    "cache",
    "graph",
    "graph_backward",
    "hyperbolic",
    "import_error",
    "isa",
    "linear",
    "linear_backward",
    "openmp",
    "optim",
    "ragged",
    "rotary",
    "select",
    "softmax",
    "softmax_backward",
    "utils",
]

FAMILIES = (
    "softmax",
    "softmax_backward",
    "ragged",
    "linear",
    "linear_backward",
    "hyperbolic",
    "graph",
    "graph_backward",
    "rotary",
    "cache",
    "utils",
    "optim",
)
COMPILED = (
    "softmax",
    "softmax_backward",
    "ragged",
    "linear",
    "graph",
    "graph_backward",
    "rotary",
    "cache",
    "utils",
    "optim",
)
"""The families that have a compiled twin; the others run in NumPy under either backend."""

backend: str
"""``"native"`` or ``"python"``."""

isa: str | None
"""Instruction set of the compiled kernels in use, None under ``"python"``."""

import_error: str | None = None
"""Why the compiled modules that are installed did not load, None where nothing failed."""

openmp: Any = None
"""The compiled ``_openmp`` module, None until compiled modules are loaded."""

_native: dict[str, ModuleType] = {}


def _load_native() -> None:
    """Import every compiled module once; ImportError with the original reason."""
    global openmp
    if _native:
        return
    if os.environ.get("RUVECTOR_BACKEND") == "python":
        raise ImportError("RUVECTOR_BACKEND=python rules out ruvector's compiled kernels")
    try:
        modules = {
            name: import_module(f"{__name__}.{name}")
            for name in ("_dispatch", "_openmp", *COMPILED)
        }
        modules |= {name: _twin(name) for name in FAMILIES if name not in COMPILED}
    except Exception as error:
        # A module built against another NumPy or Python raises nearly anything.
        reason = f"{type(error).__name__}: {error}"
        if not _extension_files():
            reason = (
                "none are installed (without a C compiler ruvector installs as pure Python)"
            )
        raise ImportError(f"ruvector's compiled kernels cannot be loaded: {reason}") from error
    _native.update(modules)
    openmp = modules["_openmp"]


def _bind(modules: dict[str, ModuleType]) -> None:
    # Importing a compiled submodule also sets the attribute of its name on this package,
    # so the choice is written down after every import and never before one.
    for name in FAMILIES:
        globals()[name] = modules[name]


def _twin(family: str) -> ModuleType:
    return import_module(f"{__name__}.fallback.{family}")


def select(backend: str, isa: str | None = None) -> None:
    """Switch every kernel of this process to one backend and instruction set.

    Parameters
    ----------
    backend : {"native", "python"}
        Which twin runs from now on.
    isa : str, optional
        Instruction set of the native backend; the best of this machine when None.

    Raises
    ------
    ValueError
        If the backend does not exist, or this machine lacks the instruction set.
    ImportError
        If the native backend is asked for and is not there.
    """
    if backend == "python":
        if isa is not None:
            raise ValueError(f"the python backend has no instruction sets, got {isa!r}")
        _bind({name: _twin(name) for name in FAMILIES})
    elif backend == "native":
        _load_native()
        dispatch: Any = _native["_dispatch"]
        known = dispatch.available_isas()
        if isa is None:
            isa = known[-1]
        if isa not in known:
            raise ValueError(
                f"instruction set {isa!r} is not available here; there are {', '.join(known)}"
            )
        dispatch.set_isa(isa)
        _bind(_native)
    else:
        raise ValueError(f"backend must be 'native' or 'python', got {backend!r}")
    globals().update(backend=backend, isa=isa)


def available() -> list[tuple[str, str | None]]:
    """Return every (backend, instruction set) that :func:`select` takes here, worst first.

    Returns
    -------
    list of (str, str or None)
        ``("python", None)``, then ``("native", isa)`` for each instruction set.
    """
    pairs: list[tuple[str, str | None]] = [("python", None)]
    before = {name: globals()[name] for name in FAMILIES}
    try:
        _load_native()
    except ImportError:
        return pairs
    finally:
        _bind(before)
    dispatch: Any = _native["_dispatch"]
    return pairs + [("native", name) for name in dispatch.available_isas()]


def _extension_files() -> list[str]:
    return [
        name
        for folder in __path__
        if os.path.isdir(folder)  # and not in a zip file
        for name in sorted(os.listdir(folder))
        if name.endswith((".so", ".pyd"))
    ]


def _select_from_environment() -> None:
    global import_error
    wanted = os.environ.get("RUVECTOR_BACKEND") or None
    wanted_isa = os.environ.get("RUVECTOR_ISA") or None
    if wanted not in (None, "native", "python"):
        raise ImportError(f"RUVECTOR_BACKEND must be 'native' or 'python', got {wanted!r}")
    if wanted == "python":
        select("python")
        return
    try:
        select("native", wanted_isa)
    except ValueError as error:
        raise ImportError(f"RUVECTOR_ISA: {error}") from None
    except ImportError as error:
        if wanted == "native":
            raise
        if wanted_isa is not None:
            raise ImportError(
                f"RUVECTOR_ISA={wanted_isa} needs compiled kernels; {error}"
            ) from error
        if _extension_files():
            import warnings

            import_error = str(error)
            warnings.warn(
                f"{error}; the slower NumPy kernels run instead",
                RuntimeWarning,
                stacklevel=2,
            )
        select("python")


_select_from_environment()
