"""Attention in the product of a Euclidean space and a Poincare ball."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _config, _kernels
from .._arrays import Array, compute_dtype
from .._ball_backward import Parameters
from .._ball_problem import BallProblem
from .._checks import finite, flag, integer, settings
from .._kernels.spec import BallSpec
from ..errors import DimensionMismatchError, InvalidConfigError
from ._ball import BallAttention, ball_curvature, ball_temperature
from .base import Inputs, by_head

__all__ = ["DualSpaceAttention", "DualSpaceConfig"]


@dataclass(frozen=True, slots=True)
class DualSpaceConfig:
    """The configuration of :class:`DualSpaceAttention`.

    Parameters
    ----------
    euclidean_dim, hyperbolic_dim : int
        Widths of the two parts of a vector; `num_heads` divides both.
    num_heads : int
        Number of heads.
    curvature : float
        Its absolute value is that of the ball's curvature; not 0.
    fusion_weight : float, default 0.5
        What the distance counts, from 0 to 1; the dot product counts the rest. 0 and 1 only
        where it is not learned.
    temperature : float, default 1.0
        Divides the scores; at least 1e-12.
    learn_fusion : bool, default True
        Whether the fusion weight is a parameter.

    Raises
    ------
    InvalidConfigError
        If a field is outside its domain.

    Examples
    --------
    >>> import ruvector
    >>> ruvector.DualSpaceConfig(8, 4, num_heads=2, curvature=-1.0).curvature
    1.0
    """

    euclidean_dim: int
    hyperbolic_dim: int
    num_heads: int
    curvature: float
    fusion_weight: float = 0.5
    temperature: float = 1.0
    learn_fusion: bool = True

    def __post_init__(self) -> None:
        """Check the fields."""
        heads = integer(self.num_heads, "num_heads", 1)
        checked: dict[str, Any] = {"num_heads": heads}
        for name in ("euclidean_dim", "hyperbolic_dim"):
            checked[name] = integer(getattr(self, name), name, 1)
            if checked[name] % heads:
                raise InvalidConfigError(
                    f"num_heads must divide {name}, got num_heads={heads} and "
                    f"{name}={checked[name]}"
                )
        checked["curvature"] = ball_curvature(self.curvature)
        checked["learn_fusion"] = flag(self.learn_fusion, "learn_fusion")
        checked["fusion_weight"] = weight = finite(self.fusion_weight, "fusion_weight")
        if not 0 <= weight <= 1:
            raise InvalidConfigError(
                f"fusion_weight must be between 0 and 1, got {self.fusion_weight!r}"
            )
        if checked["learn_fusion"] and weight in (0, 1):
            raise InvalidConfigError(
                f"fusion_weight must be strictly between 0 and 1 where it is learned, "
                f"got {self.fusion_weight!r}"
            )
        checked["temperature"] = ball_temperature(self.temperature)
        for name, value in checked.items():
            object.__setattr__(self, name, value)


class DualSpaceAttention(BallAttention):
    r"""Attention whose scores and values have a Euclidean and a hyperbolic part.

    A vector is ``[Euclidean part, hyperbolic part]``, and head `h` takes slice `h` of each.
    With w the fusion weight, and e and x the slices of the two parts,

    .. math::

        s_j = \frac{1}{\mathrm{temperature}} \left( (1 - w) \frac{e_q \cdot e_j}{\sqrt{d_e}}
        - w\, d_c(\exp_0 x_q, \exp_0 x_j) \right)

    The Euclidean parts of the values are averaged; of the hyperbolic parts the result is
    the logarithm at the origin of the Einstein midpoint of their exponentials. The output is
    laid out as the input.

    Parameters
    ----------
    config : DualSpaceConfig, optional
        The configuration; without it, its fields are given as keywords.
    **fields
        The fields of :class:`DualSpaceConfig`.

    Raises
    ------
    InvalidConfigError
        If a field is outside its domain, or both a config and fields are given.

    Notes
    -----
    A learned fusion weight is the sigmoid of the parameter ``fusion_logit``, whose gradient
    :meth:`compute_with_gradients` gives in ``parameters``.

    In float32 rounding shortens the hyperbolic part of an output where one value with a part
    longer than about ``3 / sqrt(c)`` has nearly all the weight: by 1e-3 at that length, by
    more beyond. float64 does not.

    References
    ----------
    .. [1] A. Gu et al., "Learning Mixed-Curvature Representations in Product Spaces", 2019.

    Examples
    --------
    >>> import numpy as np
    >>> import ruvector
    >>> attention = ruvector.DualSpaceAttention.simple(8, 4, num_heads=2, curvature=1.0)
    >>> keys = np.random.default_rng(0).standard_normal((10, 12), dtype=np.float32)
    >>> output, lse = attention.compute(keys[0], keys, keys, return_lse=True)
    >>> output.shape, lse.shape
    ((12,), (2,))
    >>> euclidean, hyperbolic = attention.get_space_contributions(keys[0], keys)
    >>> euclidean.shape, hyperbolic.shape
    ((2, 10), (2, 10))
    """

    _fields = (
        "euclidean_dim",
        "hyperbolic_dim",
        "num_heads",
        "curvature",
        "fusion_weight",
        "temperature",
        "learn_fusion",
    )

    def __init__(self, config: DualSpaceConfig | None = None, **fields: Any) -> None:
        chosen = settings(DualSpaceConfig, config, fields)
        super().__init__(chosen.euclidean_dim + chosen.hyperbolic_dim)
        self._settings = chosen
        self._heads = chosen.num_heads
        self._parameters = {}
        if chosen.learn_fusion:
            w = chosen.fusion_weight
            self._parameters["fusion_logit"] = np.array(math.log(w) - math.log1p(-w))

    @classmethod
    def simple(
        cls, euclidean_dim: int, hyperbolic_dim: int, num_heads: int, curvature: float
    ) -> DualSpaceAttention:
        """Make an attention with the defaults of :class:`DualSpaceConfig`.

        Parameters
        ----------
        euclidean_dim, hyperbolic_dim, num_heads, curvature
            As in :class:`DualSpaceConfig`.

        Returns
        -------
        DualSpaceAttention
        """
        return cls(DualSpaceConfig(euclidean_dim, hyperbolic_dim, num_heads, curvature))

    @classmethod
    def simple_fused(
        cls, dim: int, num_heads: int, curvature: float, fusion_weight: float
    ) -> DualSpaceAttention:
        """Make an attention over vectors that are half Euclidean and half hyperbolic.

        Parameters
        ----------
        dim : int
            Width of the vectors; even.
        num_heads, curvature, fusion_weight
            As in :class:`DualSpaceConfig`.

        Returns
        -------
        DualSpaceAttention

        Raises
        ------
        InvalidConfigError
            If `dim` is odd, or a parameter is outside its domain.
        """
        if integer(dim, "dim", 2) % 2:
            raise InvalidConfigError(f"dim must be even for two equal parts, got {dim}")
        half = integer(dim, "dim", 2) // 2
        return cls(DualSpaceConfig(half, half, num_heads, curvature, fusion_weight))

    @property
    def euclidean_dim(self) -> int:
        """Width of the Euclidean part."""
        return self._settings.euclidean_dim

    @property
    def hyperbolic_dim(self) -> int:
        """Width of the hyperbolic part."""
        return self._settings.hyperbolic_dim

    @property
    def num_heads(self) -> int:
        """Number of heads."""
        return self._settings.num_heads

    @property
    def curvature(self) -> float:
        """Absolute value of the ball's curvature."""
        return self._settings.curvature

    @property
    def fusion_weight(self) -> float:
        """What the distance counts as it is now, learned or not."""
        if not self._settings.learn_fusion:
            return self._settings.fusion_weight
        logit = finite(float(self._parameters["fusion_logit"]), "fusion_logit")
        # exp of what is not positive: no logit overflows.
        small = math.exp(-abs(logit)) / (1 + math.exp(-abs(logit)))
        return 1 - small if logit > 0 else small

    @property
    def temperature(self) -> float:
        """What divides the scores."""
        return self._settings.temperature

    @property
    def learn_fusion(self) -> bool:
        """Whether the fusion weight is a parameter."""
        return self._settings.learn_fusion

    def get_space_contributions(self, query: ArrayLike, keys: ArrayLike) -> tuple[Array, Array]:
        """Return the two parts of the scores, without weight and temperature.

        Parameters
        ----------
        query : array_like, shape (dim,), (m, dim) or (B, m, dim)
            As in :meth:`compute`.
        keys : array_like, shape (n, dim), or (B, n, dim) beside a batch of queries
            As in :meth:`compute`.

        Returns
        -------
        euclidean, hyperbolic : ndarray, shape (heads, n), (heads, m, n) or (B, heads, m, n)
            Scaled dot products and negative distances. float32, or float64 for float64.

        Raises
        ------
        DimensionMismatchError, EmptyInputError, TypeError
            As :meth:`compute`.
        """
        inputs = Inputs(query, keys, keys, self._dim)
        flat, curved = self._by_space(inputs.query, inputs.keys)
        shape = (*flat[0].shape[:3], inputs.keys.shape[1])
        dtype = compute_dtype(inputs.query.dtype)
        scores = np.empty(shape, dtype), np.empty(shape, dtype)
        _kernels.hyperbolic.space_scores(
            flat[0],
            flat[1],
            scores[0],
            curved[0],
            curved[1],
            scores[1],
            self._scale(),
            BallSpec(self.curvature, 1.0, True),
            _config.current_threads(),
        )
        flat_scores, curved_scores = (
            inputs.shaped_weights(part, keep_heads=True) for part in scores
        )
        return flat_scores, curved_scores

    def _scale(self) -> float:
        return float((self.euclidean_dim // self._heads) ** -0.5)

    def _by_space(self, *arrays: Array) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        width, heads = self.euclidean_dim, self._heads
        flat = tuple(by_head(x[..., :width], heads) for x in arrays)
        return flat, tuple(by_head(x[..., width:], heads) for x in arrays)

    def _problem(self, inputs: Inputs, mask: Array | None, **_: Any) -> BallProblem:
        if inputs.values.shape[-1] != self._dim:
            raise DimensionMismatchError(
                f"values must have the width {self._dim} of the keys, with the same two "
                f"parts, got {inputs.values.shape[-1]}"
            )
        weight, temperature = self.fusion_weight, self.temperature
        flat, curved = self._by_space(inputs.query, inputs.keys, inputs.values)
        if mask is not None:
            mask = np.broadcast_to(mask, (len(mask), self._heads, *mask.shape[2:]))
        return BallProblem(
            (flat[0], flat[1], flat[2]),
            (curved[0], curved[1], curved[2]),
            mask,
            (1 - weight) / temperature * self._scale(),
            BallSpec(self.curvature, weight / temperature, True),
        )

    def _parameter_gradients(self, numbers: Parameters, **options: Any) -> dict[str, Array]:
        if not self._parameters:
            return {}
        weight = self.fusion_weight
        by_weight = numbers.distance_scale - self._scale() * numbers.scale
        gradient = by_weight / self.temperature * weight * (1 - weight)
        return {"fusion_logit": np.array(gradient)}

    def _finish(self, state: Array, out: Array) -> None:
        (flat,), (curved,) = self._by_space(out)
        width = flat.shape[3]
        flat[...] = state[..., :width]
        points = np.empty((math.prod(curved.shape[:3]), curved.shape[3]), out.dtype)
        rows = np.ascontiguousarray(state[..., width:]).reshape(
            len(points), points.shape[1] + 1
        )
        _kernels.hyperbolic.midpoint(np.ascontiguousarray(rows), points, self.curvature, True)
        curved[...] = points.reshape(curved.shape)

    def _state_width(self) -> int:
        return self._dim // self._heads + 1

    def _output_width(self, width: int) -> int:
        return self._dim

    def _config(self) -> tuple[tuple[str, Any], ...]:
        # As constructed: what is learned must not change the hash.
        return tuple((name, getattr(self._settings, name)) for name in self._fields)

    def _check_parameters(self, parameters: Mapping[str, Array]) -> None:
        for name, value in parameters.items():
            finite(float(value), name)
