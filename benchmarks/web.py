"""What a gated event costs an endpoint of FastAPI, in each situation in which a visitor can be.

The shop runs under uvicorn in a process of its own, the collector and the browsers in others. The reference is the same
endpoint without middleware, visitor and event, asked with the same cookies. Where there are fewer cores than processes,
requests per second count what browsers and collector take as well; the CPU time of the shop's own process does not.
"""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from measure import Finding, compare
from side_by_side import HERE, MismatchError, SideBySide, collector

REACH = 0.9  # times the requests of the endpoint without
BROWSERS = 32
VISITORS = 1_000
WARM = 10  # requests of each browser that are not measured
PATIENCE = 30.0  # seconds until every event of a round has an outcome

_ORGANISATION = "ADB3LETTERSANDNUMBERS_AdobeOrg"
_NOW = int(time.time() * 1_000)
YES = (
    f"kndctr_{_ORGANISATION}_consent=general=in; alloy_{_ORGANISATION}_choice=all.{_NOW}; "
    f"alloy_{_ORGANISATION}_fpid=%08x-0000-4000-8000-000000000000"
)
NO = f"kndctr_{_ORGANISATION}_consent=general=out; alloy_{_ORGANISATION}_choice=none.{_NOW}"


@dataclass(frozen=True, slots=True)
class Situation:
    """One in which visitors can be.

    Attributes:
        name: what is shown.
        path: of the endpoint.
        ends: the column of the books in which their events stand afterwards; None: there are none.
        cookies: what their browsers have kept, the first of which the first visitor has, and so on, in turn.
    """

    name: str
    path: str = "/products"
    ends: str | None = None
    cookies: tuple[str, ...] = ("",)


SITUATIONS = (
    Situation("a visitor who is not asked for anything", "/unused"),
    Situation("silent, the event is parked", ends="parked"),
    Situation("has said yes, the event is delivered", ends="delivered", cookies=(YES,)),
    Situation("has said no, the event is refused", ends="refused", cookies=(NO,)),
    Situation("one of three has said yes", cookies=(YES, "", "")),
)


def findings(*, smoke: bool) -> list[Finding]:
    """Measure by turns."""
    if importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None:
        print("left out: FastAPI or uvicorn is not installed")
        return []
    rounds, requests = (1, 200) if smoke else (5, 4_000)
    pairs: dict[Situation, list[tuple[Visits, Visits]]] = {situation: [] for situation in SITUATIONS}
    with collector() as bench, _shop("plain", bench) as plain, _shop("gated", bench) as gated:
        for situation in itertools.chain.from_iterable(itertools.repeat(SITUATIONS, rounds)):
            pairs[situation].append((gated.visit(situation, requests), plain.visit(situation, requests)))
    return [finding for situation in SITUATIONS for finding in _compared(situation.name, pairs[situation])]


@dataclass(frozen=True, slots=True)
class Visits:
    """What some thousand requests took.

    Attributes:
        rate: requests per second.
        cpu: CPU seconds of the shop's process for each, until the last event has its outcome.
        slowest: seconds in which 99 of 100 ended.
    """

    rate: float
    cpu: float
    slowest: float


def _compared(name: str, pairs: list[tuple[Visits, Visits]]) -> Iterator[Finding]:
    cpu = [(own.cpu * 1e6, other.cpu * 1e6) for own, other in pairs]
    rates = [(own.rate, other.rate) for own, other in pairs]
    added = statistics.median(own.slowest - other.slowest for own, other in pairs)
    yield compare(f"{name}: CPU of the server", "µs", cpu, reach=1 / REACH)
    yield compare(f"{name}: requests per second", "/s", rates, reach=REACH, at_least=True)
    yield Finding(f"{name}: added to 99 of 100 requests", added * 1e3, "ms")


class Shop:
    """A shop that runs."""

    def __init__(self, name: str, port: int) -> None:
        self._name = name
        self._port = port

    def visit(self, situation: Situation, requests: int) -> Visits:
        """Let visitors ask for an endpoint.

        Raises:
            MismatchError: their events did not end as they should have.
        """
        asyncio.run(_visit(self._port, situation, BROWSERS * WARM))
        before = self._settled()
        latencies, wall = asyncio.run(_visit(self._port, situation, requests))
        after = self._settled()
        if self._name == "gated" and situation.ends is not None:
            ended = after[situation.ends] - before[situation.ends]
            if ended != requests:
                raise MismatchError(f"{situation.name}: {requests} requests, {ended} events")
        cpu = (after["cpu"] - before["cpu"]) / requests
        return Visits(requests / wall, cpu, sorted(latencies)[len(latencies) * 99 // 100])

    def _settled(self) -> dict[str, Any]:
        """Return the shop's books once nothing is under way."""
        deadline = time.monotonic() + PATIENCE
        while (books := self._books())["open"] and time.monotonic() < deadline:
            time.sleep(0.05)
        return books

    def _books(self) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        connection.request("GET", "/books")
        books: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
        return books


async def _visit(port: int, situation: Situation, requests: int) -> tuple[list[float], float]:
    """Return how long each request took, and all of them together, in seconds."""
    latencies: list[float] = []
    numbers = iter(range(requests))
    started = time.perf_counter()
    await asyncio.gather(*(_browse(port, situation, numbers, latencies) for _ in range(BROWSERS)))
    return latencies, time.perf_counter() - started


async def _browse(port: int, situation: Situation, numbers: Iterator[int], latencies: list[float]) -> None:
    """Make requests over one connection, each of another visitor."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for number in numbers:
        request = _request(situation, number % VISITORS)
        started = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"content-length: ")
        await reader.readexactly(int(length.split(b"\r\n")[0]))
        latencies.append(time.perf_counter() - started)
    writer.close()
    await writer.wait_closed()


def _request(situation: Situation, visitor: int) -> bytes:
    cookies = situation.cookies[visitor % len(situation.cookies)]
    if "%" in cookies:
        cookies %= visitor
    header = f"cookie: {cookies}\r\n" if cookies else ""
    return (
        f"GET {situation.path} HTTP/1.1\r\nhost: shop\r\nuser-agent: Mozilla/5.0\r\naccept: text/html\r\n"
        f"x-session: {SITUATIONS.index(situation)}-{visitor}\r\n{header}\r\n"
    ).encode()


@contextmanager
def _shop(name: str, bench: SideBySide) -> Iterator[Shop]:
    command = [sys.executable, str(HERE / "web_server.py"), name, bench.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield Shop(name, int(process.stdout.readline()))  # type: ignore[union-attr]  # a pipe
    finally:
        process.terminate()
        process.wait()
