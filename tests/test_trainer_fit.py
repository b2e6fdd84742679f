"""A whole training run: history, evaluation, stopping early, bad input."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
from training_cases import DIM, full_trainer, pairs, unit

import ruvector
from ruvector.errors import (
    DimensionMismatchError,
    EmptyInputError,
    InvalidConfigError,
)
from ruvector.training import (
    History,
    LinearAdapter,
    MemoryEncoder,
    Trainer,
    TrainerConfig,
)

pytestmark = pytest.mark.usefixtures("backend")


class TestFit:
    def test_history_and_metrics(self):
        anchors, positives = pairs(60)
        held_out = pairs(30, seed=1)
        trainer = full_trainer(eval_every=2)
        history = trainer.fit(anchors, positives, validation=held_out)
        assert history is trainer.history
        assert history.recall["step"] == [0, 6, 12]
        assert history.recall["recall@1"][-1] > history.recall["recall@1"][0]
        as_dict = json.loads(json.dumps(history.to_dict()))
        assert set(as_dict) == {
            "loss",
            "learning_rate",
            "temperature",
            "gradient_norm",
            "recall",
        }
        assert [len(as_dict[name]) for name in ("loss", "gradient_norm")] == [12, 12]
        metrics = trainer.get_metrics()
        assert metrics["step"] == 12
        assert metrics["loss"] == history.loss[-1]
        assert metrics["recall@5"] == history.recall["recall@5"][-1]
        assert metrics["best_recall@1"] == max(history.recall["recall@1"])

    def test_evaluate_is_recall_of_the_encodings(self):
        anchors, positives = pairs(50)
        trainer = full_trainer()
        trainer.fit(anchors, positives, validation=pairs(10, seed=1))
        model = trainer.model
        encoded = model.encode_anchors(anchors), model.encode_positives(positives)
        scores = unit(encoded[0].astype(float)) @ unit(encoded[1].astype(float)).T
        rank = (scores > np.diag(scores)[:, None]).sum(axis=1)
        found = trainer.evaluate(anchors, positives)
        assert found == {f"recall@{k}": pytest.approx((rank < k).mean()) for k in (1, 5)}

    def test_patience_keeps_the_best(self):
        anchors, positives = pairs(40)
        rng = np.random.default_rng(0)
        noise = rng.standard_normal((40, DIM)).astype(np.float32)
        trainer = Trainer(
            LinearAdapter(DIM, DIM),
            config=TrainerConfig(
                batch_size=40, num_epochs=50, patience=3, learning_rate=0.5, seed=1
            ),
        )
        same = (anchors, anchors)
        history = trainer.fit(anchors, noise, validation=same)
        assert history.recall["recall@1"][0] == 1
        assert len(history) == 3
        np.testing.assert_array_equal(trainer.model.parameters()["weight"], np.eye(DIM))
        with pytest.raises(InvalidConfigError, match="patience needs validation pairs"):
            trainer.fit(anchors, positives)

    def test_same_seed_same_run(self):
        runs = []
        for seed in (1, 1, 2):
            trainer = full_trainer(seed=seed)
            trainer.fit(*pairs(), validation=pairs(10, seed=1))
            runs.append(trainer.history.loss)
        assert runs[0] == runs[1] != runs[2]

    def test_threads_do_not_matter(self, backend):
        losses = []
        for threads in (1, 2):
            with ruvector.num_threads(threads):
                trainer = full_trainer()
                trainer.fit(*pairs(), validation=pairs(10, seed=1))
                losses.append(trainer.history.loss)
        if backend[0] == "native":
            assert losses[0] == losses[1]
        else:
            assert losses[0] == pytest.approx(losses[1], rel=1e-3)

    def test_memory_mapped_half_precision(self, tmp_path):
        arrays = []
        for name, array in zip("ap", pairs(), strict=True):
            np.save(tmp_path / f"{name}.npy", array.astype(np.float16))
            arrays.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
        trainer = full_trainer()
        trainer.fit(*arrays, validation=arrays)
        again = full_trainer()
        again.fit(*(np.array(x) for x in arrays), validation=arrays)
        assert again.history.loss == trainer.history.loss

    def test_bfloat16(self):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        arrays = [x.astype(ml_dtypes.bfloat16) for x in pairs()]
        trainer, wide = full_trainer(), full_trainer()
        trainer.fit(*arrays, validation=arrays)
        wide.fit(*(x.astype(np.float32) for x in arrays), validation=arrays)
        assert trainer.history.loss == wide.history.loss

    def test_a_memory_learns(self):
        rng = np.random.default_rng(0)
        keys, values = 0.1 * rng.standard_normal((2, 30, DIM)).astype(np.float32)
        memory = MemoryEncoder(ruvector.DotProductAttention(DIM), keys, values)
        trainer = Trainer(memory, config=TrainerConfig(num_epochs=30, learning_rate=0.05))
        arrays = pairs(40)
        trainer.fit(*arrays)
        assert trainer.history.loss[-1] < 0.8 * trainer.history.loss[0]

    def test_progress(self, capsys, monkeypatch):
        from ruvector import _progress

        monkeypatch.setattr(_progress, "DELAY", 0.0)
        monkeypatch.setattr(_progress, "INTERVAL", 0.0)
        trainer = full_trainer()
        trainer.fit(*pairs(), validation=pairs(9), progress=False)
        assert capsys.readouterr().err == ""
        trainer.fit(*pairs(), validation=pairs(9), progress="auto")
        lines = capsys.readouterr().err.splitlines()
        assert re.fullmatch(r"train: 1 of 20 steps \(5%\), loss \d\.\d+", lines[0])
        with pytest.raises(InvalidConfigError, match="progress must be 'auto', True or False"):
            trainer.fit(*pairs(), progress="loud")

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (
                (np.ones((3, 2)), np.ones((4, 2))),
                DimensionMismatchError,
                "positives must hold 3",
            ),
            ((np.ones((0, 2)), np.ones((0, 2))), EmptyInputError, "anchors must not be empty"),
            ((np.ones(()), np.ones(())), DimensionMismatchError, "anchors must have shape"),
            (
                (np.ones((3, 2)), np.array(["a", "b", "c"])),
                TypeError,
                "positives must hold real",
            ),
            (
                (np.ones((3, 2)), np.ones((3, 4))),
                DimensionMismatchError,
                r"positives must hold items of shape \(2,\) like anchors, got \(4,\)",
            ),
        ],
    )
    def test_bad_pairs(self, arguments, error, message):
        with pytest.raises(error, match=message):
            Trainer(LinearAdapter(2, 2)).fit(*arguments)

    @pytest.mark.parametrize(
        ("negatives", "message"),
        [
            (np.ones((5, 3)), r"negatives must hold items of shape \(2,\) like positives"),
            (np.ones((4, 5, 2)), r"negatives must have shape \('N', 2\) or \(3, 'k', 2\)"),
            (np.ones(2), r"negatives must have shape"),
        ],
    )
    def test_bad_negatives(self, negatives, message):
        with pytest.raises(DimensionMismatchError, match=message):
            Trainer(LinearAdapter(2, 2)).fit(
                np.ones((3, 2)), np.ones((3, 2)), negatives=negatives
            )

    def test_bad_ids_and_validation(self):
        x = np.ones((3, 2), np.float32)
        trainer = Trainer(LinearAdapter(2, 2))
        with pytest.raises(DimensionMismatchError, match=r"ids must have shape \(3,\)"):
            trainer.fit(x, x, ids=[1, 2])
        with pytest.raises(TypeError, match="ids must hold integers"):
            trainer.fit(x, x, ids=[0.5, 1, 2])
        with pytest.raises(InvalidConfigError, match="validation must be a pair"):
            trainer.fit(x, x, validation=x)


class TestHistory:
    def test_plot(self, tmp_path):
        pytest.importorskip("matplotlib")
        history = History([3.0, 2.0], [0.1, 0.1], [1.0, 1.0], [1.0, 1.0])
        history.add_recall(2, {1: 0.5, 5: 0.75})
        path = tmp_path / "curve.png"
        figure = history.plot(path)
        assert path.read_bytes().startswith(b"\x89PNG")
        left, right = figure.axes
        np.testing.assert_array_equal(left.get_lines()[0].get_ydata(), [3.0, 2.0])
        assert [line.get_label() for line in right.get_lines()] == ["recall@1", "recall@5"]

    def test_plot_without_matplotlib(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ImportError, match=re.escape("pip install 'ruvector[plot]'")):
            History([1.0]).plot()
