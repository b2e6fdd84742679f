"""InfoNCE and all its gradients against its formula, one anchor at a time in float64."""

from __future__ import annotations

import numpy as np
import pytest
import reference_losses as reference
from loss_cases import DTYPES, SHAPES, Batch, assert_close, check, every_form

import ruvector
from ruvector.training import InfoNCELoss

pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@every_form
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
@pytest.mark.parametrize("ids", [False, True], ids=["all", "ids"])
def test_equals_the_formula(form, shape, dtype, ids, rng):
    batch = Batch(rng, form, shape, dtype, ids=ids)
    loss = InfoNCELoss(0.2)
    expected = reference.info_nce(*batch.arrays, 0.2, batch.sets)
    result = loss.compute_with_gradients(*batch.arrays, **batch.options)
    check(result, expected, batch, dtype)
    assert result.gradients is result.anchor
    alone = loss.compute(*batch.arrays, **batch.options)
    assert isinstance(alone, float)
    np.testing.assert_allclose(alone, result.loss, rtol=1e-6, atol=1e-6)


@every_form
@pytest.mark.parametrize("reduction", reference.REDUCTIONS)
def test_reductions(form, reduction, rng):
    batch = Batch(rng, form, (9, 5, 6))
    result = InfoNCELoss(0.3, reduction=reduction).compute_with_gradients(*batch.arrays)
    expected = reference.info_nce(*batch.arrays, 0.3, batch.sets, reduction)
    check(result, expected, batch, np.float64)
    assert np.shape(result.loss) == ((9,) if reduction == "none" else ())


@every_form
@pytest.mark.parametrize("ids", [False, True], ids=["all", "ids"])
def test_central_differences(form, ids, rng):
    batch = Batch(rng, form, (5, 4, 3), ids=ids)
    names = ["anchor", "positive", "negatives"][: 2 if form == "in_batch" else 3]
    inputs = dict(zip(names, batch.arrays, strict=False)) | {"temperature": 0.5}

    def fn(temperature, **vectors):
        loss = InfoNCELoss(float(temperature))
        result = loss.compute_with_gradients(**vectors, **batch.options)
        gradients = {name: getattr(result, name) for name in inputs}
        return result.loss, gradients | {"temperature": np.array(result.temperature)}

    assert ruvector.gradcheck(fn, inputs, eps=1e-5)


def test_one_anchor_is_a_batch_of_one(rng):
    anchor, positive = rng.standard_normal((2, 12))
    negatives = rng.standard_normal((5, 12))
    loss = InfoNCELoss(0.1, reduction="none")
    one = loss.compute_with_gradients(anchor, positive, negatives)
    many = loss.compute_with_gradients(anchor[None], positive[None], negatives)
    assert isinstance(one.loss, float)
    assert one.loss == many.loss[0]
    assert one.anchor.shape == one.positive.shape == (12,)
    np.testing.assert_array_equal(one.anchor, many.anchor[0])
    np.testing.assert_array_equal(one.negatives, many.negatives)


def test_a_batch_of_one_has_nothing_to_lose(rng):
    anchor, positive = rng.standard_normal((2, 1, 12))
    result = InfoNCELoss().compute_with_gradients(anchor, positive)
    assert result.loss == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(result.anchor, 0, atol=1e-12)
    np.testing.assert_allclose(result.positive, 0, atol=1e-12)
    assert result.temperature == pytest.approx(0, abs=1e-12)


@every_form
def test_all_negatives_hidden(form, rng):
    batch = Batch(rng, form, (6, 3, 5))
    options = {"ids": np.zeros(6, np.int64)}
    if batch.negatives is not None:
        options["negative_ids"] = np.zeros(batch.negatives.shape[:-1], np.int64)
    result = InfoNCELoss().compute_with_gradients(*batch.arrays, **options)
    assert result.loss == pytest.approx(0, abs=1e-12)
    for gradient in (result.anchor, result.positive, result.negatives):
        if gradient is not None:
            np.testing.assert_allclose(gradient, 0, atol=1e-12)


@every_form
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
@pytest.mark.parametrize(
    ("temperature", "rtol"),
    [(1e-12, 0.1), (1e-8, 1e-5), (9e-4, 1e-6), (1e-3, 1e-3), (1e4, 1e-5), (1e30, 1e-5)],
)
def test_extreme_temperatures(form, temperature, rtol, dtype, rng):
    batch = Batch(rng, form, (17, 9, 20), dtype)
    result = InfoNCELoss(temperature).compute_with_gradients(*batch.arrays)
    loss, *gradients, _ = reference.info_nce(*batch.arrays, temperature, batch.sets)
    assert result.loss == pytest.approx(loss, rel=min(rtol, 1e-3))
    for name, expected in zip(("anchor", "positive", "negatives"), gradients, strict=True):
        if expected is not None:
            got = getattr(result, name)
            assert np.isfinite(got).all()
            np.testing.assert_allclose(
                got, expected, rtol=0, atol=rtol * np.abs(expected).max()
            )
    assert np.isfinite(result.temperature)


def test_small_losses_of_given_negatives_are_exact():
    loss = InfoNCELoss(0.05).compute([1.0, 0.0], [1.0, 0.0], [[-1.0, 0.0]])
    assert loss == pytest.approx(np.exp(-40.0), rel=1e-5)


@every_form
def test_scale_of_vectors_does_not_matter(form, rng):
    batch = Batch(rng, form, (8, 6, 5))
    big = [None if x is None else 1e200 * x for x in batch.arrays]
    loss = InfoNCELoss()
    one, two = loss.compute_with_gradients(*batch.arrays), loss.compute_with_gradients(*big)
    assert two.loss == pytest.approx(one.loss, rel=1e-12)
    assert_close(two.anchor * 1e200, one.anchor, 1e-12)


@every_form
def test_blocks_make_no_difference(form, rng, monkeypatch):
    batch = Batch(rng, form, (40, 21, 7), ids=True)
    loss = InfoNCELoss()
    whole = loss.compute_with_gradients(*batch.arrays, **batch.options)
    for name, size in (("_MASK", 200), ("_NEGATIVES", 300), ("_BLOCK", 50)):
        monkeypatch.setattr(f"ruvector._kernels.contrastive.{name}", size)
    parts = loss.compute_with_gradients(*batch.arrays, **batch.options)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-13)
    for name in ("anchor", "positive", "negatives"):
        assert_close(getattr(parts, name), getattr(whole, name), 1e-13)


@every_form
def test_threads_change_nothing(form, rng, backend):
    batch = Batch(rng, form, (200, 64, 96), np.float32)
    loss = InfoNCELoss()
    results = []
    for threads in (1, 2):
        with ruvector.num_threads(threads):
            results.append(loss.compute_with_gradients(*batch.arrays))
    for other in results[1:]:
        for name in ("anchor", "positive", "negatives"):
            one, two = getattr(results[0], name), getattr(other, name)
            if one is None:
                assert two is None
            elif backend[0] == "native":
                np.testing.assert_array_equal(one, two)
            else:
                assert_close(two, one, 1e-5)


def test_unit_ids_are_no_mask(rng):
    anchors, positives = rng.standard_normal((2, 9, 4))
    loss = InfoNCELoss()
    plain = loss.compute_with_gradients(anchors, positives)
    named = loss.compute_with_gradients(anchors, positives, ids=np.arange(9)[::-1])
    assert named.loss == plain.loss
    np.testing.assert_array_equal(named.positive, plain.positive)


@every_form
def test_inputs_of_all_kinds(form, rng):
    batch = Batch(rng, form, (4, 3, 6), np.float32)
    loss = InfoNCELoss(0.5)
    expected = loss.compute_with_gradients(*batch.arrays)
    arrays = []
    for x in batch.arrays:
        if x is not None:
            wide = np.zeros((*x.shape[:-1], 12), np.float32)
            wide[..., ::2] = x
            x = wide[..., ::2]
            x.flags.writeable = False
        arrays.append(x)
    strided = loss.compute_with_gradients(*arrays)
    assert strided.loss == expected.loss
    lists = loss.compute_with_gradients(*(None if x is None else x.tolist() for x in arrays))
    assert lists.loss == expected.loss
    assert lists.anchor.dtype == np.float32
    half = loss.compute_with_gradients(
        *(None if x is None else x.astype(np.float16) for x in arrays)
    )
    assert half.anchor.dtype == np.float16
    assert half.loss == pytest.approx(expected.loss, rel=1e-2)
    mixed = loss.compute_with_gradients(arrays[0].astype(np.float64), *arrays[1:])
    assert mixed.anchor.dtype == np.float64
    assert mixed.positive.dtype == np.float32


def test_nan_stays_visible(rng):
    anchors, positives = rng.standard_normal((2, 5, 4))
    anchors[2, 1] = np.nan
    result = InfoNCELoss(reduction="none").compute_with_gradients(anchors, positives)
    assert np.isnan(result.loss[2])
    assert np.isfinite(np.delete(result.loss, 2)).all()
    assert np.isfinite(np.delete(result.anchor, 2, axis=0)).all()


@pytest.mark.parametrize("form", ["shared", "own"])
@pytest.mark.parametrize("fill", [np.nan, np.inf, -3e38])
def test_what_a_hidden_negative_holds_reaches_nothing(form, fill, rng):
    batch = Batch(rng, form, (9, 7, 6), np.float32, ids=True)
    batch.options["ids"][:] = 0
    batch.options["negative_ids"] += 1
    batch.options["negative_ids"][..., 2] = 0
    loss = InfoNCELoss(0.5)
    expected = loss.compute_with_gradients(*batch.arrays, **batch.options)
    batch.negatives[..., 2, :] = fill
    result = loss.compute_with_gradients(*batch.arrays, **batch.options)
    assert np.isfinite(result.loss)
    for name in ("anchor", "positive", "negatives"):
        # The engine adds in another order where values hold NaN.
        assert_close(getattr(result, name), getattr(expected, name), 1e-6)
    assert not result.negatives[..., 2, :].any()


@pytest.mark.parametrize("name", ["anchor", "positive", "negatives"])
def test_zero_vectors_are_named(name, rng):
    given = {
        "anchor": rng.standard_normal((3, 4)),
        "positive": rng.standard_normal((3, 4)),
        "negatives": rng.standard_normal((3, 2, 4)),
    }
    given[name][1, ..., :] = 0
    with pytest.raises(ruvector.EmptyInputError, match=f"{name} must not hold a zero vector"):
        InfoNCELoss().compute(**given)


ONE, TWO = np.ones((3, 4)), np.ones((2, 4))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.ones((1, 3, 4)), ONE), ruvector.DimensionMismatchError, "anchor must have shape"),
        ((ONE, TWO), ruvector.DimensionMismatchError, r"positive must have shape \(3, 4\)"),
        ((ONE[0], ONE[0]), ruvector.EmptyInputError, "negatives must hold at least one"),
        ((ONE, ONE, ONE[:0]), ruvector.EmptyInputError, "negatives must hold at least one"),
        ((ONE, ONE, []), ruvector.EmptyInputError, "negatives must hold at least one"),
        ((ONE[:0], ONE[:0]), ruvector.EmptyInputError, "anchor must not be empty"),
        ((ONE, ONE, np.ones((2, 5))), ruvector.DimensionMismatchError, "length 4"),
        ((ONE, ONE, ONE[0]), ruvector.DimensionMismatchError, "negatives must have shape"),
        ((ONE[0], ONE[0], ONE[None]), ruvector.DimensionMismatchError, r"shape \(N, d\), got"),
        ((ONE, ONE, np.ones((2, 5, 4))), ruvector.DimensionMismatchError, "3 sets"),
        ((ONE * 1j, ONE), TypeError, "anchor must hold real"),
    ],
)
def test_shapes_that_do_not_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        InfoNCELoss().compute(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ids": [1, 2]}, ruvector.DimensionMismatchError, "ids must hold 3 numbers"),
        ({"ids": [1.0, 2.0, 3.0]}, TypeError, "ids must hold integers"),
        ({"ids": [1, 2, 3]}, ruvector.InvalidConfigError, "need negative_ids"),
        ({"negative_ids": [1, 2]}, ruvector.InvalidConfigError, "must come with ids"),
        (
            {"ids": [1, 2, 3], "negative_ids": [1]},
            ruvector.DimensionMismatchError,
            r"negative_ids must have shape \(2,\)",
        ),
    ],
)
def test_ids_that_do_not_fit(options, error, message):
    with pytest.raises(error, match=message):
        InfoNCELoss().compute(ONE, ONE, TWO, **options)


def test_ids_of_the_batch_say_all():
    with pytest.raises(ruvector.InvalidConfigError, match="without negatives"):
        InfoNCELoss().compute(ONE, ONE, ids=[1, 2, 3], negative_ids=[1, 2, 3])


@pytest.mark.parametrize("temperature", [0, -1.0, 1e-13, np.inf, np.nan, "1", True])
def test_temperatures_are_positive(temperature):
    with pytest.raises(ruvector.InvalidConfigError, match="temperature must be"):
        InfoNCELoss(temperature)
    loss = InfoNCELoss(0.5)
    with pytest.raises(ruvector.InvalidConfigError, match="temperature must be"):
        loss.temperature = temperature
    assert loss.temperature == 0.5


def test_a_learned_temperature_is_a_live_parameter():
    assert InfoNCELoss().parameters() == {}
    loss = InfoNCELoss(0.5, learn_temperature=True)
    assert loss.learn_temperature
    loss.parameters()["temperature"][0] = 0.25
    assert loss.temperature == 0.25
    assert repr(loss) == "InfoNCELoss(0.25, learn_temperature=True, reduction='mean')"
    loss.parameters()["temperature"][0] = -0.25
    with pytest.raises(ruvector.InvalidConfigError, match="temperature must be a positive"):
        loss.compute(ONE, ONE)


def test_options_are_checked():
    with pytest.raises(ruvector.InvalidConfigError, match="reduction must be 'mean' or 'sum'"):
        InfoNCELoss(reduction="max")
    with pytest.raises(ruvector.InvalidConfigError, match="learn_temperature must be True"):
        InfoNCELoss(learn_temperature=1)
