"""ONNX Runtime's attention operators as single-node models, the fastest form chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .core import Context
from .sides import Local
from .timing import fastest

__all__ = ["attention"]

_IR_VERSION = 10  # opset 23 came with IR 11; the runtime accepts the older stamp


def attention(ctx: Context, query: np.ndarray, key: np.ndarray, value: np.ndarray) -> Local:
    """Build the side for full attention over (B, H, L, D) arrays.

    Tried: the standard operator ``Attention`` (opset 23) and the contrib operator
    ``MultiHeadAttention`` with keys as (B, H, L, D) and as (B, L, H D), laid out beforehand.
    Keys that are a transposed view of (B, L, H, D) stay in that layout.
    """
    runtime = ctx.peers.module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = ctx.threads
    options.inter_op_num_threads = 1
    arrays = {"q": query, "k": key, "v": value}
    inputs = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
    packed = {name: _pack(x) for name, x in inputs.items()}
    forms = [("MultiHeadAttention", packed)]
    if key.flags.c_contiguous:
        forms += [("Attention", inputs), ("MultiHeadAttention", {**inputs, "q": packed["q"]})]
    sessions = []
    for operator, feed in forms:
        model = _model(ctx, operator, feed, query.shape[1])
        session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        sessions.append((session, feed))
    session, feed = fastest(sessions, lambda pair: lambda: pair[0].run(None, pair[1]))
    run: Callable[[], Any] = lambda: session.run(None, feed)  # noqa: E731
    return Local(run, lambda outputs: _unpack(outputs[0], query.shape[1]))


def _pack(x: np.ndarray) -> np.ndarray:
    batch, _, length, _ = x.shape
    return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(batch, length, -1)


def _unpack(x: np.ndarray, heads: int) -> np.ndarray:
    if x.ndim == 4:
        return x
    batch, length, _ = x.shape
    return x.reshape(batch, length, heads, -1).transpose(0, 2, 1, 3)


def _model(ctx: Context, operator: str, inputs: dict[str, np.ndarray], heads: int) -> bytes:
    onnx = ctx.peers.module("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    contrib = {"domain": "com.microsoft", "num_heads": heads}
    if operator == "Attention":
        contrib = {}
    node = helper.make_node(operator, list(inputs), ["out"], **contrib)
    described = [helper.make_tensor_value_info(n, kind, x.shape) for n, x in inputs.items()]
    out = helper.make_tensor_value_info("out", kind, inputs["q"].shape)
    graph = helper.make_graph([node], "attention", described, [out])
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    serialized: bytes = model.SerializeToString()
    return serialized
