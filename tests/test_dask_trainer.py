"""Training with workers: the same as on one machine, for any number of shards."""

from __future__ import annotations

import importlib.util
import pickle
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from isolated import python
from numpy.testing import assert_allclose, assert_array_equal
from training_cases import DIM, everything, full_trainer, pairs

import ruvector
from ruvector import InvalidConfigError
from ruvector.training import (
    HardNegativeMiner,
    LinearAdapter,
    MemoryEncoder,
    PairEncoder,
    Trainer,
    TrainerConfig,
)

pytestmark = pytest.mark.peers


@pytest.fixture
def parallel():
    pytest.importorskip("dask.array")
    import ruvector.dask

    return ruvector.dask.Trainer


class Threads:
    """The part of a Client that the trainer uses; what goes to a worker is pickled."""

    def __init__(self, pool):
        self._pool = pool
        self.threads = []

    def nthreads(self):
        return {"a": 1, "b": 1, "c": 1}

    def submit(self, task, *arguments, pure):
        assert not pure
        sent = pickle.dumps([task, *(x for x in arguments if not isinstance(x, Future))])
        futures = [(i, x) for i, x in enumerate(arguments) if isinstance(x, Future)]

        def run():
            task, *given = pickle.loads(sent)
            for i, future in futures:
                given.insert(i, future.result())
            return task(*given)

        return self._pool.submit(run)

    def gather(self, futures):
        return [future.result() for future in futures]


@pytest.fixture
def client():
    with ThreadPoolExecutor(2) as pool:
        yield Threads(pool)


def models():
    rng = np.random.default_rng(0)
    memory = rng.standard_normal((2, 30, DIM))
    return {
        "adapter": lambda: LinearAdapter(DIM, DIM),
        "pair": lambda: PairEncoder(LinearAdapter(DIM, 5), LinearAdapter(DIM, 5, 3)),
        "memory": lambda: MemoryEncoder(ruvector.DotProductAttention(DIM), *memory),
    }


@pytest.mark.parametrize("name", models())
@pytest.mark.parametrize("shards", [1, 2, 3, 7, 100, None])
def test_equals_one_machine(parallel, client, name, shards):
    make = models()[name]
    config = TrainerConfig(batch_size=20, num_epochs=3, learning_rate=0.02, gradient_clip=0.5)
    arrays = [x.astype(np.float64) for x in pairs()]
    alone = Trainer(make(), config=config)
    history = alone.fit(*arrays, validation=arrays, progress=False)
    trainer = parallel(make(), client=client, num_shards=shards, config=config)
    assert isinstance(trainer, Trainer)
    found = trainer.fit(*arrays, validation=arrays, progress=False)
    assert_allclose(found.loss, history.loss, rtol=1e-6)
    for key, x in alone.model.state_dict().items():
        assert_allclose(trainer.model.state_dict()[key], x, rtol=1e-5, atol=1e-6)
    assert trainer.evaluate(*arrays) == pytest.approx(alone.evaluate(*arrays))


def test_with_mined_negatives(parallel, client):
    config = TrainerConfig(batch_size=20, num_epochs=3, learning_rate=0.02, num_negatives=3)
    trainers = [
        kind(LinearAdapter(DIM, DIM), miner=HardNegativeMiner("hard"), config=config, **options)
        for kind, options in ((Trainer, {}), (parallel, {"client": client, "num_shards": 3}))
    ]
    histories = [trainer.fit(*pairs(), progress=False) for trainer in trainers]
    assert_allclose(histories[1].loss, histories[0].loss, rtol=1e-4)


def test_the_model_of_the_caller_learns(parallel, client):
    model = LinearAdapter(DIM, DIM)
    before = model.state_dict()["weight"]
    trainer = parallel(model, client=client, config=TrainerConfig(batch_size=32, num_epochs=1))
    trainer.fit(*pairs(), progress=False)
    assert trainer.model is model
    assert not np.array_equal(before, model.parameters()["weight"])


def test_a_run_goes_on_elsewhere(parallel, client, tmp_path):
    def run(kind, epochs, folder, resume, **options):
        config = TrainerConfig(
            batch_size=20, num_epochs=epochs, learning_rate=0.02, checkpoint_dir=folder
        )
        trainer = kind(LinearAdapter(DIM, DIM), config=config, **options)
        trainer.fit(*pairs(), progress=False, resume=resume)
        return trainer

    whole = run(Trainer, 4, None, False)
    run(Trainer, 2, tmp_path, False)
    moved = run(parallel, 4, tmp_path, True, client=client, num_shards=2)
    assert moved.step == whole.step
    wanted = whole.model.parameters()["weight"]
    assert_allclose(moved.model.parameters()["weight"], wanted, rtol=1e-4, atol=1e-5)


def test_twice_with_the_same_bits(parallel, client):
    def run():
        config = TrainerConfig(batch_size=20, num_epochs=2)
        trainer = parallel(LinearAdapter(DIM, DIM), client=client, num_shards=5, config=config)
        trainer.fit(*pairs(), progress=False)
        return trainer.model.parameters()["weight"]

    assert_array_equal(run(), run())


def test_kernel_threads_of_a_task(parallel, client):
    class Counting(LinearAdapter):
        def encode(self, x):
            counted.add(ruvector.get_num_threads())
            return super().encode(x)

    counted = set()
    config = TrainerConfig(batch_size=32, num_epochs=1)
    client.submit = in_this_process(client)
    parallel(Counting(DIM, DIM), client=client, num_threads=3, config=config).fit(
        *pairs(), progress=False
    )
    assert counted == {3}


def in_this_process(client):
    def submit(task, *arguments, pure):
        future = Future()
        given = [x.result() if isinstance(x, Future) else x for x in arguments]
        future.set_result(task(*given))
        return future

    return submit


def test_errors(parallel, client):
    model = LinearAdapter(DIM, DIM)
    with pytest.raises(InvalidConfigError, match="num_shards must be an integer of at least 1"):
        parallel(model, client=client, num_shards=0)
    with pytest.raises(InvalidConfigError, match="num_threads must be an integer of at least"):
        parallel(model, client=client, num_threads=0)
    pytest.importorskip("distributed")
    with pytest.raises(InvalidConfigError, match="client must be a distributed"):
        parallel(model)


def test_everything_at_once(parallel, client):
    """A pair, schedules, a curriculum and a miner, as the trainer's own tests have them."""
    alone = full_trainer()
    alone.fit(*pairs(), validation=pairs(), progress=False)
    other = full_trainer()
    trainer = parallel(
        other.model, other.loss, other.optimizer, client=client, num_shards=3,
        miner=other.miner, config=other.config,
    )  # fmt: skip
    trainer._plan = other._plan
    trainer.fit(*pairs(), validation=pairs(), progress=False)
    wanted, found = everything(alone), everything(trainer)
    for name in wanted:
        if name.startswith("model"):
            assert_allclose(found[name], wanted[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_worker_processes_one_killed(tmp_path):
    if importlib.util.find_spec("distributed") is None:
        pytest.skip("dask's distributed scheduler is not installed")
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    done = python(str(script), str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"] * 2


KILLED = """
import os, signal, sys, threading, time
import numpy as np
from distributed import Client, LocalCluster
import ruvector.dask
from ruvector.training import LinearAdapter, Trainer, TrainerConfig


def main():
    rng = np.random.default_rng(0)
    anchors = rng.standard_normal((96, 12))
    positives = anchors @ rng.standard_normal((12, 12)) / 4
    config = TrainerConfig(batch_size=24, num_epochs=10, learning_rate=0.02)
    alone = Trainer(LinearAdapter(12, 12), config=config)
    wanted = alone.fit(anchors, positives, progress=False)
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster, Client(cluster) as client:
        trainer = ruvector.dask.Trainer(LinearAdapter(12, 12), num_shards=3, config=config)

        def kill():
            while trainer.step < 5:
                time.sleep(0.01)
            os.kill(pids[0], signal.SIGKILL)

        pids = list(client.run(os.getpid).values())
        killer = threading.Thread(target=kill)
        killer.start()
        found = trainer.fit(anchors, positives, progress=False)
        killer.join()
        print(np.allclose(found.loss, wanted.loss, rtol=1e-5))
        weights = [t.model.parameters()["weight"] for t in (alone, trainer)]
        print(np.allclose(*weights, rtol=1e-4, atol=1e-5))


if __name__ == "__main__":
    main()
"""
