"""compute_with_gradients of HyperbolicAttention and DualSpaceAttention."""

from __future__ import annotations

import inspect
from itertools import product

import numpy as np
import pytest
from class_gradient_cases import check_results

import ruvector
from ruvector import DualSpaceAttention, HyperbolicAttention, _ball_backward
from ruvector._kernels.fallback import _means_backward, _tiles

pytestmark = pytest.mark.usefixtures("backend")

DIM = 4
SHAPES = {
    "one query": ((), (), 5),
    "several": ((3,), (), 5),
    "one key": ((3,), (), 1),
    "batch": ((2, 3), (2,), 5),
    "shared memory": ((2, 3), (), 5),
    "memory with one entry": ((2, 3), (1,), 5),
}
LEARNED = {"learn_curvature": True, "learn_temperature": True}
MECHANISMS = {
    "midpoint": lambda: HyperbolicAttention(DIM, -1.7, 0.6, **LEARNED),
    "midpoint of tangents": lambda: HyperbolicAttention(
        DIM, 0.4, 0.6, inputs="tangent", **LEARNED
    ),
    "frechet": lambda: HyperbolicAttention(DIM, 1.3, 0.8, "frechet", tol=3e-11, **LEARNED),
    "frechet of tangents": lambda: HyperbolicAttention(
        DIM, -0.5, 0.8, "frechet", "tangent", tol=3e-11, **LEARNED
    ),
    "dual space": lambda: DualSpaceAttention.simple_fused(DIM, 2, 0.8, 0.4),
    "dual space, uneven": lambda: DualSpaceAttention(
        euclidean_dim=1, hyperbolic_dim=3, num_heads=1, curvature=2.0, temperature=0.7
    ),
}
every_mechanism = pytest.mark.parametrize("name", MECHANISMS)
# Which of the vectors are shortened at which norms, relative to 1 / sqrt(c).
RADII = 0.5, 2.5


def arrays(attention, query=(3,), memory=(), n=5, radius=0.5, dim_v=None, seed=0):
    """Make queries, keys and values with norms about `radius` of the ball's."""
    rng = np.random.default_rng(seed)
    if isinstance(attention, DualSpaceAttention):
        dim_v = attention.dim
    shapes = (*query, DIM), (*memory, n, DIM), (*memory, n, 3 if dim_v is None else dim_v)
    return [
        radius / np.sqrt(attention.curvature * s[-1]) * rng.standard_normal(s) for s in shapes
    ]


def normal(*shape, seed=1):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


# For functions that rounding, or where a search ends, moves by some 1e-11, which the quotient
# divides by twice the step.
COARSE = {"eps": 1e-5, "atol": 1e-5, "rtol": 1e-4}


def is_frechet(attention):
    return getattr(attention, "aggregation", None) == "frechet"


def check(attention, given, *, bounds=None, mask=None, **keywords):
    """Compare every gradient with central differences; parameters are inputs, too."""
    parameters = attention.parameters()
    if bounds is None:
        bounds = COARSE if is_frechet(attention) else {}
    keywords["return_lse"] = True
    output, lse = forward(attention, *given, mask=mask, **keywords)
    grad_output, grad_lse = normal(*output.shape), normal(*np.shape(lse), seed=7)
    # L of a query that sees nothing is -inf, and has no difference quotient.
    grad_lse = np.where(np.isfinite(lse), grad_lse, 0)
    inputs = dict(zip(("query", "keys", "values"), given, strict=True))
    inputs |= {name: array.copy() for name, array in parameters.items()}
    if mask is not None and mask.dtype != bool:
        inputs["mask"] = mask

    def fn(query, keys, values, **others):
        own = others.pop("mask", mask)
        for name, array in others.items():
            parameters[name][...] = array
        (output, lse), gradients = attention.compute_with_gradients(
            query, keys, values, grad_output, grad_lse=grad_lse, mask=own, **keywords
        )
        assert set(gradients.parameters) == set(parameters)
        value = (output * grad_output).sum() + np.where(grad_lse == 0, 0, lse * grad_lse).sum()
        found = {name: gradients[name] for name in ("query", "keys", "values", "mask")}
        return value, found | gradients.parameters

    with np.errstate(invalid="ignore"):
        assert ruvector.gradcheck(fn, inputs, **bounds)
    for name, array in parameters.items():
        array[...] = inputs[name]


def forward(attention, *given, temperature=None, **keywords):
    if temperature is None:
        return attention.compute(*given, **keywords)
    return attention.compute_with_temperature(*given, temperature, **keywords)


def _cases():
    """Pair mechanisms with shapes and radii; the long searches for means are slow."""
    for name, (label, shape), radius in product(MECHANISMS, SHAPES.items(), RADII):
        slow = "frechet" in name and len(shape[0]) == 2
        yield pytest.param(
            name, shape, radius, id=f"{name}-{label}-{radius}",
            marks=pytest.mark.slow if slow else (),
        )  # fmt: skip


class TestShapes:
    @pytest.mark.parametrize(("name", "shape", "radius"), list(_cases()))
    def test_central_differences(self, name, shape, radius):
        attention = MECHANISMS[name]()
        given = arrays(attention, *shape, radius=radius)
        if is_frechet(attention) and attention.inputs == "ball":
            # The search does not end so close to the boundary.
            given[2] *= 0.5 / radius
        # Rounding of 1 - c|x|^2 shows where points are shortened to 1e-5 from the boundary.
        check(attention, given, bounds=COARSE if radius > 1 else None)


@every_mechanism
class TestCentralDifferences:
    def test_bool_mask(self, name):
        attention = MECHANISMS[name]()
        mask = np.random.default_rng(0).random((3, 5)) < 0.6
        mask[1] = False
        mask[2] = np.arange(5) == 3
        check(attention, arrays(attention), mask=mask)

    @pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (1, 3, 5), (2, 1, 5)])
    def test_float_mask(self, name, shape):
        attention = MECHANISMS[name]()
        query, keys, values = arrays(attention, (2, 3))
        output = attention.compute(query, keys, values)
        grad = normal(*output.shape)

        def fn(mask):
            output, gradients = attention.compute_with_gradients(
                query, keys, values, grad, mask=mask
            )
            return (output * grad).sum(), [gradients.mask]

        bounds = COARSE if is_frechet(attention) else {}
        assert ruvector.gradcheck(fn, [normal(*shape)], **bounds)

    def test_points_that_meet(self, name):
        # The distance of a query from a key that it lies on has a kink, about which both
        # sides are alike.
        attention = MECHANISMS[name]()
        query, keys, values = arrays(attention)
        keys[1] = keys[2] = query[0]
        keys[4] = query[2]
        values[1] = values[3]
        # Alike up to the step itself.
        bounds = {"eps": 1e-5, "atol": 1e-4} if is_frechet(attention) else {"atol": 1e-5}
        check(attention, [query, keys, values], bounds=bounds)
        values[...] = values[0]
        check(attention, [query, keys, values], bounds=bounds)

    def test_points_at_the_origin(self, name):
        attention = MECHANISMS[name]()
        query, keys, values = arrays(attention)
        query[0] = keys[1] = values[2] = 0
        check(attention, [query, keys, values])

    def test_near_the_boundary(self, name):
        attention = MECHANISMS[name]()
        given = arrays(attention)
        for x in given:
            x *= (
                0.995 / np.sqrt(attention.curvature) / np.linalg.norm(x, axis=-1, keepdims=True)
            )
        check(attention, given)


@pytest.mark.parametrize("aggregation", ["midpoint", "frechet"])
class TestHyperbolic:
    def test_temperature_of_the_call(self, aggregation):
        attention = HyperbolicAttention(DIM, 1.3, 0.6, aggregation, tol=3e-11, **LEARNED)
        given = arrays(attention)
        check(attention, given, temperature=0.4)
        output = attention.compute_with_temperature(*given, 0.4)
        got, gradients = attention.compute_with_gradients(
            *given, np.ones_like(output), temperature=0.4
        )
        np.testing.assert_array_equal(got, output)
        assert gradients.parameters["temperature"] == 0

    def test_parameters_are_those_that_are_learned(self, aggregation):
        for learned in ({}, {"learn_curvature": True}, {"learn_temperature": True}, LEARNED):
            attention = HyperbolicAttention(DIM, 1.3, 0.6, aggregation, **learned)
            _, gradients = attention.compute_with_gradients(*arrays(attention), np.ones((3, 3)))
            assert {f"learn_{name}" for name in gradients.parameters} == set(learned)
            assert all(x.shape == () for x in gradients.parameters.values())

    def test_a_vector_that_is_shortened_has_no_gradient_along_itself(self, aggregation):
        attention = HyperbolicAttention(DIM, 1.3, 0.6, aggregation)
        given = arrays(attention, radius=20.0)
        _, gradients = attention.compute_with_gradients(*given, normal(3, 3))
        for name, x in zip(("query", "keys", "values"), given, strict=True):
            along = (gradients[name] * x).sum(axis=-1)
            size = np.abs(gradients[name] * x).sum(axis=-1)
            assert (np.abs(along) < 1e-9 * size.max()).all()
            assert size.max() > 0

    def test_points_that_are_shortened_well_inside(self, aggregation):
        # The margin of 1e-5 is a tenth of this ball, so that all is smooth.
        attention = HyperbolicAttention(DIM, 1e8, 6e-5, aggregation, tol=3e-11)
        given = arrays(attention, radius=2.5)
        check(attention, given, bounds={"eps": 1e-10, "atol": 0.1, "rtol": 1e-4})

    def test_temperature_is_checked(self, aggregation):
        attention = HyperbolicAttention(DIM, aggregation=aggregation)
        with pytest.raises(ruvector.InvalidConfigError, match=r"^temperature must be"):
            attention.compute_with_gradients(
                *arrays(attention), np.ones((3, 3)), temperature=0.0
            )

    def test_query_on_the_only_key(self, aggregation):
        attention = HyperbolicAttention(DIM, 1.3, 0.6, aggregation)
        query, _, values = arrays(attention, n=1)
        output, gradients = attention.compute_with_gradients(
            query[0], query[:1], values, np.ones(3), grad_lse=1.0
        )
        assert (gradients.query == 0).all()
        assert (gradients.keys == 0).all()
        np.testing.assert_allclose(output, values[0], rtol=1e-12)
        np.testing.assert_allclose(gradients.values, np.ones((1, 3)), rtol=1e-9)


class TestDualSpace:
    @pytest.mark.parametrize("weight", [0.0, 1.0])
    def test_one_space_alone(self, weight):
        attention = DualSpaceAttention(
            euclidean_dim=2, hyperbolic_dim=2, num_heads=1, curvature=1.0,
            fusion_weight=weight, learn_fusion=False,
        )  # fmt: skip
        check(attention, arrays(attention))

    def test_saturated_fusion_has_no_gradient(self):
        attention = MECHANISMS["dual space"]()
        attention.parameters()["fusion_logit"][...] = 800.0
        _, gradients = attention.compute_with_gradients(*arrays(attention), normal(3, DIM))
        assert gradients.parameters["fusion_logit"] == 0
        assert np.isfinite(gradients.query).all()

    def test_one_key_passes_the_gradient_on(self):
        # log_0 of the midpoint of one exponential is the value itself.
        attention = MECHANISMS["dual space"]()
        grad = normal(DIM)
        for radius in (0.01, 1.0, 4.0):
            given = arrays(attention, (), n=1, radius=radius)
            _, gradients = attention.compute_with_gradients(*given, grad)
            np.testing.assert_allclose(gradients.values[0], grad, rtol=1e-6)


@every_mechanism
class TestAgreement:
    def test_the_result_is_that_of_compute(self, name):
        attention = MECHANISMS[name]()
        given = [x.astype("float32") for x in arrays(attention, (2, 3))]
        check_results(attention, given)

    def test_shared_memory_sums_over_the_batch(self, name, monkeypatch):
        attention = MECHANISMS[name]()
        query, keys, values = arrays(attention, (6, 3))
        output = attention.compute(query, keys, values)
        grad, mask = normal(*output.shape), normal(3, 5)
        for limit in (_ball_backward._UNSUMMED, 1):
            monkeypatch.setattr(_ball_backward, "_UNSUMMED", limit)
            _, together = attention.compute_with_gradients(query, keys, values, grad, mask=mask)
            apart = [
                attention.compute_with_gradients(q, keys, values, g, mask=mask)[1]
                for q, g in zip(query, grad, strict=True)
            ]
            for part in ("keys", "values", "mask"):
                np.testing.assert_allclose(
                    together[part], sum(g[part] for g in apart), rtol=1e-9, atol=1e-10
                )
            np.testing.assert_allclose(together.query, [g.query for g in apart], atol=1e-10)
            for parameter, total in together.parameters.items():
                summed = sum(g.parameters[parameter] for g in apart)
                np.testing.assert_allclose(total, summed, rtol=1e-9)

    def test_tiles_of_any_size(self, name, monkeypatch):
        attention = MECHANISMS[name]()
        given = arrays(attention, (2, 13), (2,), 29)
        mask = np.where(
            np.random.default_rng(0).random((13, 29)) < 0.3, -np.inf, normal(13, 29)
        )
        mask[4] = -np.inf
        grad = normal(*attention.compute(*given).shape)
        _, whole = attention.compute_with_gradients(*given, grad, mask=mask)
        monkeypatch.setattr(_tiles, "_SCORES", 64)
        monkeypatch.setattr(_tiles, "_ROWS", 4)
        monkeypatch.setattr(_means_backward, "_TILE", 60)
        monkeypatch.setattr(_ball_backward, "_WEIGHTS", 100)
        _, tiled = attention.compute_with_gradients(*given, grad, mask=mask)
        for part in ("query", "keys", "values", "mask"):
            np.testing.assert_allclose(tiled[part], whole[part], rtol=1e-9, atol=1e-11)
        for parameter, total in whole.parameters.items():
            np.testing.assert_allclose(tiled.parameters[parameter], total, rtol=1e-10)

    @pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
    def test_dtypes(self, name, dtype):
        if dtype == "bfloat16":
            dtype = pytest.importorskip("ml_dtypes").bfloat16
        attention = MECHANISMS[name]()
        given = [x.astype(dtype) for x in arrays(attention, (2, 7), (2,), 19, radius=0.3)]
        mask = normal(7, 19).astype(dtype)
        wide = [x.astype(np.float64) for x in (*given, mask)]
        grad = normal(*attention.compute(*wide[:3]).shape)
        _, got = attention.compute_with_gradients(*given, grad, mask=mask)
        _, true = attention.compute_with_gradients(*wide[:3], grad, mask=wide[3])
        bound = 2e-5 if dtype == "float32" else 0.03
        for part in ("query", "keys", "values", "mask"):
            assert got[part].dtype == dtype
            error = np.abs(got[part].astype(np.float64) - true[part]).max()
            assert error < bound * np.abs(true[part]).max()
        for parameter, wanted in true.parameters.items():
            np.testing.assert_allclose(
                got.parameters[parameter], wanted, rtol=bound, atol=bound
            )

    def test_bits_do_not_depend_on_threads(self, name):
        attention = MECHANISMS[name]()
        given = [x.astype("float32") for x in arrays(attention, (2, 70), (2,), 300)]
        grad = normal(*attention.compute(*given).shape)
        with ruvector.num_threads(1):
            _, one = attention.compute_with_gradients(*given, grad)
        for threads in (2, 8):
            with ruvector.num_threads(threads):
                _, several = attention.compute_with_gradients(*given, grad)
            for part in ("query", "keys", "values"):
                np.testing.assert_array_equal(several[part], one[part])
            assert several.parameters == one.parameters

    def test_nothing_hidden_leaks(self, name):
        attention = MECHANISMS[name]()
        query, keys, values = arrays(attention)
        grad = normal(*attention.compute(query, keys, values).shape)
        mask = np.ones((3, 5), bool)
        mask[:, 2] = mask[1] = False
        _, clean = attention.compute_with_gradients(query, keys, values, grad, mask=mask)
        for bad in (np.nan, np.inf):
            keys[2], values[2], query[1] = bad, bad, bad
            _, got = attention.compute_with_gradients(query, keys, values, grad, mask=mask)
            for part in ("query", "keys", "values"):
                np.testing.assert_allclose(got[part], clean[part], rtol=1e-11, atol=1e-15)
            for parameter, wanted in clean.parameters.items():
                np.testing.assert_allclose(got.parameters[parameter], wanted, rtol=1e-11)
        assert (clean.query[1] == 0).all()
        assert (clean.keys[2] == 0).all()
        assert (clean.values[2] == 0).all()

    def test_out_may_overlap_the_inputs(self, name):
        attention = MECHANISMS[name]()
        query, keys, values = arrays(attention, dim_v=DIM)
        grad = normal(3, DIM)
        wanted, true = attention.compute_with_gradients(query.copy(), keys, values, grad.copy())
        for out in (query, grad):
            given = query.copy(), grad.copy()
            got, gradients = attention.compute_with_gradients(
                query, keys, values, grad, out=out
            )
            assert got is out
            np.testing.assert_array_equal(got, wanted)
            for part in ("query", "keys", "values"):
                np.testing.assert_array_equal(gradients[part], true[part])
            query[...], grad[...] = given

    def test_no_queries(self, name):
        attention = MECHANISMS[name]()
        query, keys, values = arrays(attention, (0,))
        output, gradients = attention.compute_with_gradients(
            query, keys, values, np.zeros((0, values.shape[1]))
        )
        assert output.shape == (0, values.shape[1])
        assert (gradients.keys == 0).all()
        assert (gradients.values == 0).all()
        assert all(x == 0 for x in gradients.parameters.values())

    def test_keywords_are_those_of_compute(self, name):
        attention = MECHANISMS[name]()
        forward = inspect.signature(attention.compute).parameters
        backward = inspect.signature(attention.compute_with_gradients).parameters
        assert set(backward) - set(forward) - {"temperature"} == {"grad_output", "grad_lse"}
        assert set(forward) <= set(backward)


def test_training_lowers_a_loss():
    attention = HyperbolicAttention(DIM, 1.0, 2.0, inputs="tangent", **LEARNED)
    query, keys, values = arrays(attention, (8,), n=6, dim_v=DIM)
    target = 0.3 * normal(8, DIM)
    losses = []
    for _ in range(150):
        output = attention.compute(query, keys, values)
        losses.append(((output - target) ** 2).sum())
        _, gradients = attention.compute_with_gradients(
            query, keys, values, 2 * (output - target)
        )
        for x, name in ((query, "query"), (keys, "keys"), (values, "values")):
            x -= 0.1 * gradients[name]
        for name, x in attention.parameters().items():
            x -= 0.02 * gradients.parameters[name]
    assert losses[-1] < 0.5 * losses[0]
    assert attention.temperature != 2
    assert attention.curvature != 1
