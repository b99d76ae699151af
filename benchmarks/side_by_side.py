"""Runs clients by turns, each in a fresh process, against one collector, and checks each count of theirs against its."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purchase import PURCHASE
from stage import AnswersAtOnce, waiting_for_consent

from alloy_async.edge.transport import EdgeRequest, EdgeResponse

HERE = Path(__file__).parent
BODIES = 20
"""Different bodies of requests, which the clients that build none post again and again."""


class MismatchError(Exception):
    """What a client says is not what the collector has counted; then none of its numbers mean anything."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one client took for its events, each in seconds.

    Attributes:
        cpu: of the client's process, all its threads, for each event.
        wall: for each event.
        collector: CPU of the collector for each event.
        batch: events in a request.
    """

    cpu: float
    wall: float
    collector: float = 0.0
    batch: float = 0.0


class SideBySide:
    """A collector, and clients that send to it one after the other.

    Args:
        port: where the collector listens on loopback.
        folder: for the bodies.
    """

    def __init__(self, port: int, folder: Path) -> None:
        self._port = port
        self._folder = folder
        self._absent: set[str] = set()

    @property
    def url(self) -> str:
        """Where the collector is."""
        return f"http://127.0.0.1:{self._port}"

    def run(self, name: str, *, latency: float = 0.0, **job: Any) -> Measured | None:
        """Let a client send its events; return None, and say why, when it is not there.

        Args:
            name: of ``CLIENTS``.
            latency: seconds that each answer takes.
            job: see ``Job``.

        Raises:
            MismatchError: the client and the collector count differently.
        """
        self._ask(f"/reset?{latency}")
        told = self._told(name, job)
        if told is None:
            return None
        counted = self._ask("/counts")
        sent = told["warm"] + told["delivered"]
        if name != "nothing" and (told["delivered"] < job["events"] or sent != counted["events"]):
            raise MismatchError(f"{name}: {job['events']} events wanted, {told} told, {counted} counted")
        events = told["delivered"] or job["events"]
        return Measured(
            told["cpu"] / events,
            told["wall"] / events,
            counted["cpu"] / max(sent, 1),
            counted["events"] / max(counted["requests"], 1),
        )

    def calls(self, name: str, events: int) -> Measured | None:
        """Return what a call takes that nobody awaits."""
        told = self._told(name, {"measure": "calls", "events": events})
        return told and Measured(told["cpu"] / events, told["wall"] / events)

    def memory(self, name: str, events: int) -> float | None:
        """Return the bytes that an event holds while it is queued."""
        told = self._told(name, {"measure": "memory", "events": events})
        return told and told["bytes"] / events

    def bodies(self, size: int) -> str:
        """Return a file with bodies as this SDK sends them: full ones, or with one event each when ``size`` is small."""
        path = self._folder / f"bodies-{size}"
        if not path.exists():
            path.write_bytes(b"\n".join(asyncio.run(_bodies(size), debug=False)))
        return str(path)

    def _told(self, name: str, job: dict[str, Any]) -> dict[str, Any] | None:
        job = {"url": self.url} | job
        command = [sys.executable, str(HERE / "clients.py"), name, json.dumps(job)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode:
            raise RuntimeError(f"{name} failed:\n{done.stderr[-3_000:]}")
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if "absent" in told:
            self._say(f"{_label(name, job)}: left out, {told['absent']}")
            return None
        return told

    def _say(self, line: str) -> None:
        if line not in self._absent:
            self._absent.add(line)
            print(line)

    def _ask(self, path: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        connection.request("GET", path)
        told: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
        return told


def _label(name: str, job: dict[str, Any]) -> str:
    return " ".join([name, *(f"{option}={value}" for option, value in job.get("options", {}).items())])


@contextmanager
def collector() -> Iterator[SideBySide]:
    """Start a collector, and end it."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "collector.py")], stdout=subprocess.PIPE, text=True
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield SideBySide(int(process.stdout.readline()), Path(folder))  # type: ignore[union-attr]  # a pipe
    finally:
        process.terminate()
        process.wait()


def by_rounds(runs: dict[str, Callable[[], Measured | None]], rounds: int) -> dict[str, list[Measured]]:
    """Do each run once in a round, so that what slows the machine for a while slows all of them; leave out the absent."""
    found: dict[str, list[Measured]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            measured = run() if name in found else None
            if measured is None:
                found.pop(name, None)
            else:
                found[name].append(measured)
    return found


class _Keeps(AnswersAtOnce):
    """A transport that keeps the bodies it is given."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def send(self, request: EdgeRequest, may_start: Callable[[], bool]) -> EdgeResponse:
        self.bodies.append(request.body)
        return await super().send(request, may_start)


async def _bodies(size: int) -> list[bytes]:
    """Let this SDK build the bodies of its requests."""
    transport = _Keeps()
    async with waiting_for_consent(transport, max_body_bytes=size) as alloy:
        await alloy.opt_in(purposes="all")
        for _ in range(BODIES):
            await asyncio.gather(*(alloy.event(xdm=PURCHASE) for _ in range(100 if size > 10_000 else 1)))
    fullest = max(map(len, transport.bodies))
    return [body for body in transport.bodies if len(body) > 0.9 * fullest][:BODIES]
