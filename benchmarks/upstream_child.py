"""The child process that times ``ruvector-attention`` in its own environment.

Run as a file by that environment's interpreter: nothing of this project is imported,
because the package shares its import name with ours. Protocol: :mod:`benchmarks.sides`.
"""

from __future__ import annotations

import base64
import functools
import importlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

_PACKAGE = "ruvector_attention"


def _argument(described: dict[str, Any]) -> Any:
    if "value" in described:
        return described["value"]
    return np.fromfile(described["file"], "<f4").reshape(described["shape"])


def _results(value: Any) -> list[dict[str, Any]]:
    fields = getattr(value, "__dataclass_fields__", None)
    parts = [value] if fields is None else [getattr(value, name) for name in fields]
    arrays = [np.asarray(part, dtype="<f4") for part in parts]
    return [
        {"shape": array.shape, "data": base64.b64encode(array.tobytes()).decode()}
        for array in arrays
    ]


def _answer(request: dict[str, Any], calls: dict[int, Callable[[], object]]) -> dict[str, Any]:
    op, handle = request["op"], request.get("handle", 0)
    if op == "hello":
        return {"version": importlib.metadata.version("ruvector-attention")}
    if op == "setup":
        function = getattr(importlib.import_module(_PACKAGE), request["function"])
        calls[handle] = functools.partial(function, *map(_argument, request["arguments"]))
        return {}
    if op == "result":
        return {"results": _results(calls[handle]())}
    if op == "time":
        call = calls[handle]
        start = time.perf_counter_ns()
        for _ in range(request["repeats"]):
            call()
        return {"seconds": (time.perf_counter_ns() - start) * 1e-9}
    if op == "drop":
        del calls[handle]
        return {}
    raise ValueError(f"unknown request {op!r}")


def main() -> None:
    """Answer requests until standard input closes."""
    calls: dict[int, Callable[[], object]] = {}
    for line in sys.stdin:
        try:
            answer = _answer(json.loads(line), calls)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
