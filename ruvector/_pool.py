"""Work in pieces on an executor, and iteration one step ahead, that leave nothing behind.

Whatever ends a call early, an exception, Ctrl-C or the cancellation of a task, drops the
pieces that have not begun and waits for those that run, so that no thread touches the
caller's arrays afterwards.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

__all__ = [
    "ahead",
    "ahead_async",
    "gather",
    "gather_async",
    "in_steps_async",
    "loop_submit",
    "submit_of",
]

_T = TypeVar("_T")
_END: Any = object()


def submit_of(executor: Any) -> Callable[..., Any]:
    """Return how pieces are handed to an executor."""
    submit: Callable[..., Any] | None = getattr(executor, "submit", None)
    if submit is None:
        kind = type(executor).__name__
        raise TypeError(f"executor must be a concurrent.futures.Executor, got {kind}")
    return submit


def gather(executor: Executor, pieces: list[Callable[[], _T]]) -> list[_T]:
    """Run pieces on an executor and return their results in order."""
    submit = submit_of(executor)
    futures: list[Future[_T]] = []
    try:
        futures.extend(submit(piece) for piece in pieces)
        return [future.result() for future in futures]
    except BaseException:
        from concurrent.futures import wait

        for future in futures:
            future.cancel()
        wait(futures)
        raise


async def gather_async(
    submit: Callable[[Callable[[], _T]], Future[_T]], pieces: list[Callable[[], _T]]
) -> list[_T]:
    """Run pieces on whatever `submit` hands them to and return their results in order."""
    import asyncio

    futures: list[Future[_T]] = []
    try:
        futures.extend(submit(piece) for piece in pieces)
        return await asyncio.gather(*map(asyncio.wrap_future, futures))
    except BaseException:
        # Those that run do so to their end; the wait for it must not hold up the loop.
        running = [asyncio.wrap_future(future) for future in futures if not future.cancel()]
        if running:
            await asyncio.wait(running)
        raise


def loop_submit() -> Callable[[Callable[[], _T]], Future[_T]]:
    """Return a way to the running loop's own threads that can be cancelled and waited for."""
    import asyncio
    from concurrent.futures import Future

    loop = asyncio.get_running_loop()

    def submit(piece: Callable[[], _T]) -> Future[_T]:
        future: Future[_T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(piece())
            except BaseException as error:
                future.set_exception(error)

        loop.run_in_executor(None, run)
        return future

    return submit


def ahead(source: Iterator[_T]) -> Generator[_T]:
    """Iterate over `source` in a thread that is one item ahead of whoever takes them."""
    from concurrent.futures import ThreadPoolExecutor
    from contextvars import copy_context

    context = copy_context()
    try:
        with ThreadPoolExecutor(1, "ruvector-ahead") as thread:
            step = thread.submit(context.run, _advance, source)
            while (item := step.result()) is not _END:
                step = thread.submit(context.run, _advance, source)
                yield item
    finally:
        if isinstance(source, Generator):
            source.close()


async def ahead_async(source: AsyncGenerator[_T]) -> AsyncGenerator[_T]:
    """Iterate over `source` in a task that is one item ahead of whoever takes them."""
    import asyncio

    async with aclosing(source):
        step = asyncio.ensure_future(_advance_async(source))
        try:
            while (item := await step) is not _END:
                step = asyncio.ensure_future(_advance_async(source))
                yield item
        finally:
            step.cancel()
            await asyncio.wait([step])
            if not step.cancelled():
                step.exception()


def _advance(source: Iterator[_T]) -> _T:
    return next(source, _END)


async def _advance_async(source: AsyncGenerator[_T]) -> _T:
    return await anext(source, _END)


async def in_steps_async(source: Any) -> AsyncGenerator[Any]:
    """Iterate over an asynchronous iterable, or over any other in a thread of the loop's."""
    if hasattr(source, "__aiter__"):
        iterator = aiter(source)
        try:
            async for item in iterator:
                yield item
        finally:
            if hasattr(iterator, "aclose"):
                await iterator.aclose()
        return
    submit: Callable[[Callable[[], Any]], Any] = loop_submit()
    items = iter(source)
    while True:
        (item,) = await gather_async(submit, [lambda: _advance(items)])
        if item is _END:
            return
        yield item
