"""ruvector.torch against torch's own attention, its autograd and its gradcheck."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest

import ruvector

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("backend")]

from ruvector.torch import scaled_dot_product_attention  # noqa: E402

native = torch.nn.functional.scaled_dot_product_attention
# Bounds on the error as a part of the largest entry.
TOLERANCES = {
    torch.float32: 2e-5,
    torch.float64: 1e-11,
    torch.bfloat16: 3e-2,
    torch.float16: 5e-3,
}


def normal(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def leaves(*tensors):
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def compare(query, key, value, attn_mask=None, **keywords):
    """Run both on the same tensors and compare results and gradients."""
    tensors = [query, key, value]
    if attn_mask is not None and attn_mask.is_floating_point():
        tensors.append(attn_mask)
    grads, outputs = [], []
    for attend in (scaled_dot_product_attention, native):
        given = leaves(*tensors)
        mask = given[3] if len(given) > 3 else attn_mask
        output = attend(*given[:3], mask, **keywords)
        weight = normal(*output.shape, seed=9, dtype=output.dtype)
        output.backward(weight)
        outputs.append(output)
        grads.append([tensor.grad for tensor in given])
    assert outputs[0].dtype == outputs[1].dtype
    for name, ours, theirs in zip(
        ("output", "query", "key", "value", "attn_mask"),
        (outputs[0], *grads[0]),
        (outputs[1], *grads[1]),
        strict=False,
    ):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        bound = TOLERANCES[query.dtype] * max(1.0, theirs.abs().max().item())
        np.testing.assert_allclose(
            ours.detach().double(), theirs.detach().double(), rtol=0, atol=bound, err_msg=name
        )


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(
    ("length", "num_keys"), list(itertools.product((1, 7, 16, 33), (1, 15, 32, 97)))
)
def test_lengths(length, num_keys, is_causal, dtype):
    query = normal(2, 3, length, 16, dtype=dtype)
    key, value = (normal(2, 3, num_keys, 16, seed=i, dtype=dtype) for i in (1, 2))
    compare(query, key, value, is_causal=is_causal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [1, 8, 31, 64, 130])
@pytest.mark.parametrize("dim_v", [1, 33, 64])
def test_widths(dim, dim_v, dtype):
    query, key = normal(1, 2, 9, dim, dtype=dtype), normal(1, 2, 12, dim, seed=1, dtype=dtype)
    compare(query, key, normal(1, 2, 12, dim_v, seed=2, dtype=dtype))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    "shape", [(4, 5), (1, 5), (4, 1), (3, 4, 5), (2, 3, 4, 5), (2, 1, 1, 5), (1, 3, 4, 5)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks(kind, shape, dtype):
    query = normal(2, 3, 4, 8, dtype=dtype)
    key, value = (normal(2, 3, 5, 8, seed=i, dtype=dtype) for i in (1, 2))
    if kind == "bool":
        mask = normal(*shape, seed=3) > -0.3
        mask[..., 0] = True
        compare(query, key, value, mask)
        return
    # torch differentiates no -inf; the scale of a mask along one key is arbitrary.
    compare(query, key, value, normal(*shape, seed=4, dtype=dtype))


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 1), (4, 2), (6, 3)])
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_grouped_heads(heads, key_heads, is_causal, dtype):
    query = normal(2, heads, 7, 16, dtype=dtype)
    key, value = (normal(2, key_heads, 9, 16, seed=i, dtype=dtype) for i in (1, 2))
    compare(query, key, value, is_causal=is_causal, enable_gqa=True)


@pytest.mark.parametrize(
    "shapes",
    [
        ((4, 8), (5, 8)),
        ((3, 4, 8), (3, 5, 8)),
        ((3, 4, 8), (5, 8)),
        ((2, 1, 4, 8), (1, 3, 5, 8)),
        ((2, 3, 2, 4, 8), (1, 3, 2, 5, 8)),
        ((2, 1, 2, 4, 8), (3, 2, 5, 8)),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_batch_axes(shapes, dtype):
    query, key = (normal(*s, seed=i, dtype=dtype) for i, s in enumerate(shapes))
    compare(query, key, key.flip(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: x[:1, :1].expand(x.shape),
    ],
    ids=["(B, L, H, D)", "transposed", "expanded"],
)
def test_layouts(change, dtype):
    tensors = [normal(2, 3, n, 8, seed=n, dtype=dtype) for n in (4, 5, 5)]
    results = []
    for attend in (scaled_dot_product_attention, native):
        given = leaves(*tensors)
        attend(*map(change, given)).sum().backward()
        results.append([x.grad.double() for x in given])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCES[dtype] * 10)


EVERYTHING = {
    "is_causal": True,
    "causal_alignment": "bottom_right",
    "window": (3, None),
    "num_sink_tokens": 1,
    "softcap": 2.0,
    "scale": 0.7,
    "enable_gqa": True,
}


def test_gradcheck_of_torch():
    tensors = leaves(
        *(
            normal(*shape, seed=i, dtype=torch.float64)
            for i, shape in enumerate(
                [(1, 4, 3, 4), (1, 2, 5, 4), (1, 2, 5, 3), (3, 5), (4,), (4,)]
            )
        )
    )

    def attend(query, key, value, mask, slopes, sinks):
        return scaled_dot_product_attention(
            query,
            key,
            value,
            mask,
            alibi_slopes=slopes,
            sink_logits=sinks,
            return_lse=True,
            **EVERYTHING,
        )

    assert torch.autograd.gradcheck(attend, tensors)


def test_gradcheck_of_torch_on_packed_sequences():
    tensors = leaves(
        *(
            normal(*shape, seed=i, dtype=torch.float64)
            for i, shape in enumerate([(5, 2, 3), (7, 2, 3), (7, 2, 2)])
        )
    )
    ends = {"cu_seqlens_q": torch.tensor([0, 2, 5]), "cu_seqlens_k": torch.tensor([0, 4, 7])}
    assert torch.autograd.gradcheck(
        lambda *x: scaled_dot_product_attention(*x, return_lse=True, **ends), tensors
    )


def test_only_what_needs_a_gradient_gets_one():
    query, key, value = (normal(2, n, 4, seed=n) for n in (3, 5, 5))
    key.requires_grad_()
    mask = normal(3, 5)
    scaled_dot_product_attention(query, key, value, mask).sum().backward()
    assert key.grad is not None
    assert query.grad is None
    assert value.grad is None
    assert mask.grad is None
    assert not scaled_dot_product_attention(query, key.detach(), value).requires_grad


def test_gradient_of_the_log_sum_exp_alone():
    query, key = leaves(normal(2, 3, 4), normal(2, 5, 4, seed=1))
    _, lse = scaled_dot_product_attention(query, key, key, return_lse=True)
    lse.sum().backward()
    ours = query.grad.clone()
    query.grad = None
    torch.logsumexp(query @ key.mT / 2, dim=-1).sum().backward()
    np.testing.assert_allclose(ours, query.grad, atol=1e-6)


def test_rows_that_see_nothing_have_no_gradient():
    query, key = leaves(normal(2, 3, 4), normal(2, 5, 4, seed=1))
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1] = False
    scaled_dot_product_attention(query, key, key, mask).sum().backward()
    assert not query.grad[:, 1].any()
    assert torch.isfinite(key.grad).all()


def test_double_backward_is_refused():
    query, key = leaves(normal(2, 3, 4), normal(2, 5, 4, seed=1))
    output = scaled_dot_product_attention(query, key, key)
    (grad,) = torch.autograd.grad(output.square().sum(), query, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"double backward .* unsupported"):
        grad.sum().backward()


def test_function_transforms_are_refused():
    query, key = leaves(normal(2, 3, 4), normal(2, 5, 4, seed=1))
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.vmap(lambda one: scaled_dot_product_attention(one, key[0], key[0]))(query)


def test_tensors_are_read_and_written_in_place(monkeypatch):
    from ruvector import _kernels

    seen = []
    attend, attend_backward = (
        _kernels.softmax.attend,
        _kernels.softmax_backward.attend_backward,
    )

    def addresses(arrays):
        return [x.ctypes.data for x in arrays if isinstance(x, np.ndarray)]

    class Softmax:
        @staticmethod
        def attend(*args):
            seen.append(addresses(args[:4]))
            return attend(*args)

    class Backward:
        @staticmethod
        def attend_backward(*args):
            seen.append(addresses(args[:6]))
            return attend_backward(*args)

    monkeypatch.setattr(_kernels, "softmax", Softmax)
    monkeypatch.setattr(_kernels, "softmax_backward", Backward)
    for dtype in (torch.float32, torch.bfloat16):
        seen.clear()
        query, key, value = leaves(
            *(normal(2, 2, n, 8, seed=n, dtype=dtype) for n in (3, 5, 5))
        )
        output = scaled_dot_product_attention(query, key, value)
        grad = torch.ones_like(output)
        output.backward(grad)
        forward, backward = seen
        inputs = [x.data_ptr() for x in (query, key, value, output)]
        assert forward == inputs
        assert backward[:4] == inputs
        assert backward[5] == grad.data_ptr()


def test_bfloat16_needs_no_ml_dtypes(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    query, key = leaves(
        normal(3, 2, 4, 8, dtype=torch.bfloat16), normal(2, 5, 8, seed=1, dtype=torch.bfloat16)
    )
    scaled_dot_product_attention(query, key, key).sum().backward()
    assert key.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["query", "attn_mask", "sink_logits"])
def test_arguments_are_tensors(name):
    arguments = {"query": normal(2, 3, 4), "key": normal(2, 5, 4), "value": normal(2, 5, 4)}
    arguments[name] = np.zeros((2, 3, 4), np.float32)
    with pytest.raises(TypeError, match=f"{name} must be a tensor, got ndarray"):
        scaled_dot_product_attention(**arguments)


def test_errors_are_those_of_the_package():
    with pytest.raises(ruvector.DimensionMismatchError, match="key must have 4 features"):
        scaled_dot_product_attention(normal(2, 3, 4), normal(2, 5, 3), normal(2, 5, 3))
    with pytest.raises(TypeError, match="query must be a dense CPU tensor"):
        scaled_dot_product_attention(
            torch.empty(2, 3, 4, device="meta"), normal(2, 5, 4), normal(2, 5, 4)
        )


def test_a_layer_trains():
    layer = torch.nn.Linear(8, 8)
    x, target = normal(1, 2, 6, 8), normal(1, 2, 6, 8, seed=1)
    optimizer = torch.optim.SGD(layer.parameters(), 0.5)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        output = scaled_dot_product_attention(layer(x), x, target, scale=2.0)
        loss = torch.nn.functional.mse_loss(output, target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_error_is_no_larger_than_torchs():
    tensors = [normal(1, 4, 256, 64, seed=i) for i in range(3)]
    weight = normal(1, 4, 256, 64, seed=3)
    grads = {}
    for name, attend, given in (
        ("ours", scaled_dot_product_attention, leaves(*tensors)),
        ("theirs", native, leaves(*tensors)),
        ("exact", native, leaves(*(x.double() for x in tensors))),
    ):
        attend(*given).backward(weight.to(given[0].dtype))
        grads[name] = [x.grad.double() for x in given]
    for ours, theirs, exact in zip(*grads.values(), strict=True):
        errors = [(x - exact).square().mean().sqrt().item() for x in (ours, theirs)]
        assert errors[0] <= 1.5 * errors[1]


def test_torch_is_imported_only_when_asked_for():
    code = "import ruvector, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
