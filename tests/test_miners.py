"""Miners against a choice that is written out for one anchor at a time."""

from __future__ import annotations

import numpy as np
import pytest

import ruvector
from ruvector._kernels import mining
from ruvector.training import HardNegativeMiner, InBatchMiner

pytestmark = pytest.mark.usefixtures("backend")

STRATEGIES = ("random", "hard", "semi_hard", "distance_weighted")
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def cosines(anchor, candidates):
    a, c = anchor.astype(np.float64), candidates.astype(np.float64)
    return c @ a / np.sqrt((c * c).sum(axis=1) * (a @ a))


def distances(anchor, others):
    apart = anchor.astype(np.float64) - others.astype(np.float64)
    return np.sqrt((apart * apart).sum(axis=1))


def allowed(positives, candidates):
    return [j for j, c in enumerate(candidates) if not any((c == p).all() for p in positives)]


def hard(anchor, positives, candidates, k):
    score = cosines(anchor, candidates)
    return sorted(allowed(positives, candidates), key=lambda j: (-score[j], j))[:k]


def semi_hard(anchor, positives, candidates, k, margin):
    near, far = distances(anchor, positives).max(), distances(anchor, candidates)
    found = [j for j in allowed(positives, candidates) if near < far[j] < near + margin]
    found = sorted(found, key=lambda j: (far[j], j))[:k]
    fill = hard(anchor, positives, candidates, k)[: k - len(found)]
    return found + [j for j in fill if j not in found]


def padded(rows, k):
    return [row + [-1] * (k - len(row)) for row in rows]


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 2), (16, 33, 8), (40, 97, 31)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [0, 1, 3], ids="{} positives".format)
@pytest.mark.parametrize("k", [1, 4, 50])
def test_ranked_strategies(shape, dtype, count, k, rng):
    rows, number, dim = shape
    anchors = rng.standard_normal((rows, dim)).astype(dtype)
    candidates = rng.standard_normal((number, dim)).astype(dtype)
    positives = rng.standard_normal((rows, max(1, count), dim)).astype(dtype)
    if count:
        # Some candidates are positives of some anchors.
        taken = min(rows, number // 2)
        positives[:taken, 0] = candidates[:taken]
    given = positives if count else positives[:, 0]
    expected = [hard(a, p, candidates, k) for a, p in zip(anchors, positives, strict=True)]
    got = HardNegativeMiner("hard").mine(anchors, given, candidates, k)
    assert got.dtype == np.int64
    assert got.tolist() == padded(expected, k)
    expected = [
        semi_hard(a, p, candidates, k, 0.8) for a, p in zip(anchors, positives, strict=True)
    ]
    got = HardNegativeMiner("semi_hard", margin=0.8).mine(anchors, given, candidates, k)
    assert got.tolist() == padded(expected, k)
    one = HardNegativeMiner("semi_hard", margin=0.8).mine(anchors[0], given[0], candidates, k)
    assert one.tolist() == expected[0]


@every_strategy
def test_blocks_make_no_difference(strategy, rng, monkeypatch):
    anchors, positives = rng.standard_normal((2, 30, 5))
    candidates = np.concatenate((rng.standard_normal((40, 5)), positives))
    whole = HardNegativeMiner(strategy, seed=3).mine(anchors, positives, candidates, 6)
    monkeypatch.setattr(mining, "_BLOCK", 200)
    monkeypatch.setattr(mining, "_COLUMNS", 13)
    parts = HardNegativeMiner(strategy, seed=3).mine(anchors, positives, candidates, 6)
    assert parts.tolist() == whole.tolist()


@every_strategy
def test_positives_are_never_chosen(strategy, rng):
    anchors = rng.standard_normal((20, 6))
    positives = anchors[:, None] + 0.01 * rng.standard_normal((20, 2, 6))
    candidates = np.concatenate((positives.reshape(-1, 6), rng.standard_normal((5, 6))))
    got = HardNegativeMiner(strategy, margin=50.0, seed=0).mine(
        anchors, positives, candidates, 43
    )
    for i, row in enumerate(got.tolist()):
        assert sorted(row) == sorted(set(range(45)) - {2 * i, 2 * i + 1})


@every_strategy
def test_a_positive_that_is_a_candidate_twice(strategy):
    candidates = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    got = HardNegativeMiner(strategy, seed=0).mine([1.0, 0.1], [1.0, 0.0], candidates, 3)
    assert got.tolist() == [1]


@every_strategy
def test_nothing_to_choose_from(strategy):
    got = HardNegativeMiner(strategy, seed=0).mine([1.0, 0.1], [1.0, 0.0], [[1.0, 0.0]], 2)
    assert got.shape == (0,)
    got = HardNegativeMiner(strategy, seed=0).mine([[1.0, 0.1]], [[1.0, 0.0]], [[1.0, 0.0]], 2)
    assert got.tolist() == [[-1, -1]]


@pytest.mark.parametrize("strategy", ["hard", "semi_hard"])
def test_equal_candidates_come_in_their_order(strategy):
    candidates = np.tile([[0.0, 2.0], [2.0, 2.0]], (20, 1))
    miner = HardNegativeMiner(strategy, margin=5.0)
    got = miner.mine([[1.0, 1.0]] * 3, [[1.0, 1.5]] * 3, candidates, 4)
    expected = {"hard": [1, 3, 5, 7], "semi_hard": [0, 1, 2, 3]}[strategy]
    assert got.tolist() == [expected] * 3


@pytest.mark.parametrize("strategy", ["random", "distance_weighted"])
def test_draws_are_seeded_distinct_and_go_on(strategy, rng):
    anchors, positives = rng.standard_normal((2, 9, 4))
    candidates = rng.standard_normal((30, 4))
    one, two = (HardNegativeMiner(strategy, seed=7) for _ in range(2))
    first = one.mine(anchors, positives, candidates, 8)
    assert first.tolist() == two.mine(anchors, positives, candidates, 8).tolist()
    assert first.tolist() != one.mine(anchors, positives, candidates, 8).tolist()
    assert all(len(set(row)) == 8 for row in first.tolist())
    shared = HardNegativeMiner(strategy, seed=np.random.default_rng(7))
    assert first.tolist() == shared.mine(anchors, positives, candidates, 8).tolist()


def chi_square(counts, probabilities):
    expected = counts.sum() * probabilities
    return ((counts - expected) ** 2 / expected).sum()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("dim", "temperature", "cutoff"), [(3, 1, 0.5), (8, 2, 0), (8, 5, 1.2)]
)
def test_distance_weights(dtype, dim, temperature, cutoff, rng):
    candidates = rng.standard_normal((12, dim)).astype(dtype)
    anchor = rng.standard_normal(dim).astype(dtype)
    draws = 20_000
    miner = HardNegativeMiner(
        "distance_weighted", temperature=temperature, cutoff=cutoff, seed=1
    )
    got = miner.mine(
        np.tile(anchor, (draws, 1)), np.tile(candidates[4], (draws, 1)), candidates, 2
    )
    d = np.maximum(np.sqrt(2 - 2 * cosines(anchor, candidates)), cutoff)
    log_density = (dim - 2) * np.log(d) + (dim - 3) / 2 * np.log(1 - d * d / 4)
    weights = np.exp(-log_density / temperature)
    weights[4] = 0
    weights /= weights.sum()
    others = np.arange(12) != 4
    first = np.bincount(got[:, 0], minlength=12)
    assert first[4] == 0
    # The 99.9th percentile of chi-square with 10 degrees of freedom.
    assert chi_square(first[others], weights[others]) < 29.59
    # The second draw is from what the first one left.
    second = np.array(
        [sum(weights[i] * weights[j] / (1 - weights[i]) for i in range(12) if i != j)
         for j in range(12)]
    )  # fmt: skip
    assert chi_square(np.bincount(got[:, 1], minlength=12)[others], second[others]) < 29.59


def test_random_is_uniform(rng):
    candidates = rng.standard_normal((11, 3))
    anchors, positives = rng.standard_normal((2, 20_000, 3))
    got = HardNegativeMiner("random", seed=0).mine(anchors, positives, candidates, 3)
    for column in got.T:
        assert chi_square(np.bincount(column, minlength=11), np.full(11, 1 / 11)) < 29.59


def test_opposite_and_equal_directions_have_finite_weights():
    candidates = [[1.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]
    miner = HardNegativeMiner("distance_weighted", cutoff=0.0, seed=0)
    got = miner.mine([2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], candidates, 3)
    assert sorted(got.tolist()) == [0, 1, 2]


def test_semi_hard_distances_are_exact(rng):
    """Close vectors far from the origin are told apart."""
    base = 1000 * np.ones(4)
    steps = np.array([0.01, 0.03, 0.02, 0.05])
    candidates = (base + steps[:, None] * [1.0, 0, 0, 0]).astype(np.float32)
    positive = (base - [0.015, 0, 0, 0]).astype(np.float32)
    miner = HardNegativeMiner("semi_hard", margin=0.02)
    got = miner.mine(base.astype(np.float32), positive, candidates, 1)
    assert got.tolist() == [2]


def test_threads_change_nothing(rng):
    anchors, positives = rng.standard_normal((2, 100, 32), dtype=np.float32)
    candidates = rng.standard_normal((300, 32), dtype=np.float32)
    for strategy in STRATEGIES:
        got = []
        for threads in (1, 2):
            with ruvector.num_threads(threads):
                miner = HardNegativeMiner(strategy, margin=1.0, seed=5)
                got.append(miner.mine(anchors, positives, candidates, 5).tolist())
        assert got[0] == got[1], strategy


def test_nan_candidates_do_not_stop_a_draw(rng):
    candidates = rng.standard_normal((6, 3))
    candidates[2] = np.nan
    got = HardNegativeMiner("distance_weighted", seed=0).mine(
        candidates[0], candidates[1], candidates, 3
    )
    assert 2 not in got.tolist()
    assert len(got) == 3


ONE = np.ones((3, 4))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.ones((1, 3, 4)), ONE, ONE), ruvector.DimensionMismatchError, "anchor must have"),
        ((ONE, ONE[:2], ONE), ruvector.DimensionMismatchError, "positive must have shape"),
        ((ONE, ONE[0], ONE), ruvector.DimensionMismatchError, "positive must have shape"),
        ((ONE, np.ones((3, 5)), ONE), ruvector.DimensionMismatchError, "positive must hold"),
        ((ONE, ONE, np.ones((3, 5))), ruvector.DimensionMismatchError, "candidates must hold"),
        ((ONE, ONE, ONE[0]), ruvector.DimensionMismatchError, r"candidates must have shape"),
        ((ONE, ONE, []), ruvector.EmptyInputError, "candidates must not be empty"),
        ((ONE, ONE[:, None][:, :0], ONE), ruvector.EmptyInputError, "positive must not be"),
        ((ONE, ONE, 0 * ONE), ruvector.EmptyInputError, "candidates must not hold a zero"),
        ((0 * ONE, ONE, ONE), ruvector.EmptyInputError, "anchor must not hold a zero"),
        ((ONE, ONE, ONE * 1j), TypeError, "candidates must hold real"),
    ],
)
def test_what_cannot_be_mined(arguments, error, message):
    with pytest.raises(error, match=message):
        HardNegativeMiner("hard").mine(*arguments, 2)


def test_random_takes_zero_vectors():
    got = HardNegativeMiner("random", seed=0).mine(0 * ONE, ONE, 0 * ONE, 2)
    assert got.shape == (3, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("easy",), "strategy must be 'random', 'hard', 'semi_hard' or 'distance_weighted'"),
        (("hard", 0.0), "margin must be a positive"),
        (("hard", 0.1, -1.0), "temperature must be a positive"),
    ],
)
def test_options_are_checked(arguments, message):
    with pytest.raises(ruvector.InvalidConfigError, match=message):
        HardNegativeMiner(*arguments)
    with pytest.raises(ruvector.InvalidConfigError, match="cutoff must be from 0 to 2"):
        HardNegativeMiner("hard", cutoff=3)
    with pytest.raises(ruvector.InvalidConfigError, match="num_negatives must be an integer"):
        HardNegativeMiner("hard").mine(ONE, ONE, ONE, 0)


def test_factories_and_properties():
    miner = HardNegativeMiner.with_margin("semi_hard", 0.7, seed=1)
    assert (miner.strategy, miner.margin, miner.temperature) == ("semi_hard", 0.7, 1.0)
    miner = HardNegativeMiner.with_temperature("distance_weighted", 0.3)
    assert (miner.margin, miner.temperature, miner.cutoff) == (0.1, 0.3, 0.5)
    assert repr(miner) == (
        "HardNegativeMiner('distance_weighted', margin=0.1, temperature=0.3, cutoff=0.5)"
    )


def test_in_batch():
    miner, loose = InBatchMiner(), InBatchMiner.include_positive()
    assert miner.exclude_positive
    assert not loose.exclude_positive
    assert repr(loose) == "InBatchMiner(exclude_positive=False)"
    assert miner.get_negatives(0, 0, 3).tolist() == [1, 2]
    assert miner.get_negatives(0, 1, 2).tolist() == []
    assert loose.get_negatives(0, 1, 2).tolist() == [1]
    got = miner.get_negatives([0, 1, 2], [1, 1, 0], 4)
    assert got.tolist() == [[2, 3, -1], [0, 2, 3], [1, 3, -1]]
    assert got.dtype == np.int64


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((4, 0, 4), ruvector.InvalidConfigError, "anchor_idx must be from 0 to 3"),
        ((0, -1, 4), ruvector.InvalidConfigError, "positive_idx must be from 0 to 3"),
        (([0, 1], [0], 4), ruvector.DimensionMismatchError, "one shape"),
        ((0, 1, 0), ruvector.InvalidConfigError, "batch_size must be an integer"),
        ((0.5, 1, 4), TypeError, "anchor_idx must hold integers"),
    ],
)
def test_in_batch_rows_are_checked(arguments, error, message):
    with pytest.raises(error, match=message):
        InBatchMiner().get_negatives(*arguments)


def test_in_batch_flag_is_checked():
    with pytest.raises(ruvector.InvalidConfigError, match="exclude_positive must be True"):
        InBatchMiner(1)


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True])
def test_wrong_seeds(seed):
    for make in (
        lambda: HardNegativeMiner("random", seed=seed),
        lambda: ruvector.random_orthogonal_matrix(3, seed),
    ):
        with pytest.raises(ruvector.InvalidConfigError, match="seed must be an integer"):
            make()
