"""How many threads BLAS may use while a kernel runs.

Most BLAS libraries have one thread count for the whole process, so concurrent calls share
one limit: the smallest that any of them asked for. The count found at the first call is
restored when the last one leaves. Under OpenMP each calling thread has a count of its own.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

__all__ = ["blas_threads", "in_order"]

# Multiply-adds below which a second BLAS thread matters less than setting the limit.
_LARGE = 1 << 19


def in_order(
    function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int
) -> Iterator[_Result]:
    """Yield a function of each item, of which up to `threads` are computed at a time."""
    if threads == 1:
        yield from map(function, items)
        return
    from concurrent.futures import ThreadPoolExecutor

    running = deque()  # type: ignore[var-annotated]
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                running.append(pool.submit(function, item))
                if len(running) > 2 * threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


class _Libraries(NamedTuple):
    """The loaded BLAS libraries, by whose thread count they have."""

    of_the_process: list[Any]
    of_each_thread: list[Any]


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_lock = threading.Lock()
_libraries: _Libraries | None = None
_found: list[int] = []
_wanted: list[int] = []


def blas_threads(threads: int, multiply_adds: int) -> AbstractContextManager[None]:
    """Bound the threads of BLAS inside a ``with`` block, where the work is worth it."""
    return _SMALL if multiply_adds < _LARGE else _Limit(threads)


def _load() -> _Libraries:
    global _libraries
    if _libraries is None:
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

        _libraries = _Libraries([], [])
        for library in ThreadpoolController().select(user_api="blas").lib_controllers:
            own = getattr(library, "threading_layer", None) == "openmp"
            (_libraries.of_each_thread if own else _libraries.of_the_process).append(library)
    return _libraries


def _set(library: Any, count: int) -> None:
    if library.get_num_threads() == count:
        return
    library.set_num_threads(count)
    # Lately threadpoolctl lets nobody but the thread that set a count change it again.
    if hasattr(library, "clear_controlling_thread"):
        library.clear_controlling_thread()


def _set_shared() -> None:
    for library, found in zip(_load().of_the_process, _found, strict=True):
        _set(library, min(found, *_wanted) if _wanted else found)


class _Limit(AbstractContextManager[None]):
    __slots__ = ("_own", "_threads")

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._own: list[int] = []

    def __enter__(self) -> None:
        global _found
        with _lock:
            shared, own = _load()
            self._own = [library.get_num_threads() for library in own]
            for library, found in zip(own, self._own, strict=True):
                _set(library, min(found, self._threads))
            if not _wanted:
                _found = [library.get_num_threads() for library in shared]
            _wanted.append(self._threads)
            _set_shared()

    def __exit__(self, *exc_info: object) -> None:
        with _lock:
            for library, found in zip(_load().of_each_thread, self._own, strict=True):
                _set(library, found)
            _wanted.remove(self._threads)
            _set_shared()


_SMALL: AbstractContextManager[None] = nullcontext()


def _forget_after_fork() -> None:
    # The thread that forked need not be the one that held the lock or set the limit.
    global _lock
    _lock = threading.Lock()
    _wanted.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
