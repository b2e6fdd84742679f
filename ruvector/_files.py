"""Arrays from files, and files that appear only when they are complete."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from .errors import RuvectorError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["atomic_file", "open_array"]

_FLOATS = ("f2", "f4", "f8")


def open_array(path: str, name: str) -> NDArray[Any]:
    """Map a ``.npy`` file of real numbers into memory.

    Parameters
    ----------
    path : str
        The file.
    name : str
        What messages call it.

    Returns
    -------
    ndarray
        Read-only.

    Raises
    ------
    RuvectorError
        If it cannot be read or holds something else.
    """
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, SyntaxError, EOFError) as error:
        reason = f"not a usable .npy file ({error})"
    else:
        if array.dtype.kind in "biu" or array.dtype.newbyteorder("=").str[1:] in _FLOATS:
            return np.asarray(array)
        reason = f"dtype {array.dtype} is not supported (float16, float32, float64 or integer)"
    raise RuvectorError(f"{name} {path}: {reason}")


@contextmanager
def atomic_file(
    path: str | os.PathLike[str], name: str | None = None, *, durable: bool = False
) -> Iterator[BinaryIO]:
    """Open a file that takes its name when the block ends well, else vanishes.

    Parameters
    ----------
    path : path
        Where it appears; what was there before stays until then.
    name : str, optional
        What messages call it.
    durable : bool, default False
        Whether it has to be on the disk before it takes its name, so that a machine that
        stops leaves one of the two.

    Yields
    ------
    binary file

    Raises
    ------
    RuvectorError
        If no file can be made there; without a name the OSError itself.
    """
    # A symbolic link keeps pointing where it points, and /dev/null stays a device.
    path = os.path.realpath(path)
    folder, base = os.path.split(path)
    # Threads that write the same file have the same number.
    temporary = os.path.join(folder, f".{base}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    # Ctrl-C may come as soon as the file is there, so what removes it stands around its making.
    try:
        try:
            if os.path.exists(path) and not os.path.isfile(path):
                raise OSError(errno.EINVAL, "is not a regular file", path)
            file = open(temporary, "xb")  # noqa: SIM115
        except OSError as error:
            if name is None:
                raise
            raise RuvectorError(f"{name} {path}: {error.strerror}") from None
        with file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    # Not every system opens folders, nor every file system syncs them.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
