"""What ``import ruvector`` brings in, and what it shows."""

from __future__ import annotations

import inspect

from isolated import output

import ruvector

# Each is either slow to import or optional.
LAZY = {
    "argparse",
    "asyncio",
    "concurrent.futures",
    "concurrent.futures.thread",
    "ctypes.util",
    "dask",
    "json",
    "logging",
    "matplotlib",
    "ml_dtypes",
    "multiprocessing",
    "networkx",
    "numpy.testing",
    "ruvector._attend",
    "ruvector._selftest",
    "ruvector.cli",
    "scipy",
    "threadpoolctl",
    "torch",
    "tqdm",
    "unittest",
}


def test_import_is_light():
    code = (
        "import sys, numpy; before = set(sys.modules)\n"
        "import ruvector; print(*sorted(set(sys.modules) - before))"
    )
    assert LAZY.isdisjoint(output(code).split())


def test_the_rest_is_imported_when_asked_for():
    code = (
        "import sys, ruvector\n"
        "parts = 'batch', 'sharding', 'stream', 'training'\n"
        "print(sum(f'ruvector.{part}' in sys.modules for part in parts))\n"
        "assert ruvector.AdamOptimizer is ruvector.training.AdamOptimizer\n"
        "assert ruvector.hyperbolic.expmap0\n"
        "from ruvector import *\n"
        "print(KVCache.__module__, sharding.__name__, 'dask' in sys.modules)"
    )
    assert output(code).split() == ["0", "ruvector.stream", "ruvector.sharding", "False"]


def test_dir_is_the_public_names():
    assert dir(ruvector) == sorted(ruvector.__all__)
    assert len(set(ruvector.__all__)) == len(ruvector.__all__)


def test_public_names_exist_and_are_documented():
    for name in ruvector.__all__:
        thing = getattr(ruvector, name)
        if callable(thing) or inspect.ismodule(thing):
            assert thing.__doc__, name


def test_unknown_name_is_an_attribute_error():
    assert not hasattr(ruvector, "no_such_thing")
