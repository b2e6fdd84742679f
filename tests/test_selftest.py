"""The self-test passes here, and fails where a kernel is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from ruvector import _kernels, _selftest
from ruvector.cli import main


@pytest.fixture
def only_python(monkeypatch):
    """Limit the self-test to the NumPy kernels, which run by default meanwhile."""
    before = _kernels.backend, _kernels.isa
    monkeypatch.setattr(_kernels, "available", lambda: [("python", None)])
    _kernels.select("python")
    yield _kernels.softmax
    _kernels.select(*before)


def test_passes_on_every_path():
    before = _kernels.backend, _kernels.isa
    report = _selftest.selftest()
    assert report.passed, str(report)
    assert (_kernels.backend, _kernels.isa) == before
    for backend, isa in _kernels.available():
        covered = {c.mechanism for c in report.checks if (c.backend, c.isa) == (backend, isa)}
        assert covered == set(_selftest.MECHANISMS)
    assert f"{len(report.checks)} checks, 0 failed" in str(report)


def test_command_prints_a_table(only_python, capsys):
    assert main(["selftest"]) == 0
    table = capsys.readouterr().out
    assert all(mechanism in table for mechanism in _selftest.MECHANISMS)
    assert "FAILED" not in table


def off_by_a_little(kernel):
    def attend(query, key, value, out, lse, spec, threads):
        kernel(query, key, value, out, lse, spec, threads)
        if out.dtype.kind == "f":
            out += 0.01

    return attend


def nan_in_one_row(kernel):
    def attend(query, key, value, out, lse, spec, threads):
        kernel(query, key, value, out, lse, spec, threads)
        if out.dtype.kind == "f":
            out[..., -1, 0] = np.nan

    return attend


def one_key_too_many(kernel):
    def attend(query, key, value, out, lse, spec, threads):
        if spec.causal:
            query, key, value = query, key[:, :, :0], value[:, :, :0]
        kernel(query, key, value, out, lse, spec, threads)

    return attend


def broken(kernel):
    def attend(query, key, value, out, lse, spec, threads):
        raise RuntimeError("out of order")

    return attend


@pytest.mark.parametrize("wrong", [off_by_a_little, nan_in_one_row, one_key_too_many, broken])
def test_fails_on_a_wrong_kernel(only_python, monkeypatch, capsys, wrong):
    monkeypatch.setattr(only_python, "attend", wrong(only_python.attend))
    assert main(["selftest"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED python scaled_dot_product_attention, " in printed
    if wrong is broken:
        assert "(RuntimeError: out of order)" in printed


@pytest.mark.parametrize("name", ["weights", "top_k", "merge"])
def test_fails_on_a_kernel_that_does_nothing(only_python, monkeypatch, name):
    monkeypatch.setattr(only_python, name, lambda *arguments: None)
    assert not _selftest.selftest().passed


def test_fails_on_memories_that_are_not_attended(only_python, monkeypatch):
    monkeypatch.setattr(_kernels.ragged, "attend", lambda *arguments: None)
    failed = {c.mechanism for c in _selftest.selftest().checks if not c.passed}
    assert failed == {"parallel_attention_compute"}


def test_no_checks_is_not_a_pass():
    assert not _selftest.Report((), 0.0).passed


@pytest.mark.parametrize(
    ("got", "error"),
    [
        ([1.0, -np.inf], 0.0),
        ([1.5, -np.inf], 0.25),
        ([1.0, np.inf], np.inf),
        ([1.0, np.nan], np.inf),
        ([np.nan, -np.inf], np.inf),
        ([1.0], np.inf),
    ],
)
def test_error_measure(got, error):
    assert _selftest._error(np.array(got), np.array([1.0, -np.inf])) == error
