"""Checkpoints: a killed run resumes to the bit; damage, full disks and Ctrl-C are survived."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from isolated import environ
from training_cases import DIM, everything, full_trainer, pairs

import ruvector
from ruvector.errors import CheckpointError, InvalidConfigError, NonFiniteError
from ruvector.training import (
    InfoNCELoss,
    LinearAdapter,
    PairEncoder,
    SGDOptimizer,
    Trainer,
    TrainerConfig,
    load_adapter,
    save_adapter,
)
from ruvector.training.checkpoints import read_state, write_state

TESTS = Path(__file__).parent
KILLED = """
import os, signal, sys, threading, numpy as np
from training_cases import everything, full_trainer, pairs
folder, strategy, death = sys.argv[1], sys.argv[2], int(sys.argv[3])
trainer = full_trainer(folder, strategy=strategy)
take = trainer._stepper.take
def dying(*arguments):
    numbers = take(*arguments)
    if arguments[-1] == death:
        os.kill(os.getpid(), signal.SIGKILL)
    return numbers
trainer._stepper.take = dying
syncs, fsync = [], os.fsync
def dying_fsync(descriptor):
    syncs.append(descriptor)
    if len(syncs) == -death:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = dying_fsync
trainer.fit(*pairs(), validation=pairs(10, seed=1), resume=True)
np.savez(os.path.join(folder, "end.npz"), **everything(trainer))
"""


def run(code, *arguments, backend=("python", None)):
    name, isa = backend
    variables = {"RUVECTOR_BACKEND": name} | ({"RUVECTOR_ISA": isa} if isa else {})
    environment = environ(**variables)
    environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], str(TESTS)])
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def same(got, expected):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


class TestKilled:
    @pytest.mark.parametrize("strategy", ["hard", "distance_weighted"])
    def test_resumes_to_the_bit(self, backend, tmp_path, strategy):
        """Kill the run at random steps and while it writes a checkpoint; it ends as if not."""
        if backend[0] == "native" and backend[1] != ruvector.info()["available_isas"][-1]:
            pytest.skip("one instruction set is enough for processes")
        rng = np.random.default_rng(len(strategy))
        deaths = rng.choice(np.arange(1, 8), 1)[0], rng.choice(np.arange(16, 20), 1)[0]
        # The third checkpoint of the second process: files and folder are synced in turn.
        for death in (deaths[0], -5, deaths[1], 0):
            result = run(KILLED, tmp_path, strategy, death, backend=backend)
            left = [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
            assert len(left) == (death == -5)
            assert result.returncode == (-signal.SIGKILL if death else 0), result.stderr
        # A process of its own for this one, too: BLAS may have other threads here.
        result = run(KILLED, tmp_path / "other", strategy, 0, backend=backend)
        assert result.returncode == 0, result.stderr
        ends = [np.load(folder / "end.npz") for folder in (tmp_path, tmp_path / "other")]
        same(*ends)
        assert len(ends[0]["history loss"]) == 20


@pytest.mark.usefixtures("backend")
class TestResume:
    @pytest.mark.parametrize("step", [1, 4, 5, 7, 12])
    def test_from_any_step(self, tmp_path, step):
        whole = full_trainer()
        whole.fit(*pairs(), validation=pairs(10, seed=1))
        broken = full_trainer(tmp_path, checkpoint_every=1)
        take = broken._stepper.take

        def stopping(*arguments):
            if arguments[-1] == step + 1:
                raise RuntimeError("stop")
            return take(*arguments)

        broken._stepper.take = stopping
        with pytest.raises(RuntimeError, match="stop"):
            broken.fit(*pairs(), validation=pairs(10, seed=1))
        resumed = full_trainer(tmp_path)
        history = resumed.fit(*pairs(), validation=pairs(10, seed=1), resume=True)
        assert len(history) == 20
        same(everything(resumed), everything(whole))

    def test_learned_temperature_and_sgd(self, tmp_path):
        def made():
            return Trainer(
                LinearAdapter(DIM, DIM),
                InfoNCELoss(0.3, learn_temperature=True),
                SGDOptimizer(0.1, momentum=0.9),
                config=TrainerConfig(batch_size=32, num_epochs=2),
            )

        whole, half = made(), made()
        for _ in range(4):
            whole.train_step(*pairs(20))
        for _ in range(2):
            half.train_step(*pairs(20))
        half.save_checkpoint(tmp_path / "half.npz")
        resumed = made()
        resumed.load_checkpoint(tmp_path / "half.npz")
        for _ in range(2):
            resumed.train_step(*pairs(20))
        same(everything(resumed), everything(whole))
        assert resumed.loss.temperature == whole.loss.temperature != half.loss.temperature

    def test_a_finished_run(self, tmp_path):
        first = full_trainer(tmp_path)
        first.fit(*pairs(), validation=pairs(10, seed=1))
        second = full_trainer(tmp_path)
        second.fit(*pairs(), validation=pairs(10, seed=1), resume=True)
        same(everything(second), everything(first))
        longer = full_trainer(tmp_path, num_epochs=5)
        history = longer.fit(*pairs(), validation=pairs(10, seed=1), resume=True)
        assert len(history) == 25

    def test_without_a_checkpoint_it_starts(self, tmp_path):
        trainer = full_trainer(tmp_path / "new")
        trainer.fit(*pairs(), validation=pairs(9), resume=True)
        assert trainer.step == 20
        assert (tmp_path / "new" / "checkpoint.npz").exists()
        with pytest.raises(FileNotFoundError):
            trainer.fit(*pairs(), validation=pairs(9), resume=tmp_path / "missing.npz")
        with pytest.raises(InvalidConfigError, match="resume=True needs a checkpoint_dir"):
            full_trainer().fit(*pairs(), validation=pairs(9), resume=True)

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            ({"batch_size": 10}, "belongs to a run with batch_size 20, not 10"),
            ({"seed": 1}, "belongs to a run with seed 42, not 1"),
            ({"pair": False}, "belongs to a run with model 'PairEncoder', not 'LinearAdapter'"),
        ],
    )
    def test_another_trainer(self, tmp_path, other, message):
        full_trainer(tmp_path).fit(*pairs(), validation=pairs(9))
        trainer = full_trainer(tmp_path, **other)
        with pytest.raises(CheckpointError, match=message):
            trainer.fit(*pairs(), validation=pairs(9), resume=True)
        assert trainer.step == 0

    def test_another_shape_of_model(self, tmp_path):
        full_trainer(tmp_path, pair=False).fit(*pairs(), validation=pairs(9))
        trainer = full_trainer(tmp_path, pair=False)
        other = Trainer(
            LinearAdapter(DIM, DIM + 1),
            trainer.loss,
            miner=trainer.miner,
            config=trainer.config,
        )
        with pytest.raises(CheckpointError, match="does not fit the model"):
            other.load_checkpoint(tmp_path / "checkpoint.npz")
        np.testing.assert_array_equal(other.model.parameters()["weight"], np.eye(DIM + 1, DIM))

    def test_other_pairs(self, tmp_path):
        full_trainer(tmp_path).fit(*pairs(), validation=pairs(9))
        anchors, positives = pairs()
        trainer = full_trainer(tmp_path)
        with pytest.raises(CheckpointError, match="belongs to a run on other anchors"):
            trainer.fit(anchors + 1, positives, validation=pairs(9), resume=True)
        with pytest.raises(CheckpointError, match="belongs to a run on other negatives"):
            trainer.fit(
                anchors, positives, negatives=positives, validation=pairs(9), resume=True
            )
        np.testing.assert_array_equal(trainer.model.anchors.parameters()["weight"], np.eye(DIM))


class TestStopped:
    def test_not_finite_keeps_the_last_checkpoint(self, tmp_path):
        anchors, positives = pairs()
        trainer = full_trainer(tmp_path)
        take = trainer._stepper.take

        def poisoned(first, second, *rest):
            if rest[-1] == 8:
                first = np.full_like(first, np.nan)
            return take(first, second, *rest)

        trainer._stepper.take = poisoned
        with pytest.raises(NonFiniteError, match=r"^step 8: the loss is nan"):
            trainer.fit(anchors, positives, validation=pairs(9))
        saved = full_trainer(tmp_path)
        saved.load_checkpoint(tmp_path / "checkpoint.npz")
        assert saved.step == 6
        assert np.isfinite(saved.model.anchors.parameters()["weight"]).all()

    def test_parameters_that_overflow_are_not_saved(self, tmp_path):
        config = TrainerConfig(batch_size=96, num_epochs=3, checkpoint_dir=tmp_path)
        trainer = Trainer(LinearAdapter(DIM, DIM), optimizer=SGDOptimizer(0.1), config=config)
        take = trainer._stepper.take

        def wild(*arguments):
            if arguments[-1] == 2:
                trainer.optimizer.learning_rate = 1e300
            return take(*arguments)

        trainer._stepper.take = wild
        with pytest.raises(NonFiniteError, match=r"^step 2: weight is not finite any more"):
            trainer.fit(*pairs())
        saved = Trainer(LinearAdapter(DIM, DIM), optimizer=SGDOptimizer(0.1), config=config)
        saved.load_checkpoint(tmp_path / "checkpoint.npz")
        assert saved.step == 1
        assert np.isfinite(saved.model.parameters()["weight"]).all()

    @pytest.mark.skipif(os.name != "posix", reason="signals")
    def test_ctrl_c_saves_and_raises(self, tmp_path):
        whole = full_trainer()
        whole.fit(*pairs(), validation=pairs(9))
        trainer = full_trainer(tmp_path, checkpoint_every=None)
        take = trainer._stepper.take

        def interrupted(*arguments):
            if arguments[-1] == 7:
                os.kill(os.getpid(), signal.SIGINT)
            return take(*arguments)

        trainer._stepper.take = interrupted
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(*pairs(), validation=pairs(9))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert trainer.step == 7
        resumed = full_trainer(tmp_path, checkpoint_every=None)
        resumed.fit(*pairs(), validation=pairs(9), resume=True)
        same(everything(resumed), everything(whole))

    @pytest.mark.skipif(os.name != "posix", reason="signals")
    def test_a_second_ctrl_c_does_not_wait(self, tmp_path):
        trainer = full_trainer(tmp_path)

        def stuck(*arguments):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError

        trainer._stepper.take = stuck
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(*pairs(), validation=pairs(9))
        assert trainer.step == 0

    def test_a_handler_of_the_program_stays(self):
        seen = []
        before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
        try:
            trainer = full_trainer()
            take = trainer._stepper.take

            def interrupted(*arguments):
                if arguments[-1] == 2:
                    os.kill(os.getpid(), signal.SIGINT)
                return take(*arguments)

            trainer._stepper.take = interrupted
            trainer.fit(*pairs(), validation=pairs(9))
        finally:
            signal.signal(signal.SIGINT, before)
        assert (seen, trainer.step) == ([1], 20)

    def test_in_another_thread(self):
        trainer = full_trainer()
        thread = threading.Thread(
            target=trainer.fit, args=pairs(), kwargs={"validation": pairs(9)}
        )
        thread.start()
        thread.join()
        assert trainer.step == 20


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
        with pytest.raises(CheckpointError, match="is a test, not a adapter"):
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
        with pytest.raises(CheckpointError, match="is a training checkpoint, not a adapter"):
            load_adapter(tmp_path / "checkpoint.npz")
