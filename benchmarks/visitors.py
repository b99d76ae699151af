"""What it costs to serve many visitors in one process: the view of a request, and what is kept of each."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc

from measure import Finding
from stage import IDS, AnswersAtOnce

from alloy_async import Alloy

REACH_VIEW = 15.0  # µs
GIB = 2**30


def findings(*, smoke: bool) -> list[Finding]:
    """Measure views of visitors who are known, who are new and who have no key, and the bytes of each."""
    return asyncio.run(_findings(1_000 if smoke else 20_000))


async def _findings(count: int) -> list[Finding]:
    async with Alloy("benchmark") as alloy:
        await alloy.configure(
            **IDS, opt_in_enabled=True, transport=AnswersAtOnce(), store="memory", max_visitors=10 * count
        )
        held = await _held(alloy, count)
        return [
            Finding(
                "a view of a visitor who is known: CPU", _each(alloy, "held", count), "µs", reach=REACH_VIEW
            ),
            Finding(
                "a view of a visitor who is new: CPU", _each(alloy, "new", count), "µs", reach=REACH_VIEW
            ),
            Finding("a view without a key: CPU", _each(alloy, "", count), "µs", reach=REACH_VIEW),
            Finding("held per visitor, with a choice and an identity", held, "bytes"),
            Finding("visitors that fit into a GiB", GIB / held, ""),
        ]


async def _held(alloy: Alloy, count: int) -> float:
    """Return the bytes of a visitor who has chosen, and whose event has been sent."""
    keys = [f"held {number}" for number in range(count)]
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for start in range(0, count, 500):
        visitors = [alloy.visitor(key) for key in keys[start : start + 500]]
        await asyncio.gather(*(visitor.opt_in(purposes="all") for visitor in visitors))
        await asyncio.gather(*(visitor.event(type="page") for visitor in visitors))
    del visitors
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / count


def _each(alloy: Alloy, name: str, count: int) -> float:
    keys = [f"{name} {number}" if name else None for number in range(count)]
    started = time.process_time()
    for key in keys:
        alloy.visitor(key)
    return (time.process_time() - started) / count * 1e6
