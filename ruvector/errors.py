"""The exceptions that ruvector raises on bad input.

Each derives from :class:`RuvectorError` and, but for the verdict of ``gradcheck`` and
:class:`NonFiniteError`, from :class:`ValueError`, so code that catches ``ValueError`` keeps
working. Input of a wrong *type* (complex, object, string) raises the built-in
:class:`TypeError`.
"""

__all__ = [
    "CheckpointError",
    "DimensionMismatchError",
    "EmptyInputError",
    "GradientCheckError",
    "InvalidConfigError",
    "InvalidMaskError",
    "NonFiniteError",
    "RuvectorError",
]


class RuvectorError(Exception):
    """Base class of every error that ruvector raises on purpose."""


class CheckpointError(RuvectorError, ValueError):
    """A saved model or checkpoint is damaged, or belongs to something else."""


class DimensionMismatchError(RuvectorError, ValueError):
    """An array has the wrong number of axes or an axis of the wrong length."""


class EmptyInputError(RuvectorError, ValueError):
    """There is nothing to attend to where something is required."""


class GradientCheckError(RuvectorError, AssertionError):
    """A gradient is not that of its function."""


class InvalidConfigError(RuvectorError, ValueError):
    """A configuration value or an option is outside its domain."""


class InvalidMaskError(RuvectorError, ValueError):
    """A mask has a dtype or a shape that the mechanism cannot take."""


class NonFiniteError(RuvectorError, ArithmeticError):
    """A loss or a gradient became NaN or infinite."""
