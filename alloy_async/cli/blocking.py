"""Work that blocks: reading from a pipe or from a person."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

__all__ = ["in_thread"]

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Run a function on a thread of its own and return what it returns.

    ``asyncio.to_thread`` will not do: the interpreter waits for its threads at exit, and one that reads from a pipe
    or from a person may never end. This one is a daemon.

    Args:
        work: raises nothing but ``OSError``.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: OSError | None) -> None:
        if future.done():
            return  # the caller was cancelled
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]  # None only where T is None
        else:
            future.set_exception(error)

    def run() -> None:
        result, problem = None, None
        try:
            result = work()
        except OSError as error:
            problem = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, problem)

    threading.Thread(target=run, name="alloy-blocking", daemon=True).start()
    return await future
