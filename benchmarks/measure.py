"""How the benchmarks measure: ours and its reference by turns in one run, and medians."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Call = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table.

    Attributes:
        question: what was measured.
        value: the number, in ``unit``.
        unit: for example ``µs``.
        reference: what it is compared with, in the same unit.
        ratio: ours over the reference, from pairs measured next to each other.
        reach: upper bound of the ratio, or of the value where there is no reference; None: only to be known.
        at_least: whether ``reach`` is a lower bound instead.
    """

    question: str
    value: float
    unit: str
    reference: float | None = None
    ratio: float | None = None
    reach: float | None = None
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """Whether the bound is kept."""
        if self.reach is None:
            return ""
        found = self.value if self.ratio is None else self.ratio
        return "yes" if (found >= self.reach if self.at_least else found <= self.reach) else "NO"


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds that something took: on the wall clock, and of this process's CPU time."""

    wall: float
    cpu: float


def compare(
    question: str,
    unit: str,
    pairs: list[tuple[float, float]],
    *,
    reach: float | None = None,
    at_least: bool = False,
) -> Finding:
    """Make a finding of pairs (ours, reference) that were measured next to each other.

    The ratio is the median of the pairs' ratios: what slows the machine for a while slows both halves of a pair.
    """
    ours, references = zip(*pairs, strict=True)
    ratio = statistics.median(own / other for own, other in pairs)
    return Finding(
        question, statistics.median(ours), unit, statistics.median(references), ratio, reach, at_least
    )


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep the collector out, as timeit does: when it runs depends on everything else in the process."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def time_calls(call: Call, calls: int) -> tuple[Spent, list[Any]]:
    """Return what one call takes, in seconds, and what the calls returned."""
    with no_garbage_collection():
        wall, cpu = time.perf_counter(), time.process_time()
        results = [call() for _ in range(calls)]
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Spent(wall / calls, cpu / calls), results


async def by_turns(
    ours: Call, reference: Call, tidy: Callable[[list[Any]], Awaitable[None]], *, rounds: int, calls: int
) -> list[tuple[Spent, Spent]]:
    """Time two calls in alternating rounds; the first pair only warms up and is dropped.

    Args:
        ours: what is measured.
        reference: what it is compared with.
        tidy: takes what ``ours`` returned, after each round and outside the measured time.
        rounds: how many pairs.
        calls: calls in one half of a pair.
    """
    pairs = []
    for _ in range(rounds + 1):
        own, results = time_calls(ours, calls)
        other = time_calls(reference, calls)[0]
        await tidy(results)
        pairs.append((own, other))
    return pairs[1:]


async def watch(start: Call, ended: Callable[[], bool]) -> tuple[Spent, float]:
    """Start something and take turns of the event loop until it has ended.

    Returns:
        What it took altogether, and the longest time between two turns, both in seconds; garbage collection aside.
    """
    longest = 0.0
    with no_garbage_collection():
        began, cpu = turn, _ = time.perf_counter(), time.process_time()
        start()
        while not ended():
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, turn = max(longest, now - turn), now
        return Spent(turn - began, time.process_time() - cpu), longest
