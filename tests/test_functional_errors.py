"""What scaled_dot_product_attention and its relatives refuse, and how they say it."""

from __future__ import annotations

import re

import numpy as np
import pytest

import ruvector
from ruvector import DimensionMismatchError, InvalidConfigError, InvalidMaskError

attention = ruvector.scaled_dot_product_attention


def zeros(*shape):
    return np.zeros(shape, np.float32)


def refuses(error, message, *arguments, function=attention, **keywords):
    out = np.full((2, 3, 4), 7, np.float32)
    if function is attention:
        keywords["out"] = out
    with pytest.raises(error, match=re.escape(message)) as caught:
        function(*arguments, **keywords)
    assert str(caught.value).startswith(message.split()[0])
    if error is not TypeError:
        assert isinstance(caught.value, ruvector.RuvectorError)
        assert isinstance(caught.value, ValueError)
    assert (out == 7).all()


QKV = zeros(2, 3, 4), zeros(2, 5, 4), zeros(2, 5, 4)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4,), (5, 4), (5, 4)), "query must have at least 2 axes, got shape (4,)"),
        (((3, 4), (4,), (5, 4)), "key must have at least 2 axes, got shape (4,)"),
        (((3, 4), (5, 4), ()), "value must have at least 2 axes, got shape ()"),
        (
            ((3, 4), (5, 6), (5, 4)),
            "key must have 4 features on its last axis like query, got 6",
        ),
        (((3, 4), (5, 4), (6, 4)), "value must have 5 rows like key, got 6"),
        (
            ((6, 3, 4), (2, 5, 4), (2, 5, 4)),
            "key must have 6 heads like query (or enable_gqa=True), got 2",
        ),
        (((6, 3, 4), (2, 5, 4), (3, 5, 4)), "value must have 2 heads like key, got 3"),
        (
            ((2, 1, 3, 4), (3, 1, 5, 4), (1, 1, 5, 4)),
            "query, key, value must have batch axes that broadcast, "
            "got query (2,), key (3,), value (1,)",
        ),
    ],
)
def test_shapes(shapes, message):
    refuses(DimensionMismatchError, message, *(zeros(*shape) for shape in shapes))


def test_grouped_heads_that_do_not_divide():
    refuses(
        DimensionMismatchError,
        "key must have a number of heads that divides the 6 of query, got 4",
        zeros(6, 3, 4),
        zeros(4, 5, 4),
        zeros(4, 5, 4),
        enable_gqa=True,
    )


@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("wrong", [np.zeros((2, 3, 4), complex), [["a"]], None, object()])
def test_types(name, wrong):
    arrays = dict(zip(("query", "key", "value"), QKV, strict=True), **{name: wrong})
    refuses(TypeError, f"{name} must hold real numbers", **arrays)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"dropout_p": 0.1}, "dropout_p must be 0 (no dropout), got 0.1"),
        ({"dropout_p": "x"}, "dropout_p must be a finite number, got 'x'"),
        ({"scale": np.nan}, "scale must be a finite number, got nan"),
        ({"scale": "1"}, "scale must be a finite number, got '1'"),
        ({"scale": True}, "scale must be a finite number, got True"),
        ({"softcap": 0.0}, "softcap must be a positive finite number, got 0.0"),
        ({"softcap": -1}, "softcap must be a positive finite number, got -1"),
        ({"softcap": np.inf}, "softcap must be a positive finite number, got inf"),
        (
            {"causal_alignment": "top"},
            "causal_alignment must be 'top_left' or 'bottom_right', got 'top'",
        ),
        ({"window": 4}, "window must be a pair (left, right), got 4"),
        ({"window": (1, 2, 3)}, "window must be a pair (left, right), got (1, 2, 3)"),
        ({"window": (-1, 0)}, "window[0] must be an integer of at least 0, got -1"),
        ({"window": (None, 1.5)}, "window[1] must be an integer of at least 0, got 1.5"),
        (
            {"num_sink_tokens": -1},
            "num_sink_tokens must be an integer of at least 0, got -1",
        ),
        (
            {"num_sink_tokens": None},
            "num_sink_tokens must be an integer of at least 0, got None",
        ),
    ],
)
def test_options(keywords, message):
    refuses(InvalidConfigError, message, *QKV, **keywords)


@pytest.mark.parametrize("name", ["sink_logits", "alibi_slopes"])
def test_numbers_per_head(name):
    message = f"{name} must have shape (2,), one number per query head, got (3,)"
    refuses(DimensionMismatchError, message, *QKV, **{name: [1, 2, 3]})
    refuses(TypeError, f"{name} must hold real numbers", *QKV, **{name: [1j, 2]})


@pytest.mark.parametrize("kind", [bool, np.float32])
@pytest.mark.parametrize("shape", [(4,), (5, 3), (3, 3, 5), (1, 2, 3, 5), (2, 2, 3, 5)])
def test_mask_shapes(shape, kind):
    message = f"attn_mask must broadcast to (2, 3, 5), got shape {shape}"
    refuses(InvalidMaskError, message, *QKV, np.ones(shape, kind))


def test_a_mask_of_one_head_has_two_axes():
    message = "attn_mask must broadcast to (3, 5), got shape (1, 3, 5)"
    refuses(InvalidMaskError, message, *(x[0] for x in QKV), np.ones((1, 3, 5), bool))


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.uint16])
def test_integer_masks(kind):
    message = (
        "attn_mask must be bool (True attends) or float (added to the scores), "
        f"got dtype {np.dtype(kind)}"
    )
    refuses(InvalidMaskError, message, *QKV, np.ones((3, 5), kind))
    refuses(InvalidMaskError, "attn_mask must be bool", *QKV, [[0, 1, 0, 1, 1]] * 3)


@pytest.mark.parametrize("wrong", [np.ones((3, 5), complex), [["a"]], [[None]]])
def test_mask_types(wrong):
    refuses(TypeError, "attn_mask must be bool (True attends) or float", *QKV, wrong)


@pytest.mark.parametrize(
    ("cu_q", "cu_k", "error", "message"),
    [
        (
            [0, 3],
            None,
            InvalidConfigError,
            "cu_seqlens_k must be given with its counterpart, got None",
        ),
        (
            None,
            [0, 5],
            InvalidConfigError,
            "cu_seqlens_q must be given with its counterpart, got None",
        ),
        ([0.0, 3.0], [0, 5], TypeError, "cu_seqlens_q must hold integers, got dtype float32"),
        (
            [],
            [],
            DimensionMismatchError,
            "cu_seqlens_q must have one axis and at least one entry, got shape (0,)",
        ),
        (
            [[0, 3]],
            [0, 5],
            DimensionMismatchError,
            "cu_seqlens_q must have one axis and at least one entry, got shape (1, 2)",
        ),
        (
            [1, 3],
            [0, 5],
            DimensionMismatchError,
            "cu_seqlens_q must run from 0 to 3, the number of packed rows, got 1 to 3",
        ),
        (
            [0, 3],
            [0, 6],
            DimensionMismatchError,
            "cu_seqlens_k must run from 0 to 5, the number of packed rows, got 0 to 6",
        ),
        ([0, 2, 1, 3], [0, 1, 2, 5], InvalidConfigError, "cu_seqlens_q must not decrease"),
        (
            [0, 1, 3],
            [0, 5],
            DimensionMismatchError,
            "cu_seqlens_k must have length 3 like cu_seqlens_q, got 2",
        ),
    ],
)
def test_sequences(cu_q, cu_k, error, message):
    packed = zeros(3, 2, 4), zeros(5, 2, 4), zeros(5, 2, 4)
    refuses(error, message, *packed, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k)


def test_sequences_need_three_axes():
    message = "key must have 3 axes (rows, heads, features) with cu_seqlens, got shape (5, 4)"
    arrays = zeros(3, 2, 4), zeros(5, 4), zeros(5, 2, 4)
    refuses(DimensionMismatchError, message, *arrays, cu_seqlens_q=[0, 3], cu_seqlens_k=[0, 5])


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros((2, 3, 4)), TypeError, "out must have dtype float32, got float64"),
        (
            np.zeros((3, 4), np.float32),
            DimensionMismatchError,
            r"out must have shape \(2, 3, 4\), got \(3, 4\)",
        ),
    ],
)
def test_out(out, error, message):
    with pytest.raises(error, match=message):
        attention(*QKV, out=out)
    assert not out.any()


@pytest.mark.parametrize("k", [0, -1, 1.5, True, None])
def test_top_k(k):
    refuses(
        InvalidConfigError,
        f"k must be an integer of at least 1, got {k!r}",
        zeros(3, 4),
        zeros(5, 4),
        k,
        function=ruvector.top_k_keys,
    )


def test_names_of_arguments():
    refuses(
        DimensionMismatchError,
        "keys must have 4 features on its last axis like query, got 6",
        zeros(3, 4),
        zeros(5, 6),
        2,
        function=ruvector.top_k_keys,
    )
    refuses(
        DimensionMismatchError,
        "key must have 4 features on its last axis like query, got 6",
        zeros(3, 4),
        zeros(5, 6),
        function=ruvector.attention_weights_from,
    )


@pytest.mark.parametrize(
    ("outputs", "lses", "error", "message"),
    [
        ([], [], ruvector.EmptyInputError, "outputs must have at least one part, got shape"),
        (
            zeros(3),
            zeros(3),
            DimensionMismatchError,
            "outputs must have shape (parts, ..., width), got (3,)",
        ),
        (
            zeros(2, 3, 4),
            zeros(2, 4),
            DimensionMismatchError,
            "lses must have shape (2, 3), or that with an axis of heads, for outputs of shape "
            "(2, 3, 4), got (2, 4)",
        ),
        (
            zeros(2, 3, 4),
            zeros(2, 3, 3),
            DimensionMismatchError,
            "outputs must have a last axis that divides into the 3 heads of lses, "
            "got shape (2, 3, 4)",
        ),
        (
            [zeros(3, 4), zeros(2, 4)],
            zeros(2, 3),
            DimensionMismatchError,
            "outputs[1] must have shape (3, 4) like outputs[0], got (2, 4)",
        ),
        (
            zeros(2, 3, 4),
            np.zeros((2, 3), complex),
            TypeError,
            "lses must hold real numbers",
        ),
    ],
)
def test_merge_states(outputs, lses, error, message):
    refuses(error, message, outputs, lses, function=ruvector.merge_states)
