"""Losses and their gradients against torch's autograd and pytorch-metric-learning."""

from __future__ import annotations

import numpy as np
import pytest
from loss_cases import Batch, assert_close, every_form

from ruvector.training import InfoNCELoss, LocalContrastiveLoss, SpectralRegularization

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("backend")]

SHAPES = [(8, 5, 6), (100, 70, 48)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def tensors(batch):
    return [None if x is None else torch.from_numpy(x).requires_grad_() for x in batch.arrays]


def similarities(anchors, others):
    a, b = (torch.nn.functional.normalize(x, dim=-1) for x in (anchors, others))
    return torch.einsum("bd,bnd->bn", a, b) if b.ndim == 3 else a @ b.T


def compare(result, loss, wanted, tolerance):
    assert result.loss == pytest.approx(loss.item(), rel=tolerance, abs=tolerance)
    gradients = torch.autograd.grad(loss, wanted)
    for name, gradient in zip(("anchor", "positive", "negatives"), gradients, strict=False):
        assert_close(getattr(result, name), gradient.numpy(), 10 * tolerance)


@every_form
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-6), (np.float64, 1e-12)])
def test_info_nce_as_cross_entropy(form, shape, dtype, tolerance, rng):
    batch = Batch(rng, form, shape, dtype)
    anchors, positives, negatives = tensors(batch)
    temperature = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    if negatives is None:
        scores = similarities(anchors, positives)
        target = torch.arange(len(anchors))
    else:
        scores = torch.cat(
            (
                similarities(anchors, positives[:, None]),
                similarities(anchors, negatives),
            ),
            dim=1,
        )
        target = torch.zeros(len(anchors), dtype=torch.int64)
    loss = torch.nn.functional.cross_entropy(scores / temperature, target)
    result = InfoNCELoss(0.1).compute_with_gradients(*batch.arrays)
    wanted = [x for x in (anchors, positives, negatives) if x is not None]
    (by_temperature,) = torch.autograd.grad(loss, temperature, retain_graph=True)
    compare(result, loss, wanted, tolerance)
    assert result.temperature == pytest.approx(by_temperature.item(), rel=20 * tolerance)


@pytest.mark.parametrize("labels", [np.arange(60), np.arange(60) // 3], ids=["own", "shared"])
def test_info_nce_as_nt_xent(labels, rng):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    batch = Batch(rng, "in_batch", (60, 1, 16))
    anchors, positives, _ = tensors(batch)
    ids = torch.from_numpy(labels)
    pairs = torch.arange(60)
    unlike, negatives = (ids[:, None] != ids).nonzero(as_tuple=True)
    # Only an anchor's own positive counts as one.
    loss = losses.NTXentLoss(temperature=0.2)(
        anchors,
        indices_tuple=(pairs, pairs, unlike, negatives),
        ref_emb=positives,
        ref_labels=ids,
        labels=ids,
    )
    result = InfoNCELoss(0.2).compute_with_gradients(*batch.arrays, ids=labels)
    compare(result, loss, [anchors, positives], 1e-9)


@every_form
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-6), (np.float64, 1e-12)])
def test_local_contrastive(form, shape, dtype, tolerance, rng):
    batch = Batch(rng, form, shape, dtype)
    anchors, positives, negatives = tensors(batch)
    others = positives if negatives is None else negatives
    far = (anchors[:, None] - (others if others.ndim == 3 else others[None])).norm(dim=-1)
    near = (anchors - positives).norm(dim=-1, keepdim=True)
    hinges = torch.relu(near - far + 1.0)
    if negatives is None:
        hinges = hinges[~torch.eye(len(anchors), dtype=torch.bool)]
    result = LocalContrastiveLoss(1.0).compute_with_gradients(*batch.arrays)
    wanted = [x for x in (anchors, positives, negatives) if x is not None]
    compare(result, hinges.mean(), wanted, tolerance)


def test_spectral(rng):
    x = rng.standard_normal((30, 12))
    tensor = torch.from_numpy(x).requires_grad_()
    result = SpectralRegularization(0.5).compute_with_gradients(x)
    loss = 0.5 * tensor.var(dim=0, unbiased=False).var(unbiased=False)
    compare(result, loss, [tensor], 1e-12)
    result = SpectralRegularization(0.5, mode="spectral_norm").compute_with_gradients(x)
    loss = 0.25 * torch.linalg.matrix_norm(tensor, 2) ** 2
    compare(result, loss, [tensor], 1e-12)
