"""Adapters in files, for programs that only use what another one trained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError, InvalidConfigError, RuvectorError
from .adapters import LinearAdapter
from .checkpoints import read_state, write_state
from .pair_encoder import PairEncoder

__all__ = ["load_adapter", "save_adapter"]


def save_adapter(path: str | os.PathLike[str], adapter: LinearAdapter | PairEncoder) -> None:
    """Save an adapter, or a pair of them.

    Parameters
    ----------
    path : path
        An ``.npz`` file, which appears when it is complete.
    adapter : LinearAdapter, or PairEncoder of two

    Raises
    ------
    InvalidConfigError
        If it is another model.
    RuvectorError, OSError
        If the file cannot be written.

    Examples
    --------
    >>> import os, tempfile
    >>> from ruvector.training import LinearAdapter, load_adapter, save_adapter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_adapter(os.path.join(folder, "adapter.npz"), LinearAdapter(8, 4, rank=2))
    ...     load_adapter(os.path.join(folder, "adapter.npz"))
    LinearAdapter(8, 4, rank=2)
    """
    adapters: dict[str, Any] = (
        {"anchors": adapter.anchors, "positives": adapter.positives}
        if isinstance(adapter, PairEncoder)
        else {"both": adapter}
    )
    if not all(isinstance(one, LinearAdapter) for one in adapters.values()):
        raise InvalidConfigError(
            f"adapter must be a LinearAdapter or a PairEncoder of two, got {adapter!r}"
        )
    write_state(path, "adapter", {side: _described(one) for side, one in adapters.items()})


def load_adapter(path: str | os.PathLike[str]) -> LinearAdapter | PairEncoder:
    """Load what :func:`save_adapter` saved.

    Parameters
    ----------
    path : path

    Returns
    -------
    LinearAdapter or PairEncoder

    Raises
    ------
    CheckpointError
        If the file is damaged or holds something else.
    OSError
        If it cannot be read.
    """
    state = read_state(path, "adapter")
    try:
        adapters = {side: _adapter_of(described) for side, described in state.items()}
        if set(adapters) == {"both"}:
            return adapters["both"]
        return PairEncoder(adapters.pop("anchors"), adapters.pop("positives"))
    except (KeyError, TypeError, RuvectorError) as error:
        raise CheckpointError(f"{os.fspath(path)}: holds no adapter ({error})") from error


def _described(adapter: LinearAdapter) -> dict[str, Any]:
    parameters = adapter.state_dict()
    return {
        "dim_in": adapter.dim_in,
        "dim_out": adapter.dim_out,
        "rank": adapter.rank,
        "dtype": next(iter(parameters.values())).dtype.name,
        "parameters": parameters,
    }


def _adapter_of(described: Mapping[str, Any]) -> LinearAdapter:
    fields = dict(described)
    parameters = fields.pop("parameters")
    adapter = LinearAdapter(**fields)
    adapter.load_state_dict(parameters)
    return adapter
