"""Snapshots of a cache: what is written, what is read, and what is refused."""

from __future__ import annotations

import os
import struct
import sys
import zlib

import isolated
import numpy as np
import pytest
from cache_cases import DTYPES, normal

import ruvector
from ruvector._files import atomic_file
from ruvector.stream import KVCache

pytestmark = pytest.mark.usefixtures("backend")


def filled(n=50, dtype="int8", *, dim=24, dim_v=12, heads=2, **options):
    cache = KVCache(dim, dim_v, dtype=dtype, num_heads=heads, **options)
    cache.append(normal(n, dim, seed=1), normal(n, dim_v, seed=2))
    return cache


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 33])
def test_a_snapshot_is_the_cache(dtype, n, tmp_path):
    path = tmp_path / "cache"
    cache = filled(n, dtype, window=40, num_sink_tokens=2, capacity=60)
    cache.snapshot(path)
    restored = KVCache.restore(path)
    assert repr(restored) == repr(cache)
    assert restored.path == str(path)
    assert restored.nbytes == cache.nbytes
    np.testing.assert_array_equal(restored.keys, cache.keys)
    np.testing.assert_array_equal(restored.values, cache.values)
    for query in (normal(24), normal(40, 24)):
        got, want = (
            restored.attend(query, return_lse=True),
            cache.attend(query, return_lse=True),
        )
        for x, y in zip(got, want, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_layout_is_the_documented_one(dtype, tmp_path):
    path = tmp_path / "cache"
    cache = filled(5, dtype, capacity=9)
    cache.snapshot(str(path))
    data = path.read_bytes()
    item = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "int8": "i1"}[dtype]
    assert data[:8] == bytes.fromhex("93 52 56 4b 56 0d 0a 1a")
    version, size = struct.unpack_from("<II", data, 8)
    assert (version, size) == (1, 256)
    assert data[16:32].rstrip(b"\0").decode() == dtype
    dim, dim_v, heads, capacity, window, sinks, n = struct.unpack_from("<QQQqqQQ", data, 32)
    assert (dim, dim_v, heads, capacity, window, sinks, n) == (24, 12, 2, 9, -1, 0, 5)
    offsets = struct.unpack_from("<QQQQ", data, 88)
    total, rows_sum, header_sum = struct.unpack_from("<QII", data, 120)
    assert total == len(data)
    assert rows_sum == zlib.crc32(data[256:])
    assert header_sum == zlib.crc32(data[:132])
    assert all(offset % 64 == 0 for offset in offsets)
    keys = np.frombuffer(data, item, 5 * 24, offsets[0]).reshape(5, 24)
    values = np.frombuffer(data, item, 5 * 12, offsets[1]).reshape(5, 12)
    if dtype == "int8":
        scales = [np.frombuffer(data, "<f4", 10, x).reshape(2, 5) for x in offsets[2:]]
        keys, values = (
            (x.reshape(5, 2, -1) * s.T[..., None]).reshape(x.shape)
            for x, s in zip((keys, values), scales, strict=True)
        )
    elif dtype == "bfloat16":
        keys, values = ((x.astype(np.uint32) << 16).view(np.float32) for x in (keys, values))
    np.testing.assert_array_equal(keys, cache.keys)
    np.testing.assert_array_equal(values, cache.values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_changes_rows_copies_them(dtype, tmp_path):
    path = tmp_path / "cache"
    cache = filled(30, dtype, window=30, num_sink_tokens=2)
    cache.snapshot(path)
    before = path.read_bytes()
    for change in (
        lambda x: x.append(normal(24), normal(12)),
        lambda x: x.evict([3, 4]),
        lambda x: x.evict(3),
        lambda x: x.clear(),
    ):
        restored = KVCache.restore(path)
        change(restored)
        change(cache)
        assert restored.path is None
        np.testing.assert_array_equal(restored.keys, cache.keys)
        np.testing.assert_array_equal(restored.values, cache.values)
        cache = KVCache.restore(path)
    restored = KVCache.restore(path)
    restored.truncate(7)
    assert restored.path == str(path)
    assert len(restored) == 7
    assert path.read_bytes() == before


def test_a_snapshot_replaces_its_own_file(tmp_path):
    path = tmp_path / "cache"
    filled(30).snapshot(path)
    restored = KVCache.restore(path)
    restored.truncate(20)
    restored.snapshot(path)
    assert len(restored) == 20
    np.testing.assert_array_equal(KVCache.restore(path).keys, restored.keys)
    assert [x.name for x in tmp_path.iterdir()] == ["cache"]


@pytest.mark.skipif(os.name == "nt", reason="no such modes")
def test_a_snapshot_is_a_file_like_any_other(tmp_path):
    plain, path, link = (tmp_path / name for name in ("plain", "cache", "link"))
    plain.touch()
    link.symlink_to(path)
    filled(3).snapshot(link)
    assert link.is_symlink()
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_snapshot_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "cache"
    cache = filled(30)
    cache.snapshot(path)
    before = path.read_bytes()
    cache.append(normal(24), normal(12))

    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        cache.snapshot(path)
    assert path.read_bytes() == before
    assert [x.name for x in tmp_path.iterdir()] == ["cache"]
    with pytest.raises(FileNotFoundError):
        cache.snapshot(tmp_path / "nowhere" / "cache")


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "cache"
    with atomic_file(path) as first:
        first.write(b"first")
        with atomic_file(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert [x.name for x in tmp_path.iterdir()] == ["cache"]


# ---- files that are refused ----------------------------------------------------------


def refused(path, data, message, **options):
    path.write_bytes(data)
    with pytest.raises(ruvector.InvalidConfigError, match=message):
        KVCache.restore(path, **options)


def test_foreign_files(tmp_path):
    path = tmp_path / "cache"
    np.save(tmp_path / "array.npy", normal(100, 8))
    for data in (
        b"",
        b"\x93RVK",
        b"no cache at all" * 50,
        (tmp_path / "array.npy").read_bytes(),
    ):
        refused(path, data, "path must name a snapshot of a KVCache, got '.*cache'")
    with pytest.raises(FileNotFoundError):
        KVCache.restore(tmp_path / "nothing")


def test_files_that_are_cut_short_or_longer(tmp_path):
    path = tmp_path / "cache"
    filled(30).snapshot(path)
    data = path.read_bytes()
    for length in (8, 100, 255):
        refused(path, data[:length], "cut off in its header")
    for length in (256, 257, len(data) // 2, len(data) - 1):
        refused(path, data[:length], f"whole snapshot of {len(data)} bytes, got .* of {length}")
    refused(path, data + b"\0", "whole snapshot")


def test_another_version(tmp_path):
    path = tmp_path / "cache"
    filled(3).snapshot(path)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 8, 2)
    struct.pack_into("<I", data, 132, zlib.crc32(data[:132]))
    refused(path, data, "version 1, got .* of version 2")


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_every_flipped_bit_is_found(dtype, tmp_path):
    path = tmp_path / "cache"
    filled(3, dtype, dim=4, dim_v=2).snapshot(path)
    data = path.read_bytes()
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        refused(path, damaged, "path must name")


def test_numbers_that_do_not_belong_together(tmp_path):
    """A file that someone made: its checksums are right, its header is not."""
    path = tmp_path / "cache"
    filled(30).snapshot(path)
    data = path.read_bytes()
    for place, value in ((32, 2**40), (48, 5), (80, 2**62), (88, 64), (104, 2**63), (120, 0)):
        made = bytearray(data)
        struct.pack_into("<Q", made, place, value)
        struct.pack_into("<I", made, 132, zlib.crc32(made[:132]))
        refused(path, made, "must", verify=False)
    made = bytearray(data)
    made[16:32] = b"complex64".ljust(16, b"\0")
    struct.pack_into("<I", made, 132, zlib.crc32(made[:132]))
    refused(path, made, "known dtype, got .* 'complex64'")


def test_rows_may_go_unverified(tmp_path):
    path = tmp_path / "cache"
    filled(30).snapshot(path)
    data = bytearray(path.read_bytes())
    data[300] ^= 1
    refused(path, data, "damaged rows")
    assert len(KVCache.restore(path, verify=False)) == 30


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_map_takes_no_memory_of_its_own(backend, tmp_path):
    """128 MiB of rows are read page by page: what a process holds itself hardly grows."""
    path = tmp_path / "cache"
    cache = KVCache(256, dtype="int8", num_heads=4, capacity=2**18)
    block = normal(2**14, 256)
    for _ in range(16):
        cache.append(block, block)
    cache.snapshot(path)
    want = cache.attend(block[0])
    code = f"""
import numpy as np, re
from ruvector import _kernels
from ruvector.stream import KVCache
_kernels.select(*{backend!r})

def own():
    with open("/proc/self/status") as status:
        return int(re.search(r"RssAnon:\\s+(\\d+) kB", status.read())[1])

cache = KVCache.restore({str(path)!r})
query = np.frombuffer(bytes.fromhex({block[0].tobytes().hex()!r}), np.float32)
before = own()
out = cache.attend(query)
print((own() - before) // 1024, out.tobytes().hex())
"""
    grown, out = isolated.output(code, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1").split()
    assert int(grown) < 24
    np.testing.assert_allclose(
        np.frombuffer(bytes.fromhex(out), np.float32), want, rtol=1e-5, atol=1e-6
    )
