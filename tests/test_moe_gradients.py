"""Gradients of a mixture of experts, against central differences under the same choices."""

from __future__ import annotations

import numpy as np
import pytest

import ruvector

pytestmark = pytest.mark.usefixtures("backend")

TYPES = {
    "standard": ("standard",) * 3,
    "linear": ("linear",) * 3,
    "hyperbolic": ("hyperbolic",) * 3,
    "mixed": ("standard", "linear", "hyperbolic"),
}
TRAINING = {
    "expert_capacity": 0.8,
    "load_balance_weight": 0.7,
    "aux_loss_weight": 0.3,
    "jitter_noise": 0.2,
}
SHAPES = {
    "one query": ((4,), (5, 4), (5, 2)),
    "few queries": ((3, 4), (5, 4), (5, 2)),
    "many queries": ((9, 4), (2, 4), (2, 3)),
    "batch": ((2, 3, 4), (2, 5, 4), (2, 5, 2)),
    "shared memory": ((2, 3, 4), (5, 4), (5, 2)),
    "shared values": ((2, 3, 4), (2, 5, 4), (5, 2)),
}


def normal(*shape, seed=0, dtype="float64"):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def mixture(types, seed=0, **options):
    fields = {"dim": 4, "num_experts": 3, "top_k": 2, "expert_types": TYPES[types]}
    attention = ruvector.MoEAttention(**fields, **options, seed=seed, dtype="float64")
    rng = np.random.default_rng(7)
    for array in attention.parameters().values():
        array += 0.3 * rng.standard_normal(array.shape)
    return attention


def arrays_of(shapes):
    # Short, so that experts in the ball read points of its inside.
    return [0.3 * normal(*shape, seed=i) for i, shape in enumerate(shapes)]


def problem(make, arrays, mask, keywords):
    """Give inputs by name, and a function of them for gradcheck.

    `make` gives a mixture that draws the same jitter each time.
    """
    grad_output = normal(*make().compute(*arrays, mask=mask).shape, seed=5)
    inputs = dict(zip(("query", "keys", "values"), arrays, strict=True))
    inputs |= {name: array.copy() for name, array in make().parameters().items()}
    if mask is not None and mask.dtype != np.bool_:
        inputs["mask"] = mask

    def fn(**given):
        attention = make()
        for name, array in attention.parameters().items():
            array[...] = given[name]
        result, gradients = attention.compute_with_gradients(
            given["query"], given["keys"], given["values"], grad_output,
            mask=given.get("mask", mask), **keywords,
        )  # fmt: skip
        loss = 0.0
        if "grad_aux_loss" in keywords:
            result, loss = result
            loss *= keywords["grad_aux_loss"]
        made = {name: gradients[name] for name in ("query", "keys", "values", "mask")}
        return (result * grad_output).sum() + loss, made | gradients.parameters

    return fn, inputs


def check(make, arrays, mask=None, **keywords):
    """Compare each gradient with central differences in a random direction."""
    fn, inputs = problem(make, arrays, mask, keywords)
    _, gradients = fn(**inputs)
    for name, array in inputs.items():
        assert gradients[name].shape == array.shape
        direction, step = normal(*array.shape, seed=11), 1e-6
        sides = [fn(**inputs | {name: array + s * step * direction})[0] for s in (1, -1)]
        quotient = (sides[0] - sides[1]) / (2 * step)
        got = (gradients[name] * direction).sum()
        assert got == pytest.approx(quotient, rel=1e-5, abs=1e-6), name


def test_every_entry():
    arrays = arrays_of(SHAPES["few queries"])
    assert ruvector.gradcheck(*problem(lambda: mixture("mixed"), arrays, normal(5), {}))


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_central_differences(types, shapes):
    check(lambda: mixture(types), arrays_of(shapes))


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("name", ["few queries", "batch", "shared memory"])
def test_mask_of_keys(types, name):
    mask = normal(5)
    check(lambda: mixture(types), arrays_of(SHAPES[name]), mask)
    check(lambda: mixture(types), arrays_of(SHAPES[name]), mask > -0.5)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("few queries", (3, 5)),
        ("few queries", (1, 5)),
        ("batch", (3, 5)),
        ("batch", (2, 3, 5)),
        ("batch", (2, 1, 5)),
        ("batch", (1, 3, 5)),
        ("shared memory", (2, 1, 5)),
        ("shared memory", (2, 3, 5)),
        ("shared values", (3, 5)),
    ],
)
def test_mask_of_queries_and_keys(name, shape):
    check(lambda: mixture("standard"), arrays_of(SHAPES[name]), normal(*shape))


def test_one_query_of_a_batch_with_a_mask_each():
    arrays = arrays_of(((2, 1, 4), (5, 4), (5, 2)))
    check(lambda: mixture("standard"), arrays, normal(2, 1, 5))


def test_views_that_repeat_have_their_own_gradients():
    attention = mixture("mixed")
    query, grad = normal(2, 3, 4), normal(2, 3, 2)
    keys, values = normal(5, 4), normal(5, 2)
    mask = normal(5)
    wide = [np.broadcast_to(x, (2, *x.shape)) for x in (keys, values)]
    _, got = attention.compute_with_gradients(query, *wide, grad, mask=mask)
    _, true = attention.compute_with_gradients(query, *map(np.array, wide), grad, mask=mask)
    for name in ("query", "keys", "values", "mask"):
        np.testing.assert_allclose(got[name], true[name], atol=1e-14)
    standard = mixture("standard")
    repeated = np.broadcast_to(mask, (2, 3, 5))
    _, got = standard.compute_with_gradients(query, *wide, grad, mask=repeated)
    _, true = standard.compute_with_gradients(query, *wide, grad, mask=np.array(repeated))
    np.testing.assert_allclose(got.mask, true.mask, atol=1e-14)


@pytest.mark.parametrize("types", ["standard", "mixed"])
class TestTraining:
    def test_capacity_and_jitter(self, types):
        arrays = arrays_of(((11, 4), (5, 4), (5, 2)))
        attention = mixture(types, **TRAINING)
        attention.compute(*arrays, training=True)
        assert attention.routing_stats.overflowed > 0
        check(lambda: mixture(types, **TRAINING), arrays, training=True)

    def test_auxiliary_loss(self, types):
        arrays = arrays_of(((2, 6, 4), (2, 5, 4), (2, 5, 2)))
        check(lambda: mixture(types, **TRAINING), arrays, normal(5), grad_aux_loss=1.5)

    def test_dropped_queries(self, types):
        options = TRAINING | {"expert_capacity": 0.2}
        arrays = arrays_of(((11, 4), (5, 4), (5, 2)))
        attention = mixture(types, **options)
        attention.compute(*arrays, training=True)
        assert attention.routing_stats.dropped > 0
        check(lambda: mixture(types, **options), arrays, grad_aux_loss=1.0)

    def test_the_result_is_that_of_compute_with_aux_loss(self, types):
        arrays = arrays_of(((7, 4), (5, 4), (5, 2)))
        wanted, loss = mixture(types, **TRAINING).compute_with_aux_loss(
            *arrays, return_weights=True
        )
        attention = mixture(types, **TRAINING)
        (got, own_loss), _ = attention.compute_with_gradients(
            *arrays, np.ones((7, 2)), grad_aux_loss=1, return_weights=True
        )
        assert own_loss == loss
        for x, y in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(x, y)
        assert attention.routing_stats.queries == 7


def test_the_loss_alone_reaches_the_router():
    attention = mixture("mixed", load_balance_weight=0.5)
    arrays = arrays_of(((7, 4), (5, 4), (5, 2)))
    _, gradients = attention.compute_with_gradients(
        *arrays, np.zeros((7, 2)), grad_aux_loss=1.0
    )
    assert np.abs(gradients.parameters["router.weight"]).max() > 1e-3
    assert np.abs(gradients.query).max() > 1e-3
    for name in ("keys", "values"):
        assert (gradients[name] == 0).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shapes", [SHAPES["few queries"], SHAPES["many queries"]])
def test_dtypes(dtype, shapes):
    attention = ruvector.MoEAttention(
        dim=4, num_experts=3, top_k=2, expert_types=TYPES["mixed"]
    )
    arrays = [x.astype(dtype) for x in arrays_of(shapes)]
    wide = [x.astype(np.float64) for x in arrays]
    wanted = attention.compute(*arrays)
    grad = normal(*wanted.shape)
    output, got = attention.compute_with_gradients(*arrays, grad)
    np.testing.assert_array_equal(output, wanted)
    _, true = attention.compute_with_gradients(*wide, grad)
    bound = {"float16": 0.02, "float32": 2e-5, "float64": 1e-12}[dtype]
    for name in ("query", "keys", "values"):
        assert got[name].dtype == dtype
        assert np.abs(got[name] - true[name]).max() < bound
    for name, array in attention.parameters().items():
        assert got.parameters[name].dtype == array.dtype
        assert np.abs(got.parameters[name] - true.parameters[name]).max() < bound + 1e-5


def test_hidden_keys_do_not_leak():
    attention = mixture("mixed")
    query, keys, values = arrays_of(SHAPES["few queries"])
    mask = np.array([True, False, True, True, False])
    grad = np.ones((3, 2))
    _, wanted = attention.compute_with_gradients(query, keys, values, grad, mask=mask)
    keys[1], values[4] = np.nan, np.inf
    _, got = attention.compute_with_gradients(query, keys, values, grad, mask=mask)
    for name in ("query", "keys", "values"):
        np.testing.assert_allclose(got[name], wanted[name], atol=1e-14)
    for name, array in wanted.parameters.items():
        np.testing.assert_allclose(got.parameters[name], array, atol=1e-14)


def test_no_queries():
    attention = mixture("mixed")
    _, gradients = attention.compute_with_gradients(
        normal(0, 4), normal(5, 4), normal(5, 2), normal(0, 2), grad_aux_loss=1.0
    )
    assert (gradients.keys == 0).all()
    assert all((x == 0).all() for x in gradients.parameters.values())


def test_errors():
    attention = mixture("mixed")
    arrays = arrays_of(SHAPES["few queries"])
    out = np.full((3, 2), 7.0)
    for options in ({"return_lse": True}, {"grad_lse": np.ones(3)}):
        with pytest.raises(ruvector.InvalidConfigError, match="no single log-sum-exp"):
            attention.compute_with_gradients(*arrays, np.ones((3, 2)), out=out, **options)
    with pytest.raises(ruvector.InvalidConfigError, match="grad_aux_loss"):
        attention.compute_with_gradients(
            *arrays, np.ones((3, 2)), grad_aux_loss=np.nan, out=out
        )
    with pytest.raises(ruvector.DimensionMismatchError, match="grad_output must have shape"):
        attention.compute_with_gradients(*arrays, np.ones((3, 3)), out=out)
    assert (out == 7).all()
    assert attention.routing_stats.queries == 0
