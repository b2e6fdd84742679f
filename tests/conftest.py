"""What every test shares: the backends to run on, and fixed hypothesis examples."""

from __future__ import annotations

import pytest
import threadpoolctl
from hypothesis import HealthCheck, settings

from ruvector import _kernels

settings.register_profile(
    "ci",
    max_examples=40,
    deadline=None,
    derandomize=True,
    print_blob=True,
    # The backend stays the same for all examples of one test.
    suppress_health_check=[
        HealthCheck.differing_executors,
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
    ],
)
settings.load_profile("ci")


def pytest_addoption(parser):
    group = parser.getgroup("ruvector")
    group.addoption("--backend", choices=("python", "native"), help="run on this backend alone")
    group.addoption("--isa", help="run on this instruction set of the native backend alone")


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        # One process of several (pytest-xdist): a BLAS that takes every CPU would starve them.
        threadpoolctl.threadpool_limits(1, user_api="blas")


def _backends(config):
    backend, isa = config.getoption("--backend"), config.getoption("--isa")
    available = _kernels.available()
    wanted = [
        pair
        for pair in available
        if backend in (None, pair[0]) and (isa is None or pair == ("native", isa))
    ]
    if not wanted:
        raise pytest.UsageError(
            f"--backend={backend} --isa={isa} is not available here; there are "
            + ", ".join(map(_name, available))
        )
    return wanted


def _name(pair):
    return "-".join(filter(None, pair))


def pytest_report_header(config):
    return "ruvector backends: " + ", ".join(map(_name, _backends(config)))


def _parameters(config):
    """The backends; instruction sets between the scalar and the best one are slow tests."""
    wanted = _backends(config)
    between = {isa for _, isa in wanted[:-1]} - {None, "scalar"}
    return [
        pytest.param(pair, marks=pytest.mark.slow if pair[1] in between else ())
        for pair in wanted
    ]


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", _parameters(metafunc.config), ids=_name, indirect=True)


@pytest.fixture
def backend(request):
    """Run a test on every backend and instruction set; gives (backend, isa)."""
    before = _kernels.backend, _kernels.isa
    _kernels.select(*request.param)
    yield request.param
    _kernels.select(*before)
