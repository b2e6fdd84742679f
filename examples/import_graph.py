"""Attention along the imports of Python's standard library, and along a million edges.

Each module attends to the modules that it imports (``data/README.md``), over embeddings of
their documentation. Three facts about an import are features of its edge: how similar the two
modules are, whether they are of the same package, and whether they import each other. The
parameters are set by hand, so that what a head looks for can be read: one looks for similar
modules, the other for close relations. The weights say which imports a module leans on.

Imports have imports. A module then attends to all that it needs, however indirectly, at
rotary positions: how many imports away each of them is.

The same is computed in NumPy beside it. A second, generated graph of a million edges, with a
hub that a tenth of them lead to, shows the time of one thread and of all. Exits with status 1
if results disagree.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

import ruvector

DATA = Path(__file__).parent / "data" / "stdlib_memory.npz"
NAMED = ["asyncio.tasks", "json.decoder", "unittest.mock", "zipfile"]
HEADS = {"similar": (20.0, 0.0, 0.0), "related": (0.0, 1.5, 3.0)}
TOLERANCE = 1e-5
# The longest distance that counts, and how sharply the dot products of unit vectors count.
LONGEST, SHARPNESS = 16, 10.0


def edge_features(names, x, indptr, indices):
    """Return similarity, same package and mutual import of every edge."""
    importer = np.repeat(np.arange(len(names)), np.diff(indptr))
    package = np.array([name.split(".")[0] for name in names])
    pairs = set(zip(importer.tolist(), indices.tolist(), strict=True))
    mutual = [(j, i) in pairs for i, j in zip(importer.tolist(), indices.tolist(), strict=True)]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    similarity = np.einsum("ed,ed->e", unit[importer], unit[indices])
    columns = (similarity, package[importer] == package[indices], mutual)
    return np.stack([np.asarray(column, np.float32) for column in columns], axis=1)


def readable_layer(dim):
    """Make a layer whose heads weigh the features as `HEADS` says and average the senders.

    Every head has the vectors' width for messages and one more channel for the score.
    """
    channels = dim + 1
    layer = ruvector.EdgeFeaturedAttention(
        node_dim=dim,
        edge_dim=3,
        num_heads=len(HEADS),
        out_dim=len(HEADS) * channels,
        add_self_loops=False,
        bias=False,
    )
    parameters = layer.parameters()
    for array in parameters.values():
        array[...] = 0
    for head, weights in enumerate(HEADS.values()):
        first = head * channels
        parameters["lin_l.weight"][first : first + dim] = np.eye(dim)
        parameters["lin_edge.weight"][first + dim] = weights
        parameters["att"][0, head, dim] = 1
    return layer


def numpy_layer(layer, x, indptr, indices, features):
    """Return the layer's output by the formula, with every edge in memory."""
    p, heads = layer.parameters(), layer.num_heads
    importer = np.repeat(np.arange(len(x)), np.diff(indptr))
    left, right = (x @ p[f"{side}.weight"].T for side in ("lin_l", "lin_r"))
    summed = right[importer] + left[indices] + features @ p["lin_edge.weight"].T
    summed = np.where(summed > 0, summed, layer.negative_slope * summed)
    scores = (summed.reshape(len(indices), heads, -1) * p["att"]).sum(axis=-1)
    weights = np.exp(scores - scores.max())
    total = np.zeros((len(x), heads))
    np.add.at(total, importer, weights)
    weights = (weights / total[importer]).astype(np.float32)
    output = np.zeros((len(x), heads, p["att"].shape[2]), np.float32)
    messages = left[indices].reshape(len(indices), heads, -1)
    np.add.at(output, importer, weights[:, :, np.newaxis] * messages)
    return output.reshape(len(x), -1)


def show_weights(layer, names, shown, top, x, indptr, indices, features):
    """Print the imports with the most weight; return the largest error of a single node."""
    graph = layer.compute_graph(x, indptr, indices, features)
    width = max(map(len, shown))
    worst = 0.0
    for head, label in enumerate(HEADS):
        print(f"\n{label + ': module':<{width + 9}}   weight   imports")
        for i in (names.index(name) for name in shown):
            row = slice(indptr[i], indptr[i + 1])
            near = x[indices[row]]
            one, weights = layer.compute_with_edges(
                x[i], near, near, features[row], return_weights=True
            )
            worst = max(worst, abs(one - graph[i]).max())
            start = names[i]
            for at in np.argsort(-weights[head], kind="stable")[:top]:
                _, package, mutual = features[row][at]
                notes = ["same package"] * bool(package) + ["mutual"] * bool(mutual)
                note = f" ({', '.join(notes)})" if notes else ""
                sender = names[indices[row][at]]
                print(f"  {start:<{width + 7}}   {weights[head, at]:6.3f}   {sender}{note}")
                start = ""
    return worst


def numpy_rotary(query, keys, positions):
    """Return the weights of a query at position 0 by the formula, over turned copies."""
    half = keys.shape[1] // 2
    angles = np.multiply.outer(positions, 10000.0 ** -(np.arange(half) / half))
    a, b = keys[:, :half], keys[:, half:]
    turned = np.concatenate(
        [a * np.cos(angles) - b * np.sin(angles), a * np.sin(angles) + b * np.cos(angles)],
        axis=1,
    )
    scores = turned @ query / np.sqrt(keys.shape[1])
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def show_reach(names, shown, top, x, indptr, indices):
    """Print what modules need with the most weight; return the largest error."""
    importer = np.repeat(np.arange(len(names)), np.diff(indptr))
    # Distances follow edges from sender to receiver: here from a module to its imports.
    towards = ruvector.graph.edges_to_csr(np.stack([importer, indices]), len(names))[:2]
    attention = ruvector.GraphRoPEAttention.simple(x.shape[1], max_position=LONGEST + 1)
    width = max(map(len, shown))
    print(f"\n{'needed by':<{width + 9}}   weight, and without positions   imports away")
    worst = 0.0
    for i in (names.index(name) for name in shown):
        hops = ruvector.graph.hop_distances(*towards, i)
        positions = attention.distance_to_position(np.maximum(hops, 0), LONGEST)
        query = SHARPNESS * x.shape[1] ** 0.5 * x[i]
        needed = hops > 0  # neither out of reach nor the module itself
        arguments = {"mask": needed, "return_weights": True}
        _, weights = attention.compute_with_positions(query, x, x, 0, positions, **arguments)
        _, plain = attention.compute_with_positions(query, x, x, 0, 0 * positions, **arguments)
        expected = numpy_rotary(query, x[needed], positions[needed])
        worst = max(worst, abs(weights[needed] - expected).max())
        start = names[i]
        for at in np.argsort(-weights, kind="stable")[:top]:
            values = f"{weights[at]:6.3f} {plain[at]:22.3f}"
            print(f"  {start:<{width + 7}}   {values} {hops[at]:14}  {names[at]}")
            start = ""
    return worst


def check_agreement(differences):
    """Print the largest differences, and return whether all are small."""
    print("\nlargest difference")
    for label, difference in differences.items():
        print(f"  {label:<36}{difference:.1e}")
    agree = all(difference <= TOLERANCE for difference in differences.values())
    print(f"  {'they agree' if agree else f'MORE THAN {TOLERANCE}: THEY DISAGREE'}")
    return agree


def show_times(edges, threads, rounds):
    """Time a generated graph; return whether one thread and several give the same bits."""
    rng = np.random.default_rng(0)
    nodes, hub = max(1, edges // 20), edges // 10
    receivers = np.concatenate([np.zeros(hub, np.int64), rng.integers(0, nodes, edges - hub)])
    senders = (nodes * rng.random(edges) ** 3).astype(np.int64)  # a few send to many
    start = time.perf_counter()
    indptr, indices, order = ruvector.graph.edges_to_csr(np.stack([senders, receivers]), nodes)
    ordering = time.perf_counter() - start
    layer = ruvector.EdgeFeaturedAttention(node_dim=64, edge_dim=4, num_heads=4, seed=0)
    x = rng.standard_normal((nodes, 64), dtype=np.float32)
    features = rng.standard_normal((edges, 4), dtype=np.float32)[order]
    print(f"\na generated graph: {nodes} nodes, {edges} edges, {hub} of them to one node")
    print(f"  edges_to_csr              {ordering * 1e3:8.1f} ms")
    outputs = []
    for count in sorted({1, threads}):
        seconds = []
        with ruvector.num_threads(count), threadpool_limits(count):
            for _ in range(rounds + 1):  # the first warms up
                start = time.perf_counter()
                outputs.append(layer.compute_graph(x, indptr, indices, features))
                seconds.append(time.perf_counter() - start)
        label = f"{count} thread{'s' * (count > 1)}"
        best = min(seconds[1:])
        rate = f"{best / edges * 1e9:.0f} ns an edge"
        print(f"  compute_graph, {label:<10} {best * 1e3:8.1f} ms, {rate}")
    start = time.perf_counter()
    distances = ruvector.graph.hop_distances(indptr, indices, nodes - 1)
    elapsed = time.perf_counter() - start
    print(f"  hop_distances             {elapsed * 1e3:8.1f} ms, up to {distances.max()} hops")
    if ruvector.backend() == "python":
        return True
    return all(np.array_equal(output, outputs[0]) for output in outputs)


def parse(argv):
    """Read the command line and the data it names."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DATA, help="the graph, an .npz file")
    parser.add_argument("--top", type=int, default=4, help="how many imports to show")
    parser.add_argument(
        "--show", nargs="+", metavar="MODULE", default=NAMED, help="modules to show"
    )
    parser.add_argument("--edges", type=int, default=1_000_000, help="of the generated graph")
    parser.add_argument(
        "--threads", type=int, default=ruvector.get_num_threads(), help="beside one"
    )
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of each timing")
    options = parser.parse_args(argv)
    for name in ("top", "edges", "threads", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    try:
        with np.load(options.data) as data:
            names = data["module_names"].tolist()
            x = data["module_embeddings"].astype(np.float32)
            indptr, indices = data["import_indptr"], data["import_indices"]
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"--data {options.data}: {error}")
    for name in options.show:
        if name not in names:
            parser.error(f"--show {name}: there is no module of that name in the graph")
        if indptr[names.index(name)] == indptr[names.index(name) + 1]:
            parser.error(f"--show {name}: it imports nothing")
    return options, names, x, indptr, indices


def main(argv=None):
    """Attend, show, compare and time; return the exit status."""
    options, names, x, indptr, indices = parse(argv)
    info = ruvector.info()
    isa = f", {info['isa']}" if info["isa"] else ""
    print(f"graph: {len(names)} modules of Python's standard library, {len(indices)} imports")
    print(f"ruvector {info['version']}, {info['backend']}{isa}, threads: {options.threads}")
    features = edge_features(names, x, indptr, indices)
    print(
        f"of the imports {features[:, 1].mean():.0%} stay in the package and "
        f"{features[:, 2].mean():.0%} are mutual"
    )
    layer = readable_layer(x.shape[1])
    with ruvector.num_threads(options.threads), threadpool_limits(options.threads):
        single = show_weights(
            layer, names, options.show, options.top, x, indptr, indices, features
        )
        output = layer.compute_graph(x, indptr, indices, features)
        reach = show_reach(names, options.show, options.top, x, indptr, indices)
    expected = numpy_layer(layer, x, indptr, indices, features)
    agree = check_agreement(
        {
            "the whole graph and NumPy": abs(output - expected).max(),
            "single modules and the whole graph": single,
            "rotary positions and NumPy": reach,
        }
    )
    same = show_times(options.edges, options.threads, options.rounds)
    if not same:
        print("THE NUMBER OF THREADS CHANGES THE RESULT")
    return 0 if agree and same else 1


if __name__ == "__main__":
    sys.exit(main())
