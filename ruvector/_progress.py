"""Progress of long work on standard error: a tqdm bar, or a line now and then."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["progress"]

# Work that ends sooner than this prints nothing; without a bar a line follows this often.
DELAY = 2.0
INTERVAL = 10.0


@contextmanager
def progress(total: int, label: str, unit: str) -> Iterator[Callable[..., object]]:
    """Report how much of some work is done, once it turns out to be long.

    Parameters
    ----------
    total : int
        The amount of work.
    label, unit : str
        What is done, and what is counted.

    Yields
    ------
    callable
        To be called with the amount of work done since its last call, and maybe with a note
        to be shown beside it.
    """
    if sys.stderr.isatty():
        try:
            tqdm = import_module("tqdm").tqdm
        except ImportError:
            pass
        else:
            with tqdm(total=total, desc=label, unit=unit, delay=DELAY, leave=False) as bar:

                def shown(step: int, note: str = "") -> None:
                    bar.set_postfix_str(note, refresh=False)
                    bar.update(step)

                yield shown
            return
    done = 0
    due = time.monotonic() + DELAY

    def update(step: int, note: str = "") -> None:
        nonlocal done, due
        done += step
        if time.monotonic() >= due and done < total:
            due = time.monotonic() + INTERVAL
            print(
                f"{label}: {done} of {total} {unit} ({done / total:.0%})"
                + (f", {note}" if note else ""),
                file=sys.stderr,
                flush=True,
            )

    yield update
