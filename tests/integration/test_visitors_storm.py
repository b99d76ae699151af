"""Thousands of visitors at once, two workers of uvicorn, Redis and a relay, and workers that are killed.

Each visitor makes one request after the other: views, purchases, yes, no, a change of mind, or silence. What reached the
edge is read from the bytes that came over the wire.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections import defaultdict
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis_server import redis_server

from alloy_async.testing import LoopbackEdge

for package in ("redis", "uvicorn", "typer"):
    pytest.importorskip(package)

pytestmark = pytest.mark.integration

VISITORS = int(os.environ.get("ALLOY_TEST_VISITORS", "10000"))  # read now: no variable of ours reaches a test
BROWSERS = 64
KILLS = 3
PATIENCE = 900.0
ARRIVAL = 60.0
"""Seconds after the last request in which all that is stored has come; a killed worker's events wait for its lease."""
HERE = Path(__file__).parent
CONSENT, CHOICE = "kndctr_ADB3_AdobeOrg_consent", "alloy_ADB3_AdobeOrg_choice"
LIVES = [
    "vv",  # silent
    "vYpvp",
    "vvYv",
    "Yvvp",
    "vN",
    "Nv",
    "vNvYvp",  # a change of mind
    "YvNvp",
    "YvNvYvp",
]
"""What visitors do: v view, p purchase, Y yes, N no."""


class Visitor:
    """A person with a browser: cookies, and what happened to each event that was called."""

    def __init__(self, number: int, life: str) -> None:
        self.name = f"session-{number}"
        self.life = life
        self.cookies: dict[str, str] = {}
        self.choice = "pending"
        self.said_no = self.said_yes = False
        self.parked: list[tuple[int, int]] = []  # number and worker
        self.must: list[int] = []  # in order, stored before they were answered
        self.should: list[tuple[int, int]] = []  # released by a yes, unless their worker was killed before
        self.must_not: set[int] = set()

    async def live(self, browser: Browser) -> None:
        """Do one thing after the other."""
        for number, deed in enumerate(self.life):
            if deed in "YN":
                await self._choose(browser, "all" if deed == "Y" else "none")
            else:
                await self._visit(browser, "view" if deed == "v" else "purchase", number)

    async def _visit(self, browser: Browser, kind: str, number: int) -> None:
        before = dict(self.cookies)
        answer = json.loads(await browser.request(self, f"/?{kind}={number}"))
        assert answer["choice"] == self.choice, (self.life, number, answer)
        if answer["stored"]:
            self.must.append(number)
        elif self.choice == "all":
            self.should.append((number, answer["worker"]))
        elif self.choice == "none":
            self.must_not.add(number)
        else:
            self.parked.append((number, answer["worker"]))
            assert self.cookies == before == {}, "nothing of ours before the choice"

    async def _choose(self, browser: Browser, purposes: str) -> None:
        await browser.request(self, "/consent", json.dumps({"purposes": purposes}))
        self.choice = purposes
        assert self.cookies.get(CONSENT) == f"general={'in' if purposes == 'all' else 'out'}", (
            self.life,
            purposes,
        )
        assert self.cookies[CHOICE].startswith(purposes)
        if purposes == "all":
            self.should += self.parked
        else:
            self.must_not |= {number for number, _ in self.parked}
            self.must, self.should = [], []  # what had not been sent is erased; what had is out
            assert set(self.cookies) == {CONSENT, CHOICE}, "a refusal deletes what identifies"
        self.parked = []


class Browser:
    """A connection that is kept, and made again when a worker has died."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, visitor: Visitor, path: str, body: str = "") -> str:
        """Make a request until it is answered: a browser repeats one whose connection broke before an answer."""
        while True:
            try:
                return await self._exchange(visitor, path, body)
            except (OSError, asyncio.IncompleteReadError):
                self.close()
                await asyncio.sleep(0.01)

    def close(self) -> None:
        """Leave."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _exchange(self, visitor: Visitor, path: str, body: str) -> str:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        lines = [
            f"{'POST' if body else 'GET'} {path} HTTP/1.1",
            "host: shop.example",
            f"x-session: {visitor.name}",
        ]
        if visitor.cookies:
            lines.append("cookie: " + "; ".join(f"{name}={value}" for name, value in visitor.cookies.items()))
        if body:
            lines += [
                "content-type: application/json",
                f"content-length: {len(body)}",
                "sec-fetch-site: same-origin",
            ]
        writer.write(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in head[1:])]
        answer = await reader.readexactly(int(dict(headers).get("content-length", "0")))
        assert head[0].split()[1] in {"200", "204"}, (head, answer)
        _take_cookies(visitor, [value for name, value in headers if name == "set-cookie"])
        return answer.decode()


def _take_cookies(visitor: Visitor, lines: list[str]) -> None:
    for line in lines:
        pair, *attributes = line.split("; ")
        name, _, value = pair.partition("=")
        if "max-age=0" in (attribute.lower() for attribute in attributes):
            visitor.cookies.pop(name, None)
        else:
            visitor.cookies[name] = value


@asynccontextmanager
async def running(*command: str, **environment: str):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *command,
        cwd=HERE,
        env=os.environ | environment,
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        await process.wait()


async def test_whatever_visitors_do(unused_tcp_port):
    """No event of a denied or silent visitor reaches the edge; every event that was answered as stored does, in order."""
    generator = random.Random(4)
    visitors = [Visitor(number, generator.choice(LIVES)) for number in range(VISITORS)]
    ids = ("--config-id", "ebebf826", "--org-id", "ADB3@AdobeOrg")
    with redis_server("--appendonly", "yes") as redis:
        async with asyncio.timeout(PATIENCE), LoopbackEdge() as edge:
            settings = {"ALLOY_REDIS_URL": redis.url, "ALLOY_ENDPOINT": edge.url, "ALLOY_ORDERED": "true"}
            serve = ("uvicorn", "storm_app:app", "--workers", "2", "--port", str(unused_tcp_port))
            async with (
                running(*serve, "--log-level", "error", **settings),
                running("alloy_async", "relay", *ids, **settings),
            ):
                killed = await _live(visitors, unused_tcp_port, generator)
                await _until_all_have_come(visitors, killed, edge)
    _check(visitors, edge)


async def _live(visitors: list[Visitor], port: int, generator: random.Random) -> set[int]:
    """Let all live, a few at a time; kill workers meanwhile, and return which."""
    killed: set[int] = set()
    waiting = iter(visitors)
    milestones = {VISITORS * (number + 1) // (KILLS + 1) for number in range(KILLS)}

    async def browse() -> None:
        browser = Browser(port)
        for number, visitor in enumerate(waiting):
            await visitor.live(browser)
            if (visitors.index(visitor) if number == 0 else int(visitor.name[8:])) in milestones:
                worker = json.loads(await browser.request(Visitor(-1, ""), "/?view=0"))["worker"]
                killed.add(worker)
                os.kill(worker, signal.SIGKILL)
        browser.close()

    await asyncio.gather(*(browse() for _ in range(BROWSERS)))
    return killed


async def _until_all_have_come(visitors: list[Visitor], killed: set[int], edge: LoopbackEdge) -> None:
    wanted = {(visitor.name, number) for visitor in visitors for number in visitor.must}
    wanted |= {
        (visitor.name, number)
        for visitor in visitors
        for number, worker in visitor.should
        if worker not in killed
    }
    deadline = asyncio.get_running_loop().time() + ARRIVAL
    while missing := wanted - _came(edge).keys():
        lives = {visitor.name: visitor.life for visitor in visitors}
        late = asyncio.get_running_loop().time() > deadline
        assert not late, [(name, number, lives[name]) for name, number in sorted(missing)[:20]]
        await asyncio.sleep(0.2)


def _came(edge: LoopbackEdge) -> dict[tuple[str, int], set[str]]:
    """Return the ids under which each event arrived."""
    came: dict[tuple[str, int], set[str]] = defaultdict(set)
    for event in edge.events:
        came[event["data"]["visitor"], event["data"]["number"]].add(event["xdm"]["_id"])
    return came


def _check(visitors: list[Visitor], edge: LoopbackEdge) -> None:
    came = _came(edge)
    order: dict[str, list[int]] = defaultdict(list)
    for event in edge.events:
        name, number = event["data"]["visitor"], event["data"]["number"]
        if number not in order[name]:
            order[name].append(number)
    fpids: dict[str, set[str]] = defaultdict(set)
    for event in edge.events:
        fpids[event["xdm"]["identityMap"]["FPID"][0]["id"]].add(event["data"]["visitor"])
    for visitor in visitors:
        silent = {number for number, _ in visitor.parked}
        for number in visitor.must_not | silent:
            assert (visitor.name, number) not in came, (visitor.life, number)
        arrived = [number for number in order[visitor.name] if number in visitor.must]
        assert arrived == visitor.must, (visitor.life, order[visitor.name])
    # A request that a browser repeated was called twice; otherwise an event has one id however often it came.
    assert sum(len(ids) > 1 for ids in came.values()) <= BROWSERS * KILLS
    assert all(len(people) == 1 for people in fpids.values())
