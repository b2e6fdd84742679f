"""An agent's memory of documentation: attend from a question over everything it has read.

The memory holds embeddings of 1,714 docstrings of Python's standard library
(``data/README.md``); a query is the first sentence of a docstring, and the right memory is
the body of the same docstring. Attention with a temperature turns similarities into weights:
they rank the memories, say how sure the recall is, and blend what was recalled.

The same formula is computed in NumPy beside it, for the result and for the time. Exits with
status 1 if the two disagree.

Then the memory learns which body belongs to which sentence: two linear maps, one for questions
and one for memories, are trained on 80 % of the docstrings, and the recall on the other 20 %,
ranked among themselves, is shown before and after.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
from threadpoolctl import threadpool_limits

import ruvector
from ruvector.training import (
    AdamWOptimizer,
    CurriculumScheduler,
    CurriculumStage,
    HardNegativeMiner,
    InfoNCELoss,
    LearningRateScheduler,
    LinearAdapter,
    PairEncoder,
    Trainer,
    TrainerConfig,
)

DATA = Path(__file__).parent / "data" / "stdlib_memory.npz"
NAMED = ["statistics.median", "textwrap.dedent", "functools.lru_cache", "shutil.copytree"]
TOLERANCE = 1e-5
SAMPLE = 200
BATCH = 128
RATE = 4e-4
# From easy to hard, a third each: name, temperature, mined negatives of each anchor.
STAGES = [("easy", 0.15, 1), ("medium", 0.1, 1), ("hard", 0.07, 2)]


def numpy_attention(query, keys, values, scale):
    """Return the attended values and the weights, by the formula."""
    scores = query @ keys.T * np.float32(scale)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights @ values, weights


def show_recall(indices):
    """Print how often the right document is the first, or among the first, recalled."""
    hits = indices == np.arange(len(indices))[:, np.newaxis]
    for k in sorted({1, hits.shape[1]}):
        print(f"recall@{k}: {hits[:, :k].any(axis=1).mean():.2f}")


def show_hits(names, shown, indices, weights):
    """Print the documents recalled for some queries; a star marks the right one."""
    width = max(len(name) for name in shown)
    print(f"\n{'query':<{width}}   weight   recalled")
    for row in (names.index(name) for name in shown):
        label = names[row]
        for hit, weight in zip(indices[row], weights[row], strict=True):
            star = " *" if hit == row else ""
            print(f"{label:<{width}}   {weight:6.3f}   {names[hit]}{star}")
            label = ""


def check_agreement(attention, queries, memory, indices, weights):
    """Compare with NumPy, print the largest difference, and return whether all is well."""
    output, full = attention.compute(queries, memory, memory, return_weights=True)
    expected, expected_full = numpy_attention(queries, memory, memory, attention.scale)
    singles = np.stack([attention.compute(query, memory, memory) for query in queries[:SAMPLE]])
    best = -np.sort(-expected_full, axis=1)[:, : weights.shape[1]]
    differences = {
        "all queries at once": abs(output - expected).max(),
        "one query at a time": abs(singles - expected[:SAMPLE]).max(),
        "weights": abs(full - expected_full).max(),
        "weights of the recalled": abs(weights - best).max(),
        "what was recalled": abs(np.take_along_axis(expected_full, indices, 1) - best).max(),
    }
    print("\nlargest difference from NumPy")
    for label, difference in differences.items():
        print(f"  {label:<24}{difference:.1e}")
    agree = all(difference <= TOLERANCE for difference in differences.values())
    print(f"  {'they agree' if agree else f'MORE THAN {TOLERANCE}: THEY DISAGREE'}")
    return agree


def show_times(attention, queries, memory, rounds):
    """Print medians of interleaved repetitions, in microseconds per query."""
    scale = attention.scale
    sample = queries[:SAMPLE]
    works = {
        "one query at a time": (
            len(sample),
            lambda: [attention.compute(query, memory, memory) for query in sample],
            lambda: [numpy_attention(query, memory, memory, scale) for query in sample],
        ),
        "all queries at once": (
            len(queries),
            lambda: attention.compute(queries, memory, memory),
            lambda: numpy_attention(queries, memory, memory, scale),
        ),
    }
    print(
        f"\n{'microseconds per query':<24}{'ruvector':>10}{'NumPy':>10}{'NumPy/ruvector':>17}"
    )
    for label, (count, *contenders) in works.items():
        seconds = [[], []]
        for turn in range(rounds + 1):
            for times, work in zip(seconds, contenders, strict=True):
                start = time.perf_counter()
                work()
                if turn:  # the first round warms up
                    times.append(time.perf_counter() - start)
        ours, theirs = (median(times) / count * 1e6 for times in seconds)
        print(f"  {label:<22}{ours:>10.1f}{theirs:>10.1f}{theirs / ours:>17.2f}")


def make_trainer(dim, pairs, epochs, seed):
    """Return a trainer of two maps, with mined negatives and a curriculum."""
    steps = epochs * -(-pairs // BATCH)
    duration = -(-steps // len(STAGES))
    return Trainer(
        PairEncoder(LinearAdapter(dim, dim), LinearAdapter(dim, dim)),
        InfoNCELoss(),
        AdamWOptimizer(RATE),
        lr_schedule=LearningRateScheduler(RATE, 0, steps),
        curriculum=CurriculumScheduler(
            CurriculumStage(name, 1.0, duration, temperature, count)
            for name, temperature, count in STAGES
        ),
        miner=HardNegativeMiner("hard"),
        config=TrainerConfig(
            batch_size=BATCH, num_epochs=epochs, seed=seed, mine_every=3, eval_every=3
        ),
    )


def train(queries, memory, epochs, seed, curve=None):
    """Train on 80 %, print the recall on the rest before and after, and return it."""
    order = np.random.default_rng(0).permutation(len(queries))
    held_out, trained_on = np.split(order, [round(len(order) / 5)])
    validation = queries[held_out], memory[held_out]
    trainer = make_trainer(memory.shape[1], len(trained_on), epochs, seed)
    before = trainer.evaluate(*validation)
    start = time.perf_counter()
    history = trainer.fit(
        queries[trained_on], memory[trained_on], validation=validation if curve else None
    )
    seconds = time.perf_counter() - start
    after = trainer.evaluate(*validation)
    print(
        f"\ntrained on {len(trained_on)} pairs: {len(history)} steps, {seconds:.1f} s\n"
        f"{f'on the other {len(held_out)}':<24}{'before':>10}{'after':>10}"
    )
    for name, value in before.items():
        print(f"  {name:<22}{value:>10.2f}{after[name]:>10.2f}")
    if curve:
        history.plot(curve)
        print(f"wrote {curve}")
    return before, after


def parse(argv):
    """Read the command line and the data it names."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DATA, help="the memory, an .npz file")
    parser.add_argument(
        "--temperature", type=float, default=0.05, help="the lower, the sharper the recall"
    )
    parser.add_argument("--top", type=int, default=5, help="how many documents to recall")
    parser.add_argument(
        "--show", nargs="+", metavar="NAME", default=NAMED, help="queries to show the hits of"
    )
    parser.add_argument(
        "--threads", type=int, default=ruvector.get_num_threads(), help="for both sides"
    )
    parser.add_argument("--rounds", type=int, default=7, help="repetitions of each timing")
    parser.add_argument("--epochs", type=int, default=24, help="of the training; 0 for none")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the training")
    parser.add_argument(
        "--plot", type=Path, metavar="CURVE.png", help="draw the training (needs matplotlib)"
    )
    options = parser.parse_args(argv)
    if not options.temperature > 0:
        parser.error(f"--temperature must be positive, got {options.temperature}")
    for name, least in (("top", 1), ("threads", 1), ("rounds", 1), ("epochs", 0), ("seed", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(options, name)}")
    try:
        with np.load(options.data) as data:
            names = data["names"].tolist()
            queries = data["queries"].astype(np.float32)
            memory = data["documents"].astype(np.float32)
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"--data {options.data}: {error}")
    for name in options.show:
        if name not in names:
            parser.error(f"--show {name}: there is no docstring of that name in the memory")
    options.top = min(options.top, len(names))
    return options, names, queries, memory


def main(argv=None):
    """Recall, show, compare, time and train; return the exit status."""
    options, names, queries, memory = parse(argv)
    info = ruvector.info()
    isa = f", {info['isa']}" if info["isa"] else ""
    rows, dim = memory.shape
    print(f"memory: {rows} docstrings of Python's standard library, {dim} wide")
    print(f"ruvector {info['version']}, {info['backend']}{isa}, threads: {options.threads}")
    attention = ruvector.DotProductAttention(dim, scale=1 / options.temperature)
    with ruvector.num_threads(options.threads), threadpool_limits(options.threads):
        indices, weights = ruvector.top_k_keys(
            queries, memory, options.top, scale=attention.scale
        )
        print()
        show_recall(indices)
        show_hits(names, options.show, indices, weights)
        agree = check_agreement(attention, queries, memory, indices, weights)
        show_times(attention, queries, memory, options.rounds)
        if options.epochs:
            train(queries, memory, options.epochs, options.seed, options.plot)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
