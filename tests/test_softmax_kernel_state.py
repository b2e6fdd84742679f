"""The state (o, L) where it is delicate: hidden rows, NaN and infinity, merging."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from softmax_cases import STORAGE, problem, quiet, to_float64, to_storage

from ruvector import _kernels

pytestmark = pytest.mark.usefixtures("backend")

SHAPES = [(1, 9), (3, 17), (17, 33), (40, 97), (1, 5000), (300, 1500)]
POISON = [np.nan, np.inf, -np.inf]


def _hidden(num_queries, num_keys):
    """Ways to hide the odd keys from every row, and every key from row 0."""
    visible = np.ones((1, 1, num_queries, num_keys), bool)
    visible[..., 1::2] = False
    visible[:, :, 0] = False
    bias = np.where(visible, np.float32(0.25), np.float32(-np.inf))
    return {
        "mask": {"mask": np.broadcast_to(visible, (1, 2, num_queries, num_keys))},
        "bias": {"bias": np.broadcast_to(bias, (1, 2, num_queries, num_keys))},
    }


class TestHidden:
    @pytest.mark.parametrize("dtype", STORAGE)
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("how", ["mask", "bias"])
    def test_nothing_to_attend_to(self, shape, how, dtype):
        case = problem(num_queries=shape[0], num_keys=shape[1], dtype=dtype)
        case.spec = replace(case.spec, **_hidden(*shape)[how])
        if dtype == "float64" and case.spec.bias is not None:
            case.spec = replace(case.spec, bias=case.spec.bias.astype(np.float64))
        case.check()
        out, lse = case.attend()
        assert (out[:, :, 0] == 0).all()
        assert (lse[:, :, 0] == -np.inf).all()

    @pytest.mark.parametrize("poison", POISON)
    @pytest.mark.parametrize("where", ["key", "value", "both"])
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("how", ["mask", "bias"])
    def test_poison_behind_a_mask(self, shape, how, where, poison):
        case = problem(
            num_queries=shape[0], num_keys=shape[1], dim=17, dim_v=16, **_hidden(*shape)[how]
        )
        clean_out, clean_lse = case.attend()
        if where != "value":
            case.key[:, :, 1::2] = poison
        if where != "key":
            case.value[:, :, 1::2] = poison
        out, lse = case.attend()
        np.testing.assert_allclose(out, clean_out, rtol=2e-5, atol=4e-6)
        np.testing.assert_allclose(lse, clean_lse, rtol=4e-6)

    @pytest.mark.parametrize("dtype", STORAGE)
    @pytest.mark.parametrize(
        "spec",
        [
            {"causal": True},
            {"causal": True, "bottom_right": True, "left": 3},
            {"left": 2, "right": 2, "num_sinks": 1},
        ],
        ids=str,
    )
    def test_poison_where_position_hides(self, spec, dtype):
        for num_queries, num_keys in ((1, 33), (17, 33), (300, 700)):
            case = problem(
                heads=1, num_queries=num_queries, num_keys=num_keys, dtype=dtype, **spec
            )
            _, _, weights = case.reference()
            # The last key, and one in the middle: some rows see them, others do not.
            for poisoned in (num_keys - 1, num_keys // 2):
                case.key[:, :, poisoned] = to_storage(np.array(np.nan), dtype)
                case.value[:, :, poisoned] = to_storage(np.array(np.nan), dtype)
                case.check()
            out, lse = case.attend()
            seen = (weights[0, 0, :, [num_keys - 1, num_keys // 2]] > 0).any(axis=0)
            assert np.isnan(to_float64(out)[0, 0, seen]).all()
            assert np.isfinite(to_float64(out)[0, 0, ~seen]).all()
            assert not np.isnan(lse[0, 0, ~seen]).any()

    def test_poison_in_another_sequence(self):
        ends = np.array([0, 10, 20, 30], np.int64)
        case = problem(num_queries=30, num_keys=30, cu_seqlens_q=ends, cu_seqlens_k=ends)
        case.key[:, :, 10:20] = np.nan
        case.value[:, :, 10:20] = np.inf
        case.check()

    def test_sink_logit_of_a_row_that_sees_nothing(self):
        sinks = np.array([0.5, -3.0], np.float32)
        for num_keys in (0, 9):
            mask = np.zeros((1, 2, 5, num_keys), bool)
            out, lse = problem(num_keys=num_keys, sink_logits=sinks, mask=mask).attend()
            assert (out == 0).all()
            np.testing.assert_allclose(lse[0], np.broadcast_to(sinks[:, None], (2, 5)))


class TestAttended:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_a_nan_query_poisons_its_row_alone(self, shape):
        case = problem(num_queries=shape[0], num_keys=shape[1])
        case.query[0, 0, 0, 3] = np.nan
        case.check()
        out, lse = case.attend()
        assert np.isnan(out[0, 0, 0]).all()
        assert np.isnan(lse[0, 0, 0])

    @pytest.mark.parametrize("shape", SHAPES)
    def test_a_nan_key_poisons_the_rows_that_see_it(self, shape):
        num_queries, num_keys = shape
        mask = np.ones((1, 2, num_queries, num_keys), bool)
        mask[0, 1, :, 5] = False
        case = problem(num_queries=num_queries, num_keys=num_keys, mask=mask)
        case.key[:, :, 5, 0] = np.nan
        case.check()
        out, lse = case.attend()
        assert np.isnan(out[0, 0]).all()
        assert np.isnan(lse[0, 0]).all()
        assert np.isfinite(out[0, 1]).all()

    @pytest.mark.parametrize("poison", POISON)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_a_poisoned_value_reaches_the_rows_that_see_it(self, shape, poison):
        num_queries, num_keys = shape
        mask = np.ones((1, 2, num_queries, num_keys), bool)
        mask[0, 1, :, 5] = False
        case = problem(num_queries=num_queries, num_keys=num_keys, mask=mask)
        case.value[:, :, 5, 2] = poison
        case.check()

    def test_a_nan_bias(self):
        bias = np.zeros((1, 2, 17, 33), np.float32)
        bias[0, 1, 4, 20] = np.nan
        case = problem(num_queries=17, num_keys=33, bias=bias)
        case.check()
        out, _ = case.attend()
        assert np.isnan(out[0, 1, 4]).all()
        assert np.isnan(out).sum() == out.shape[-1]

    def test_an_infinite_score_is_nan(self):
        case = problem(num_queries=17, num_keys=33)
        case.key[0, 0, 7] = np.inf
        case.query[0, 0, 2] = 1
        out, lse = case.attend()
        assert np.isnan(out[0, 0, 2]).all()
        assert np.isnan(lse[0, 0, 2])
        assert np.isfinite(out[0, 1]).all()


def _run_merge(outputs, lses):
    out = np.full(outputs.shape[1:], 7, outputs.dtype)
    lse = np.full(lses.shape[1:], np.nan, lses.dtype)
    with quiet():
        _kernels.softmax.merge(outputs, lses, out, lse)
    return out, lse


def _part(case, start, stop):
    """Attend to the keys of one range alone, as one of several shards would."""
    spec = replace(
        case.spec,
        positions=case.spec.positions - start,
        bias=case.spec.bias[..., start:stop],
        mask=case.spec.mask[..., start:stop],
    )
    shard = replace(
        case, key=case.key[:, :, start:stop], value=case.value[:, :, start:stop], spec=spec
    )
    out, lse = shard.attend()
    return out.reshape(-1, out.shape[-1]), lse.reshape(-1)


class TestMerge:
    @given(st.lists(st.integers(0, 97), max_size=6), st.booleans(), st.integers(0, 1000))
    def test_any_split_gives_the_whole(self, cuts, causal, seed):
        rng = np.random.default_rng(seed)
        shape = (1, 2, 17, 97)
        case = problem(
            seed,
            num_queries=17,
            num_keys=97,
            causal=causal,
            left=60,
            positions=rng.integers(0, 97, 17),
            slopes=np.array([0.1, 0.5], np.float32),
            bias=rng.standard_normal(shape).astype(np.float32),
            mask=rng.random(shape) < 0.3,
        )
        ends = [0, *sorted(cuts), 97]
        parts = [_part(case, a, b) for a, b in pairwise(ends)]
        out, lse = _run_merge(*(np.stack(arrays) for arrays in zip(*parts, strict=True)))
        expected, expected_lse, _ = case.reference()
        case.compare_out(out.reshape(expected.shape), expected)
        case.compare_lse(lse.reshape(expected_lse.shape), expected_lse)

    @pytest.mark.parametrize("dtype", STORAGE)
    @pytest.mark.parametrize("shape", [(1, 1, 1), (2, 17, 33), (5, 97, 16), (3, 3000, 200)])
    def test_against_the_reference(self, shape, dtype):
        rng = np.random.default_rng(0)
        outputs = to_storage(rng.standard_normal(shape), dtype)
        lses = 5 * rng.standard_normal(shape[:2])
        lses[rng.random(shape[:2]) < 0.3] = -np.inf
        lses = lses.astype(np.float64 if dtype == "float64" else np.float32)
        out, lse = _run_merge(outputs, lses)
        expected, expected_lse = reference.merge(to_float64(outputs), lses)
        rtol, atol = {
            "float64": (1e-13, 1e-13),
            "float32": (2e-6, 1e-6),
            "float16": (1e-3, 1e-6),
            "bfloat16": (4e-3, 1e-6),
        }[dtype]
        np.testing.assert_allclose(to_float64(out), expected, rtol=rtol, atol=atol)
        np.testing.assert_allclose(lse, expected_lse, rtol=2e-6, atol=1e-6)

    def test_the_identity_changes_nothing(self):
        rng = np.random.default_rng(0)
        outputs = np.zeros((3, 33, 17), np.float32)
        outputs[1] = rng.standard_normal((33, 17))
        lses = np.full((3, 33), -np.inf, np.float32)
        lses[1] = 30 * rng.standard_normal(33)
        out, lse = _run_merge(outputs, lses)
        np.testing.assert_array_equal(out, outputs[1])
        np.testing.assert_array_equal(lse, lses[1])

    def test_nothing_anywhere(self):
        for parts in (0, 1, 4):
            out, lse = _run_merge(
                np.zeros((parts, 5, 3), np.float32), np.full((parts, 5), -np.inf, np.float32)
            )
            assert (out == 0).all()
            assert (lse == -np.inf).all()

    def test_a_part_that_saw_nothing_never_counts(self):
        outputs = np.ones((3, 4, 2), np.float32)
        outputs[0] = np.nan
        outputs[2] = np.inf
        lses = np.zeros((3, 4), np.float32)
        lses[[0, 2]] = -np.inf
        out, lse = _run_merge(outputs, lses)
        assert (out == 1).all()
        assert (lse == 0).all()

    def test_nan_stays_in_its_row(self):
        outputs = np.ones((2, 3, 2), np.float32)
        lses = np.zeros((2, 3), np.float32)
        outputs[0, 1] = np.nan
        lses[1, 2] = np.nan
        out, lse = _run_merge(outputs, lses)
        assert (out[0] == 1).all()
        assert np.isnan(out[1:]).all()
        np.testing.assert_allclose(lse[:2], np.log(2), rtol=1e-6)
        assert np.isnan(lse[2])

    def test_far_apart(self):
        outputs = np.array([[[1.0]], [[2.0]]], np.float32)
        lses = np.array([[-1e30], [1e30]], np.float32)
        out, lse = _run_merge(outputs, lses)
        assert out == 2
        assert lse == lses[1]

    def test_order_of_strides(self):
        rng = np.random.default_rng(0)
        outputs = rng.standard_normal((5, 3, 8)).astype(np.float32).swapaxes(0, 1)
        lses = rng.standard_normal((5, 3)).astype(np.float32).T
        out, lse = _run_merge(outputs, lses)
        expected, expected_lse = reference.merge(outputs, lses)
        np.testing.assert_allclose(out, expected, rtol=2e-6, atol=1e-6)
        np.testing.assert_allclose(lse, expected_lse, rtol=2e-6)
