"""The development edge: how fast it starts, what one core takes while a page follows, and what it keeps in memory.

The edge runs as a process of its own, as a person starts it; its CPU time is read from the system, so that the client
beside it does not count. A rate is what one core could take: requests by seconds of CPU time.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from measure import Finding
from purchase import PURCHASE

REACH_START = 1.0  # s
REACH_SINGLE = 3_000.0  # requests of one event
REACH_BATCHED = 20_000.0  # events
CONNECTIONS = 16
BATCH = 80
EVENT = json.dumps({"xdm": {"_id": "%s", **PURCHASE}}).encode()
TICKS = os.sysconf("SC_CLK_TCK")
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


def findings(*, smoke: bool) -> list[Finding]:
    """Start it a few times, then send to one that a page follows."""
    if not Path("/proc/self/stat").exists() or not all(map(importlib.util.find_spec, ("typer", "uvicorn"))):
        print("left out: it needs Linux and the extra cli")
        return []
    starts = [_start() for _ in range(1 if smoke else 5)]
    requests = 200 if smoke else 10_000
    with _serving() as edge:
        single = asyncio.run(_measure(edge, requests, 1))
        before = edge.memory()
        batched = asyncio.run(_measure(edge, requests // 10, BATCH))
        held = (edge.memory() - before) / (requests // 10 * BATCH)
    return [
        Finding("from the command to the address", statistics.median(starts), "s", reach=REACH_START),
        Finding("requests of one event, one core", single, "/s", reach=REACH_SINGLE, at_least=True),
        Finding(
            f"events in requests of {BATCH}, one core", batched, "/s", reach=REACH_BATCHED, at_least=True
        ),
        Finding("memory of an event that came in such a request", held, "bytes"),
    ]


@dataclass
class _Edge:
    process: subprocess.Popen[str]
    port: int

    def cpu(self) -> float:
        """Seconds of CPU time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self) -> int:
        """Bytes that it has in memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * PAGE_SIZE


@contextmanager
def _serving() -> Iterator[_Edge]:
    command = [sys.executable, "-m", "alloy_async", "serve", "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "200"}
    )
    try:
        line = process.stdout.readline()  # type: ignore[union-attr]  # a pipe
        yield _Edge(process, int(line.partition("127.0.0.1:")[2].split()[0]))
    finally:
        process.terminate()
        process.communicate()


def _start() -> float:
    started = time.perf_counter()
    with _serving():
        return time.perf_counter() - started


async def _measure(edge: _Edge, requests: int, batch: int) -> float:
    page = asyncio.ensure_future(_follow(edge.port))
    await _send(edge.port, 20, batch)
    before = edge.cpu()
    await asyncio.gather(*(_send(edge.port, requests // CONNECTIONS, batch) for _ in range(CONNECTIONS)))
    spent = edge.cpu() - before
    page.cancel()
    return requests // CONNECTIONS * CONNECTIONS * batch / max(spent, 1 / TICKS)


async def _follow(port: int) -> None:
    """Read the feed as an open page does."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**26)
    writer.write(b"GET /_dev/feed HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
    try:
        while await reader.read(2**16):
            pass
    finally:
        writer.close()


async def _send(port: int, requests: int, batch: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(requests):
        body = b'{"events":[%b]}' % b",".join(EVENT % uuid.uuid4().hex.encode() for _ in range(batch))
        writer.write(
            b"POST /ee/v1/collect?configId=ds HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 204 " in head.split(b"\r\n")[0] + b" ", head
    writer.close()
    await writer.wait_closed()
