"""Rotary positions in the softmax kernels, and the kernel that only turns."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import reference_rotary
from hypothesis import given
from hypothesis import strategies as st
from isolated import output, selecting
from softmax_cases import (
    LAYOUTS,
    SIZES,
    STORAGE,
    TOLERANCES,
    compute_dtype,
    problem,
    quiet,
    relaid,
    to_float64,
    to_storage,
)

from ruvector import _kernels
from ruvector._kernels.spec import RotarySpec

pytestmark = pytest.mark.usefixtures("backend")

PLACES = 300


def rotary_problem(seed=0, *, neighbours=False, amplitude=1.0, dim=8, **options):
    """Make a problem whose rows stand at random places."""
    case = problem(seed, dim=dim, **options)
    rng = np.random.default_rng(seed + 1)
    angles = rng.uniform(-np.pi, np.pi, (PLACES, dim // 2))
    first = slice(0, None, 2) if neighbours else slice(0, dim // 2)
    second = slice(1, None, 2) if neighbours else slice(dim // 2, None)
    table = np.empty((PLACES, dim))
    table[:, first], table[:, second] = np.cos(angles), np.sin(angles)
    batch, _, num_queries, _ = case.query.shape
    return case.with_spec(
        rotary=RotarySpec(
            (amplitude * table).astype(compute_dtype(case.dtype)),
            neighbours,
            rng.integers(0, PLACES, (batch, num_queries)),
            rng.integers(0, PLACES, (batch, case.key.shape[2])),
        )
    )


def check(case, threads=1):
    """Compare output, L, weights and the best keys with the reference."""
    case.check(threads)
    dtype = compute_dtype(case.dtype)
    shape = case.query.shape[:3]
    _, _, expected = case.reference()
    weights = np.full((*shape, case.key.shape[2]), np.nan, dtype)
    with quiet():
        _kernels.softmax.weights(case.query, case.key, weights, case.spec, threads)
    bound = TOLERANCES[case.dtype].lse * 4
    np.testing.assert_allclose(weights, expected, rtol=bound, atol=bound)
    k = min(3, case.key.shape[2])
    indices, best = np.empty((*shape, k), np.int64), np.empty((*shape, k), dtype)
    with quiet():
        _kernels.softmax.top_k(case.query, case.key, k, indices, best, case.spec, threads)
    wanted = -np.sort(-expected, axis=-1)[..., :k]
    np.testing.assert_allclose(best, wanted, rtol=bound, atol=bound)
    found = np.take_along_axis(expected, np.maximum(indices, 0), axis=-1)
    np.testing.assert_allclose(np.where(indices < 0, 0, found), wanted, rtol=bound, atol=bound)


layouts = pytest.mark.parametrize("neighbours", [False, True], ids=["half", "interleaved"])


@layouts
class TestAttend:
    @pytest.mark.parametrize("num_queries", [1, 2, 7, 33, 97, 300])
    def test_lengths(self, neighbours, num_queries):
        for num_keys in (1, 17, 64, 97, 200):
            check(
                rotary_problem(
                    num_queries=num_queries, num_keys=num_keys, heads=1, neighbours=neighbours
                )
            )

    @pytest.mark.parametrize("num_queries", [1, 18])
    @pytest.mark.parametrize("dtype", STORAGE)
    def test_widths(self, neighbours, dtype, num_queries):
        for dim in (2, 4, 6, 10, 14, 16, 30, 32, 34, 48, 64, 96, 130):
            check(
                rotary_problem(
                    dim,
                    num_queries=num_queries,
                    num_keys=19,
                    dim=dim,
                    dim_v=5,
                    heads=1,
                    dtype=dtype,
                    neighbours=neighbours,
                )
            )

    @pytest.mark.parametrize("dtype", STORAGE)
    @pytest.mark.parametrize(
        ("batch", "heads", "key_heads"), [(3, 1, 1), (2, 4, 2), (1, 6, 1), (2, 3, 3)]
    )
    def test_batch_and_grouped_heads(self, neighbours, dtype, batch, heads, key_heads):
        for num_queries in (1, 7):
            check(
                rotary_problem(
                    batch=batch,
                    heads=heads,
                    key_heads=key_heads,
                    dtype=dtype,
                    num_queries=num_queries,
                    neighbours=neighbours,
                )
            )

    @pytest.mark.parametrize("dtype", STORAGE)
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("num_queries", [1, 17])
    def test_layouts(self, neighbours, layout, dtype, num_queries):
        case = rotary_problem(
            batch=2,
            heads=4,
            key_heads=2,
            num_queries=num_queries,
            num_keys=70,
            dim=16,
            dtype=dtype,
            neighbours=neighbours,
        )
        for name in ("query", "key", "value"):
            array = relaid(getattr(case, name), layout)
            array.flags.writeable = False
            setattr(case, name, array)
        check(case)

    def test_positions_that_a_batch_shares(self, neighbours):
        case = rotary_problem(batch=3, num_queries=5, neighbours=neighbours)
        rotary = case.spec.rotary
        shared = replace(
            rotary,
            query_positions=np.broadcast_to(rotary.query_positions[:1], (3, 5)),
            key_positions=np.broadcast_to(rotary.key_positions[:1], (3, 9)),
        )
        check(case.with_spec(rotary=shared))

    @pytest.mark.parametrize("num_queries", [1, 40])
    def test_with_everything_else(self, neighbours, num_queries):
        rng = np.random.default_rng(0)
        shape = (2, 4, num_queries, 130)
        for spec in (
            {"causal": True, "bottom_right": True},
            {"left": 9, "right": 3, "num_sinks": 2},
            {"softcap": 1.5},
            {"slopes": np.array([0.5, 2.0, 0.1, 0.0], np.float32)},
            {"sink_logits": rng.standard_normal(4).astype(np.float32)},
            {"mask": rng.random(shape) < 0.5},
            {"bias": rng.standard_normal(shape).astype(np.float32)},
        ):
            check(
                rotary_problem(
                    batch=2,
                    heads=4,
                    key_heads=2,
                    num_queries=num_queries,
                    num_keys=130,
                    neighbours=neighbours,
                    **spec,
                )
            )

    def test_amplitude(self, neighbours):
        for num_queries in (1, 20):
            check(rotary_problem(num_queries=num_queries, amplitude=1.3, neighbours=neighbours))

    @pytest.mark.parametrize("poison", [np.nan, np.inf])
    @pytest.mark.parametrize("num_queries", [1, 20])
    def test_what_is_hidden_does_not_leak(self, neighbours, num_queries, poison):
        mask = np.ones((1, 2, num_queries, 70), bool)
        mask[..., [3, 66]] = False
        case = rotary_problem(
            num_queries=num_queries, num_keys=70, mask=mask, neighbours=neighbours
        )
        case.key[..., 3, :] = case.value[..., 66, :] = poison
        case.check()

    def test_ragged(self, neighbours):
        ends_q, ends_k = np.array([0, 3, 3, 40]), np.array([0, 50, 60, 97])
        for spec in ({}, {"causal": True, "bottom_right": True}):
            rotary_problem(
                num_queries=40,
                num_keys=97,
                neighbours=neighbours,
                cu_seqlens_q=ends_q,
                cu_seqlens_k=ends_k,
                **spec,
            ).check()

    @pytest.mark.parametrize(
        "shape", [{"batch": 0}, {"num_queries": 0}, {"num_keys": 0}], ids=str
    )
    def test_empty_axes(self, neighbours, shape):
        out, lse = rotary_problem(neighbours=neighbours, **shape).attend()
        assert (out == 0).all()
        assert (lse == -np.inf).all()

    def test_many_keys(self, neighbours):
        for num_queries, heads in ((1, 8), (5, 2), (200, 1)):
            case = rotary_problem(
                num_queries=num_queries,
                heads=heads,
                num_keys=5000,
                dim=64,
                neighbours=neighbours,
            )
            for name in ("query", "key", "value"):
                setattr(case, name, relaid(getattr(case, name), "(B, L, H, D)"))
            case.check()

    def test_threads_do_not_change_a_bit(self, neighbours, backend):
        for num_queries in (1, 300):
            case = rotary_problem(
                num_queries=num_queries, num_keys=9000, heads=2, dim=32, neighbours=neighbours
            )
            one, three = case.attend(1), case.attend(3)
            for a, b in zip(one, three, strict=True):
                if backend[0] == "native":
                    np.testing.assert_array_equal(a, b)
                else:
                    np.testing.assert_allclose(a, b, rtol=2e-5, atol=4e-6)


@given(
    seed=st.integers(0, 2**32 - 1),
    shift=st.integers(-40, 40),
    half=st.integers(1, 20),
    num_queries=st.sampled_from([1, 9]),
    neighbours=st.booleans(),
)
def test_only_relative_positions_matter(seed, shift, half, num_queries, neighbours):
    rng = np.random.default_rng(seed)
    case = problem(seed % 1000, heads=2, num_queries=num_queries, num_keys=17, dim=2 * half)
    speeds = reference_rotary.frequencies(2 * half)[0]
    table = reference_rotary.table(180, speeds, neighbours=neighbours).astype(np.float32)
    places = rng.integers(40, 140, (1, num_queries)), rng.integers(40, 140, (1, 17))
    results = [
        case.with_spec(
            rotary=RotarySpec(table, neighbours, *(p + offset for p in places))
        ).attend()
        for offset in (0, shift)
    ]
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


@layouts
class TestRotate:
    @pytest.mark.parametrize("dtype", STORAGE)
    def test_against_the_reference(self, neighbours, dtype):
        for size in SIZES:
            dim = 2 * size
            rng = np.random.default_rng(size)
            x = to_storage(rng.standard_normal((5, 3, dim)), dtype)
            table = rng.standard_normal((9, dim)).astype(compute_dtype(dtype))
            positions = rng.integers(0, 9, 5)
            out = np.empty_like(x)
            with quiet():
                _kernels.rotary.rotate(x, out, positions, table, neighbours, 1)
            wanted = reference_rotary.turned_by(
                to_float64(x)[:, None].swapaxes(1, 2), positions[:, None], table, neighbours
            )[:, :, 0]
            tolerance = TOLERANCES[dtype]
            np.testing.assert_allclose(
                to_float64(out), wanted, rtol=tolerance.rtol, atol=4 * tolerance.atol
            )

    def test_strides_and_threads(self, neighbours):
        rng = np.random.default_rng(0)
        wide = rng.standard_normal((3000, 2, 200)).astype(np.float32)
        x = wide.transpose(1, 0, 2)[::-1, :, 3:133].swapaxes(0, 1)
        table = rng.standard_normal((9, 130)).astype(np.float32)
        positions = rng.integers(0, 9, 3000)
        results = []
        for threads in (1, 3):
            out = np.empty((3000, 2, 130), np.float32)
            _kernels.rotary.rotate(x, out, positions, table, neighbours, threads)
            results.append(out)
        np.testing.assert_array_equal(*results)
        wanted = reference_rotary.turned_by(
            x[:, None].swapaxes(1, 2), positions[:, None], table, neighbours
        )
        np.testing.assert_allclose(results[0], wanted[:, :, 0], rtol=1e-5, atol=1e-5)


# In a process of its own, as in test_softmax_kernel_long_calls.py. The keys take 51 MB.
MEASURE = """
import re, sys
import numpy as np
from ruvector import _kernels
from ruvector._kernels.spec import AttentionSpec, RotarySpec

def peak():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1]) * 1024

m, n, heads = int(sys.argv[1]), 200_000, 2
q, k, v = (np.ones((1, rows, heads, 32), np.float32).swapaxes(1, 2) for rows in (m, n, n))
out = np.ones_like(q)
places = np.zeros((1, m), np.int64), np.zeros((1, n), np.int64)
rotary = RotarySpec(np.ones((4, 32), np.float32), False, *places)
before = peak()
_kernels.softmax.attend(q, k, v, out, None, AttentionSpec(scale=1.0, rotary=rotary), 2)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("num_queries", [1, 64])
def test_keys_are_never_turned_as_a_whole(backend, num_queries):
    assert int(output(MEASURE, str(num_queries), **selecting(backend))) < 24e6
