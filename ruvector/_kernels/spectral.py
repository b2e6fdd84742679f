r"""Penalties on how embeddings or weights spread over directions, with their gradients.

Of embeddings x ``(n, d)``, with population variances::

    v_k = var_i(x_ik)          loss = var_k(v_k)
    dx_ik = 4 / (n d) (v_k - mean(v)) (x_ik - mean_i(x_ik))

Of matrices W, with sigma the largest singular value and u, v its vectors (Yoshida and Miyato
2017, arXiv 1705.10941)::

    loss = 1/2 sum_W sigma(W)^2          dW = sigma u v^T

sigma^2 is the largest eigenvalue of the smaller one of W W^T and W^T W. Where several are equal
the gradient is that of one of them. Arithmetic is float64; NumPy and its LAPACK serve both
backends.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback._threads import blas_threads

__all__ = ["spectral_norm", "variance_of_variances"]

_Array = NDArray[Any]


def variance_of_variances(x: _Array, weight: float) -> tuple[float, _Array]:
    """Return `weight` times the loss of embeddings, and its gradient in their dtype."""
    with np.errstate(all="ignore"):
        centred = x - x.mean(axis=0, dtype=np.float64)
        variances = np.mean(np.square(centred), axis=0)
        apart = variances - variances.mean()
        centred *= apart * (4 * weight / x.size)
        return weight * float(np.mean(np.square(apart))), centred.astype(x.dtype)


def spectral_norm(matrix: _Array, weight: float, threads: int) -> tuple[float, _Array]:
    """Return `weight` times the loss of one matrix of finite numbers, and its gradient."""
    w = matrix.astype(np.float64)
    wide = w.shape[0] < w.shape[1]
    # Brought to 1, so that squares neither overflow nor vanish.
    scale = float(np.abs(w).max(initial=0.0)) or 1.0
    w /= scale
    with blas_threads(threads, w.size * min(w.shape)):
        squares, vectors = np.linalg.eigh(w @ w.T if wide else w.T @ w)
        vector = vectors[:, -1]
        gradient = np.outer(vector, vector @ w) if wide else np.outer(w @ vector, vector)
    loss = weight / 2 * float(max(squares[-1], 0.0)) * scale**2
    return loss, (weight * scale * gradient).astype(matrix.dtype)
