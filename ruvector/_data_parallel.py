"""A model whose items are encoded by the workers of a cluster, each its share of the rows.

An embedding depends on its own item and the parameters alone, so the gradient of a parameter
is the sum of those of the shares. What a worker needs of a step is in the task: the state of
the model and the rows. It encodes again before it takes a gradient back, instead of keeping
what it computed, so a worker that dies costs no more than its tasks.
"""

from __future__ import annotations

import os
import threading
from copy import deepcopy
from itertools import pairwise
from typing import Any

import numpy as np

from . import _config
from ._arrays import Array
from ._shards import merge_tree

__all__ = ["ParallelModel", "ParallelPair"]

Parameters = dict[str, Array]

# A worker's thread has a copy of the model to itself, made once.
_own = threading.local()


class _Parallel:
    """What a model and a pair of models have in common.

    Parameters
    ----------
    model : Model or PairModel
    client : distributed.Client
    shards : int
        Into how many shares the rows of a call are cut.
    threads : int
        Kernel threads of one task.
    """

    def __init__(self, model: Any, client: Any, shards: int, threads: int) -> None:
        self._model = model
        self._client = client
        self._shards = shards
        self._threads = threads
        self._token = os.urandom(8).hex()
        # A task whose result can be computed again where a worker dies with it.
        self._sent = client.submit(_received, model, pure=False)

    def parameters(self) -> Parameters:
        """Return live views of what is learned."""
        parameters: Parameters = self._model.parameters()
        return parameters

    def state_dict(self) -> Parameters:
        """Return copies of all that a checkpoint has to keep."""
        state: Parameters = self._model.state_dict()
        return state

    def load_state_dict(self, state: Any) -> None:
        """Take over what :meth:`state_dict` returned."""
        self._model.load_state_dict(state)

    def _encode(self, method: str, x: Array) -> Array:
        shares: list[tuple[Array, ...]] = [(part,) for part in _cut(x, self._shards)]
        return np.concatenate(self._map(_encode, method, shares))

    def _sum(self, shares: list[tuple[Array, ...]], names: tuple[str, ...]) -> Parameters:
        return merge_tree(self._map(_backward, names, shares), _added)

    def _map(self, task: Any, how: Any, shares: list[tuple[Array, ...]]) -> list[Any]:
        state = self._model.state_dict()
        futures = [
            self._client.submit(
                task, self._token, self._sent, state, self._threads, how, *share, pure=False
            )
            for share in shares
        ]
        results: list[Any] = self._client.gather(futures)
        return results


class ParallelModel(_Parallel):
    """One model for anchors, positives and negatives alike."""

    _items: Array

    def encode(self, x: Array) -> Array:
        """Return an embedding for each item."""
        self._items = x
        return self._encode("encode", x)

    def backward(self, grad: Array) -> Parameters:
        """Return the gradients of the parameters."""
        shares = zip(_cut(self._items, self._shards), _cut(grad, self._shards), strict=True)
        return self._sum(list(shares), ("encode", "backward"))


class ParallelPair(_Parallel):
    """A model of anchors and one of positives and negatives."""

    _anchors: Array
    _positives: Array

    def encode_anchors(self, x: Array) -> Array:
        """Return an embedding for each anchor."""
        self._anchors = x
        return self._encode("encode_anchors", x)

    def encode_positives(self, x: Array) -> Array:
        """Return an embedding for each positive or negative."""
        self._positives = x
        return self._encode("encode_positives", x)

    def backward_pair(self, grad_anchors: Array, grad_positives: Array) -> Parameters:
        """Return the gradients of the parameters."""
        count = min(self._shards, len(grad_anchors), len(grad_positives))
        lists = [
            _cut(x, count)
            for x in (self._anchors, self._positives, grad_anchors, grad_positives)
        ]
        names = ("encode_anchors", "encode_positives", "backward_pair")
        return self._sum(list(zip(*lists, strict=True)), names)


def _received(model: Any) -> Any:
    return model


def _cut(x: Array, shards: int) -> list[Array]:
    count = max(1, min(shards, len(x)))
    return [x[a:b] for a, b in pairwise(len(x) * i // count for i in range(count + 1))]


def _copy(token: str, model: Any, state: Parameters) -> Any:
    """Return this thread's copy of a model, in a state."""
    if getattr(_own, "token", None) != token:
        _own.token, _own.model = token, deepcopy(model)
    _own.model.load_state_dict(state)
    return _own.model


def _encode(
    token: str, model: Any, state: Parameters, threads: int, method: str, x: Array
) -> Array:
    with _config.num_threads(threads):
        embeddings: Array = getattr(_copy(token, model, state), method)(x)
    return embeddings


def _backward(
    token: str,
    model: Any,
    state: Parameters,
    threads: int,
    names: tuple[str, ...],
    *arrays: Array,
) -> Parameters:
    """Encode the first half of the arrays, and take back the gradients in the second."""
    *encoders, backward = names
    own = _copy(token, model, state)
    with _config.num_threads(threads):
        for name, x in zip(encoders, arrays, strict=False):
            getattr(own, name)(x)
        gradients: Parameters = getattr(own, backward)(*arrays[len(encoders) :])
    return {name: np.array(gradient) for name, gradient in gradients.items()}


def _added(first: Parameters, second: Parameters) -> Parameters:
    return {name: first[name] + second[name] for name in first}
