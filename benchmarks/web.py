"""What a gated event costs an endpoint of FastAPI: requests per second and latency, with it and without.

The shop runs under uvicorn in a process of its own, the collector and the browsers in others. The reference is the same
endpoint without middleware, visitor and event. A third of the visitors has said yes, the others are silent.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from measure import Finding, compare
from side_by_side import HERE, SideBySide, collector

REACH = 0.9  # times the requests of the endpoint without
BROWSERS = 32
VISITORS = 1_000
CONSENT = b"kndctr_ADB3LETTERSANDNUMBERS_AdobeOrg_consent=general=in"


def findings(*, smoke: bool) -> list[Finding]:
    """Measure by turns."""
    if importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None:
        print("left out: FastAPI or uvicorn is not installed")
        return []
    rounds, requests = (1, 200) if smoke else (5, 6_000)
    with collector() as bench, _shop("plain", bench) as plain, _shop("gated", bench) as gated:
        pairs = [
            (asyncio.run(_visit(gated, requests)), asyncio.run(_visit(plain, requests)))
            for _ in range(rounds)
        ]
    rates = [(own.rate, other.rate) for own, other in pairs]
    slowest = [(own.percentile(99), other.percentile(99)) for own, other in pairs]
    middle = [(own.percentile(50), other.percentile(50)) for own, other in pairs]
    return [
        compare("requests per second with a gated event", "/s", rates, reach=REACH, at_least=True),
        compare("half of the requests take at most", "ms", middle),
        compare("99 of 100 requests take at most", "ms", slowest),
        Finding(
            "added to 99 of 100 requests", statistics.median(own - other for own, other in slowest), "ms"
        ),
    ]


class _Visits:
    """How long each request took, and all of them together."""

    def __init__(self, latencies: list[float], wall: float) -> None:
        self._latencies = sorted(latencies)
        self.rate = len(latencies) / wall

    def percentile(self, percent: int) -> float:
        """Return the milliseconds in which so many of a hundred requests ended."""
        return self._latencies[len(self._latencies) * percent // 100] * 1e3


async def _visit(port: int, requests: int) -> _Visits:
    latencies: list[float] = []
    numbers = iter(range(requests))
    await asyncio.gather(*(_browse(port, itertools.islice(numbers, 10), []) for _ in range(BROWSERS)))
    numbers = iter(range(requests))
    started = time.perf_counter()
    await asyncio.gather(*(_browse(port, numbers, latencies) for _ in range(BROWSERS)))
    return _Visits(latencies, time.perf_counter() - started)


async def _browse(port: int, numbers: Iterator[int], latencies: list[float]) -> None:
    """Make requests over one connection, each of another visitor."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for number in numbers:
        visitor = number % VISITORS
        cookie = b"cookie: %b\r\n" % CONSENT if visitor % 3 == 0 else b""
        request = (
            b"GET /products HTTP/1.1\r\nhost: shop\r\nuser-agent: Mozilla/5.0\r\naccept: text/html\r\n"
            b"x-session: session-%d\r\n%b\r\n" % (visitor, cookie)
        )
        started = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"content-length: ")
        await reader.readexactly(int(length.split(b"\r\n")[0]))
        latencies.append(time.perf_counter() - started)
    writer.close()
    await writer.wait_closed()


@contextmanager
def _shop(name: str, bench: SideBySide) -> Iterator[int]:
    command = [sys.executable, str(HERE / "web_server.py"), name, bench.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield int(process.stdout.readline())  # type: ignore[union-attr]  # a pipe
    finally:
        process.terminate()
        process.wait()
