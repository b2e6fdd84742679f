"""The two kinds of side: a callable of this process, and one that lives in a child process.

A child speaks JSON lines and keeps its inputs, so that a sample contains nothing but calls;
arrays travel as raw float32 files. Requests: ``setup`` (build the callable under a handle),
``result`` (its outputs), ``time`` (seconds for so many calls, measured inside the child)
and ``drop``.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import itertools
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .core import UnavailableError

__all__ = ["Child", "Local", "Remote", "Results", "Side", "as_results"]

Results = tuple[np.ndarray, ...]


class Side(Protocol):
    """Something that can be called many times and timed."""

    def seconds(self, repeats: int) -> float:
        """Seconds per call, the mean of ``repeats`` calls."""

    def result(self) -> Results:
        """Outputs of one call, in ruvector's layout, for the check."""

    def close(self) -> None:
        """Let go of what the side holds."""


def as_results(value: Any) -> Results:
    """Flatten the outputs of a call into a tuple of float arrays."""
    if isinstance(value, tuple | list):
        return tuple(array for part in value for array in as_results(part))
    if hasattr(value, "detach"):
        value = value.detach().float().numpy()
    array = np.asarray(value)
    return (array if array.dtype in (np.float32, np.float64) else array.astype(np.float32),)


class Local:
    """A callable without arguments; ``adapt`` brings its outputs into ruvector's layout."""

    def __init__(
        self, call: Callable[[], Any], adapt: Callable[[Any], Any] | None = None
    ) -> None:
        self._call = call
        self._adapt = adapt

    def seconds(self, repeats: int) -> float:
        call = self._call
        collecting = gc.isenabled()
        gc.disable()
        try:
            start = time.perf_counter_ns()
            for _ in itertools.repeat(None, repeats):
                call()
            return (time.perf_counter_ns() - start) / repeats * 1e-9
        finally:
            if collecting:
                gc.enable()

    def result(self) -> Results:
        value = self._call()
        return as_results(value if self._adapt is None else self._adapt(value))

    def close(self) -> None:
        self._call = lambda: None


class Child:
    """A persistent child process that answers each JSON line with one JSON line."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ruvector-bench-")
        self._handles = itertools.count()
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        try:
            self.version = str(self.ask(op="hello")["version"])
        except BaseException:
            self.close()
            raise

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and return the answer; its error is raised here."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise UnavailableError(f"the child process {self._process.args!r} has ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def setup(self, arguments: Sequence[Any], **call: Any) -> Remote:
        """Build a callable in the child.

        ``arguments`` are arrays (a 2-D one becomes what the peer takes as a list of
        vectors) or plain JSON values; ``call`` says what to call, in the child's own terms.
        """
        handle = next(self._handles)
        described: list[Any] = []
        for position, argument in enumerate(arguments):
            if not isinstance(argument, np.ndarray):
                described.append({"value": argument})
                continue
            path = Path(self._folder.name) / f"{handle}-{position}.f32"
            np.ascontiguousarray(argument, dtype="<f4").tofile(path)
            described.append({"file": str(path), "shape": list(argument.shape)})
        self.ask(op="setup", handle=handle, arguments=described, **call)
        for path in Path(self._folder.name).glob(f"{handle}-*.f32"):
            path.unlink()
        return Remote(self, handle)

    def close(self) -> None:
        """End the child and remove its temporary folder."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._folder.cleanup()


class Remote:
    """A callable inside a `Child`."""

    def __init__(self, child: Child, handle: int) -> None:
        self._child = child
        self._handle = handle

    def seconds(self, repeats: int) -> float:
        answer = self._child.ask(op="time", handle=self._handle, repeats=repeats)
        return float(answer["seconds"]) / repeats

    def result(self) -> Results:
        answer = self._child.ask(op="result", handle=self._handle)
        return tuple(
            np.frombuffer(base64.b64decode(part["data"]), "<f4").reshape(part["shape"])
            for part in answer["results"]
        )

    def close(self) -> None:
        self._child.ask(op="drop", handle=self._handle)
