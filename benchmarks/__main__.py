"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
import time
from pathlib import Path

from .core import Context, Curve, Family, Measurement
from .machine import Machine, detect
from .peers import Peers, default_cache, equal_threads
from .plots import plot
from .registry import families, select
from .run import CurveResult, RowResult, run_curve, run_measurement, run_row
from .table import curve_table, row_table, summary

_EPILOG = """\
Unset OPENBLAS_CORETYPE for a fair NumPy: where the environment sets it, OpenBLAS runs the
kernels of that CPU and not of this one. For example

  env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python -m benchmarks --quick
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time ruvector against its peers: interleaved medians at equal thread "
        "counts, after checking that both sides computed the same thing.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="short samples, small curves")
    parser.add_argument("--family", metavar="NAME[,NAME]", help="only these families")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="write the curves as PNG")
    parser.add_argument("--list", action="store_true", help="list families and their rows")
    parser.add_argument(
        "--install-peers", action="store_true",
        help="install the npm package and ruvector-attention into the cache, then stop",
    )  # fmt: skip
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), metavar="DIR",
        help="where the installed peers lie (default: %(default)s)",
    )  # fmt: skip
    return parser


def _list() -> None:
    for family in families().values():
        print(f"{family.name}: {family.summary}")
        for item in family.items():
            print(f"  {'curve: ' if isinstance(item, Curve) else ''}{item.name}")


def _run_family(family: Family, ctx: Context) -> tuple[list[RowResult], list[CurveResult]]:
    rows, curves = [], []
    for item in family.items():
        print(f"  {item.name} ...", file=sys.stderr, flush=True)
        if isinstance(item, Curve):
            with equal_threads(ctx.threads):
                curves.append(run_curve(item, ctx))
        elif isinstance(item, Measurement):
            rows.append(run_measurement(item, ctx))
        else:
            rows.append(run_row(item, ctx))
    return rows, curves


def _document(
    machine: Machine, peers: Peers, rows: dict[str, list[RowResult]], curves: list[CurveResult]
) -> dict[str, object]:
    described = {
        family: [
            {
                **dataclasses.asdict(result),
                "outcomes": [
                    {**dataclasses.asdict(outcome), "verdict": outcome.verdict}
                    for outcome in result.outcomes
                ],
            }
            for result in results
        ]
        for family, results in rows.items()
    }
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {**dataclasses.asdict(machine), "flags": sorted(machine.flags)},
        "peers": {status.name: status.version for status in peers.status()},
        "rows": described,
        "curves": [dataclasses.asdict(curve) for curve in curves],
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 1 when a row failed, 2 on wrong usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        _list()
        return 0
    if options.threads < 1:
        parser.error("--threads must be at least 1")
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")
    try:
        chosen = select(options.family)
    except ValueError as error:
        parser.error(str(error))
    peers = Peers(options.cache, options.threads)
    if options.install_peers:
        peers.install()
        return 0
    machine = detect(options.threads)
    print("\n".join(machine.lines))
    for status in peers.status():
        print(f"peer {status.name}: {status.version or 'missing, ' + status.how}")
    ctx = Context(options.threads, options.quick, peers, machine)
    all_rows: dict[str, list[RowResult]] = {}
    all_curves: list[CurveResult] = []
    try:
        for family in chosen:
            print(f"\n{family.name}: {family.summary}", flush=True)
            rows, curves = _run_family(family, ctx)
            print(row_table(rows))
            for curve in curves:
                print("\n" + curve_table(curve), flush=True)
            all_rows[family.name] = rows
            all_curves += curves
    finally:
        peers.close()
    results = [result for rows in all_rows.values() for result in rows]
    print("\n" + summary(results))
    if options.json is not None:
        document = _document(machine, peers, all_rows, all_curves)
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if options.plot is not None:
        for curve in all_curves:
            print(plot(curve, options.plot))
    errors = [*(row.error for row in results), *(curve.error for curve in all_curves)]
    return 0 if all(error is None for error in errors) else 1


if __name__ == "__main__":
    sys.exit(main())
