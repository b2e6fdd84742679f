"""Graph attention for the command line: a layer from a file of its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from .attention import EdgeFeaturedAttention
from .errors import DimensionMismatchError, RuvectorError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["block_features", "load_edge_featured", "read_parameters"]


def load_edge_featured(path: str) -> EdgeFeaturedAttention:
    """Make an :class:`EdgeFeaturedAttention` from its ``state_dict`` in a ``.npz`` file.

    The configuration follows from the names and shapes; heads are concatenated unless the
    bias or the residual is as narrow as one.

    Raises
    ------
    RuvectorError
        If the file is not usable.
    """
    state = read_parameters(path)
    try:
        _, heads, channels = state["att"].shape
        width = heads * channels
        for name in ("res.weight", "bias"):
            width = len(state.get(name, range(width)))
        concatenated = width == heads * channels
        edges = state.get("lin_edge.weight")
        attention = EdgeFeaturedAttention(
            node_dim=state["lin_l.weight"].shape[1],
            edge_dim=0 if edges is None else edges.shape[1],
            num_heads=heads,
            out_dim=heads * channels if concatenated else channels,
            concat_heads=concatenated,
            share_weights="lin_r.weight" not in state,
            bias="lin_l.bias" in state,
            residual="res.weight" in state,
            dtype="float64" if state["att"].dtype == np.float64 else "float32",
        )
        attention.load_state_dict(state)
    except KeyError as error:
        raise RuvectorError(f"--parameters {path}: it has no {error}") from error
    except (ValueError, TypeError, IndexError) as error:
        raise RuvectorError(f"--parameters {path}: {error}") from error
    return attention


def read_parameters(path: str) -> dict[str, NDArray[Any]]:
    """Read a ``state_dict`` from a ``.npz`` file.

    Raises
    ------
    RuvectorError
        If the file is not usable.
    """
    try:
        # np.load itself leaves a broken file open.
        with open(path, "rb") as handle, np.load(handle) as file:
            return {name: file[name] for name in file.files}
    except OSError as error:
        reason = error.strerror or str(error)
    except (BadZipFile, EOFError, ValueError, AttributeError, TypeError) as error:
        reason = f"not a usable .npz file ({error})"
    raise RuvectorError(f"--parameters {path}: {reason}")


def block_features(
    features: NDArray[Any], keys: int, start: int, stop: int, total: int
) -> NDArray[Any]:
    """Return the features of some queries' edges: all, or those from start to stop."""
    if features.ndim == 3 and features.shape[:2] == (total, keys):
        return features[start:stop]
    if features.ndim == 2 and features.shape[0] == keys:
        return features
    raise DimensionMismatchError(
        f"--edge-features must have shape ({keys}, e) or ({total}, {keys}, e), "
        f"got {features.shape}"
    )
