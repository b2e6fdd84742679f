"""The compiled kernels and their NumPy twins are one interface, function by function."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

from ruvector import _kernels

NATIVE = any(name == "native" for name, _ in _kernels.available())


def _public(module):
    return {name: getattr(module, name) for name in module.__all__}


def _twin(family):
    return import_module(f"ruvector._kernels.fallback.{family}")


FUNCTIONS = [(family, name) for family in _kernels.FAMILIES for name in _public(_twin(family))]
COMPILED_FUNCTIONS = [pair for pair in FUNCTIONS if pair[0] in _kernels.COMPILED]


@pytest.mark.parametrize("family", _kernels.FAMILIES)
def test_all_names_every_public_function(family):
    twin = _twin(family)
    defined = {
        name
        for name, function in inspect.getmembers(twin, inspect.isfunction)
        if function.__module__ == twin.__name__ and not name.startswith("_")
    }
    assert defined <= set(twin.__all__)


@pytest.mark.skipif(not NATIVE, reason="no compiled kernels here")
class TestCompiled:
    @pytest.mark.parametrize("family", _kernels.COMPILED)
    def test_names(self, family):
        native = import_module(f"ruvector._kernels.{family}")
        names = {
            name
            for name, function in inspect.getmembers(native, inspect.isroutine)
            if not name.startswith("_")
        }
        assert names == set(_twin(family).__all__)

    @pytest.mark.parametrize(("family", "name"), COMPILED_FUNCTIONS)
    def test_signatures(self, family, name):
        native = getattr(import_module(f"ruvector._kernels.{family}"), name)
        twin = getattr(_twin(family), name)
        parameters = [
            [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
            for f in (native, twin)
        ]
        assert parameters[0] == parameters[1]

    @pytest.mark.parametrize(("family", "name"), COMPILED_FUNCTIONS)
    def test_summaries(self, family, name):
        native = getattr(import_module(f"ruvector._kernels.{family}"), name)
        twin = getattr(_twin(family), name)
        summaries = [inspect.getdoc(f).splitlines()[0] for f in (native, twin)]
        assert summaries[0] == summaries[1]
