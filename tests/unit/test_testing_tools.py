"""The tools that ship for tests: clock, identifiers, the edge in memory and the edge on a socket."""

import asyncio
import json
import uuid

import httpx
import pytest
from common import IDS, settle

from alloy_async import Alloy
from alloy_async.edge import EdgeRequest, EdgeResponse, Withdrawn
from alloy_async.errors import EdgeError, NetworkError
from alloy_async.testing import (
    Chunked,
    CountingIds,
    Cut,
    Drip,
    LoopbackEdge,
    ManualClock,
    RecordingEdge,
    Reset,
)

BODY = {"events": [{"xdm": {"eventType": "a", "_id": "1"}}]}
OK = EdgeResponse(200, {"content-type": "application/json"}, b'{"requestId":"r-1","handle":[]}')


def request_to(action, base="http://edge"):
    return EdgeRequest(
        f"{base}/ee/v1/{action}?configId=c&requestId=r%2F1", {"x-odd": "1"}, json.dumps(BODY).encode()
    )


class TestManualClock:
    """Time that a test controls."""

    def test_stands_still(self):
        """Both times stay what they are until the clock is advanced."""
        clock = ManualClock(start=100.0)
        assert (clock.time(), clock.monotonic()) == (100.0, 0.0)
        clock.advance(2.5)
        assert (clock.time(), clock.monotonic()) == (102.5, 2.5)

    def test_calls_what_is_due_in_order(self, clock):
        """Calls are made in the order of their moments, equal moments in the order in which they were arranged."""
        heard = []
        for name, delay in (("c", 3), ("a", 1), ("b", 2), ("a2", 1), ("late", 9)):
            clock.call_later(delay, lambda name=name: heard.append((name, clock.monotonic())))
        clock.advance(3)
        assert heard == [("a", 1), ("a2", 1), ("b", 2), ("c", 3)]
        clock.advance(5.5)
        assert len(heard) == 4
        clock.advance(0.5)
        assert heard[-1] == ("late", 9)

    def test_calls_what_a_call_arranges(self, clock):
        """A call that arranges another one within the same span is followed by it, at its own moment."""
        heard = []
        clock.call_later(
            1, lambda: clock.call_later(0, lambda: clock.call_later(1, lambda: heard.append(clock.time())))
        )
        start = clock.time()
        clock.advance(10)
        assert heard == [start + 2]
        assert clock.monotonic() == 10

    def test_cancelled_call_is_not_made(self, clock):
        """A call that was cancelled, also by another call of the same moment, is not made."""
        heard = []
        early = clock.call_later(1, lambda: heard.append("cancelled"))
        clock.call_later(2, lambda: late.cancel())  # noqa: PLW0108 - it is made in the next line
        late = clock.call_later(2, lambda: heard.append("cancelled by another"))
        early.cancel()
        clock.advance(5)
        assert heard == []


def test_counting_ids_are_distinct_valid_uuids():
    """Identifiers count from one, and each is a UUID of version 4."""
    ids = CountingIds()
    made = [ids() for _ in range(3)]
    assert made[0] == "00000000-0000-4000-8000-000000000001"
    assert [uuid.UUID(text).version for text in made] == [4, 4, 4]
    assert [int(text[-12:]) for text in made] == [1, 2, 3]


class TestRecordingEdge:
    """The edge in memory."""

    async def test_records_a_request(self, edge):
        """A request is recorded with its action, parameters, JSON and size."""
        request = request_to("interact")
        await edge.send(request, lambda: True)
        (recorded,) = edge.requests
        assert (recorded.action, recorded.query) == ("interact", {"configId": "c", "requestId": "r/1"})
        assert (recorded.url, recorded.body, recorded.size) == (request.url, BODY, len(request.body))
        assert edge.event_types == ["a"]

    async def test_asks_before_it_takes_a_request(self, edge):
        """A request that may not start is neither recorded nor answered."""
        with pytest.raises(Withdrawn):
            await edge.send(request_to("collect"), lambda: False)
        assert edge.requests == []

    async def test_answers_by_action(self, edge):
        """Collect is answered with 204, the others with an ECID."""
        assert (await edge.send(request_to("collect"), lambda: True)).status == 204
        for action in ("interact", "acquire"):
            answer = json.loads((await edge.send(request_to(action), lambda: True)).body)
            (item,) = answer["handle"][0]["payload"]
            assert item["namespace"]["code"] == "ECID"
            assert len(item["id"]) == 38

    async def test_scripted_answers_come_first(self, edge):
        """Each answer in the script is given or raised once, in order, before the usual ones."""
        edge.answers = [OK, NetworkError("http://edge", "gone")]
        assert await edge.send(request_to("collect"), lambda: True) is OK
        with pytest.raises(NetworkError):
            await edge.send(request_to("collect"), lambda: True)
        assert (await edge.send(request_to("collect"), lambda: True)).status == 204

    async def test_held_answers_are_released_in_order(self, edge):
        """A held answer waits for its release; a count releases the oldest and goes on holding."""
        edge.hold()
        tasks = [asyncio.create_task(edge.send(request_to("collect"), lambda: True)) for _ in range(3)]
        await settle()
        assert (edge.holding, len(edge.requests)) == (3, 3)
        edge.release(1)
        await settle()
        assert [task.done() for task in tasks] == [True, False, False]
        edge.release()
        await settle()
        assert all(task.done() for task in tasks)
        await edge.send(request_to("collect"), lambda: True)
        assert edge.holding == 0

    async def test_cancelled_waiting_does_not_disturb_the_release(self, edge):
        """A request that is given up while its answer is held leaves the others waiting for theirs."""
        edge.hold()
        given_up, other = (
            asyncio.create_task(edge.send(request_to("collect"), lambda: True)) for _ in range(2)
        )
        await settle()
        given_up.cancel()
        await asyncio.wait([given_up])
        edge.release()
        assert (await other).status == 204

    async def test_notes_that_it_was_closed(self, edge):
        """Closing is seen."""
        assert not edge.closed
        await edge.aclose()
        assert edge.closed


@pytest.fixture
async def socket_edge():
    """An edge on a socket."""
    async with LoopbackEdge() as edge:
        yield edge


@pytest.fixture
async def client():
    """An HTTP client that looks at no environment."""
    async with httpx.AsyncClient(trust_env=False) as client:
        yield client


def post(client, edge, action="collect", content=None, **headers):
    url = f"{edge.url}/ee/v1/{action}?configId=c&requestId=r"
    content = json.dumps(BODY).encode() if content is None else content
    return asyncio.create_task(client.post(url, content=content, headers=headers))


@pytest.mark.integration
class TestLoopbackEdge:
    """The edge on a socket of this machine."""

    async def test_records_and_answers(self, socket_edge, client):
        """A request over the socket is recorded like one in memory, and answered likewise."""
        answer = await post(client, socket_edge, x_odd="1")
        assert (answer.status_code, answer.content) == (204, b"")
        (recorded,) = socket_edge.requests
        assert (recorded.action, recorded.query) == ("collect", {"configId": "c", "requestId": "r"})
        assert (recorded.body, socket_edge.event_types) == (BODY, ["a"])
        assert recorded.url.startswith(f"{socket_edge.url}/ee/v1/collect?")
        (arrival,) = socket_edge.arrivals
        assert arrival.headers["x_odd"] == "1"
        handle = (await post(client, socket_edge, "interact")).json()["handle"]
        assert handle[0]["type"] == "identity:result"

    async def test_counts_connections(self, socket_edge, client):
        """Requests one after the other share a connection; requests at the same time each have their own."""
        for _ in range(3):
            await post(client, socket_edge)
        assert (socket_edge.connections, socket_edge.started) == (1, 3)
        socket_edge.hold()
        tasks = [post(client, socket_edge) for _ in range(3)]
        await socket_edge.until(lambda: socket_edge.holding == 3)
        assert socket_edge.connections == 3
        assert {arrival.connection for arrival in socket_edge.arrivals[3:]} == {1, 2, 3}
        socket_edge.release()
        await asyncio.gather(*tasks)
        assert socket_edge.open_connections == 3
        await client.aclose()
        await socket_edge.until(lambda: socket_edge.open_connections == 0)

    async def test_connection_ends_when_the_client_asks_for_it(self, socket_edge, client):
        """A request with ``connection: close`` is the last one of its connection."""
        await post(client, socket_edge, connection="close")
        await post(client, socket_edge)
        assert socket_edge.connections == 2

    async def test_scripted_answer(self, socket_edge, client):
        """Status, headers and body come as they were written, and the usual answers follow."""
        socket_edge.answers = [EdgeResponse(429, {"retry-after": "7"}, b"slow down")]
        answer = await post(client, socket_edge)
        assert (answer.status_code, answer.headers["retry-after"], answer.text) == (429, "7", "slow down")
        assert (await post(client, socket_edge)).status_code == 204

    async def test_held_answers(self, socket_edge, client):
        """A held request is recorded, and answered when it is released."""
        socket_edge.hold()
        first = post(client, socket_edge)
        await socket_edge.until(lambda: socket_edge.holding == 1)
        second = post(client, socket_edge)
        await socket_edge.until(lambda: socket_edge.holding == 2)
        socket_edge.release(1)
        assert (await first).status_code == 204
        assert not second.done()
        socket_edge.release()
        assert (await second).status_code == 204

    async def test_reset_before_reading(self, socket_edge, client):
        """A reset at the beginning of a request breaks it, and nothing is recorded."""
        socket_edge.answers = [Reset.BEFORE_READING]
        with pytest.raises(httpx.TransportError):
            await post(client, socket_edge)
        assert (socket_edge.started, socket_edge.requests) == (1, [])
        assert (await post(client, socket_edge)).status_code == 204

    async def test_reset_after_reading(self, socket_edge, client):
        """A reset after a request has arrived breaks it, and it is recorded."""
        socket_edge.answers = [Reset.AFTER_READING]
        with pytest.raises(httpx.ReadError):
            await post(client, socket_edge)
        assert (socket_edge.started, len(socket_edge.requests)) == (1, 1)

    async def test_reset_really_resets(self, socket_edge):
        """The client's socket sees a reset, not an orderly end."""
        socket_edge.answers = [Reset.AFTER_READING]
        reader, writer = await asyncio.open_connection(*socket_edge.url.removeprefix("http://").split(":"))
        writer.write(b"POST /collect HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()

    async def test_cut_body(self, socket_edge, client):
        """A body that ends before its promised length breaks the answer."""
        socket_edge.answers = [Cut(OK, missing=5)]
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
            await post(client, socket_edge)
        assert len(socket_edge.requests) == 1

    @pytest.mark.parametrize("size", [1, 7, 1_000])
    async def test_chunked(self, socket_edge, client, size):
        """A chunked answer arrives whole, whatever the size of its chunks."""
        socket_edge.answers = [Chunked(OK, size)]
        answer = await post(client, socket_edge)
        assert answer.headers["transfer-encoding"] == "chunked"
        assert answer.content == OK.body
        await post(client, socket_edge)
        assert socket_edge.connections == 1

    async def test_dripping_body(self, socket_edge, client):
        """Each part of a dripping body arrives when the test feeds it, and the connection stays good."""
        drip = Drip(200, {"x-slow": "yes"})
        socket_edge.answers = [drip]
        async with client.stream(
            "POST", f"{socket_edge.url}/interact?requestId=r", content=json.dumps(BODY).encode()
        ) as answer:
            assert answer.headers["x-slow"] == "yes"
            parts = answer.aiter_raw()
            for part in (b"one", b"two"):
                drip.feed(part)
                assert await anext(parts) == part
            drip.end()
            assert [part async for part in parts] == []
        await post(client, socket_edge)
        assert socket_edge.connections == 1

    async def test_dripping_body_can_be_cut(self, socket_edge, client):
        """A dripping body that is cut breaks the answer."""
        drip = Drip()
        socket_edge.answers = [drip]
        drip.feed(b"half")
        drip.cut()
        with pytest.raises(httpx.RemoteProtocolError):
            await post(client, socket_edge)

    async def test_shut_door(self, socket_edge, client):
        """Behind a shut door connections are opened and nothing is read; all is answered once it is open."""
        socket_edge.shut()
        tasks = [post(client, socket_edge) for _ in range(2)]
        await socket_edge.until(lambda: socket_edge.connections == 2)
        await settle()
        assert socket_edge.started == 0
        socket_edge.open()
        assert [answer.status_code for answer in await asyncio.gather(*tasks)] == [204, 204]

    async def test_body_that_is_not_json_is_refused(self, socket_edge, client):
        """A body that is no JSON is answered with 400 and not recorded; the next one is recorded as itself."""
        assert (await post(client, socket_edge, content=b"{")).status_code == 400
        await post(client, socket_edge, x_odd="2")
        (arrival,) = socket_edge.arrivals
        assert arrival.headers["x_odd"] == "2"

    async def test_request_without_id_is_refused(self, socket_edge, client):
        """A request without ``requestId`` is answered with 400, as it is by the edge, unless the script says more."""
        content = json.dumps(BODY).encode()
        socket_edge.answers = [OK]
        statuses = [
            (await client.post(f"{socket_edge.url}/interact", content=content)).status_code for _ in range(2)
        ]
        assert statuses == [200, 400]

    async def test_body_beyond_the_reading_buffer(self, socket_edge, client):
        """A body larger than any buffer arrives whole."""
        content = json.dumps({"events": [], "filler": "x" * 300_000}).encode()
        await post(client, socket_edge, content=content)
        assert socket_edge.requests[0].size == len(content)

    async def test_client_that_leaves_half_way(self, socket_edge):
        """A client that goes away in the middle of a request leaves no trace but the count."""
        _, writer = await asyncio.open_connection(*socket_edge.url.removeprefix("http://").split(":"))
        writer.write(b"POST /collect HTTP/1.1\r\ncontent-length: 100\r\n\r\n{")
        await socket_edge.until(lambda: socket_edge.started == 1)
        writer.close()
        await socket_edge.until(lambda: socket_edge.open_connections == 0)
        assert socket_edge.requests == []

    async def test_closes_with_everything_under_way(self, client):
        """Leaving the block ends held, waiting and half-read requests, and leaves no task or socket behind."""
        before = asyncio.all_tasks()
        async with LoopbackEdge() as edge:
            await post(client, edge)
            edge.hold()
            held = post(client, edge)
            await edge.until(lambda: edge.holding == 1)
            edge.shut()
            waiting = post(client, edge)
            await edge.until(lambda: edge.connections == 2)
        for task in (held, waiting):
            with pytest.raises(httpx.TransportError):
                await task
        assert asyncio.all_tasks() <= before
        with pytest.raises(httpx.ConnectError):
            await client.post(edge_url(edge))

    def test_url_needs_a_server(self):
        """Without a server there is no address, and the error says what to do."""
        with pytest.raises(RuntimeError, match="async with"):
            _ = LoopbackEdge().url

    async def test_carries_alloy(self, socket_edge):
        """An instance with the real transport sends through it, and gets each event's own outcome."""
        async with Alloy() as alloy:
            await alloy.configure(**IDS, store="memory", endpoint=socket_edge.url, max_attempts=1)
            await alloy.event(type="first")
            socket_edge.answers = [Reset.AFTER_READING]
            with pytest.raises(NetworkError):
                await alloy.event(type="second")
            socket_edge.answers = [Cut(OK)]
            with pytest.raises((NetworkError, EdgeError)):
                await alloy.event(type="third", view_start=True)
        assert socket_edge.event_types == ["first", "second", "third"]


def edge_url(edge):
    """The last known address of an edge that is closed."""
    return edge.arrivals[0].request.url


def test_recording_edge_is_not_loopback():
    """The edge on a socket is no transport: handed over as one by mistake, it would never meet a socket."""
    assert hasattr(RecordingEdge(), "send")
    assert not hasattr(LoopbackEdge(), "send")
