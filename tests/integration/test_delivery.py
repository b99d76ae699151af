"""Delivery over real sockets, through each HTTP client that can be chosen."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import socket
from functools import partial

import httpcore
import httpx
import pytest
from common import IDS

from alloy_async import Alloy, ConsentDeclined, EdgeError, NetworkError
from alloy_async.edge import EdgeResponse
from alloy_async.stores import MemoryStore
from alloy_async.testing import Cut, LoopbackEdge, Reset

pytestmark = pytest.mark.integration


@pytest.fixture
async def loopback():
    async with asyncio.timeout(60), LoopbackEdge() as edge:
        yield edge


async def configured(edge, **more):
    """Return a configured instance; consent is asked for unless the test says otherwise."""
    alloy = Alloy()
    options = {**IDS, "opt_in_enabled": True, "endpoint": edge.url, "store": MemoryStore(), **more}
    await alloy.configure(**options)
    return alloy


@pytest.fixture(params=["httpx", "aiohttp"])
def opened(request):
    """What makes instances that send through one of the HTTP clients."""
    pytest.importorskip(request.param)
    return partial(configured, transport=request.param)


def answer(body, **headers):
    return EdgeResponse(200, {"content-type": "application/json", **headers}, body)


async def test_nothing_connects_before_consent(loopback, opened):
    """While the choice is unknown, and after a no, not even a connection is opened."""
    async with await opened(loopback) as alloy:
        events = [alloy.event(type=str(number)) for number in range(50)]
        await asyncio.sleep(0)
        assert loopback.connections == 0
        await alloy.opt_in(purposes="none")
        assert all(isinstance(event.exception(), ConsentDeclined) for event in events)
    assert (loopback.connections, loopback.started) == (0, 0)


async def test_released_events_arrive_in_order_and_fit(loopback, opened):
    """Thousands of parked events arrive in call order, in requests that the edge takes."""
    async with await opened(loopback, ordered=True) as alloy:
        events = [alloy.event(type=str(number), data={"n": "é" * (number % 700)}) for number in range(3_000)]
        await alloy.opt_in(purposes="all")
        results = await asyncio.gather(*events)
    assert loopback.event_types == [str(number) for number in range(3_000)]
    assert len({result.event_id for result in results}) == 3_000
    assert max(request.size for request in loopback.requests) <= 65_536


async def test_connections_are_used_again(loopback, opened):
    """One event after the other shares one connection."""
    async with await opened(loopback, opt_in_enabled=False) as alloy:
        for _ in range(30):
            await alloy.event(view_start=True)
    assert loopback.connections == 1


async def test_at_most_eight_connections(loopback, opened):
    """However many requests wait, no more connections are opened than requests may be on the wire."""
    async with await opened(loopback, opt_in_enabled=False) as alloy:
        await asyncio.gather(*[alloy.event(view_start=True) for _ in range(200)])
    assert 1 <= loopback.connections <= 8


async def test_cancelled_waits_leak_no_connection(loopback):
    """Callers that give up at random do not disturb exchanges: all is delivered, and the pool is idle in the end."""
    generator = random.Random(7)
    client = httpx.AsyncClient()
    async with client, await configured(loopback, opt_in_enabled=False, client=client) as alloy:

        async def caller(number):
            async with asyncio.timeout(generator.choice([0, 0.001, 5])):
                await alloy.event(type=str(number), view_start=number % 3 == 0)

        outcomes = await asyncio.gather(*[caller(number) for number in range(600)], return_exceptions=True)
        await alloy.flush()
        books = alloy.statistics()
        assert {type(outcome) for outcome in outcomes} <= {type(None), TimeoutError}
        assert books.delivered + books.cancelled == 600
        assert len(loopback.events) == books.delivered
        pool = client._transport._pool
        assert all(connection.is_idle() for connection in pool.connections)
        assert not pool._requests


async def test_a_refusal_while_connecting_stops_the_request(loopback):
    """Consent is asked again when the connection stands: nothing is written after the refusal."""

    class SlowToConnect(httpcore.AnyIOBackend):
        begun, goes_on = asyncio.Event(), asyncio.Event()

        async def connect_tcp(self, *args, **kwargs):
            stream = await super().connect_tcp(*args, **kwargs)
            self.begun.set()
            await self.goes_on.wait()
            return stream

    backend = SlowToConnect()
    transport = httpx.AsyncHTTPTransport()
    transport._pool = httpcore.AsyncConnectionPool(network_backend=backend)
    async with (
        httpx.AsyncClient(transport=transport) as client,
        await configured(loopback, client=client) as alloy,
    ):
        await alloy.opt_in(purposes="all")
        event = alloy.event()
        await backend.begun.wait()
        refusing = alloy.opt_in(purposes="none")
        backend.goes_on.set()
        await refusing
        await alloy.flush()
        assert isinstance(event.exception(), ConsentDeclined)
        await alloy.opt_in(purposes="all")
        await alloy.event(type="later")
    assert loopback.event_types == ["later"]
    assert loopback.started == 1


@pytest.mark.parametrize("reset", Reset)
async def test_a_reset_is_a_network_error(loopback, opened, reset):
    """A connection that is reset ends its events with an error that names the endpoint; the next one works."""
    async with await opened(loopback, opt_in_enabled=False, max_attempts=1) as alloy:
        loopback.answers.append(reset)
        with pytest.raises(NetworkError, match=loopback.url) as caught:
            await alloy.event()
        assert caught.value.__cause__ is caught.value.__context__ is None
        await alloy.event()


async def test_an_answer_that_is_cut_is_a_network_error(loopback, opened):
    """An answer that ends too early ends in one documented error."""
    async with await opened(loopback, opt_in_enabled=False, max_attempts=1) as alloy:
        loopback.answers.append(Cut(answer(b'{"handle": []}'), missing=10))
        with pytest.raises(NetworkError):
            await alloy.event()


@pytest.mark.parametrize("transport", ["httpx", "aiohttp"])
async def test_nobody_listens(transport):
    """A dead endpoint is named in the error."""
    pytest.importorskip(transport)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        alloy = Alloy()
        await alloy.configure(**IDS, endpoint=endpoint, store="memory", transport=transport, max_attempts=1)
        with pytest.raises(NetworkError, match=endpoint):
            await alloy.event()
        await alloy.aclose()


async def test_redirects_are_not_followed(loopback, opened):
    """A visitor's data never goes where a redirect points."""
    async with LoopbackEdge() as elsewhere, await opened(loopback, opt_in_enabled=False) as alloy:
        loopback.answers.append(EdgeResponse(307, {"location": elsewhere.url}, b""))
        with pytest.raises(EdgeError) as caught:
            await alloy.event()
        assert caught.value.status == 307
    assert elsewhere.connections == 0


async def test_cookies_never_travel(loopback, opened):
    """A cookie that the edge sets does not go with a later event."""
    async with await opened(loopback, opt_in_enabled=False) as alloy:
        loopback.answers.append(answer(b'{"handle": []}', **{"set-cookie": "sid=1; Path=/"}))
        await alloy.event()
        await alloy.event()
    assert [arrival.headers.get("cookie") for arrival in loopback.arrivals] == [None, None]


async def test_a_callers_cookies_never_travel(loopback):
    """Neither does one in a client's own jar, nor one that this client got from the edge."""
    async with httpx.AsyncClient(cookies={"session": "of somebody"}) as client:
        alloy = await configured(loopback, opt_in_enabled=False, client=client)
        loopback.answers.append(answer(b'{"handle": []}', **{"set-cookie": "sid=1; Path=/"}))
        await alloy.event()
        await alloy.event()
        await alloy.aclose()
    assert [arrival.headers.get("cookie") for arrival in loopback.arrivals] == [None, None]


async def test_netrc_is_not_read(loopback, opened, tmp_path, monkeypatch):
    """Credentials that lie around for other programs are not sent."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password hunter2\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    async with await opened(loopback, opt_in_enabled=False) as alloy:
        await alloy.event()
    assert "authorization" not in loopback.arrivals[0].headers


async def test_a_long_answer_is_not_read_to_its_end(loopback, opened):
    """An answer beyond the bound ends in an error that names the bound."""
    async with await opened(loopback, opt_in_enabled=False, max_answer_bytes=10_000) as alloy:
        loopback.answers.append(answer(b" " * 5_000_000))
        with pytest.raises(EdgeError, match="max_answer_bytes=10000"):
            await alloy.event()
        await alloy.event()


async def test_compressed_answers_are_bounded_too(loopback, opened):
    """A compressed answer that was not asked for is read, as long as it stays within the bound."""
    good = gzip.compress(json.dumps({"handle": [], "requestId": "r"}).encode())
    bomb = gzip.compress(b" " * 50_000_000)
    async with await opened(loopback, opt_in_enabled=False) as alloy:
        loopback.answers.append(answer(good, **{"content-encoding": "gzip"}))
        assert (await alloy.event()).request_id == "r"
        loopback.answers.append(answer(bomb, **{"content-encoding": "gzip"}))
        with pytest.raises(EdgeError, match="max_answer_bytes"):
            await alloy.event()
        loopback.answers.append(answer(b"not gzip", **{"content-encoding": "gzip"}))
        with pytest.raises(EdgeError, match="compression is damaged"):
            await alloy.event()
        loopback.answers.append(answer(b"x", **{"content-encoding": "br"}))
        with pytest.raises(EdgeError, match="compressed with br"):
            await alloy.event()


async def test_the_edge_is_told_what_it_needs(loopback, opened):
    """Headers and address are those of the protocol."""
    async with await opened(loopback, opt_in_enabled=False) as alloy:
        await alloy.event()
    arrival = loopback.arrivals[0]
    assert arrival.headers["content-type"] == "application/json"
    assert arrival.headers["user-agent"].startswith("alloy-async/")
    assert arrival.request.query["configId"] == IDS["config_id"]
    assert "/ee/v1/collect?" in arrival.request.url
