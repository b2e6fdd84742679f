"""Files of checkpoints and adapters: round trips, damage, and full disks."""

from __future__ import annotations

import errno
import json
import os
import sys
import zipfile

import numpy as np
import pytest
from training_cases import full_trainer, pairs, run, same

import ruvector
from ruvector.errors import CheckpointError, InvalidConfigError
from ruvector.training import (
    LinearAdapter,
    PairEncoder,
    load_adapter,
    save_adapter,
)
from ruvector.training.checkpoints import read_state, write_state


class TestFiles:
    STATE = {  # noqa: RUF012
        "numbers": [1, 2.5, float("inf"), None, True, "text"],
        "large": 2**100,
        "arrays": {"a": np.arange(6.0).reshape(2, 3), "b": np.zeros((0, 4), np.float32)},
        "scalar": np.float32(0.1),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    }

    def test_round_trip(self, tmp_path):
        path = tmp_path / "state.npz"
        write_state(path, "test", self.STATE)
        got = read_state(path, "test")
        assert got["numbers"] == self.STATE["numbers"]
        assert got["large"] == 2**100
        assert got["scalar"] == np.float32(0.1)
        assert got["scalar"].dtype == np.float32
        for name in ("a", "b"):
            expected = self.STATE["arrays"][name]
            assert got["arrays"][name].dtype == expected.dtype
            np.testing.assert_array_equal(got["arrays"][name], expected)
        np.testing.assert_array_equal(got["fortran"], self.STATE["fortran"])
        assert os.listdir(tmp_path) == ["state.npz"]

    def test_nothing_is_pickled(self, tmp_path):
        path = tmp_path / "state.npz"
        with pytest.raises(TypeError, match="cannot hold a object"):
            write_state(path, "test", {"x": object()})
        write_state(path, "test", self.STATE)
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                assert b"'O'" not in archive.read(name)[:128]

    @pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
    def test_truncated(self, tmp_path, part):
        path = tmp_path / "state.npz"
        write_state(path, "test", self.STATE)
        content = path.read_bytes()
        path.write_bytes(content[: int(part * len(content))])
        with pytest.raises(CheckpointError, match=f"{path}: is damaged or no file of ruvector"):
            read_state(path, "test")

    def test_any_changed_byte_is_noticed_or_harmless(self, tmp_path):
        path = tmp_path / "state.npz"
        state = {"x": np.arange(8.0), "n": 3}
        write_state(path, "test", state)
        content = path.read_bytes()
        noticed = 0
        for place in np.random.default_rng(0).choice(len(content), 150, replace=False):
            changed = bytearray(content)
            changed[place] ^= 0x11
            path.write_bytes(changed)
            try:
                got = read_state(path, "test")
            except CheckpointError:
                noticed += 1
            else:
                np.testing.assert_array_equal(got["x"], state["x"])
                assert got["n"] == 3
        assert noticed > 75

    def rewrite(self, path, change):
        with np.load(path) as archive:
            entries = dict(archive)
        manifest = json.loads(entries["manifest"].tobytes())
        change(entries, manifest)
        entries["manifest"] = np.frombuffer(json.dumps(manifest).encode(), np.uint8)
        np.savez(path, **entries)

    def test_tampered(self, tmp_path):
        path = tmp_path / "state.npz"

        def number(entries, manifest):
            manifest["state"]["n"] = 4

        def array(entries, manifest):
            entries["array0"] = entries["array0"] + 1

        def shape(entries, manifest):
            entries["array0"] = entries["array0"].reshape(2, 4)

        def extra(entries, manifest):
            entries["more"] = np.ones(2)

        for change in (number, array, shape, extra):
            write_state(path, "test", {"x": np.arange(8.0), "n": 3})
            self.rewrite(path, change)
            with pytest.raises(CheckpointError, match="is damaged \\(its checksum differs\\)"):
                read_state(path, "test")

        def lost(entries, manifest):
            del entries["array0"]

        write_state(path, "test", {"x": np.arange(8.0), "n": 3})
        self.rewrite(path, lost)
        with pytest.raises(CheckpointError, match="is damaged"):
            read_state(path, "test")

    def test_newer_format_and_other_kind(self, tmp_path):
        path = tmp_path / "state.npz"
        write_state(path, "test", {"n": 3})
        with pytest.raises(CheckpointError, match="is of kind 'test', not 'adapter'"):
            read_state(path, "adapter")
        self.rewrite(path, lambda entries, manifest: manifest.update(format=2))
        with pytest.raises(CheckpointError, match="has format 2, this version reads up to 1"):
            read_state(path, "test")

    @pytest.mark.parametrize(
        "content", [b"", b"text", b"\x80\x04K\x01.", b"PK\x05\x06" + bytes(18)]
    )
    def test_other_files(self, tmp_path, content):
        path = tmp_path / "state.npz"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is damaged or no file of ruvector"):
            read_state(path, "test")
        np.save(tmp_path / "x.npy", np.ones(3))
        with pytest.raises(CheckpointError, match="is damaged or no file of ruvector"):
            read_state(tmp_path / "x.npy", "test")
        with pytest.raises(FileNotFoundError):
            read_state(tmp_path / "missing.npz", "test")

    def test_what_a_killed_process_left_goes(self, tmp_path):
        left = tmp_path / ".state.npz.1234.tmp"
        left.write_bytes(b"half")
        other = tmp_path / ".other.npz.1234.tmp"
        other.write_bytes(b"half")
        write_state(tmp_path / "state.npz", "test", {"n": 1})
        assert sorted(os.listdir(tmp_path)) == [".other.npz.1234.tmp", "state.npz"]


class TestFullDisk:
    def test_the_former_checkpoint_stays(self, tmp_path, monkeypatch):
        path = tmp_path / "state.npz"
        write_state(path, "test", {"x": np.zeros(1000)})
        before = path.read_bytes()

        def full(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device") as error:
            write_state(path, "test", {"x": np.ones(1000)})
        assert error.value.errno == errno.ENOSPC
        assert error.value.filename == str(path)
        monkeypatch.undo()
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["state.npz"]

    @pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
    def test_writes_that_fail_half_way(self, tmp_path):
        """Under a real limit on the size of files, training stops and loses nothing."""
        code = """
import resource, sys
from training_cases import full_trainer, pairs
folder = sys.argv[1]
trainer = full_trainer(folder, checkpoint_every=None, num_epochs=2)
trainer.fit(*pairs(), validation=pairs(9))
for size in (5, 700, 3000, 6000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    again = full_trainer(folder, checkpoint_every=None, num_epochs=4)
    try:
        again.fit(*pairs(), validation=pairs(9), resume=True)
    except OSError as error:
        print(error.strerror, error.filename == folder + "/checkpoint.npz", again.step)
"""
        result = run(code, tmp_path)
        assert result.stdout.splitlines() == ["File too large True 15"] * 4, result.stderr
        assert os.listdir(tmp_path) == ["checkpoint.npz"]
        trainer = full_trainer(tmp_path, checkpoint_every=None)
        trainer.load_checkpoint(tmp_path / "checkpoint.npz")
        assert trainer.step == 10

    def test_no_folder(self, tmp_path):
        with pytest.raises(ruvector.RuvectorError, match="No such file or directory"):
            write_state(tmp_path / "missing" / "state.npz", "test", {})


class TestAdapterFiles:
    @pytest.mark.parametrize("rank", [None, 2])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_round_trip(self, tmp_path, rank, dtype):
        adapter = LinearAdapter(5, 4, rank, dtype=dtype)
        for array in adapter.parameters().values():
            array += np.random.default_rng(0).standard_normal(array.shape)
        save_adapter(tmp_path / "a.npz", adapter)
        got = load_adapter(tmp_path / "a.npz")
        assert repr(got) == repr(adapter)
        same(got.parameters(), adapter.parameters())
        pair = PairEncoder(adapter, LinearAdapter(6, 4))
        save_adapter(tmp_path / "pair.npz", pair)
        same(load_adapter(tmp_path / "pair.npz").parameters(), pair.parameters())

    def test_other_things(self, tmp_path):
        with pytest.raises(InvalidConfigError, match="adapter must be a LinearAdapter or"):
            save_adapter(tmp_path / "a.npz", object())
        assert not list(tmp_path.iterdir())
        write_state(tmp_path / "a.npz", "adapter", {"both": {"dim_in": 3}})
        with pytest.raises(CheckpointError, match="holds no adapter"):
            load_adapter(tmp_path / "a.npz")
        full_trainer(tmp_path).fit(*pairs(), validation=pairs(9))
        with pytest.raises(
            CheckpointError, match="is of kind 'training checkpoint', not 'adapter'"
        ):
            load_adapter(tmp_path / "checkpoint.npz")
