"""Optimisers that update parameters in place, with the semantics of ``torch.optim``.

A step is one pass over the memory of all parameters, in as many threads as the package uses,
and its result does not depend on their number.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, ClassVar

from .. import _kernels
from .._arrays import Array
from .._checks import finite, flag
from .._config import current_threads
from .._kernels.spec import AdamSpec, SGDSpec
from ..errors import InvalidConfigError
from ._optimizer import Optimizer, between, not_negative
from ._trees import Targets

__all__ = ["AdamOptimizer", "AdamWOptimizer", "SGDOptimizer", "clip_grad_norm"]


class SGDOptimizer(Optimizer):
    """Gradient descent, with momentum if wanted.

    Parameters
    ----------
    learning_rate : float
        Not negative.
    momentum : float, default 0.0
        How much of the last update enters the next; not negative.
    dampening : float, default 0.0
        How much of a gradient does not enter the momentum, from the second step on.
    nesterov : bool, default False
        Look ahead by one step of the momentum, which must be positive, without dampening.
    weight_decay : float, default 0.0
        Times the parameter, added to its gradient; not negative.

    Raises
    ------
    InvalidConfigError
        If an option is outside its domain.

    See Also
    --------
    torch.optim.SGD : the same update.

    References
    ----------
    Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning".

    Examples
    --------
    >>> import numpy as np
    >>> from ruvector.training import SGDOptimizer
    >>> optimizer = SGDOptimizer(0.1, momentum=0.9)
    >>> weights = np.array([1.0, 2.0], np.float32)
    >>> optimizer.step([1.0, -1.0], params=weights)
    array([0.9, 2.1], dtype=float32)
    >>> optimizer.step([0.0, 0.0], params=weights).round(2)
    array([0.81, 2.19], dtype=float32)
    """

    _options: ClassVar = (
        "learning_rate", "momentum", "dampening", "nesterov", "weight_decay",
    )  # fmt: skip

    def __init__(
        self,
        learning_rate: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self._momentum = not_negative(momentum, "momentum")
        self._dampening = finite(dampening, "dampening")
        self._nesterov = flag(nesterov, "nesterov")
        if self._nesterov and (self._momentum == 0 or self._dampening != 0):
            raise InvalidConfigError(
                "nesterov must come with a momentum and without dampening, "
                f"got momentum={momentum!r} and dampening={dampening!r}"
            )
        self._slots = ("momentum_buffer",) if self._momentum else ()

    @classmethod
    def with_momentum(cls, learning_rate: float, momentum: float) -> SGDOptimizer:
        """Return an optimiser with momentum."""
        return cls(learning_rate, momentum)

    @classmethod
    def with_weight_decay(
        cls, learning_rate: float, momentum: float, weight_decay: float
    ) -> SGDOptimizer:
        """Return an optimiser with momentum and weight decay."""
        return cls(learning_rate, momentum, weight_decay=weight_decay)

    @property
    def momentum(self) -> float:
        """The momentum."""
        return self._momentum

    @property
    def dampening(self) -> float:
        """How much of a gradient does not enter the momentum."""
        return self._dampening

    @property
    def nesterov(self) -> bool:
        """Whether the update looks ahead."""
        return self._nesterov

    def _update(
        self,
        params: list[Array],
        gradients: list[Array],
        slots: list[list[Array]],
        threads: int,
    ) -> None:
        spec = SGDSpec(
            self._learning_rate,
            self._momentum,
            self._dampening,
            self._nesterov,
            self._weight_decay,
            first=self._steps == 1,
        )
        buffers = slots[0] if slots else None
        _kernels.optim.sgd(params, gradients, buffers, spec, threads)


class _Adam(Optimizer):
    """Adam with either weight decay."""

    _options: ClassVar = (
        "learning_rate", "beta1", "beta2", "epsilon", "weight_decay", "amsgrad",
    )  # fmt: skip
    _decoupled: ClassVar[bool]

    def __init__(
        self,
        learning_rate: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        weight_decay: float,
        amsgrad: bool,
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self._beta1 = between(beta1, "beta1")
        self._beta2 = between(beta2, "beta2")
        self._epsilon = not_negative(epsilon, "epsilon")
        self._amsgrad = flag(amsgrad, "amsgrad")
        self._slots = ("exp_avg", "exp_avg_sq")
        if self._amsgrad:
            self._slots += ("max_exp_avg_sq",)

    @property
    def beta1(self) -> float:
        """Decay of the mean of the gradients."""
        return self._beta1

    @property
    def beta2(self) -> float:
        """Decay of the mean of their squares."""
        return self._beta2

    @property
    def epsilon(self) -> float:
        """What is added to the root of the mean square."""
        return self._epsilon

    @property
    def amsgrad(self) -> bool:
        """Whether the largest mean square so far is used."""
        return self._amsgrad

    def _update(
        self,
        params: list[Array],
        gradients: list[Array],
        slots: list[list[Array]],
        threads: int,
    ) -> None:
        spec = AdamSpec(
            self._learning_rate,
            self._beta1,
            self._beta2,
            self._epsilon,
            self._steps,
            decay=0.0 if self._decoupled else self._weight_decay,
            shrinkage=self._learning_rate * self._weight_decay if self._decoupled else 0.0,
        )
        first, second, *peaks = slots
        _kernels.optim.adam(
            params, gradients, first, second, peaks[0] if peaks else None, spec, threads
        )


class AdamOptimizer(_Adam):
    """Adam: steps by the mean gradient over the root of its mean square.

    Parameters
    ----------
    learning_rate : float
        Not negative.
    beta1, beta2 : float, default 0.9 and 0.999
        Decay of the means of the gradients and of their squares; at least 0 and below 1.
    epsilon : float, default 1e-8
        Added to the root; not negative.
    weight_decay : float, default 0.0
        Times the parameter, added to its gradient and so part of both means; not negative.
        :class:`AdamWOptimizer` has the decay that is not.
    amsgrad : bool, default False
        Use the largest mean square so far (Reddi et al. 2018).

    Raises
    ------
    InvalidConfigError
        If an option is outside its domain.

    See Also
    --------
    torch.optim.Adam : the same update.

    References
    ----------
    Kingma and Ba 2015, "Adam: a method for stochastic optimization", arXiv 1412.6980,
    algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from ruvector.training import AdamOptimizer
    >>> optimizer = AdamOptimizer(0.1)
    >>> weights = {"scale": np.ones(2), "shift": np.zeros(1)}
    >>> _ = optimizer.step({"scale": [3.0, -0.5], "shift": [2.0]}, params=weights)
    >>> weights["scale"].round(6), weights["shift"].round(6)
    (array([0.9, 1.1]), array([-0.1]))
    """

    _decoupled: ClassVar = False

    def __init__(
        self,
        learning_rate: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon, weight_decay, amsgrad)

    @classmethod
    def with_betas(cls, learning_rate: float, beta1: float, beta2: float) -> AdamOptimizer:
        """Return an optimiser with these decays."""
        return cls(learning_rate, beta1, beta2)

    @classmethod
    def with_config(
        cls,
        learning_rate: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        weight_decay: float,
    ) -> AdamOptimizer:
        """Return an optimiser with all of these options."""
        return cls(learning_rate, beta1, beta2, epsilon, weight_decay)


class AdamWOptimizer(_Adam):
    """Adam with weight decay apart from the gradient.

    Parameters
    ----------
    learning_rate : float
        Not negative.
    weight_decay : float, default 0.01
        A step first multiplies parameters by ``1 - learning_rate * weight_decay``; not
        negative.
    beta1, beta2 : float, default 0.9 and 0.999
        Decay of the means of the gradients and of their squares; at least 0 and below 1.
    epsilon : float, default 1e-8
        Added to the root; not negative.
    amsgrad : bool, default False
        Use the largest mean square so far (Reddi et al. 2018).

    Raises
    ------
    InvalidConfigError
        If an option is outside its domain.

    See Also
    --------
    torch.optim.AdamW : the same update.

    References
    ----------
    Loshchilov and Hutter 2019, "Decoupled weight decay regularization", arXiv 1711.05101,
    algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from ruvector.training import AdamWOptimizer
    >>> optimizer = AdamWOptimizer(0.01, weight_decay=0.1)
    >>> weights = np.array([1.0, -1.0])
    >>> optimizer.step([2.0, 2.0], params=weights).round(4)
    array([ 0.989, -1.009])
    """

    _options: ClassVar = (
        "learning_rate", "weight_decay", "beta1", "beta2", "epsilon", "amsgrad",
    )  # fmt: skip
    _decoupled: ClassVar = True

    def __init__(
        self,
        learning_rate: float,
        weight_decay: float = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon, weight_decay, amsgrad)

    @classmethod
    def with_weight_decay(cls, learning_rate: float, weight_decay: float) -> AdamWOptimizer:
        """Return an optimiser with this decay of the weights."""
        return cls(learning_rate, weight_decay)

    @classmethod
    def with_betas(
        cls, learning_rate: float, weight_decay: float, beta1: float, beta2: float
    ) -> AdamWOptimizer:
        """Return an optimiser with these decays."""
        return cls(learning_rate, weight_decay, beta1, beta2)


def clip_grad_norm(gradients: Any, max_norm: float) -> float:
    """Scale gradients in place so that their norm, all of them together, is at most a maximum.

    Parameters
    ----------
    gradients : array, list or dict of arrays, nested at will
        float32 or float64, writeable, none sharing memory with another.
    max_norm : float
        Positive; inf measures only.

    Returns
    -------
    float
        The Euclidean norm before, summed in float64. Where it is NaN or inf, nothing was
        scaled.

    Raises
    ------
    InvalidConfigError
        If `max_norm` is not positive, or an array is read-only, broadcast or shares memory
        with another.
    TypeError
        If something is no array of float32 or float64.

    Notes
    -----
    The factor is ``max_norm / norm``; that of ``torch.nn.utils.clip_grad_norm_`` has 1e-6 more
    below the line.

    Examples
    --------
    >>> import numpy as np
    >>> from ruvector.training import clip_grad_norm
    >>> gradients = [np.array([3.0]), np.array([0.0, 4.0])]
    >>> clip_grad_norm(gradients, 1.0), gradients
    (5.0, [array([0.6]), array([0. , 0.8])])
    """
    if not isinstance(max_norm, Real) or isinstance(max_norm, bool) or not max_norm > 0:
        raise InvalidConfigError(f"max_norm must be a positive number, got {max_norm!r}")
    targets = Targets(gradients, "gradients")
    threads = current_threads()
    norm: float = _kernels.optim.norm(targets.flat, threads)
    if max_norm < norm < math.inf:
        _kernels.optim.scale(targets.flat, float(max_norm) / norm, threads)
        targets.write_back()
    return norm
