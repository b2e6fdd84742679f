"""The command line: ``ruvector info``, ``selftest``, ``attend``, ``train``, ``encode``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ._attend import KINDS, Job, attend_files
from ._config import info, version
from ._train_cli import add_commands
from .errors import RuvectorError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, without the name of the program; those of the process when None.

    Returns
    -------
    int
        Exit status: 0, or 1 where the self-test found a mismatch, 2 for bad input, 130
        after Ctrl-C.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        return int(options.run(options))
    except (RuvectorError, OSError) as error:
        print(f"{parser.prog} {options.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog} {options.command}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ruvector", description="Attention mechanisms on the CPU."
    )
    parser.add_argument("--version", action="version", version=f"ruvector {version()}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)

    command = commands.add_parser("info", help="show what is installed and what runs")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_info)

    command = commands.add_parser(
        "selftest", help="compare every available kernel with a float64 reference"
    )
    command.set_defaults(run=_selftest)

    command = commands.add_parser(
        "attend",
        help="attend from queries in a .npy file over keys and values in others",
        description="Attend from QUERY, shape (dim,), (m, dim) or (B, m, dim), over KEYS "
        "(n, dim) and VALUES (n, dim_v), with a leading B where QUERY has one. Inputs are "
        "memory-mapped; OUT appears only when it is complete.",
    )
    command.add_argument("--kind", required=True, choices=KINDS)
    command.add_argument("--query", required=True, metavar="QUERY.npy")
    command.add_argument("--keys", required=True, metavar="KEYS.npy")
    command.add_argument("--values", required=True, metavar="VALUES.npy")
    command.add_argument(
        "--mask",
        metavar="MASK.npy",
        help="(n,) or (m, n): bool, True attends, or float, added to the scores",
    )
    command.add_argument(
        "--heads",
        type=int,
        metavar="H",
        help="heads of multi-head and dual-space (required), of flash and of graph-rope",
    )
    command.add_argument(
        "--causal",
        action="store_true",
        help="flash, linear: the last query sees every key, each one before it one key less",
    )
    command.add_argument(
        "--num-features", type=int, metavar="M", help="linear (required): number of features"
    )
    command.add_argument(
        "--kernel",
        choices=("softmax", "relu", "elu"),
        help="linear: the features (default softmax)",
    )
    command.add_argument(
        "--seed", type=int, metavar="S", help="linear: seed of the projection (default 42)"
    )
    command.add_argument(
        "--local-window", type=int, metavar="W", help="local-global: width of the window"
    )
    command.add_argument(
        "--global-tokens", type=int, metavar="G", help="local-global: first keys, always seen"
    )
    command.add_argument(
        "--curvature",
        type=float,
        metavar="C",
        help="hyperbolic, dual-space: the ball has the radius 1/sqrt(C) (default 1)",
    )
    command.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="hyperbolic, dual-space: divides the scores (default 1)",
    )
    command.add_argument(
        "--inputs",
        choices=("ball", "tangent"),
        help="hyperbolic: points, or tangent vectors at the origin (default ball)",
    )
    command.add_argument(
        "--euclidean-dim", type=int, metavar="D", help="dual-space: width of the first part"
    )
    command.add_argument(
        "--fusion-weight",
        type=float,
        metavar="W",
        help="dual-space: what the distance counts, from 0 to 1 (default 0.5)",
    )
    command.add_argument(
        "--num-experts", type=int, metavar="N", help="moe (required): number of experts"
    )
    command.add_argument(
        "--top-k", type=int, metavar="K", help="moe (required): experts that answer a query"
    )
    command.add_argument(
        "--expert-types",
        metavar="TYPE,...",
        help="moe: one of standard, hyperbolic and linear for each expert (default: in turn)",
    )
    command.add_argument(
        "--parameters",
        metavar="PARAMETERS.npz",
        help="edge-featured (required), moe (default: initial weights of seed 42), "
        "linear: what state_dict() returned, saved with numpy.savez",
    )
    command.add_argument(
        "--edge-features",
        metavar="EDGES.npy",
        help="edge-featured: features of the edges from the keys, (n, e) or (m, n, e)",
    )
    command.add_argument(
        "--max-position",
        type=int,
        metavar="P",
        help="graph-rope (required): positions are from 0 to P - 1",
    )
    command.add_argument(
        "--query-positions",
        metavar="POSITIONS.npy",
        help="graph-rope: where the queries stand, () or (m,) (default 0)",
    )
    command.add_argument(
        "--key-positions",
        metavar="POSITIONS.npy",
        help="graph-rope: where the keys stand, (n,) (default 0 to n - 1)",
    )
    command.add_argument(
        "--base", type=float, metavar="B", help="graph-rope: base of the angles (default 10000)"
    )
    command.add_argument(
        "--scaling",
        choices=("linear", "ntk", "yarn"),
        help="graph-rope: what the factor does (default linear)",
    )
    command.add_argument(
        "--scaling-factor",
        type=float,
        metavar="S",
        help="graph-rope: how many times longer than trained on positions run (default 1)",
    )
    command.add_argument(
        "--original-max-position",
        type=int,
        metavar="L",
        help="graph-rope, yarn: the length that was trained on (default P / S)",
    )
    command.add_argument(
        "--layout",
        choices=("half", "interleaved"),
        help="graph-rope: which entries of a head are pairs (default half)",
    )
    command.add_argument("-o", "--output", required=True, metavar="OUT.npy")
    command.set_defaults(run=_attend)
    add_commands(commands)
    return parser


def _info(options: argparse.Namespace) -> int:
    facts = info()
    if options.json:
        import json

        print(json.dumps(facts, indent=2))
        return 0
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {_text(value)}")
    return 0


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _selftest(options: argparse.Namespace) -> int:
    from ._selftest import selftest

    report = selftest()
    print(report)
    return 0 if report.passed else 1


def _attend(options: argparse.Namespace) -> int:
    fields = vars(options)
    written = attend_files(Job(**{name: fields[name] for name in Job.__dataclass_fields__}))
    print(f"{options.output}: {written}")
    return 0
