"""``ruvector train`` and ``ruvector encode``: an adapter from files of pairs, and its use."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ._files import atomic_file, open_array
from ._progress import progress
from .errors import DimensionMismatchError, EmptyInputError, InvalidConfigError, RuvectorError

if TYPE_CHECKING:
    import argparse

    from numpy.typing import NDArray

__all__ = ["add_commands"]

_STRATEGIES = ("random", "hard", "semi_hard", "distance_weighted")
# Numbers of a block of rows that are encoded at a time.
_BLOCK = 1 << 22


def add_commands(commands: Any) -> None:
    """Add both commands to the parsers of the program.

    Parameters
    ----------
    commands : object
        What ``ArgumentParser.add_subparsers`` returned.
    """
    train = commands.add_parser(
        "train",
        help="train a linear adapter of embeddings on pairs in .npy files",
        description="Train a linear map of embeddings so that anchors find their positives: "
        "row i of ANCHORS (n, d) belongs to row i of POSITIVES (n, d). Files are "
        "memory-mapped; ADAPTER appears only when it is complete.",
    )
    train.add_argument("--anchors", required=True, metavar="ANCHORS.npy")
    train.add_argument("--positives", required=True, metavar="POSITIVES.npy")
    train.add_argument(
        "--negatives",
        metavar="NEGATIVES.npy",
        help="a pool (N, d), or (n, k, d) for each anchor",
    )
    train.add_argument("--validation-anchors", metavar="ANCHORS.npy")
    train.add_argument("--validation-positives", metavar="POSITIVES.npy")
    train.add_argument(
        "--separate",
        action="store_true",
        help="learn one map for anchors and another for positives",
    )
    train.add_argument(
        "--dim-out", type=int, metavar="D", help="width of the result (default d)"
    )
    train.add_argument("--rank", type=int, metavar="R", help="learn a change of rank R only")
    train.add_argument("--epochs", type=int, default=20, metavar="E", help="default 20")
    train.add_argument("--batch-size", type=int, default=128, metavar="B", help="default 128")
    train.add_argument(
        "--learning-rate",
        type=float,
        default=5e-4,
        metavar="RATE",
        help="at the top of its cosine (default 5e-4)",
    )
    train.add_argument("--warmup-steps", type=int, default=0, metavar="STEPS", help="default 0")
    train.add_argument(
        "--weight-decay", type=float, default=0.01, metavar="W", help="default 0.01"
    )
    train.add_argument(
        "--temperature", type=float, default=0.1, metavar="T", help="of InfoNCE (default 0.1)"
    )
    train.add_argument("--gradient-clip", type=float, metavar="NORM")
    train.add_argument(
        "--mine",
        choices=_STRATEGIES,
        metavar="STRATEGY",
        help="mine negatives: " + ", ".join(_STRATEGIES),
    )
    train.add_argument(
        "--num-negatives",
        type=int,
        default=2,
        metavar="K",
        help="mined for each anchor, or drawn from NEGATIVES for each batch (default 2)",
    )
    train.add_argument(
        "--patience",
        type=int,
        metavar="N",
        help="stop after N epochs without a better recall, and keep the best adapter",
    )
    train.add_argument("--seed", type=int, default=42, metavar="S", help="default 42")
    train.add_argument(
        "--checkpoint-dir", metavar="FOLDER", help="write a checkpoint there after every epoch"
    )
    train.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint there, if there is one"
    )
    train.add_argument("--plot", metavar="CURVE.png", help="draw loss and recall (matplotlib)")
    train.add_argument("-o", "--output", required=True, metavar="ADAPTER.npz")
    train.set_defaults(run=_train)

    encode = commands.add_parser(
        "encode",
        help="map embeddings in a .npy file by an adapter",
        description="Map INPUT, shape (n, d) or (d,), by what ruvector train wrote. INPUT is "
        "memory-mapped and read block by block; OUT appears only when it is complete.",
    )
    encode.add_argument("--adapter", required=True, metavar="ADAPTER.npz")
    encode.add_argument("--input", required=True, metavar="INPUT.npy")
    encode.add_argument(
        "--side",
        choices=("anchors", "positives"),
        help="which of two separate maps; required where there are two",
    )
    encode.add_argument("-o", "--output", required=True, metavar="OUT.npy")
    encode.set_defaults(run=_encode)


def _train(options: argparse.Namespace) -> int:
    # Imported here: the other commands do not need it.
    from .training import (
        HardNegativeMiner,
        InfoNCELoss,
        LearningRateScheduler,
        LinearAdapter,
        PairEncoder,
        Trainer,
        TrainerConfig,
        save_adapter,
    )

    anchors = _matrix(options.anchors, "--anchors")
    positives = _matrix(options.positives, "--positives")
    wanted = anchors.shape[: 1 if options.separate else 2]
    if positives.shape[: len(wanted)] != wanted:
        raise DimensionMismatchError(
            f"--positives {options.positives}: must fit --anchors of shape {anchors.shape}, "
            f"got {positives.shape}"
        )
    negatives = None
    if options.negatives is not None:
        negatives = open_array(options.negatives, "--negatives")
    validation = _validation(options)
    _check_folder(options.output, "--output")
    if options.plot is not None:
        _check_folder(options.plot, "--plot")
    if options.resume and options.checkpoint_dir is None:
        raise InvalidConfigError("--resume needs --checkpoint-dir")
    if options.patience is not None and validation is None:
        raise InvalidConfigError("--patience needs --validation-anchors and its positives")

    width = anchors.shape[1] if options.dim_out is None else options.dim_out
    model: Any = LinearAdapter(anchors.shape[1], width, options.rank)
    if options.separate:
        other = LinearAdapter(positives.shape[1], width, options.rank)
        model = PairEncoder(model, other)
    config = TrainerConfig(
        batch_size=options.batch_size,
        num_epochs=options.epochs,
        gradient_clip=options.gradient_clip,
        weight_decay=options.weight_decay,
        learning_rate=options.learning_rate,
        seed=options.seed,
        patience=options.patience,
        checkpoint_dir=options.checkpoint_dir,
        num_negatives=options.num_negatives,
    )
    steps = -(-len(anchors) // config.batch_size) * config.num_epochs
    trainer = Trainer(
        model,
        InfoNCELoss(options.temperature),
        lr_schedule=LearningRateScheduler(config.learning_rate, options.warmup_steps, steps),
        miner=None
        if options.mine is None
        else HardNegativeMiner(options.mine, seed=options.seed),
        config=config,
    )
    before = None if validation is None else trainer.evaluate(*validation)
    history = trainer.fit(
        anchors, positives, negatives=negatives, validation=validation, resume=options.resume
    )
    save_adapter(options.output, model)
    if options.plot is not None:
        history.plot(options.plot)
    print(f"{len(history)} steps, last loss {history.loss[-1]:.4f}")
    if validation is not None and before is not None:
        after = trainer.evaluate(*validation)
        for name, value in before.items():
            print(f"{name}: {value:.4f} before, {after[name]:.4f} after")
    print(f"wrote {options.output}: {model!r}")
    return 0


def _encode(options: argparse.Namespace) -> int:
    from .training import LinearAdapter, load_adapter

    loaded = load_adapter(options.adapter)
    if isinstance(loaded, LinearAdapter):
        if options.side is not None:
            raise InvalidConfigError("--side: the adapter is the same for both sides")
        adapter = loaded
    elif options.side is None:
        raise InvalidConfigError("--side anchors or positives is needed: there are two maps")
    else:
        adapter = getattr(loaded, options.side)
    x = open_array(options.input, "--input")
    if x.ndim not in (1, 2) or x.shape[-1] != adapter.dim_in:
        raise DimensionMismatchError(
            f"--input must have shape (n, {adapter.dim_in}) or ({adapter.dim_in},), "
            f"got {x.shape}"
        )
    rows = np.atleast_2d(x)
    dtype = adapter.encode(rows[:0]).dtype
    shape = (*x.shape[:-1], adapter.dim_out)
    step = max(1, _BLOCK // max(adapter.dim_in, adapter.dim_out))
    with (
        atomic_file(options.output, "--output") as file,
        progress(len(rows), "encode", "vectors") as advance,
    ):
        np.lib.format.write_array_header_1_0(
            file, {"descr": dtype.str, "fortran_order": False, "shape": shape}
        )
        for start in range(0, len(rows), step):
            block = adapter.encode(rows[start : start + step])
            file.write(np.ascontiguousarray(block).data)
            advance(len(block))
    print(f"wrote {options.output}: {dtype} {shape}")
    return 0


def _matrix(path: str, name: str) -> NDArray[Any]:
    array = open_array(path, name)
    if array.ndim != 2:
        raise DimensionMismatchError(f"{name} must have shape (n, d), got {array.shape}")
    if not array.size:
        raise EmptyInputError(f"{name} must not be empty, got shape {array.shape}")
    return array


def _validation(options: argparse.Namespace) -> tuple[NDArray[Any], NDArray[Any]] | None:
    paths = (options.validation_anchors, options.validation_positives)
    if paths == (None, None):
        return None
    if None in paths:
        raise InvalidConfigError(
            "--validation-anchors and --validation-positives must be given together"
        )
    return (
        _matrix(paths[0], "--validation-anchors"),
        _matrix(paths[1], "--validation-positives"),
    )


def _check_folder(path: str, name: str) -> None:
    """Raise now what would otherwise be found out after the training."""
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise RuvectorError(f"{name} {path}: there is no folder {folder}")
