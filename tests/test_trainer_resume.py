"""Checkpoints: a killed run resumes to the bit; Ctrl-C and overflow are survived."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest
from training_cases import DIM, everything, full_trainer, pairs, run, same

import ruvector
from ruvector.errors import CheckpointError, InvalidConfigError, NonFiniteError
from ruvector.training import (
    InfoNCELoss,
    LinearAdapter,
    SGDOptimizer,
    Trainer,
    TrainerConfig,
)

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
