"""A stream of vectors: what upstream does with it, and its errors."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import ruvector
from ruvector.stream import StreamProcessor

pytestmark = pytest.mark.usefixtures("backend")


def test_as_upstream():
    """Recorded from @ruvector/attention 0.1.1."""
    stream = StreamProcessor(2, 3)
    seen = [(stream.push([i, 1]), stream.size, stream.is_full) for i in range(5)]
    assert seen == [
        (True, 1, False),
        (True, 2, False),
        (True, 3, True),
        (False, 3, True),
        (False, 3, True),
    ]
    out = stream.process(np.array([1, 0], np.float32))
    np.testing.assert_allclose(out, [1.4359461069107056, 1], rtol=2e-5)
    assert (stream.size, stream.is_full) == (3, True)
    stream.clear()
    assert (stream.size, stream.is_full) == (0, False)
    assert stream.push([1, 0])


@pytest.mark.parametrize("m", [None, 1, 30])
def test_process_is_dot_product_attention(m):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((70, 33)).astype(np.float32)
    stream = StreamProcessor(33, 100)
    assert all(stream.push(vector) for vector in vectors)
    query = rng.standard_normal(33 if m is None else (m, 33)).astype(np.float32)
    want = ruvector.DotProductAttention(33).compute(query, vectors, vectors)
    np.testing.assert_allclose(stream.process(query), want, rtol=1e-5, atol=1e-6)


def test_copies_are_apart():
    stream = StreamProcessor(2, 3)
    stream.push([1, 2])
    for other in (copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))):
        other.push([3, 4])
        assert (other.size, stream.size) == (2, 1)
        assert repr(other) == "<StreamProcessor(dim=2, max_buffer_size=3) of 2 vectors>"
    assert (stream.dim, stream.max_buffer_size) == (2, 3)


def test_errors():
    stream = StreamProcessor(2, 1)
    with pytest.raises(ruvector.EmptyInputError, match="buffer"):
        stream.process([1, 0])
    for wrong in ([1, 0, 0], [[1, 0]], 1.0):
        with pytest.raises(ruvector.DimensionMismatchError, match=r"vector must have .*\(2,\)"):
            stream.push(wrong)
    with pytest.raises(TypeError, match="vector"):
        stream.push(["a", "b"])
    assert stream.size == 0
    stream.push([1, 0])
    with pytest.raises(ruvector.DimensionMismatchError, match="query"):
        stream.process([1, 0, 0])
    with pytest.raises(ruvector.DimensionMismatchError, match="vector"):
        stream.push([1, 0, 0])  # a full buffer does not hide the mistake
    for dim, size in ((0, 1), (2, 0), (2, 1.5), ("2", 1)):
        with pytest.raises(ruvector.InvalidConfigError):
            StreamProcessor(dim, size)
