"""An agent's memory in four shards, each with a worker process of its own.

The memory holds embeddings of 1,714 docstrings of Python's standard library
(``data/README.md``). Every worker maps its part of a file; a question travels to all of them
and a state comes back from each, which merge into the answer over the whole memory. The same
is done for the most attended docstrings, for distances in the Poincare ball, for linear
attention and for the gradient, and everything is computed by one process beside it. With
``--dask`` the workers are those of a Dask cluster on this machine.

Exits with status 1 if the shards and the whole disagree.
"""

from __future__ import annotations

import argparse
import contextlib
import pickle
import sys
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

import ruvector
from ruvector.sharding import sharded_attention, sharded_attention_backward

DATA = Path(__file__).parent / "data" / "stdlib_memory.npz"
TOLERANCE = 1e-5


class Metered(Executor):
    """An executor that counts the bytes that go to its workers and come back."""

    def __init__(self, workers):
        self.workers = workers
        self.sent = self.received = 0

    def submit(self, task, *arguments):
        self.sent += len(pickle.dumps((task, arguments)))
        future = self.workers.submit(task, *arguments)
        future.add_done_callback(self._count)
        return future

    def _count(self, future):
        if not future.cancelled() and future.exception() is None:
            self.received += len(pickle.dumps(future.result()))


@contextlib.contextmanager
def started(workers, use_dask):
    """Yield an executor of so many worker processes."""
    if not use_dask:
        # spawn: a worker shares nothing with this process, as on another machine.
        with ProcessPoolExecutor(workers, get_context("spawn")) as executor:
            yield executor
        return
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
        client.get_executor() as executor,
    ):
        yield executor


def best_of_shard(path, start, stop, queries, top, scale):
    """Return the rows and weights that a shard attends to most, and its log-sum-exp."""
    keys = np.load(path, mmap_mode="r")[start:stop]
    attention = ruvector.DotProductAttention(keys.shape[1], scale)
    with ruvector.num_threads(1):
        rows, weights = ruvector.top_k_keys(queries, keys, min(top, len(keys)), scale=scale)
        _, lse = attention.compute(queries, keys, keys[:, :1], return_lse=True)
    return rows + start, weights, lse


def best(executor, path, bounds, queries, top, scale):
    """Return the rows that the whole memory attends to most, and their weights."""
    futures = [
        executor.submit(best_of_shard, path, start, stop, queries, top, scale)
        for start, stop in pairwise(bounds)
    ]
    rows, weights, lses = zip(*(future.result() for future in futures), strict=True)
    total = np.logaddexp.reduce(lses)
    # A weight within a shard times the weight of the shard.
    shares = [w * np.exp(lse - total)[:, None] for w, lse in zip(weights, lses, strict=True)]
    rows, shares = np.hstack(rows), np.hstack(shares)
    # Bodies that several docstrings have weigh the same up to rounding: the first one counts.
    order = np.argsort(-shares.round(5), axis=1, kind="stable")[:, :top]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(shares, order, 1)


def compare(executor, shards, queries, memory, scale):
    """Return the largest difference between shards and whole, by what is computed."""
    dim = memory.shape[1]
    families = {
        "dot-product attention": ruvector.DotProductAttention(dim, scale),
        "8 heads": ruvector.MultiHeadAttention(dim, 8),
        "in the Poincare ball": ruvector.HyperbolicAttention(dim, inputs="tangent"),
        "linear attention": ruvector.LinearAttention(dim, num_features=256),
    }
    differences = {}
    for label, attention in families.items():
        output = sharded_attention(queries, shards, attention=attention, executor=executor)
        differences[label] = abs(output - attention.compute(queries, memory, memory)).max()
    attention = families["dot-product attention"]
    output, lse = sharded_attention(
        queries, shards, attention=attention, executor=executor, return_lse=True
    )
    gradients = sharded_attention_backward(
        queries, shards, output, lse, queries, attention=attention, executor=executor
    )
    _, wanted = attention.compute_with_gradients(queries, memory, memory, queries)
    keys, values = map(np.vstack, zip(*gradients.shards, strict=True))
    differences["gradient of the questions"] = abs(gradients.query - wanted.query).max()
    differences["gradient of the keys"] = abs(keys - wanted.keys).max()
    differences["gradient of the values"] = abs(values - wanted.values).max()
    return differences


def show_travel(metered, shards, memory, query, attention):
    """Print what one question makes travel."""
    metered.sent = metered.received = 0
    sharded_attention(query, shards, attention=attention, executor=metered)
    count = len(shards)
    print(f"\nbytes for one question, to and from each of {count} workers")
    print(f"  sent      {metered.sent // count:>9,}")
    print(f"  received  {metered.received // count:>9,}")
    print(f"  stays     {memory.nbytes // count:>9,}   its part of the memory")


def show_time(call, label, queries, rounds):
    """Print the median of some calls."""
    seconds = []
    for turn in range(rounds + 1):
        start = time.perf_counter()
        call()
        if turn:  # the first round warms up
            seconds.append(time.perf_counter() - start)
    print(f"  {label:<24}{median(seconds) / len(queries) * 1e6:>10.1f}")


def parse(argv):
    """Read the command line and the data it names."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DATA, help="the memory, an .npz file")
    parser.add_argument("--workers", type=int, default=4, help="processes, and shards")
    parser.add_argument("--top", type=int, default=5, help="how many documents to recall")
    parser.add_argument("--questions", type=int, default=1714, help="how many to ask")
    parser.add_argument("--temperature", type=float, default=0.05, help="sharpness of recall")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each timing")
    parser.add_argument("--dask", action="store_true", help="workers of a Dask cluster")
    options = parser.parse_args(argv)
    if not options.temperature > 0:
        parser.error(f"--temperature must be positive, got {options.temperature}")
    for name in ("workers", "top", "questions", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    try:
        with np.load(options.data) as data:
            queries = data["queries"][: options.questions].astype(np.float32)
            memory = data["documents"].astype(np.float32)
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"--data {options.data}: {error}")
    return options, queries, memory


def main(argv=None):
    """Ask the shards and the whole, and compare; return the exit status."""
    options, queries, memory = parse(argv)
    rows, dim = memory.shape
    scale = 1 / options.temperature
    attention = ruvector.DotProductAttention(dim, scale)
    bounds = [rows * i // options.workers for i in range(options.workers + 1)]
    kind = "Dask workers" if options.dask else "processes"
    print(f"memory: {rows} docstrings, {dim} wide, in {options.workers} {kind}")
    with TemporaryDirectory() as folder, started(options.workers, options.dask) as workers:
        path = str(Path(folder) / "memory.npy")
        np.save(path, memory)
        mapped = np.load(path, mmap_mode="r")
        parts = [mapped[a:b] for a, b in pairwise(bounds)]
        shards = [(part, part) for part in parts]

        found, _ = best(workers, path, bounds, queries, options.top, scale)
        expected, _ = ruvector.top_k_keys(queries, memory, options.top, scale=scale)
        hits = found == np.arange(len(queries))[:, np.newaxis]
        for k in sorted({1, options.top}):
            print(f"recall@{k}: {hits[:, :k].any(axis=1).mean():.2f}")
        # Documents with the same body have the same weight, in either order.
        same = (np.sort(found) == np.sort(expected)).all(axis=1).mean()
        print(f"the same {options.top} as in one process: {same:.1%} of the questions")

        differences = compare(workers, shards, queries, memory, scale)
        show_travel(Metered(workers), shards, memory, queries[0], attention)

        print(f"\nmicroseconds per question, {len(queries)} at once")
        over_shards = partial(sharded_attention, queries, shards, attention=attention)
        show_time(
            partial(over_shards, executor=workers), f"{options.workers} workers", queries,
            options.rounds,
        )  # fmt: skip
        show_time(
            partial(attention.compute, queries, memory, memory), "one process", queries,
            options.rounds,
        )  # fmt: skip
        del mapped, parts, shards, over_shards
    print("\nlargest difference from one process")
    for label, difference in differences.items():
        print(f"  {label:<28}{difference:.1e}")
    agree = all(difference <= TOLERANCE for difference in differences.values()) and same > 0.99
    print(f"  {'they agree' if agree else 'THEY DISAGREE'}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
