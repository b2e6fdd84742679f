"""Rotary positions written down in float64, for the tests to compare with.

Nothing here knows the package. Angles come from the formulas of the papers (RoFormer,
arXiv 2104.09864; position interpolation, arXiv 2306.15595; YaRN, arXiv 2309.00071, with the
ramp over indices that its authors' code and Hugging Face's have), and a vector is turned by
the matrix that the paper prints.
"""

from __future__ import annotations

import math

import numpy as np


def frequencies(
    dim, base=10000.0, scaling="linear", factor=1.0, original=None, fast=32, slow=1
):
    """Give the angle per position of each pair, and the factor on sines and cosines."""
    if scaling == "ntk":
        base = base * factor ** (dim / (dim - 2))
    plain = [base ** (-2 * i / dim) for i in range(dim // 2)]
    if scaling == "linear":
        return [f / factor for f in plain], 1.0
    if scaling == "ntk":
        return plain, 1.0

    def index_with(turns):
        # The pair whose wavelength fits `turns` times into the original length.
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(index_with(fast)), 0)
    high = min(math.ceil(index_with(slow)), dim - 1)
    mixed = []
    for i, f in enumerate(plain):
        interpolated = min(max((i - low) / max(high - low, 0.001), 0.0), 1.0)
        mixed.append(f / factor * interpolated + f * (1 - interpolated))
    return mixed, 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def matrix(angles, amplitude=1.0, neighbours=False):
    """Give the block rotation by these angles, pairs being halves apart or neighbours."""
    half = len(angles)
    turn = np.zeros((2 * half, 2 * half))
    for i, angle in enumerate(angles):
        x, y = (2 * i, 2 * i + 1) if neighbours else (i, i + half)
        turn[x, x] = turn[y, y] = amplitude * math.cos(angle)
        turn[x, y], turn[y, x] = -amplitude * math.sin(angle), amplitude * math.sin(angle)
    return turn


def turn(x, position, frequencies_, amplitude=1.0, neighbours=False):
    """Turn one vector."""
    angles = [position * f for f in frequencies_]
    return matrix(angles, amplitude, neighbours) @ np.asarray(x, np.float64)


def table(positions, frequencies_, amplitude=1.0, neighbours=False):
    """Give (c, s) of every pair for positions 0, 1, ..., laid out as a vector is."""
    axis = np.zeros(2 * len(frequencies_))
    axis[slice(0, None, 2) if neighbours else slice(0, len(frequencies_))] = 1
    return np.stack(
        [turn(axis, p, frequencies_, amplitude, neighbours) for p in range(positions)]
    )


def turned_by(x, positions, rows, neighbours):
    """Turn x ``(B, H, L, D)`` at ``(B, L)`` by the pairs (c, s) in `rows` of a table."""
    x, rows = np.asarray(x, np.float64), np.asarray(rows, np.float64)
    first = slice(0, None, 2) if neighbours else slice(0, x.shape[3] // 2)
    second = slice(1, None, 2) if neighbours else slice(x.shape[3] // 2, None)
    angles = rows[positions][:, None]
    # A pair is a complex number, and turning it a product.
    with np.errstate(all="ignore"):
        turns = angles[..., first] + 1j * angles[..., second]
        product = (x[..., first] + 1j * x[..., second]) * turns
    out = np.empty(x.shape)
    out[..., first], out[..., second] = product.real, product.imag
    return out
