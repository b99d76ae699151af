"""One client in a process of its own: ``python clients.py NAME JOB`` sends events, and prints what that took.

Run by ``side_by_side.py``. A client is an async context manager that gives a function ``send(count)``; this records so
many events, and returns how many were delivered once each has its outcome. Settings are the clients' defaults; only
addresses, keys and folders are given. Garbage collection stays on, as in real use.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import sys
import tempfile
import time
import tracemalloc
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from purchase import PURCHASE

Send = Callable[[int], Awaitable[int]]

IDS = {"config_id": "ebebf826-a01f-4458-8cec-ef61de241c93", "ims_org_id": "ADB3LETTERSANDNUMBERS@AdobeOrg"}
COLLECT = "/ee/v1/collect?configId=ebebf826-a01f-4458-8cec-ef61de241c93"
KEY = "benchmark"
PERSON = "visitor-1"

WINDOW = 10_000
"""Events that wait for their outcome at most: as many as the peers' queues take."""

TURN = 500
"""Events that are recorded before the event loop gets its turn."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a client is to do.

    Attributes:
        url: of the collector.
        measure: ``send``, or ``calls`` (CPU of a call that nobody awaits), or ``memory`` (bytes of a queued event).
        events: how many are sent while the clock runs.
        warm: how many are sent before.
        rate: events per second; 0: as fast as it goes.
        concurrency: coroutines, or connections, of clients that make one request at a time.
        visitors: persons whose events these are; 0: events name none.
        bodies: file with the bodies of requests, for clients that build none.
        fast: whether orjson may be used.
        options: more options of ``configure``.
    """

    url: str
    measure: str = "send"
    events: int = 1_000
    warm: int = 100
    rate: float = 0
    concurrency: int = 1
    visitors: int = 0
    bodies: str = ""
    fast: bool = False
    options: dict[str, Any] = field(default_factory=dict)


# This SDK


@asynccontextmanager
async def alloy(job: Job) -> AsyncIterator[Send]:
    """Give this SDK, with consent asked for and given; every future is awaited."""
    async with _opened(job) as client:
        events = itertools.cycle(_purchases(job.visitors))

        async def send(count: int) -> int:
            delivered, waiting = 0, deque[asyncio.Future[Any]]()
            for number in range(count):
                waiting.append(client.event(xdm=next(events)))
                if len(waiting) == WINDOW:
                    delivered += _is_delivered(await waiting.popleft())
                elif number % TURN == TURN - 1:
                    await asyncio.sleep(0)
            while waiting:
                delivered += _is_delivered(await waiting.popleft())
            return delivered

        async def send_paced(count: int) -> int:
            futures = await _paced(lambda: client.event(xdm=next(events)), count, job.rate)
            return sum([_is_delivered(await future) for future in futures])

        yield send_paced if job.rate else send


@asynccontextmanager
async def alloy_awaited(job: Job) -> AsyncIterator[Send]:
    """Give this SDK, each event awaited before the next one."""
    async with _opened(job) as client:

        async def send(count: int) -> int:
            return sum(
                [_is_delivered(await client.event(xdm=PURCHASE)) async for _ in _ticks(count, job.rate)]
            )

        yield send


@asynccontextmanager
async def _opened(job: Job) -> AsyncIterator[Any]:
    if not job.fast:
        sys.modules["orjson"] = None  # type: ignore[assignment]  # importing it fails, as where it is not installed
    else:
        import orjson  # noqa: F401 - missing, it would make this another measurement
    from alloy_async import Alloy

    with tempfile.TemporaryDirectory() as folder:
        client = Alloy("benchmark")
        await client.configure(**IDS, endpoint=job.url, state_dir=folder, opt_in_enabled=True, **job.options)
        await client.opt_in(purposes="all")
        yield client
        await client.aclose()


def _is_delivered(result: Any) -> bool:
    return not result.withheld


def _purchases(visitors: int) -> list[dict[str, Any]]:
    if not visitors:
        return [PURCHASE]
    return [
        PURCHASE | {"identityMap": {"CRMID": [{"id": f"{number:08}", "primary": True}]}}
        for number in range(visitors)
    ]


# The peers


@asynccontextmanager
async def segment(job: Job) -> AsyncIterator[Send]:
    """Give segment-analytics-python: a thread takes 100 events from a queue and posts them, one batch at a time."""
    from segment.analytics.client import Client

    client, lost = _segment(Client, job)

    async def send(count: int) -> int:
        queued = sum(client.track(PERSON, "purchase", PURCHASE)[0] for _ in range(count))
        client.flush()
        return queued - len(lost)

    yield send
    client.join()


def _segment(client: Any, job: Job) -> tuple[Any, list[Any]]:
    lost: list[Any] = []
    return client(KEY, host=job.url, on_error=lambda _, batch: lost.extend(batch)), lost


@asynccontextmanager
async def posthog_queued(job: Job) -> AsyncIterator[Send]:
    """Give AsyncPosthog: a task takes 100 events from a queue and posts them, one batch at a time."""
    from posthog import AsyncPosthog

    lost: list[Any] = []
    client = AsyncPosthog(KEY, host=job.url, on_error=lambda _, batch: lost.extend(batch))

    async def send(count: int) -> int:
        queued = [_captured(client) for _ in range(count)]
        await client.flush(timeout_seconds=None)
        return len(queued) - queued.count(None) - len(lost)

    yield send
    await client.shutdown()


@asynccontextmanager
async def posthog_awaited(job: Job) -> AsyncIterator[Send]:
    """Give AsyncPosthog's ``capture_immediate``, which ends once the event has been posted, alone."""
    from posthog import AsyncPosthog

    client = AsyncPosthog(KEY, host=job.url)

    async def one() -> int:
        sent = await client.capture_immediate("purchase", distinct_id=PERSON, properties=PURCHASE)
        return sent is not None

    yield lambda count: _side_by_side(one, count, job.concurrency)
    await client.shutdown()


def _captured(client: Any) -> str | None:
    return client.capture("purchase", distinct_id=PERSON, properties=PURCHASE)


@asynccontextmanager
async def snowplow(job: Job) -> AsyncIterator[Send]:
    """Give snowplow-tracker: the caller posts ten events at a time, on a new connection."""
    tracker, event, delivered = _snowplow(job, None)

    async def send(count: int) -> int:
        before = sum(delivered)
        for _ in range(count):
            tracker.track(event())
        tracker.flush()
        return sum(delivered) - before

    yield send


def _snowplow(job: Job, batch_size: int | None) -> tuple[Any, Callable[[], Any], list[int]]:
    from snowplow_tracker import EmitterConfiguration, SelfDescribing, SelfDescribingJson, Snowplow

    delivered: list[int] = []
    emitter = EmitterConfiguration(
        batch_size=batch_size, on_success=lambda batch: delivered.append(len(batch))
    )
    tracker = Snowplow.create_tracker(KEY, job.url, emitter_config=emitter)

    def event() -> Any:
        return SelfDescribing(SelfDescribingJson("iglu:com.example/purchase/jsonschema/1-0-0", PURCHASE))

    return tracker, event, delivered


# The limits


@asynccontextmanager
async def httpx_bodies(job: Job) -> AsyncIterator[Send]:
    """Give bare httpx: posts bodies that were built before, and nothing else."""
    import httpx

    async with httpx.AsyncClient(timeout=60) as client:
        bodies = _bodies(job)
        headers = {"content-type": "application/json"}

        async def one() -> int:
            body, events = next(bodies)
            answer = await client.post(job.url + COLLECT, content=body, headers=headers)
            return events if answer.status_code == 204 else 0

        slots = asyncio.Semaphore(job.concurrency)  # hundreds of requests at once would cost httpx far more

        async def one_in_its_slot() -> int:
            async with slots:
                return await one()

        async def send_paced(count: int) -> int:
            posts = await _paced(lambda: asyncio.create_task(one_in_its_slot()), count, job.rate)
            return sum([await post for post in posts])

        yield (
            send_paced
            if job.rate
            else lambda count: _side_by_side(one, _requests(job, count), job.concurrency)
        )


@asynccontextmanager
async def raw_socket(job: Job) -> AsyncIterator[Send]:
    """Give a socket: posts bodies that were built before, and settles a future for each event."""
    host, _, port = job.url.removeprefix("http://").rpartition(":")
    loop = asyncio.get_running_loop()
    bodies = _bodies(job)
    head = f"POST {COLLECT} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    connections = [
        (await loop.create_connection(_Answers, host, int(port)))[1] for _ in range(job.concurrency)
    ]

    async def one(connection: _Answers) -> int:
        body, events = next(bodies)
        futures = [loop.create_future() for _ in range(events)]
        connection.post(b"%bcontent-length: %d\r\n\r\n%b" % (head.encode(), len(body), body), futures)
        return sum([await future for future in futures])

    async def send(count: int) -> int:
        free = itertools.cycle(connections)
        return await _side_by_side(lambda: one(next(free)), _requests(job, count), job.concurrency)

    yield send
    for connection in connections:
        connection.transport.close()


class _Answers(asyncio.Protocol):
    """Settles the futures of the request that was answered; an answer is short enough to come in one piece."""

    def __init__(self) -> None:
        self._waiting: deque[list[asyncio.Future[bool]]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def post(self, request: bytes, futures: list[asyncio.Future[bool]]) -> None:
        self._waiting.append(futures)
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        taken = data.count(b"HTTP/1.1 204")
        for future in itertools.chain.from_iterable(self._waiting.popleft() for _ in range(taken)):
            future.set_result(True)


@asynccontextmanager
async def nothing(job: Job) -> AsyncIterator[Send]:
    """Give a client that sends nothing: what the pacing costs by itself."""

    async def send(count: int) -> int:
        await _paced(lambda: None, count, job.rate)
        return 0

    yield send


def _bodies(job: Job) -> Any:
    """Repeat the bodies of the file, each with the number of its events; a line holds one body."""
    bodies = Path(job.bodies).read_bytes().splitlines()
    return itertools.cycle([(body, body.count(b'"purchaseID"')) for body in bodies])


def _requests(job: Job, events: int) -> int:
    return -(-events // next(_bodies(job))[1])


async def _side_by_side(one: Callable[[], Awaitable[int]], count: int, concurrency: int) -> int:
    """Call ``one`` so many times, from so many coroutines; return the sum of what it returned."""
    left = iter(range(count))

    async def worker() -> int:
        return sum([await one() for _ in left])

    return sum(await asyncio.gather(*(worker() for _ in range(concurrency))))


async def _paced(record: Callable[[], Any], count: int, rate: float) -> list[Any]:
    return [record() async for _ in _ticks(count, rate)]


async def _ticks(count: int, rate: float) -> AsyncIterator[int]:
    """Give numbers, so many in a second."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    for number in range(count):
        delay = started + number / rate - loop.time() if rate else 0.0
        if delay > 0:
            await asyncio.sleep(delay)
        yield number


# Calls that nobody awaits, and what waits in a queue


@asynccontextmanager
async def alloy_calls(job: Job) -> AsyncIterator[Callable[[], Any]]:
    """Give ``event()`` while nothing is sent, because the event loop gets no turn."""
    async with _opened(job) as client:
        futures: list[asyncio.Future[Any]] = []

        def call() -> None:
            futures.append(client.event(xdm=PURCHASE))

        yield call
        for future in futures:
            await future


@asynccontextmanager
async def segment_calls(job: Job) -> AsyncIterator[Callable[[], Any]]:
    """Give ``track()`` while nothing is sent, because its thread has been ended."""
    from segment.analytics.client import Client

    client, _ = _segment(Client, job)
    client.join()
    yield lambda: client.track(PERSON, "purchase", PURCHASE)


@asynccontextmanager
async def posthog_calls(job: Job) -> AsyncIterator[Callable[[], Any]]:
    """Give ``capture()`` while nothing is sent, because the event loop gets no turn."""
    from posthog import AsyncPosthog

    client = AsyncPosthog(KEY, host=job.url)
    yield lambda: _captured(client)
    await client.shutdown()


@asynccontextmanager
async def snowplow_calls(job: Job) -> AsyncIterator[Callable[[], Any]]:
    """Give ``track()`` while nothing is sent, because its batch (ten by default) is made large."""
    tracker, event, _ = _snowplow(job, 9_999)
    yield lambda: tracker.track(event())


CLIENTS: dict[str, Callable[[Job], AbstractAsyncContextManager[Send]]] = {
    "alloy": alloy,
    "alloy awaited": alloy_awaited,
    "segment": segment,
    "posthog queued": posthog_queued,
    "posthog awaited": posthog_awaited,
    "snowplow": snowplow,
    "httpx": httpx_bodies,
    "raw socket": raw_socket,
    "nothing": nothing,
}
CALLS: dict[str, Callable[[Job], AbstractAsyncContextManager[Callable[[], Any]]]] = {
    "alloy": alloy_calls,
    "segment": segment_calls,
    "posthog queued": posthog_calls,
    "snowplow": snowplow_calls,
}


async def _measure(name: str, job: Job) -> dict[str, float]:
    if job.measure == "send":
        async with CLIENTS[name](job) as send:
            warm = await send(job.warm) if job.warm else 0
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            delivered = await send(job.events)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return {"warm": warm, "delivered": delivered, "cpu": cpu, "wall": wall}
    async with CALLS[name](job) as call:
        return _of_calls(call, job) if job.measure == "calls" else _of_memory(call, job)


def _of_calls(call: Callable[[], Any], job: Job) -> dict[str, float]:
    for _ in range(job.warm):
        call()
    wall, cpu = time.perf_counter(), time.thread_time()
    for _ in range(job.events):
        call()
    cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
    return {"cpu": cpu, "wall": wall}


def _of_memory(call: Callable[[], Any], job: Job) -> dict[str, float]:
    for _ in range(job.warm):
        call()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(job.events):
        call()
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return {"bytes": held}


def main() -> None:
    """Do a job, and print its numbers; or what is missing for it."""
    name, job = sys.argv[1], Job(**json.loads(sys.argv[2]))
    try:
        told: dict[str, Any] = asyncio.run(_measure(name, job), debug=False)
    except ImportError as error:
        told = {"absent": f"not installed ({error})"}
    except Exception as error:
        if type(error).__name__ != "ConfigurationError" or not job.options:
            raise
        told = {"absent": f"not there yet ({error})"}
    print(json.dumps(told), flush=True)
    if job.measure != "send":
        os._exit(0)  # what was queued stays unsent, and some clients would wait for it


if __name__ == "__main__":
    main()
