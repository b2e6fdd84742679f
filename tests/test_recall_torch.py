"""The example's training reaches what a linear adapter in torch does, over five orders."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.peers, pytest.mark.slow]

EXAMPLE = Path(__file__).parents[1] / "examples" / "memory_recall.py"
SEEDS = range(5)


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("memory_recall", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def memory(example):
    with np.load(example.DATA) as data:
        return data["queries"].astype(np.float32), data["documents"].astype(np.float32)


def torch_adapter(queries, memory, seed, epochs=30, batch=128):
    """Train two matrices from the identity in torch; return recall@1 and @5 afterwards."""
    order = np.random.default_rng(0).permutation(len(queries))
    held_out, rows = order[:343], order[343:]
    q, m = torch.from_numpy(queries), torch.from_numpy(memory)
    left, right = (torch.eye(q.shape[1], requires_grad=True) for _ in range(2))
    optimizer = torch.optim.AdamW([left, right], lr=1e-3)
    rng = np.random.default_rng(seed)
    normalize = torch.nn.functional.normalize
    for _ in range(epochs):
        for part in np.array_split(rng.permutation(rows), range(batch, len(rows), batch)):
            a, p = normalize(q[part] @ left.T), normalize(m[part] @ right.T)
            loss = torch.nn.functional.cross_entropy(a @ p.T / 0.05, torch.arange(len(part)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        scores = normalize(q[held_out] @ left.T) @ normalize(m[held_out] @ right.T).T
        found = scores.topk(5).indices == torch.arange(len(held_out))[:, None]
    return [found[:, :k].any(dim=1).float().mean().item() for k in (1, 5)]


def test_recall_of_five_orders(example, memory, capsys):
    ours = [list(example.train(*memory, epochs=24, seed=seed)[1].values()) for seed in SEEDS]
    theirs = [torch_adapter(*memory, seed) for seed in SEEDS]
    capsys.readouterr()
    reached, wanted = np.mean(ours, axis=0), np.mean(theirs, axis=0)
    assert wanted == pytest.approx([0.60, 0.84], abs=0.01)
    assert (reached >= wanted).all(), (reached, wanted)
