"""The gradients of GraphRoPEAttention."""

from __future__ import annotations

import numpy as np
import pytest
from rope_cases import CONFIGS, arrays, every_config, near, positions

from ruvector import (
    GraphRoPEAttention,
)

pytestmark = pytest.mark.usefixtures("backend")


class TestGradients:
    @every_config
    @pytest.mark.parametrize("batch", [(), (2,)])
    def test_gradcheck(self, config, batch):
        attention = GraphRoPEAttention(config)
        m, n = 3, 6
        query, keys, values = arrays(config, m, n, "float64", batch)
        own, places = positions(config, (*batch, m), (*batch, n))
        bias = np.random.default_rng(2).standard_normal((m, n))
        _check_gradients(attention, (query, keys, values, bias), own, places)

    def test_one_memory_that_a_batch_shares(self):
        config = CONFIGS[1]
        query, _, _ = arrays(config, 3, 6, "float64", (2,))
        _, keys, values = arrays(config, 3, 6, "float64")
        bias = np.zeros((3, 6))
        for shape in ((6,), (2, 6)):
            own, places = positions(config, (2, 3), shape)
            case = query, keys, values, bias
            _check_gradients(GraphRoPEAttention(config), case, own, places)

    def test_without_positions(self):
        config = CONFIGS[1]
        attention = GraphRoPEAttention(config)
        q, k, v = arrays(config, 3, 6)
        one = attention.compute_with_gradients(q, k, v, q)
        two = attention.compute_with_gradients(
            q, k, v, q, query_position=0, key_positions=np.arange(6)
        )
        near(one[0], attention.compute(q, k, v))
        for name in ("query", "keys", "values"):
            near(one[1][name], two[1][name])

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_narrow_types(self, dtype):
        config = CONFIGS[1]
        attention = GraphRoPEAttention(config)
        wide = arrays(config, 20, 30, "float64")
        narrow = [x.astype(dtype) for x in wide]
        own, keys = positions(config, 20, 30)
        places = {"query_position": own, "key_positions": keys}
        _, wanted = attention.compute_with_gradients(*wide, wide[0], **places)
        _, got = attention.compute_with_gradients(*narrow, narrow[0], **places)
        for name in ("query", "keys", "values"):
            assert got[name].dtype == dtype
            bound = 1e-4 if dtype == "float32" else 2e-2
            np.testing.assert_allclose(got[name].astype(float), wanted[name], atol=bound)


def _check_gradients(attention, case, own, places):
    """Compare every gradient with differences, through output and log-sum-exp."""
    rng = np.random.default_rng(3)
    query, keys, values, bias = case

    def run(query, keys, values, bias):
        return attention.compute_with_positions(
            query, keys, values, own, places, mask=bias, return_lse=True
        )

    output, lse = run(*case)
    outer, outer_lse = rng.standard_normal(output.shape), rng.standard_normal(np.shape(lse))
    _, gradients = attention.compute_with_gradients(
        query, keys, values, outer, grad_lse=outer_lse, query_position=own,
        key_positions=places, mask=bias,
    )  # fmt: skip
    for at, name in enumerate(("query", "keys", "values", "mask")):
        direction = rng.standard_normal(case[at].shape)
        sums = []
        for step in (1e-6, -1e-6):
            moved = list(case)
            moved[at] = case[at] + step * direction
            result = run(*moved)
            sums.append((result[0] * outer).sum() + (result[1] * outer_lse).sum())
        wanted = (sums[0] - sums[1]) / 2e-6
        assert gradients[name].shape == case[at].shape
        np.testing.assert_allclose(
            (gradients[name] * direction).sum(), wanted, rtol=1e-6, atol=1e-7
        )
