"""The optimisers against ``torch.optim`` over 100 steps, and clipping against torch's."""

from __future__ import annotations

import numpy as np
import pytest
from optim_cases import CASES, case_id, rates

from ruvector.training import AdamOptimizer, AdamWOptimizer, SGDOptimizer, clip_grad_norm

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("backend")]

STEPS = 100
SHAPES = ((13, 7), (33,), ())


def theirs(kind, options, tensors):
    names = {"epsilon": "eps"}
    given = {names.get(name, name): value for name, value in options.items()}
    if kind is SGDOptimizer:
        return torch.optim.SGD(tensors, lr=1.0, **given)
    betas = given.pop("beta1", 0.9), given.pop("beta2", 0.999)
    peer = torch.optim.AdamW if kind is AdamWOptimizer else torch.optim.Adam
    return peer(tensors, lr=1.0, betas=betas, **given)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_same_after_every_step(case, dtype):
    kind, options = case
    rng = np.random.default_rng(0)
    params = {str(i): np.array(rng.standard_normal(s), dtype) for i, s in enumerate(SHAPES)}
    tensors = [torch.nn.Parameter(torch.tensor(p)) for p in params.values()]
    ours, peer = kind(1.0, **options), theirs(kind, options, tensors)
    atol = 2e-5 if dtype == "float32" else 1e-12
    for rate in rates(STEPS):
        gradients = {key: np.array(rng.standard_normal(p.shape), dtype)
                     for key, p in params.items()}  # fmt: skip
        for tensor, gradient in zip(tensors, gradients.values(), strict=True):
            tensor.grad = torch.tensor(gradient)
        ours.learning_rate = peer.param_groups[0]["lr"] = rate
        ours.step(gradients, params=params)
        peer.step()
        for p, tensor in zip(params.values(), tensors, strict=True):
            np.testing.assert_allclose(p, tensor.detach().numpy(), rtol=0, atol=atol)


def test_tensors_are_updated_in_place():
    tensor = torch.nn.Parameter(torch.ones(5))
    gradient = torch.full((5,), 2.0)
    assert SGDOptimizer(0.25).step(gradient, params=tensor) is tensor
    np.testing.assert_array_equal(tensor.detach().numpy(), 0.5)
    with pytest.raises(TypeError, match="float32 or float64, got bfloat16"):
        AdamOptimizer(0.1).step(gradient, params=torch.ones(5, dtype=torch.bfloat16))


@pytest.mark.parametrize("maximum", [0.5, 100.0])
def test_clipping(maximum):
    rng = np.random.default_rng(1)
    gradients = [rng.standard_normal(shape).astype(np.float32) for shape in ((9, 5), (17,))]
    tensors = [torch.nn.Parameter(torch.zeros(g.shape)) for g in gradients]
    for tensor, gradient in zip(tensors, gradients, strict=True):
        tensor.grad = torch.tensor(gradient)
    wanted = torch.nn.utils.clip_grad_norm_(tensors, maximum)
    assert clip_grad_norm(gradients, maximum) == pytest.approx(float(wanted), rel=1e-6)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=2e-6)
