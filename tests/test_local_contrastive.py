"""The triplet hinge and the spectral penalties against their formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import reference_losses as reference
from loss_cases import DTYPES, SHAPES, Batch, assert_close, check, every_form

import ruvector
from ruvector.training import LocalContrastiveLoss, SpectralRegularization

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
    loss = LocalContrastiveLoss(0.7)
    expected = reference.hinge(*batch.arrays, 0.7, batch.sets)
    result = loss.compute_with_gradients(*batch.arrays, **batch.options)
    check(result, expected, batch, dtype)
    assert result.temperature is None
    assert loss.compute(*batch.arrays, **batch.options) == result.loss


@every_form
@pytest.mark.parametrize("reduction", reference.REDUCTIONS)
def test_reductions(form, reduction, rng):
    batch = Batch(rng, form, (9, 5, 6))
    result = LocalContrastiveLoss(0.5, reduction).compute_with_gradients(*batch.arrays)
    expected = reference.hinge(*batch.arrays, 0.5, batch.sets, reduction)
    check(result, expected, batch, np.float64)


@every_form
@pytest.mark.parametrize("ids", [False, True], ids=["all", "ids"])
def test_central_differences(form, ids, rng):
    batch = Batch(rng, form, (5, 4, 3), ids=ids)
    names = ["anchor", "positive", "negatives"][: 2 if form == "in_batch" else 3]

    def fn(**vectors):
        result = LocalContrastiveLoss(1.0).compute_with_gradients(**vectors, **batch.options)
        return result.loss, result

    assert ruvector.gradcheck(fn, dict(zip(names, batch.arrays, strict=False)), eps=1e-5)


@every_form
def test_tiles_make_no_difference(form, rng, monkeypatch):
    batch = Batch(rng, form, (40, 21, 7), ids=True)
    loss = LocalContrastiveLoss(1.0)
    whole = loss.compute_with_gradients(*batch.arrays, **batch.options)
    for name, size in (("_ROWS", 7), ("_COLUMNS", 5), ("_ELEMENTS", 300)):
        monkeypatch.setattr(f"ruvector._kernels.hinge.{name}", size)
    parts = loss.compute_with_gradients(*batch.arrays, **batch.options)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-13)
    for name in ("anchor", "positive", "negatives"):
        assert_close(getattr(parts, name), getattr(whole, name), 1e-13)


def test_close_vectors_far_from_the_origin(rng):
    """Their distances are not lost in those from the origin."""
    base = rng.standard_normal(6) * 100
    batch = Batch(rng, "shared", (9, 12, 6), np.float32)
    batch.anchors, batch.positives, batch.negatives = (
        (base + 1e-3 * x).astype(np.float32) for x in batch.arrays
    )
    result = LocalContrastiveLoss(0.003).compute_with_gradients(*batch.arrays)
    check(result, reference.hinge(*batch.arrays, 0.003, batch.sets), batch, np.float32)


def test_coinciding_vectors_have_the_gradient_zero():
    x = np.array([1.0, 2.0])
    result = LocalContrastiveLoss(0.5).compute_with_gradients(x, x, x[None])
    assert result.loss == 0.5
    for gradient in (result.anchor, result.positive, result.negatives):
        np.testing.assert_array_equal(gradient, 0)


def test_a_hinge_of_exactly_zero_is_closed():
    result = LocalContrastiveLoss(1.0).compute_with_gradients([0.0], [1.0], [[2.0]])
    assert result.loss == 0
    for gradient in (result.anchor, result.positive, result.negatives):
        np.testing.assert_array_equal(gradient, 0)


@every_form
def test_all_negatives_hidden(form, rng):
    batch = Batch(rng, form, (6, 3, 5))
    options = {"ids": np.zeros(6, np.int64)}
    if batch.negatives is not None:
        options["negative_ids"] = np.zeros(batch.negatives.shape[:-1], np.int64)
    result = LocalContrastiveLoss(9.0).compute_with_gradients(*batch.arrays, **options)
    assert result.loss == 0
    np.testing.assert_array_equal(result.anchor, 0)
    np.testing.assert_array_equal(result.positive, 0)


@every_form
def test_nan_stays_visible(form, rng):
    batch = Batch(rng, form, (5, 4, 3))
    batch.anchors[2, 1] = np.nan
    result = LocalContrastiveLoss(5.0, "none").compute_with_gradients(*batch.arrays)
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
    loss = LocalContrastiveLoss(3.0)
    expected = loss.compute_with_gradients(*batch.arrays, **batch.options)
    batch.negatives[..., 2, :] = fill
    result = loss.compute_with_gradients(*batch.arrays, **batch.options)
    assert np.isfinite(result.loss)
    for name in ("anchor", "positive", "negatives"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
    assert not result.negatives[..., 2, :].any()


@every_form
def test_nan_reaches_only_those_that_see_it(form, rng):
    batch = Batch(rng, form, (9, 9, 6), np.float32, ids=True)
    ids = batch.options["ids"]
    ids[:] = np.arange(9) % 3
    if form != "in_batch":
        batch.options["negative_ids"] = np.broadcast_to(ids, (9, 9)[: 1 + (form == "own")])
    batch.anchors[2] = np.nan
    result = LocalContrastiveLoss(9.0).compute_with_gradients(*batch.arrays, **batch.options)
    unseen = ids == ids[2]
    assert np.isnan(result.anchor[2]).all()
    assert np.isfinite(np.delete(result.anchor, 2, axis=0)).all()
    negatives = {"in_batch": result.positive, "shared": result.negatives}.get(form)
    if negatives is None:
        negatives = result.negatives[2]
    elif form == "in_batch":
        unseen[2] = False
    assert np.isfinite(negatives[unseen]).all()
    assert np.isnan(negatives[ids != ids[2]]).all()


def test_threads_agree(rng):
    batch = Batch(rng, "in_batch", (600, 1, 64), np.float32)
    results = []
    for threads in (1, 2):
        with ruvector.num_threads(threads):
            results.append(LocalContrastiveLoss(1.0).compute_with_gradients(*batch.arrays))
    one, two = results
    assert one.loss == pytest.approx(two.loss, rel=1e-12)
    np.testing.assert_allclose(one.anchor, two.anchor, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("margin", [-0.1, np.nan, np.inf, "1", None])
def test_margins_are_not_negative(margin):
    with pytest.raises(ruvector.InvalidConfigError, match="margin must"):
        LocalContrastiveLoss(margin)


def test_properties():
    loss = LocalContrastiveLoss(0.25, "sum")
    assert (loss.margin, loss.reduction) == (0.25, "sum")
    assert repr(loss) == "LocalContrastiveLoss(0.25, reduction='sum')"
    with pytest.raises(ruvector.InvalidConfigError, match="reduction must be"):
        LocalContrastiveLoss(0.25, "max")
    with pytest.raises(ruvector.EmptyInputError, match="negatives must hold"):
        loss.compute([1.0], [2.0])


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (17, 33), (60, 7)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
def test_variance_of_variances(shape, dtype, rng):
    x = (rng.standard_normal(shape) + 3).astype(dtype)
    x64 = x.astype(np.float64)
    result = SpectralRegularization(0.3).compute_with_gradients(x)
    assert result.loss == pytest.approx(0.3 * x64.var(axis=0).var(), rel=1e-12, abs=1e-15)
    assert result.gradients.dtype == dtype
    assert result.gradients.shape == shape


def test_variance_by_central_differences(rng):
    penalty = SpectralRegularization(2.0)

    def fn(x):
        result = penalty.compute_with_gradients(x)
        return result.loss, [result.gradients]

    assert ruvector.gradcheck(fn, [rng.standard_normal((6, 4)) + 1], eps=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (7, 3), (33, 40)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-170, 1e150])
def test_spectral_norm(shape, scale, rng):
    w = rng.standard_normal(shape) * scale
    u, s, v = np.linalg.svd(w)
    result = SpectralRegularization(0.4, "spectral_norm").compute_with_gradients(w)
    assert result.loss == pytest.approx(0.2 * s[0] ** 2, rel=1e-12)
    assert_close(result.gradients / scale, 0.4 * s[0] / scale * np.outer(u[:, 0], v[0]), 1e-12)


def test_spectral_norm_by_central_differences(rng):
    penalty = SpectralRegularization(2.0, mode="spectral_norm")

    def fn(one, two):
        result = penalty.compute_with_gradients([one, two])
        return result.loss, result.gradients

    inputs = [rng.standard_normal((4, 3)), rng.standard_normal((2, 5))]
    assert ruvector.gradcheck(fn, inputs, eps=1e-5)


def test_matrices_by_name(rng):
    matrices = {"a": rng.standard_normal((3, 4)), "b": np.zeros((2, 2), np.float32)}
    penalty = SpectralRegularization(1.0, mode="spectral_norm")
    result = penalty.compute_with_gradients(matrices)
    alone = penalty.compute_with_gradients(matrices["a"])
    assert result.loss == alone.loss == penalty.compute(matrices)
    np.testing.assert_array_equal(result.gradients["a"], alone.gradients)
    np.testing.assert_array_equal(result.gradients["b"], 0)
    assert result.gradients["b"].dtype == np.float32
    rows = penalty.compute_with_gradients(matrices["a"].astype(np.float32).tolist())
    assert rows.loss == pytest.approx(alone.loss, rel=1e-6)
    assert rows.gradients.dtype == np.float32


@pytest.mark.parametrize(
    ("mode", "value", "error", "message"),
    [
        ("variance", [1.0, 2.0], ruvector.DimensionMismatchError, r"shape \(n, d\)"),
        ("variance", [], ruvector.EmptyInputError, "must not be empty"),
        ("variance", np.ones((2, 2)) * 1j, TypeError, "embeddings must hold real"),
        ("spectral_norm", [], ruvector.EmptyInputError, "at least one matrix"),
        ("spectral_norm", {}, ruvector.EmptyInputError, "at least one matrix"),
        ("spectral_norm", [np.ones((2, 2)), np.ones((0, 2))], ruvector.EmptyInputError, "1"),
        ("spectral_norm", {"w": np.ones(2)}, ruvector.DimensionMismatchError, r"\['w'\]"),
        ("spectral_norm", np.array([[np.nan]]), ruvector.InvalidConfigError, "finite"),
    ],
)
def test_what_cannot_be_penalised(mode, value, error, message):
    with pytest.raises(error, match=message):
        SpectralRegularization(1.0, mode=mode).compute(value)


def test_penalty_options_are_checked():
    assert repr(SpectralRegularization(0.1)) == "SpectralRegularization(0.1, mode='variance')"
    assert SpectralRegularization(0.1).weight == 0.1
    assert SpectralRegularization(0.1).mode == "variance"
    with pytest.raises(ruvector.InvalidConfigError, match="weight must not be negative"):
        SpectralRegularization(-1.0)
    with pytest.raises(ruvector.InvalidConfigError, match="mode must be 'variance' or"):
        SpectralRegularization(1.0, mode="entropy")
