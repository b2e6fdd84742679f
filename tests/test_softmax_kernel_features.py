"""Every feature of the score function and of the visible set, alone and in combination."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from softmax_cases import problem
from softmax_problems import problems

from ruvector import _kernels

pytestmark = pytest.mark.usefixtures("backend")

LENGTHS = [(1, 33), (16, 16), (17, 97), (97, 17), (33, 1), (70, 300)]


def _each_length(**spec):
    for num_queries, num_keys in LENGTHS:
        problem(num_queries=num_queries, num_keys=num_keys, **spec).check()


@pytest.mark.parametrize("bottom_right", [False, True])
class TestPositions:
    def test_causal(self, bottom_right):
        _each_length(causal=True, bottom_right=bottom_right)

    @pytest.mark.parametrize("left", [-1, 0, 3, 64])
    @pytest.mark.parametrize("right", [-1, 0, 5, 64])
    def test_window(self, bottom_right, left, right):
        _each_length(left=left, right=right, bottom_right=bottom_right)
        _each_length(left=left, right=right, bottom_right=bottom_right, causal=True)

    @pytest.mark.parametrize("num_sinks", [1, 4, 500])
    @pytest.mark.parametrize("symmetric", [False, True])
    @pytest.mark.parametrize("causal", [False, True])
    def test_sink_tokens(self, bottom_right, num_sinks, symmetric, causal):
        _each_length(
            left=5,
            right=5,
            num_sinks=num_sinks,
            symmetric=symmetric,
            causal=causal,
            bottom_right=bottom_right,
        )

    def test_alibi(self, bottom_right):
        slopes = np.array([0.5, 0.0625], np.float32)
        _each_length(slopes=slopes, bottom_right=bottom_right)
        _each_length(slopes=slopes, bottom_right=bottom_right, causal=True)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_given_positions(symmetric, causal):
    for positions in ([50, 0, 3, 99, -7, 3], [5], list(range(90, 20, -1))):
        problem(
            num_queries=len(positions),
            num_keys=97,
            positions=np.array(positions, np.int64),
            left=4,
            right=2,
            num_sinks=2,
            symmetric=symmetric,
            causal=causal,
            slopes=np.array([0.1, 0.2], np.float32),
        ).check()


def test_long_rows_with_windows_and_sinks():
    for spec in (
        {"causal": True},
        {"causal": True, "left": 100},
        {"left": 30, "right": 30, "num_sinks": 3},
        {"left": 300, "right": 0, "num_sinks": 3, "symmetric": True},
        {"causal": True, "left": 700, "num_sinks": 1},
    ):
        problem(heads=1, num_queries=600, num_keys=1500, bottom_right=True, **spec).check()
        problem(heads=1, num_queries=700, num_keys=700, **spec).check()


def test_one_query_with_a_window_over_many_keys():
    for position in (0, 4_000, 9_999, 12_000):
        problem(
            num_queries=1,
            num_keys=10_000,
            positions=np.array([position], np.int64),
            left=2_500,
            right=2_500,
            num_sinks=4,
        ).check()


def test_softcap():
    _each_length(softcap=2.0, scale=3.0)


def test_sink_logits():
    _each_length(sink_logits=np.array([1.5, -2.0], np.float32))
    _each_length(sink_logits=np.array([80.0, -np.inf], np.float32))


@pytest.mark.parametrize("axes", [(), (0,), (1,), (2,), (3,), (0, 1), (0, 1, 2), (0, 1, 2, 3)])
def test_bias_and_mask_that_repeat(axes):
    shape = (2, 4, 17, 97)
    kept = tuple(1 if axis in axes else length for axis, length in enumerate(shape))
    rng = np.random.default_rng(len(axes))
    bias = rng.standard_normal(kept).astype(np.float32)
    bias[rng.random(kept) < 0.1] = -np.inf
    mask = rng.random(kept) < 0.7
    for options in (
        {"bias": np.broadcast_to(bias, shape)},
        {"mask": np.broadcast_to(mask, shape)},
        {"bias": np.broadcast_to(bias, shape), "mask": np.broadcast_to(mask, shape)},
    ):
        problem(batch=2, heads=4, key_heads=2, num_queries=17, num_keys=97, **options).check()


def test_bias_and_mask_of_any_stride():
    rng = np.random.default_rng(0)
    bias = rng.standard_normal((97, 34, 2, 1)).astype(np.float32).T[:, ::-1, ::2, ::-1]
    mask = (rng.random((1, 2, 17, 194)) < 0.5)[..., ::-2]
    problem(num_queries=17, num_keys=97, bias=bias, mask=mask).check()


def test_mask_that_hides_whole_tiles():
    mask = np.zeros((1, 1, 300, 3000), bool)
    mask[..., 100:200, 1500:1510] = True
    mask[..., 7, 2999] = True
    problem(heads=1, num_queries=300, num_keys=3000, mask=mask).check()
    problem(
        heads=1, num_queries=1, num_keys=3000, mask=np.ascontiguousarray(mask[:, :, 7:8])
    ).check()


class TestRagged:
    Q = np.array([0, 3, 3, 20, 21, 38, 38], np.int64)
    K = np.array([0, 5, 40, 40, 41, 90, 97], np.int64)

    @pytest.mark.parametrize("bottom_right", [False, True])
    @pytest.mark.parametrize(
        "spec",
        [
            {},
            {"causal": True},
            {"left": 3, "right": 4, "num_sinks": 2},
            {"slopes": np.array([0.5, 0.25, 0.1, 0.0], np.float32)},
            {"sink_logits": np.array([0.0, 1.0, -1.0, 2.0], np.float32), "softcap": 3.0},
        ],
        ids=lambda spec: "-".join(spec) or "plain",
    )
    def test_each_sequence_on_its_own(self, spec, bottom_right):
        problem(
            heads=4,
            key_heads=2,
            num_queries=38,
            num_keys=97,
            cu_seqlens_q=self.Q,
            cu_seqlens_k=self.K,
            bottom_right=bottom_right,
            **spec,
        ).check()

    def test_packed_bias_mask_and_positions(self):
        rng = np.random.default_rng(0)
        problem(
            num_queries=38,
            num_keys=97,
            cu_seqlens_q=self.Q,
            cu_seqlens_k=self.K,
            bias=rng.standard_normal((1, 2, 38, 97)).astype(np.float32),
            mask=np.broadcast_to(rng.random((38, 97)) < 0.5, (1, 2, 38, 97)),
            positions=rng.integers(0, 20, 38),
            causal=True,
        ).check()

    def test_no_sequences(self):
        nothing = np.zeros(1, np.int64)
        problem(num_queries=0, num_keys=0, cu_seqlens_q=nothing, cu_seqlens_k=nothing).check()

    def test_one_long_among_short(self):
        problem(
            heads=1,
            num_queries=12,
            num_keys=6010,
            cu_seqlens_q=np.array([0, 5, 6, 12], np.int64),
            cu_seqlens_k=np.array([0, 5, 6005, 6010], np.int64),
        ).check()


@given(problems())
@settings(max_examples=150)
def test_all_features_together(case):
    case.check()


@given(problems())
@settings(max_examples=60)
def test_all_features_together_in_small_tiles(backend, case):
    if backend[0] != "python":
        pytest.skip("the compiled engine's tiles have a fixed size")
    from ruvector._kernels.fallback import _tiles

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_SCORES", 64), ("_ROWS", 8), ("_WIDENED", 50)):
            patch.setattr(_tiles, name, value)
        case.check()


def test_threads_do_not_matter_to_the_result(backend):
    cases = [
        problem(heads=4, key_heads=2, num_queries=97, num_keys=333, dim=32, causal=True),
        problem(heads=1, num_queries=1, num_keys=70_000, dim=16),
        problem(heads=6, num_queries=1, num_keys=10_000, dim=64),
        problem(heads=2, num_queries=3, num_keys=40_000, dim=16, dtype="float16"),
        problem(heads=2, num_queries=300, num_keys=600, dtype="bfloat16"),
        problem(
            num_queries=38,
            num_keys=97,
            cu_seqlens_q=TestRagged.Q,
            cu_seqlens_k=TestRagged.K,
            dtype="float64",
        ),
    ]
    for case in cases:
        out, lse = case.attend(threads=1)
        for threads in (2, 3, 8):
            again, lse_again = case.attend(threads)
            if backend[0] == "native":
                np.testing.assert_array_equal(again, out)
                np.testing.assert_array_equal(lse_again, lse)
            else:
                case.check(threads)


def test_weights_and_top_k_do_not_depend_on_threads(backend):
    if backend[0] != "native":
        pytest.skip("BLAS decides the order of sums")
    case = problem(heads=4, num_queries=33, num_keys=1000, dim=32)
    results = []
    rows = case.query.shape[:3]
    for threads in (1, 2, 3, 8):
        weights = np.empty((*rows, 1000), np.float32)
        indices = np.empty((*rows, 5), np.int64)
        best = np.empty((*rows, 5), np.float32)
        _kernels.softmax.weights(case.query, case.key, weights, case.spec, threads)
        _kernels.softmax.top_k(case.query, case.key, 5, indices, best, case.spec, threads)
        results.append((weights, indices, best))
    for again in results[1:]:
        for a, b in zip(again, results[0], strict=True):
            np.testing.assert_array_equal(a, b)
