"""Long work in short slices, so that the event loop never stands still."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

__all__ = ["SLICE", "in_slices", "slice_by_slice"]

T = TypeVar("T")

SLICE = 500
"""Commands that are settled before the event loop gets its turn; about 5 ms of work."""


def in_slices(items: Iterable[T], settle: Callable[[T], object]) -> None:
    """Call ``settle`` for each item: the first slice now, the others in later turns of the loop."""
    rest = iter(items)
    if _settle_slice(rest, settle) == SLICE:
        asyncio.get_running_loop().call_soon(in_slices, rest, settle)


async def slice_by_slice(items: Iterable[T], settle: Callable[[T], object]) -> None:
    """Call ``settle`` for each item, and return when it has been called for all."""
    rest = iter(items)
    while _settle_slice(rest, settle) == SLICE:  # noqa: ASYNC110 - it works in between
        await asyncio.sleep(0)


def _settle_slice(rest: Iterator[T], settle: Callable[[T], object]) -> int:
    count = 0
    for item in islice(rest, SLICE):
        settle(item)
        count += 1
    return count
