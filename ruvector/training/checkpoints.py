"""Files of arrays and settings: complete or not there, checked when read, never pickled.

A file is an ``.npz`` archive. Its entry ``manifest`` is JSON: the format, what kind of thing it
is, the nested state with arrays as references to other entries, and a SHA-256 over the rest.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from glob import escape, glob
from typing import Any

import numpy as np

from .._arrays import Array
from .._files import atomic_file
from ..errors import CheckpointError

__all__ = ["read_state", "write_state"]

FORMAT = 1
_MANIFEST = "manifest"
_REFERENCE = "$array"


def write_state(path: str | os.PathLike[str], kind: str, state: Mapping[str, Any]) -> None:
    """Write nested dicts and lists of arrays, strings and numbers.

    Parameters
    ----------
    path : path
        A file that was there stays as it was unless the new one is complete and on the disk.
    kind : str
        What it is, for :func:`read_state` to compare.
    state : mapping
        Keys are strings.

    Raises
    ------
    RuvectorError
        If no file can be made there.
    OSError
        If writing fails, as on a full disk.
    """
    arrays: dict[str, Array] = {}
    tree = _flattened(state, arrays)
    described = {"format": FORMAT, "kind": kind, "state": tree}
    manifest = json.dumps(described | {"sha256": _digest(described, arrays)})
    text = np.frombuffer(manifest.encode(), np.uint8)
    real = os.path.realpath(path)
    # What a killed process left of a file that it did not finish.
    for left in glob(os.path.join(escape(os.path.dirname(real)), _leftovers(real))):
        with suppress(OSError):
            os.unlink(left)
    try:
        with atomic_file(path, "checkpoint", durable=True) as file:
            entries: dict[str, Any] = {_MANIFEST: text, **arrays}
            np.savez(file, **entries)
    except OSError as error:
        number = error.errno or errno.EIO
        raise OSError(number, os.strerror(number), os.fspath(path)) from error


def read_state(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """Read what :func:`write_state` wrote.

    Parameters
    ----------
    path : path
    kind : str
        What it has to be.

    Returns
    -------
    dict
        The state.

    Raises
    ------
    CheckpointError
        If the file is damaged, of another kind or of a newer format.
    OSError
        If it cannot be read.
    """
    name = os.fspath(path)
    try:
        # NumPy does not close a file that it finds truncated, and offers to unpickle others.
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise zipfile.BadZipFile("it is no zip archive")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
        manifest = json.loads(arrays.pop(_MANIFEST).tobytes())
        claimed = manifest.pop("sha256")
        if manifest["format"] > FORMAT:
            raise CheckpointError(
                f"{name}: has format {manifest['format']}, this version reads up to {FORMAT}"
            )
        if manifest["kind"] != kind:
            raise CheckpointError(f"{name}: is of kind {manifest['kind']!r}, not {kind!r}")
        if _digest(manifest, arrays) != claimed:
            raise CheckpointError(f"{name}: is damaged (its checksum differs)")
        state: dict[str, Any] = _restored(manifest["state"], arrays)
    except (CheckpointError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:
        # zipfile, zlib, struct, json and NumPy have a dozen ways to say it.
        raise CheckpointError(f"{name}: is damaged or no file of ruvector ({error})") from error
    return state


def _flattened(value: Any, arrays: dict[str, Array]) -> Any:
    """Return JSON for a state; its arrays are put into `arrays`, by number."""
    if isinstance(value, np.ndarray):
        name = f"array{len(arrays)}"
        arrays[name] = value
        return {_REFERENCE: name}
    if isinstance(value, np.generic):
        # A scalar may be wider than what JSON keeps.
        return _flattened(np.asarray(value), arrays)
    if isinstance(value, Mapping):
        return {str(key): _flattened(item, arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_flattened(item, arrays) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _restored(tree: Any, arrays: Mapping[str, Array]) -> Any:
    if isinstance(tree, dict):
        if set(tree) == {_REFERENCE}:
            array = arrays[tree[_REFERENCE]]
            return array if array.ndim else array[()]
        return {key: _restored(item, arrays) for key, item in tree.items()}
    if isinstance(tree, list):
        return [_restored(item, arrays) for item in tree]
    return tree


def _digest(described: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _leftovers(path: str) -> str:
    return escape(f".{os.path.basename(path)}.") + "*.tmp"
