"""The gradient kernels against the float64 reference, on every feature of the forward."""

from __future__ import annotations

import numpy as np
import pytest
from backward_cases import backward, check, compare, expected, gradients_of
from hypothesis import given, settings
from softmax_cases import LAYOUTS, SIZES, STORAGE, problem, relaid, to_float64, to_storage
from softmax_problems import problems

pytestmark = pytest.mark.usefixtures("backend")

LENGTHS = [(1, 33), (16, 16), (17, 97), (97, 17), (33, 1), (70, 300)]


def _each_length(**spec):
    for num_queries, num_keys in LENGTHS:
        check(problem(num_queries=num_queries, num_keys=num_keys, **spec))


@pytest.mark.parametrize("num_queries", SIZES)
def test_lengths(num_queries):
    for num_keys in SIZES:
        case = problem(num_keys, heads=1, num_queries=num_queries, num_keys=num_keys, dim=16)
        check(case, with_lse=num_keys % 2)


@pytest.mark.parametrize("dim", [1, 3, 8, 17, 33, 64, 80, 128])
def test_head_sizes(dim):
    for dim_v in (1, 8, 17, 64, 130):
        check(problem(dim_v, num_queries=33, num_keys=37, dim=dim, dim_v=dim_v))


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("num_queries", [1, 3, 17, 64])
def test_storage_types(dtype, num_queries):
    for dim in (1, 7, 16, 64):
        check(
            problem(
                dim, num_queries=num_queries, num_keys=97, dim=dim, dim_v=dim + 2, dtype=dtype
            )
        )


@pytest.mark.parametrize(
    ("batch", "heads", "key_heads"),
    [(1, 1, 1), (3, 1, 1), (1, 5, 5), (2, 4, 2), (2, 6, 1), (3, 3, 3), (1, 40, 8)],
)
def test_batch_and_grouped_heads(batch, heads, key_heads):
    for num_queries in (1, 17):
        check(
            problem(
                batch=batch,
                heads=heads,
                key_heads=key_heads,
                num_queries=num_queries,
                num_keys=33,
                dim=16,
            )
        )


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize(
    ("heads", "num_queries", "num_keys"), [(1, 1, 5000), (2, 3, 4000), (1, 600, 70)]
)
def test_long(dtype, heads, num_queries, num_keys):
    check(
        problem(
            heads=heads,
            num_queries=num_queries,
            num_keys=num_keys,
            dim=16,
            dtype=dtype,
            scale=1.0,
        )
    )


@pytest.mark.parametrize(
    "shape",
    [
        {"batch": 0},
        {"heads": 0, "key_heads": 1},
        {"num_queries": 0},
        {"num_keys": 0},
        {"dim_v": 0},
        {"num_queries": 0, "num_keys": 0},
    ],
    ids=str,
)
def test_empty_axes(shape):
    check(problem(**shape))


def test_no_keys_but_a_sink():
    case = problem(num_keys=0, sink_logits=np.array([0.5, -1.0], np.float32))
    grad_out, grad_lse = gradients_of(case)
    got = check(case)
    np.testing.assert_allclose(got.sinks, grad_lse.sum(axis=(0, 2)), rtol=1e-5)
    assert not backward(case, grad_out, None).sinks.any()


@pytest.mark.parametrize("bottom_right", [False, True])
@pytest.mark.parametrize(
    "spec",
    [
        {"causal": True},
        {"left": 3, "right": 5},
        {"left": 0},
        {"causal": True, "left": 20},
        {"left": 5, "right": 5, "num_sinks": 4},
        {"left": 5, "right": 5, "num_sinks": 4, "symmetric": True},
        {"slopes": np.array([0.5, 0.0625], np.float32)},
        {"slopes": np.array([0.5, 0.0625], np.float32), "causal": True},
    ],
    ids=lambda spec: "-".join(spec),
)
def test_positions(spec, bottom_right):
    _each_length(bottom_right=bottom_right, **spec)


def test_given_positions():
    for positions in ([50, 0, 3, 99, -7, 3], [5], list(range(90, 20, -1))):
        check(
            problem(
                num_queries=len(positions),
                num_keys=97,
                positions=np.array(positions, np.int64),
                left=4,
                right=2,
                num_sinks=2,
                symmetric=True,
                slopes=np.array([0.1, 0.2], np.float32),
            )
        )


def test_softcap():
    _each_length(softcap=2.0, scale=3.0)


def test_sink_logits():
    _each_length(sink_logits=np.array([1.5, -2.0], np.float32))
    _each_length(sink_logits=np.array([8.0, -np.inf], np.float32), causal=True)


@pytest.mark.parametrize("axes", [(), (0,), (1,), (2,), (3,), (0, 1), (0, 1, 2), (0, 1, 2, 3)])
def test_bias_and_mask_that_repeat(axes):
    shape = (2, 4, 17, 97)
    kept = tuple(1 if axis in axes else length for axis, length in enumerate(shape))
    rng = np.random.default_rng(len(axes))
    bias = rng.standard_normal(kept).astype(np.float32)
    bias[rng.random(kept) < 0.1] = -np.inf
    mask = np.broadcast_to(rng.random(kept) < 0.7, shape)
    for options in (
        {"bias": np.broadcast_to(bias, shape)},
        {"bias": np.broadcast_to(bias, shape), "mask": mask},
    ):
        check(
            problem(batch=2, heads=4, key_heads=2, num_queries=17, num_keys=97, **options),
        )


def test_gradient_of_the_bias_is_added():
    bias = np.zeros((1, 2, 17, 33), np.float32)
    case = problem(num_queries=17, num_keys=33, bias=bias)
    from ruvector import _kernels

    grad_out, _ = gradients_of(case)
    out, lse = case.attend()
    once = backward(case, grad_out, None).bias
    twice = once.copy()
    _kernels.softmax_backward.attend_backward(
        case.query, case.key, case.value, out, lse, grad_out, None, None, None, None, twice,
        None, None, case.spec, 1,
    )  # fmt: skip
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)


ALL = ("query", "key", "value", "bias", "slopes", "sinks")


@pytest.mark.parametrize("name", ALL)
def test_one_gradient_alone(name):
    case = problem(
        heads=4,
        key_heads=2,
        num_queries=19,
        num_keys=35,
        bias=np.random.default_rng(0).standard_normal((1, 4, 19, 35)).astype(np.float32),
        slopes=np.full(4, 0.1, np.float32),
        sink_logits=np.zeros(4, np.float32),
        softcap=3.0,
    )
    grad_out, grad_lse = gradients_of(case)
    whole = backward(case, grad_out, grad_lse)
    alone = check(case, without=[other for other in ALL if other != name])
    np.testing.assert_allclose(getattr(alone, name), getattr(whole, name), rtol=1e-6)
    check(case, without=[name])


RAGGED = {
    "cu_seqlens_q": np.array([0, 3, 3, 20, 21, 38, 38], np.int64),
    "cu_seqlens_k": np.array([0, 5, 40, 40, 41, 90, 97], np.int64),
    "num_queries": 38,
    "num_keys": 97,
}


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
def test_ragged(spec, bottom_right):
    check(problem(heads=4, key_heads=2, bottom_right=bottom_right, **RAGGED, **spec))


@pytest.mark.parametrize("repeat", [False, True])
def test_ragged_bias_mask_and_positions(repeat):
    rng = np.random.default_rng(0)
    bias = rng.standard_normal((1, 2, 38, 97)).astype(np.float32)
    if repeat:
        bias = np.broadcast_to(bias[:, :1, :, :1], bias.shape)
    check(
        problem(
            bias=bias,
            mask=np.broadcast_to(rng.random((38, 97)) < 0.5, (1, 2, 38, 97)),
            positions=rng.integers(0, 20, 38),
            causal=True,
            **RAGGED,
        )
    )


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, dtype):
    case = problem(
        batch=2, heads=4, key_heads=2, num_queries=17, num_keys=33, dim=16, dim_v=17,
        dtype=dtype,
    )  # fmt: skip
    grad_out, grad_lse = gradients_of(case)
    for name in ("query", "key", "value"):
        array = relaid(getattr(case, name), layout)
        array.flags.writeable = False
        setattr(case, name, array)
    state = tuple(relaid(x[..., None], layout)[..., 0] for x in case.attend()[1:])
    out = relaid(case.attend()[0], layout)
    got = backward(
        case,
        relaid(grad_out, layout),
        relaid(grad_lse[..., None], layout)[..., 0],
        state=(out, *state),
    )
    compare(got, expected(case, grad_out, grad_lse), dtype)


@pytest.mark.parametrize("dtype", STORAGE)
def test_results_go_where_they_are_wanted(dtype):
    from ruvector import _kernels

    case = problem(heads=3, num_queries=19, num_keys=37, dtype=dtype)
    grad_out, grad_lse = gradients_of(case)
    wanted = expected(case, grad_out, grad_lse)
    memory, targets = [], []
    for array in (case.query, case.key, case.value):
        length = array.shape[2]
        memory.append(to_storage(np.full((1, length + 2, 3, 12), 5), dtype))
        targets.append(memory[-1][:, -2:0:-1, :, 2:10].transpose(0, 2, 1, 3))
    _kernels.softmax_backward.attend_backward(
        case.query, case.key, case.value, *case.attend(), grad_out, grad_lse, *targets, None,
        None, None, case.spec, 2,
    )  # fmt: skip
    compare(type(wanted)(*targets, None, None, None), wanted, dtype)
    for array in memory:
        untouched = to_float64(array)
        assert (untouched[:, [0, -1]] == 5).all()
        assert (untouched[..., [0, 1, 10, 11]] == 5).all()


def test_inputs_that_repeat():
    for axis in (0, 1, 2):
        case = problem(batch=3, heads=4, num_queries=17, num_keys=33)
        for name in ("query", "key", "value"):
            array = getattr(case, name)
            first = array[tuple(slice(0, 1 if a == axis else None) for a in range(4))]
            setattr(case, name, np.broadcast_to(first, array.shape))
        check(case)


@given(problems())
@settings(max_examples=150)
def test_all_features_together(case):
    check(case)


@given(problems())
@settings(max_examples=60)
def test_all_features_together_in_small_tiles(backend, case):
    if backend[0] != "python":
        pytest.skip("the compiled kernel's tiles have a fixed size")
    from ruvector._kernels.fallback import _tiles

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_SCORES", 64), ("_ROWS", 8), ("_WIDENED", 50)):
            patch.setattr(_tiles, name, value)
        check(case)


class TestHidden:
    """What no query sees, and queries that see nothing, leave no trace."""

    @pytest.mark.parametrize("kind", ["mask", "bias", "causal"])
    @pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
    def test_keys_and_values(self, kind, junk, dtype):
        for num_queries, num_keys in ((1, 40), (17, 97), (40, 50)):
            case = problem(num_queries=num_queries, num_keys=num_keys, dtype=dtype)
            visible = np.ones((1, 2, num_queries, num_keys), bool)
            visible[..., num_queries:] = False
            if num_queries == 1:
                visible[..., :5] = True
            if kind == "mask":
                case = case.with_spec(mask=visible)
            elif kind == "bias":
                bias = np.where(visible, 0, -np.inf)
                case = case.with_spec(bias=bias.astype(case.attend()[1].dtype))
            else:
                case = case.with_spec(causal=True)
                visible[...] = np.arange(num_keys) <= np.arange(num_queries)[:, None]
            hidden = ~visible.any(axis=(0, 1, 2))
            grad_out, grad_lse = gradients_of(case)
            wanted = expected(case, grad_out, grad_lse)
            case.key[:, :, hidden] = junk
            case.value[:, :, hidden] = -junk
            got = backward(case, grad_out, grad_lse)
            compare(got, wanted, dtype)
            assert not got.key[:, :, hidden].any()
            assert not got.value[:, :, hidden].any()

    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
    def test_key_that_some_queries_see(self, dtype):
        # NaN in a key is in the gradients of the rows that see it, and of the keys that
        # those rows see, and nowhere else.
        case = problem(heads=1, num_queries=40, num_keys=40, dtype=dtype)
        visible = np.zeros((1, 1, 40, 40), bool)
        visible[..., :20, :20] = visible[..., 20:, 20:] = True
        case = case.with_spec(mask=visible)
        grad_out, grad_lse = gradients_of(case)
        wanted = expected(case, grad_out, grad_lse)
        case.value[:, :, 25] = np.nan
        case.key[:, :, 31] = np.nan
        got = backward(case, grad_out, grad_lse)
        for array, true in ((got.query, wanted.query), (got.key, wanted.key)):
            assert np.isnan(array[:, :, 20:].astype(np.float64)).all()
            np.testing.assert_allclose(to_float64(array[:, :, :20]), true[:, :, :20], atol=3e-3)
        np.testing.assert_allclose(
            to_float64(got.value[:, :, :20]), wanted.value[:, :, :20], atol=3e-3
        )

    @pytest.mark.parametrize("kind", ["mask", "bias", "causal"])
    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
    def test_queries_that_see_nothing(self, kind, dtype):
        case = problem(num_queries=41, num_keys=33, dtype=dtype)
        blind = np.zeros(41, bool)
        blind[[3, 17]] = True
        if kind == "causal":
            case = case.with_spec(causal=True, bottom_right=True)
            blind[:] = np.arange(41) < 8
        else:
            visible = np.broadcast_to(~blind[:, None], (1, 2, 41, 33))
            bias = np.where(visible, 0, -np.inf).astype(case.attend()[1].dtype)
            case = case.with_spec(**({"mask": visible} if kind == "mask" else {"bias": bias}))
        grad_out, grad_lse = gradients_of(case)
        wanted = expected(case, grad_out, grad_lse)
        for junk in (None, np.nan, np.inf):
            if junk is not None:
                grad_out[:, :, blind] = junk
                grad_lse[:, :, blind] = junk
                case.query[:, :, blind] = junk
            got = backward(case, grad_out, grad_lse)
            assert not got.query[:, :, blind].any()
            compare(got, wanted, dtype)

    def test_gradient_that_is_nan_in_one_row(self):
        case = problem(heads=1, num_queries=40, num_keys=40, causal=True)
        grad_out, _ = gradients_of(case)
        wanted = expected(case, grad_out, None)
        grad_out[:, :, 20] = np.nan
        got = backward(case, grad_out, None)
        assert np.isnan(got.query[:, :, 20]).all()
        assert np.isnan(got.value[:, :, :21]).all()
        rows = np.arange(40) != 20
        np.testing.assert_allclose(got.query[:, :, rows], wanted.query[:, :, rows], atol=1e-5)
        np.testing.assert_allclose(got.key[:, :, 21:], wanted.key[:, :, 21:], atol=1e-5)
        np.testing.assert_allclose(got.value[:, :, 21:], wanted.value[:, :, 21:], atol=1e-5)


def test_large_scores_stay_finite():
    case = problem(num_queries=33, num_keys=97, scale=30.0, dtype="float64")
    check(case)
    case = problem(num_queries=33, num_keys=97, scale=300.0)
    for gradient in backward(case, *gradients_of(case)):
        assert gradient is None or np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("num_queries", [1, 33])
def test_no_weight_exceeds_one_where_rounding_exceeds_a_logarithm(num_queries, dtype):
    sinks = np.array([1e9, 3e10], np.float32)
    for seed in range(3):
        case = problem(
            num_queries=num_queries, num_keys=97, dim=64, scale=1e8, dtype=dtype, seed=seed,
            sink_logits=sinks,
        )  # fmt: skip
        state = case.attend()
        given = np.ones_like(state[0]), np.ones_like(state[1])
        got = backward(case, *given)
        assert np.abs(got.sinks).max() < 100 * num_queries
        for gradient in got:
            assert gradient is None or np.isfinite(gradient).all()


def test_inputs_are_left_alone():
    case = problem(num_queries=17, num_keys=33, softcap=3.0, causal=True)
    state, given = case.attend(), gradients_of(case)
    arrays = (case.query, case.key, case.value, *state, *given)
    before = [array.copy() for array in arrays]
    backward(case, *given, state=state)
    for now, then in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_threads_do_not_matter_to_the_result(backend):
    rng = np.random.default_rng(0)
    bias = rng.standard_normal((1, 1, 97, 1)).astype(np.float32)
    cases = [
        problem(heads=4, key_heads=2, num_queries=97, num_keys=333, dim=32, causal=True),
        problem(heads=1, num_queries=1, num_keys=20_000, dim=16),
        problem(heads=2, num_queries=300, num_keys=200, dtype="bfloat16"),
        problem(heads=2, num_queries=300, num_keys=200, dtype="float16"),
        problem(dtype="float64", heads=4, key_heads=2, **RAGGED),
        problem(
            batch=2,
            heads=4,
            key_heads=2,
            num_queries=97,
            num_keys=333,
            bias=np.broadcast_to(bias, (2, 4, 97, 333)),
            slopes=rng.random(4).astype(np.float32),
            sink_logits=rng.random(4).astype(np.float32),
            softcap=4.0,
            left=100,
        ),
    ]
    for case in cases:
        grad_out, grad_lse = gradients_of(case)
        state = case.attend()
        first = backward(case, grad_out, grad_lse, state=state)
        for threads in (2, 3, 8):
            again = backward(case, grad_out, grad_lse, state=state, threads=threads)
            if backend[0] == "native":
                for a, b in zip(again, first, strict=True):
                    np.testing.assert_array_equal(a, b)
            else:
                compare(again, expected(case, grad_out, grad_lse), case.dtype)
