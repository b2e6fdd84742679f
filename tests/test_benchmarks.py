"""The benchmark harness: registry, checks, timing and tables. Nothing here asserts a speed."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are not part of an installation", allow_module_level=True)
# at the end, so that an installed ruvector keeps its precedence
sys.path.append(str(ROOT))

from benchmarks import core, plots, registry, run, sides, table, timing  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.machine import Machine  # noqa: E402
from benchmarks.peers import Peers  # noqa: E402

PLAN = timing.Plan(min_sample=1e-4, budget=0.0, min_rounds=3, max_rounds=5)


@pytest.fixture
def ctx(tmp_path):
    machine = Machine("test", 1, 1, frozenset(), 1e9, 1e9, "none", {}, 0.0)
    return core.Context(threads=1, quick=True, peers=Peers(tmp_path), machine=machine)


def constant(value, shape=(3,)):
    return sides.Local(functools.partial(np.full, shape, value, np.float32))


def case_row(theirs, **keywords):
    def build(ctx):
        return core.Case(constant(1.0), {"peer": theirs})

    return core.Row("a row", build, {"peer": core.Target(2.0, 3.0)}, **keywords)


def unavailable():
    raise core.UnavailableError("not here")


def test_registry_has_the_dense_families_with_unique_names():
    families = registry.families()
    assert {"prefill", "decode", "classes", "startup"} <= set(families)
    for family in families.values():
        names = [item.name for item in family.items()]
        assert family.summary
        assert names
        assert len(set(names)) == len(names)


def test_select():
    names = [family.name for family in registry.select("startup, decode")]
    assert names == ["startup", "decode"]
    with pytest.raises(ValueError, match="unknown family nonsense"):
        registry.select("nonsense,decode")


def test_list_needs_no_measurement(capsys):
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    assert "full (1, 8, 2048, 64)" in out
    assert "curve: decode by keys" in out


@pytest.mark.parametrize("arguments", [["--family", "nonsense"], ["--threads", "0"]])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    capsys.readouterr()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (([1.0, 2.0],), ([1.0, 2.1],)),
        (([1.0, 2.0],), ([1.0, np.nan],)),
        (([np.nan, 2.0],), ([1.0, 2.0],)),
        (([1.0, 2.0],), ([[1.0, 2.0]],)),
        (([1.0], [2.0]), ([1.0],)),
    ],
)
def test_check_fails_when_results_differ(ours, theirs):
    ours, theirs = (tuple(map(np.asarray, side)) for side in (ours, theirs))
    with pytest.raises(core.ResultsDifferError, match="a row"):
        run.check("a row", "peer", ours, theirs, 1e-4)


def test_check_passes_within_the_tolerance():
    run.check("a row", "peer", (np.ones(3),), (np.ones(3) + 1e-6,), 1e-4)
    run.check("a row", "peer", (np.zeros((0, 3)),), (np.zeros((0, 3)),), 1e-4)


def test_row_is_timed_and_compared(ctx):
    row = case_row(lambda: constant(1.0), flops=1e3, traffic=1e3, peak=core.Target(aim=0.9))
    result = run.run_row(row, ctx)
    assert result.error is None
    assert result.value > 0
    assert result.gflops == pytest.approx(1e3 / result.value / 1e9)
    peer, peak = result.outcomes
    assert peer.ratio == pytest.approx(peer.value / result.value)
    assert (peer.must, peer.aim) == (2.0, 3.0)
    assert peak.peer == "sgemm peak"
    assert peak.ratio == pytest.approx(1e3 / result.value / 1e9)


def test_row_whose_sides_differ_is_not_timed(ctx):
    result = run.run_row(case_row(lambda: constant(1.1)), ctx)
    assert "ResultsDifferError" in result.error
    assert not result.outcomes
    assert "FAILED" in table.row_table([result])
    assert "failed: 1" in table.summary([result])


def test_missing_peer_is_said(ctx):
    result = run.run_row(case_row(unavailable), ctx)
    assert result.skipped == {"peer": "not here"}
    assert "skipped: not here" in table.row_table([result])


def test_row_that_needs_more_cpus_is_skipped(ctx):
    result = run.run_row(case_row(lambda: constant(1.0), threads=2), ctx)
    assert "needs 2 CPUs" in result.skipped[core.OURS]
    assert "needs 2 CPUs" in table.row_table([result])
    assert json.loads(json.dumps(result.value)) is None


def test_measurement_against_its_limits(ctx):
    values = {core.OURS: 2.0, "peer": 8.0}
    item = core.Measurement("size", "MB", lambda ctx: values, must=3.0, aim=1.0)
    must, aim, peer = run.run_measurement(item, ctx).outcomes
    assert (must.verdict, must.ratio) == ("must met", 1.5)
    assert (aim.verdict, aim.ratio) == ("below aim", 0.5)
    assert (peer.verdict, peer.ratio) == ("win", 4.0)


class Steady:
    """A side whose calls take so long, without taking it, and that keeps a log."""

    def __init__(self, name, log, takes=1.0):
        self.name, self.log, self.takes = name, log, takes

    def seconds(self, repeats):
        self.log.append((self.name, repeats))
        return self.takes

    def close(self):
        self.log.append((self.name, 0))


def test_interleave_takes_turns_in_rotating_order():
    log = []
    timings = timing.interleave({name: Steady(name, log) for name in "abc"}, PLAN)
    assert {name: measured.samples for name, measured in timings.items()} == {
        name: (1.0, 1.0, 1.0) for name in "abc"
    }
    # two calls each to warm up and calibrate
    assert "".join(name for name, _ in log) == "aabbcc" + "abc" + "bca" + "cab"


def test_interleave_warms_every_turn_of_brief_calls():
    log = []
    timing.interleave({"brief": Steady("brief", log, 2.0**-8)}, PLAN)
    calibration, turns = log[:-6], log[-6:]
    repeats = calibration[-1][1]
    assert turns == [("brief", 6), ("brief", repeats)] * 3  # 6 calls last 20 ms


def test_interleave_repeats_short_calls():
    sides_by_name = {"short": constant(1.0), "long": constant(1.0, (200_000,))}
    timings = timing.interleave(sides_by_name, PLAN)
    for measured in timings.values():
        assert 3 <= len(measured.samples) <= 5
        assert all(sample > 0 for sample in measured.samples)
        assert min(measured.samples) <= measured.median <= max(measured.samples)
        assert measured.spread >= 0
    assert timings["short"].repeats > 1


def test_timing_statistics():
    measured = timing.Timing((3.0, 1.0, 2.0, 5.0, 4.0), 1)
    assert measured.median == 3.0
    assert measured.spread == pytest.approx(2.0 / 3.0)


def test_fastest_runs_every_candidate():
    seen = set()
    chosen = timing.fastest(["a", "b"], lambda name: functools.partial(seen.add, name))
    assert seen == {"a", "b"}
    assert chosen in seen


@pytest.mark.parametrize(
    ("ratio", "must", "aim", "verdict"),
    [
        (3.0, 2.0, 3.0, "aim met"),
        (2.5, 2.0, 3.0, "must met"),
        (1.5, 2.0, 3.0, "short of must"),
        (0.5, 2.0, 3.0, "LOSS"),
        (0.97, 0.95, 1.1, "must met"),
        (0.8, None, 0.9, "below aim"),
        (1.2, None, None, "win"),
        (0.8, None, None, "LOSS"),
    ],
)
def test_verdict(ratio, must, aim, verdict):
    assert run.Outcome("peer", 1.0, ratio, must, aim).verdict == verdict


def test_table_shows_wins_and_losses():
    outcomes = [
        run.Outcome("fast", 0.5e-3, 0.5, 2.0, None),
        run.Outcome("slow", 4e-3, 4.0, 2.0, 3.0),
    ]
    result = run.RowResult("work", 1, value=1e-3, gflops=12.5, outcomes=outcomes)
    text = table.row_table([result])
    header, first, second = text.splitlines()
    assert header.split()[0] == "row"
    assert " ".join(first.split()) == "work 1 1 ms 0% 12.5 fast 500 us 0.50 2 LOSS"
    assert " ".join(second.split()) == "slow 4 ms 4.00 2 3 aim met"
    summary = table.summary([result])
    assert "LOSS: 1" in summary
    assert "aim met: 1" in summary
    assert "0.50 of fast, wanted 2" in summary
    assert "slow" not in summary


def test_quantity():
    assert table.quantity(2.5e-6, "s") == "2.5 us"
    assert table.quantity(3.0, "MB") == "3 MB"


def point(ctx, x):
    if x == 4:
        unavailable()
    return {core.OURS: 2.0 * x}


def test_curve_leaves_out_what_is_unavailable(ctx, tmp_path):
    curve = core.Curve("growth", "x", "y", "linear", (1, 2, 4), (1, 2, 4), point)
    result = run.run_curve(curve, ctx)
    assert result.series == {core.OURS: {1: 2.0, 2: 4.0}}
    assert result.skipped == {4: "not here"}
    text = table.curve_table(result)
    assert "left out 4: not here" in text
    assert "2.00" in text
    pytest.importorskip("matplotlib")
    assert plots.plot(result, tmp_path / "plots").read_bytes().startswith(b"\x89PNG")


def test_curve_that_fails_is_an_error(ctx):
    def broken(ctx, x):
        raise ZeroDivisionError("x")

    result = run.run_curve(core.Curve("growth", "x", "y", "flat", (1,), (1,), broken), ctx)
    assert "ZeroDivisionError" in result.error
    assert "FAILED" in table.curve_table(result)


ECHO_CHILD = """\
import base64, json, struct, sys
held = {}
for line in sys.stdin:
    request = json.loads(line)
    op, answer = request["op"], {}
    if op == "hello":
        answer = {"version": "1"}
    elif op == "setup":
        held[request["handle"]] = open(request["arguments"][0]["file"], "rb").read()
    elif op == "result":
        data = held[request["handle"]]
        answer = {"results": [{"shape": [len(data) // 4],
                               "data": base64.b64encode(data).decode()}]}
    elif op == "time":
        answer = {"seconds": 0.5}
    elif op == "drop":
        del held[request["handle"]]
    else:
        answer = {"error": "unknown " + op}
    print(json.dumps(answer), flush=True)
"""


def test_child_speaks_json_lines():
    child = sides.Child([sys.executable, "-c", ECHO_CHILD], {})
    try:
        assert child.version == "1"
        side = child.setup([np.arange(3, dtype=np.float32)], function="echo")
        np.testing.assert_array_equal(side.result()[0], [0, 1, 2])
        assert side.seconds(5) == pytest.approx(0.1)
        side.close()
        with pytest.raises(RuntimeError, match="unknown nonsense"):
            child.ask(op="nonsense")
    finally:
        child.close()
    with pytest.raises(core.UnavailableError, match="ended"):
        sides.Child([sys.executable, "-c", "pass"], {})


def test_peers_say_how_to_get_what_is_missing(tmp_path):
    peers = Peers(tmp_path)
    status = {found.name: found for found in peers.status()}
    assert status["numpy"].version == np.__version__
    assert status["ruvector-attention"].version is None
    assert "--install-peers" in status["ruvector-attention"].how
    with pytest.raises(core.UnavailableError, match="--install-peers"):
        peers.upstream()
    with pytest.raises(core.UnavailableError, match="pip install no_such_package"):
        peers.module("no_such_package")
