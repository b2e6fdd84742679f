"""The standard library as a tree: hyperbolic and dual-space attention against Euclidean.

The qualified names in ``data/stdlib_memory.npz`` make a tree of packages, modules, classes
and members. Its nodes are laid out twice by one recipe, each child one step away from its
parent in a direction of its own: once in a Poincare ball, where there is room for every
branch, and once in flat space of as many dimensions, where there is not. Attention by
distance then goes to a member's relatives, or to strangers.

With the embeddings of the docstrings beside the place in the ball, dual-space attention
answers questions that are asked from inside a class or module. Exits with status 1 if
attention and its formula disagree.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

import ruvector
from ruvector import hyperbolic

DATA = Path(__file__).parent / "data" / "stdlib_memory.npz"
NAMED = ["textwrap.dedent", "builtins.str.endswith", "email.message.Message.items"]
CURVATURE = 1.0
TEXT_TEMPERATURE = 0.05
SAMPLE = 100
TOLERANCE = 1e-4
NEAREST = 5


class Tree:
    """All prefixes of some dotted names, the empty one as the root."""

    def __init__(self, names):
        paths = {()}
        for name in names:
            parts = tuple(name.split("."))
            paths.update(parts[:i] for i in range(1, len(parts) + 1))
        ordered = sorted(paths, key=lambda path: (len(path), path))
        place = {path: i for i, path in enumerate(ordered)}
        self.names = [".".join(path) or "(the library)" for path in ordered]
        self.depth = np.array([len(path) for path in ordered])
        self.parent = np.array([place[path[:-1]] for path in ordered])
        # Row i: the nodes from the root down to node i, then -1.
        self.lineage = np.full((len(ordered), self.depth.max() + 1), -1)
        for i, path in enumerate(ordered):
            self.lineage[i, : len(path) + 1] = [place[path[:j]] for j in range(len(path) + 1)]
        self.members = np.array([place[tuple(name.split("."))] for name in names])

    def steps(self, nodes):
        """Count the edges between some nodes and all."""
        same = (self.lineage[nodes, np.newaxis] == self.lineage) & (self.lineage >= 0)
        shared = np.logical_and.accumulate(same, axis=2).sum(axis=2) - 1
        return self.depth[nodes, np.newaxis] + self.depth - 2 * shared

    def relation(self, node, other):
        """Name what another node is to a node."""
        if other in self.lineage[node]:
            return "parent" if other == self.parent[node] else "ancestor"
        if node in self.lineage[other]:
            return "child" if node == self.parent[other] else "descendant"
        if self.parent[node] == self.parent[other]:
            return "sibling"
        return "cousin" if self.lineage[node][1] == self.lineage[other][1] else "stranger"


def lay_out(tree, dim, step, curved, seed=0):
    """Place every node one step from its parent, at a right angle to where that came from."""
    rng = np.random.default_rng(seed)
    x = np.zeros((len(tree.names), dim))
    for level in range(1, tree.depth.max() + 1):
        nodes = np.flatnonzero(tree.depth == level)
        parents = tree.parent[nodes]
        back = x[tree.parent[parents]]
        if curved:
            # The parent in the middle of the ball, as the isometry that undoes it sees it.
            back = hyperbolic.mobius_add(-x[parents], back, CURVATURE)
        else:
            back = back - x[parents]
        back /= np.maximum(np.linalg.norm(back, axis=1, keepdims=True), 1e-12)
        along = rng.standard_normal((len(nodes), dim))
        along -= (along * back).sum(axis=1, keepdims=True) * back
        along *= step / np.linalg.norm(along, axis=1, keepdims=True)
        if curved:
            there = hyperbolic.expmap0(along / 2, CURVATURE)
            x[nodes] = hyperbolic.mobius_add(x[parents], there, CURVATURE)
        else:
            x[nodes] = x[parents] + along
    return x.astype(np.float32)


def others(x, nodes):
    """Return a mask that hides each node from itself."""
    return np.arange(len(x)) != np.asarray(nodes)[:, np.newaxis]


def by_distance(x, temperature):
    """Return what weighs all other nodes for some, by distance in the ball."""
    attention = ruvector.HyperbolicAttention(x.shape[1], CURVATURE, temperature)

    def weigh(nodes):
        mask = others(x, nodes)
        return attention.compute(x[nodes], x, x, mask=mask, return_weights=True)[1]

    return weigh


def by_squares(x, temperature):
    """Return the same in flat space: -|q - k|^2 is a dot product and a bias of the key."""
    attention = ruvector.DotProductAttention(x.shape[1], scale=2 / temperature)
    bias = -(x * x).sum(axis=1) / temperature

    def weigh(nodes):
        mask = np.where(others(x, nodes), bias, -np.inf)
        return attention.compute(x[nodes], x, x, mask=mask, return_weights=True)[1]

    return weigh


def spread_over(kind, x, nodes, perplexity):
    """Find the temperature at which attention spreads over so many nodes on average."""
    low, high = 1e-2, 1e2
    for _ in range(14):
        temperature = np.sqrt(low * high)
        weights = kind(x, temperature)(nodes)
        entropy = -(weights * np.log(np.maximum(weights, 1e-30))).sum(axis=1)
        if np.exp(entropy).mean() < perplexity:
            low = temperature
        else:
            high = temperature
    return temperature


def show_geometry(tree, ball, flat, sample):
    """Print how far distances follow the tree."""
    steps = tree.steps(sample)
    best = np.sort(steps, axis=1)[:, 1 : NEAREST + 1].mean()
    distances = {
        "ball": hyperbolic.poincare_distance(ball[sample, np.newaxis], ball, CURVATURE),
        "flat": np.linalg.norm(flat[sample, np.newaxis] - flat, axis=2),
    }
    print(f"\n{'how far distance follows the tree':<48}{'ball':>8}{'flat':>8}")
    far = f"steps to the {NEAREST} nearest (at best {best:.2f})"
    rows = {
        "correlation of distance and steps": [],
        "nearest is parent or sibling": [],
        far: [],
    }
    for distance in distances.values():
        order = np.argsort(distance, axis=1, kind="stable")
        near = np.take_along_axis(steps, order, axis=1)[:, 1 : NEAREST + 1]
        first, second, third = rows.values()
        first.append(np.corrcoef(distance.ravel(), steps.ravel())[0, 1])
        second.append((near[:, 0] <= 2).mean())
        third.append(near.mean())
    for label, values in rows.items():
        print(f"  {label:<46}" + "".join(f"{value:>8.2f}" for value in values))


def show_shares(tree, weights):
    """Print to what relatives all members attend."""
    steps = tree.steps(tree.members)
    column = np.arange(len(tree.names))
    line = (tree.lineage[tree.members][:, :, np.newaxis] == column).any(axis=1)
    sibling = tree.parent == tree.parent[tree.members, np.newaxis]
    package = tree.lineage[:, 1] == tree.lineage[tree.members, 1:2]
    groups = {
        "ancestors": line,
        "siblings": sibling & ~line,
        "same package": package & ~(line | sibling),
        "strangers": ~(line | sibling | package),
    }
    print(f"\n{'where members attend':<20}", end="")
    print("".join(f"{label:>14}" for label in groups) + f"{'steps away':>14}")
    for label, weight in weights.items():
        shares = [np.where(group, weight, 0).sum(axis=1).mean() for group in groups.values()]
        shares.append((weight * steps).sum(axis=1).mean())
        print(f"  {label:<18}" + "".join(f"{share:>14.2f}" for share in shares))


def shortened(name, width):
    """Leave out the middle of a long name."""
    return (
        name if len(name) <= width else f"{name[: width // 2 - 2]}...{name[1 - width // 2 :]}"
    )


def show_members(tree, shown, kinds):
    """Print what some nodes attend to most, in one space and in the other."""
    width = 36
    for name in shown:
        node = tree.names.index(name)
        columns = []
        for weigh in kinds.values():
            (weights,) = weigh([node])
            best = np.argsort(-weights, kind="stable")[:NEAREST]
            columns.append(
                [
                    f"{weights[i]:6.2f}  {tree.relation(node, i):<10}"
                    f"{shortened(tree.names[i], width):<{width}}"
                    for i in best
                ]
            )
        print(f"\n{name} attends")
        print(
            "".join(f"  {'in ' + label + ' space':<{width + 18}}" for label in kinds).rstrip()
        )
        for cells in zip(*columns, strict=True):
            print("  ".join(cells).rstrip())


def show_recall(tree, ball, queries, documents, weight):
    """Print recall of docstrings from their first sentence, asked from inside their class."""
    place = hyperbolic.logmap0(ball, CURVATURE)
    # Dual-space attention divides dot products by the root of the width.
    scale = np.float32((documents.shape[1] ** 0.5 / TEXT_TEMPERATURE) ** 0.5)
    asked = np.hstack([scale * queries, place[tree.parent[tree.members]]])
    memory = np.hstack([scale * documents, place[tree.members]])
    print(f"\n{'the docstring of a first sentence':<48}{'@1':>8}{'@5':>8}")
    for label, fusion in (("by text", 0.0), ("by place", 1.0), ("by both", weight)):
        attention = ruvector.DualSpaceAttention(
            euclidean_dim=documents.shape[1],
            hyperbolic_dim=ball.shape[1],
            num_heads=1,
            curvature=CURVATURE,
            fusion_weight=fusion,
            learn_fusion=False,
        )
        _, weights = attention.compute(asked, memory, memory, return_weights=True)
        own = np.diag(weights)[:, np.newaxis]
        # Among equals the first one is recalled first.
        before = (weights > own) | ((weights == own) & np.tri(len(own), k=-1, dtype=bool))
        rank = before.sum(axis=1)
        print(f"  {label:<46}{(rank < 1).mean():>8.2f}{(rank < 5).mean():>8.2f}")


def check_agreement(ball, temperature, sample, weigh):
    """Compare weights with the formula, and return whether all is well."""
    scores = -hyperbolic.poincare_distance(ball[sample, np.newaxis], ball, CURVATURE)
    scores[~others(ball, sample)] = -np.inf
    expected = ruvector.attention_weights(scores, temperature)
    difference = abs(weigh(sample) - expected).max()
    agree = difference <= TOLERANCE
    verdict = "they agree" if agree else f"MORE THAN {TOLERANCE}: THEY DISAGREE"
    print(f"\nweights and their formula differ by {difference:.0e}: {verdict}")
    return agree


def parse(argv):
    """Read the command line and the data it names."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DATA, help="the memory, an .npz file")
    parser.add_argument("--dim", type=int, default=8, help="dimensions of either space")
    parser.add_argument("--step", type=float, default=2.5, help="from parent to child, ball")
    parser.add_argument(
        "--perplexity", type=float, default=8.0, help="nodes that attention spreads over"
    )
    parser.add_argument(
        "--fusion-weight", type=float, default=0.5, help="of place beside text, 0 to 1"
    )
    parser.add_argument(
        "--show", nargs="+", metavar="NAME", default=NAMED, help="members to show"
    )
    parser.add_argument("--threads", type=int, default=ruvector.get_num_threads())
    options = parser.parse_args(argv)
    for name in ("step", "perplexity"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name} must be positive, got {getattr(options, name)}")
    if options.dim < 2:
        parser.error(f"--dim must be at least 2, got {options.dim}")
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    if not 0 <= options.fusion_weight <= 1:
        parser.error(f"--fusion-weight must be from 0 to 1, got {options.fusion_weight}")
    try:
        with np.load(options.data) as data:
            names = data["names"].tolist()
            queries = data["queries"].astype(np.float32)
            documents = data["documents"].astype(np.float32)
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"--data {options.data}: {error}")
    tree = Tree(names)
    for name in options.show:
        if name not in tree.names:
            parser.error(f"--show {name}: there is no such package, module, class or member")
    return options, tree, queries, documents


def main(argv=None):
    """Lay out, attend, compare, recall; return the exit status."""
    options, tree, queries, documents = parse(argv)
    info = ruvector.info()
    isa = f", {info['isa']}" if info["isa"] else ""
    levels = ", ".join(map(str, np.bincount(tree.depth)))
    print(f"tree: {len(tree.names)} nodes of Python's standard library, by level {levels}")
    print(f"ruvector {info['version']}, {info['backend']}{isa}, threads: {options.threads}")
    with ruvector.num_threads(options.threads), threadpool_limits(options.threads):
        ball = lay_out(tree, options.dim, options.step, curved=True)
        flat = lay_out(tree, options.dim, 1.0, curved=False)
        sample = tree.members[:: max(1, len(tree.members) // SAMPLE)]
        show_geometry(tree, ball, flat, sample)
        temperature = spread_over(by_distance, ball, sample, options.perplexity)
        kinds = {
            "curved": by_distance(ball, temperature),
            "flat": by_squares(flat, spread_over(by_squares, flat, sample, options.perplexity)),
        }
        show_shares(tree, {label: weigh(tree.members) for label, weigh in kinds.items()})
        show_members(tree, options.show, kinds)
        show_recall(tree, ball, queries, documents, options.fusion_weight)
        agree = check_agreement(ball, temperature, sample, kinds["curved"])
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
