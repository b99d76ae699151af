"""What one call of ``event()`` costs the program that makes it, and what a parked event holds."""

from __future__ import annotations

import asyncio
import gc
import os
import tracemalloc
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from measure import Finding, Spent, by_turns, compare, no_garbage_collection
from purchase import PURCHASE
from stage import AnswersAtOnce, record, waiting_for_consent

CALLS = 200
REACH = 1.5  # times copy.deepcopy of the same event
REACH_BYTES = 1_638  # 1.6 KB


def findings(*, smoke: bool) -> list[Finding]:
    """Measure the calls, then the memory."""
    rounds = 3 if smoke else 150
    return [
        *asyncio.run(_parked(rounds), debug=False),
        *asyncio.run(_open(rounds), debug=False),
        *asyncio.run(_held(1_000 if smoke else 100_000), debug=False),
    ]


async def _parked(rounds: int) -> list[Finding]:
    """Time the call that parks; after each round the callers leave, so that each starts with an empty gate."""

    async def leave(futures: list[asyncio.Future[Any]]) -> None:
        for future in futures:
            future.cancel()

    async with waiting_for_consent(AnswersAtOnce()) as alloy:
        pairs = await by_turns(
            partial(record, alloy), partial(deepcopy, PURCHASE), leave, rounds=rounds, calls=CALLS
        )
    return _compared("event() that parks, against deepcopy", pairs)


async def _open(rounds: int) -> list[Finding]:
    """Time the call after consent; the requests themselves run between the rounds."""
    async with waiting_for_consent(AnswersAtOnce()) as alloy:

        async def deliver(futures: list[asyncio.Future[Any]]) -> None:
            await asyncio.gather(*futures)

        await alloy.opt_in(purposes="all")
        pairs = await by_turns(
            partial(record, alloy), partial(deepcopy, PURCHASE), deliver, rounds=rounds, calls=CALLS
        )
    return _compared("event() while open, against deepcopy", pairs)


def _compared(question: str, pairs: list[tuple[Spent, Spent]]) -> list[Finding]:
    cpu = [(own.cpu * 1e6, other.cpu * 1e6) for own, other in pairs]
    wall = [(own.wall * 1e6, other.wall * 1e6) for own, other in pairs]
    return [
        compare(f"{question}: CPU", "µs", cpu, reach=REACH),
        compare(f"{question}: wall clock", "µs", wall, reach=REACH),
    ]


async def _held(events: int) -> list[Finding]:
    """Count the bytes of parked events: as the process grows, then as Python counts them."""
    found = []
    before = _resident()
    async with waiting_for_consent(AnswersAtOnce(), events=events):
        gc.collect()
        if before is not None:
            grown = ((_resident() or 0) - before) / events
            found.append(Finding("held per parked event: growth of the process", grown, "bytes"))
    with no_garbage_collection():
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        async with waiting_for_consent(AnswersAtOnce(), events=events):
            counted = (tracemalloc.get_traced_memory()[0] - before) / events
        tracemalloc.stop()
    question = "held per parked event: counted by tracemalloc"
    return [*found, Finding(question, counted, "bytes", reach=REACH_BYTES)]


def _resident() -> int | None:
    """Return the bytes of memory this process holds now, where the system tells (Linux)."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else None
