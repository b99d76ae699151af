"""Faults on a real socket: what a client sees of a connection that is reset, cut or slow."""

import asyncio
import contextlib
import json
import select
import socket
import ssl
import threading
from datetime import timedelta

import httpx
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from alloy_async import Alloy
from alloy_async.devserver import (
    DevelopmentEdge,
    EdgeRequest,
    Fault,
    connection as connection_module,
    create_app,
    server as server_module,
    serving,
    throw_away_certificate,
)
from alloy_async.devserver.connection import offering_connections

pytestmark = pytest.mark.integration

COLLECT, INTERACT = "/ee/v1/collect?configId=ds", "/ee/v1/interact?configId=ds"
BODY = b'{"events": [{"xdm": {"_id": "e"}}]}'
PATIENCE = 60


def protocols():
    from uvicorn.protocols.http.h11_impl import H11Protocol

    yield pytest.param(H11Protocol, id="h11")
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        yield pytest.param(None, id="httptools", marks=pytest.mark.skip(reason="httptools is not installed"))
    else:
        yield pytest.param(HttpToolsProtocol, id="httptools")


@pytest.fixture(params=protocols(), autouse=True)
def protocol(request, monkeypatch):
    """Run each test over each of uvicorn's parsers."""
    offering = offering_connections(request.param)
    monkeypatch.setattr("alloy_async.devserver.server.offering_connections", lambda: offering)


@pytest.fixture
def edge():
    return DevelopmentEdge()


@pytest.fixture
def server(edge, caplog):
    with serving(create_app(edge)) as running:
        yield running
    # Asked-for trouble is no trouble of the server: no traceback, no complaint about an answer that was not given.
    records = [*caplog.get_records("call"), *caplog.records]
    unclean = [record.getMessage() for record in records if record.name.startswith("uvicorn")]
    assert [message for message in unclean if message != "Invalid HTTP request received."] == []


def connect(server):
    return socket.create_connection(("127.0.0.1", httpx.URL(server.url).port), timeout=PATIENCE)


def head(path, length, *more):
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *more]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def read_all(connection):
    answer = b""
    while piece := connection.recv(65_536):
        answer += piece
    return answer


def test_a_reset_before_the_body_is_read_does_not_wait_for_it(server, edge):
    """The client has sent the head alone, and its connection is reset; nothing of the body was asked for."""
    edge.faults.replace([Fault(reset="before")])
    with connect(server) as connection:
        connection.sendall(head(COLLECT, 1_000))
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert edge.events == []
    assert [(request["fault"], request["body"]) for request in edge.requests] == [("reset before", None)]


def test_a_reset_before_the_body_does_not_invite_it(server, edge):
    """A client that asks first, with ``Expect: 100-continue``, is not told to go on."""
    edge.faults.replace([Fault(reset="before")])
    with connect(server) as connection:
        connection.sendall(head(COLLECT, 1_000, "Expect: 100-continue"))
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_a_reset_after_the_body_comes_once_the_events_are_taken(server, edge):
    """The client sees a reset, and nobody tells it that the events have arrived."""
    edge.faults.replace([Fault(reset="after")])
    with connect(server) as connection:
        connection.sendall(head(COLLECT, len(BODY)))
        connection.sendall(BODY)
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert [item["event"]["xdm"]["_id"] for item in edge.events] == ["e"]


def test_a_reset_hits_one_connection_only(server, edge):
    """And the next request on a new one is answered."""
    edge.faults.replace([Fault(reset="after", times=1)])
    with connect(server) as other, httpx.Client(base_url=server.url, trust_env=False) as client:
        with pytest.raises(httpx.ReadError):
            client.post(COLLECT, content=BODY, headers={"content-type": "application/json"})
        other.sendall(head(COLLECT, len(BODY), "Connection: close") + BODY)
        assert read_all(other).startswith(b"HTTP/1.1 204")
    assert [item["duplicate"] for item in edge.events] == [False, True]


def test_a_cut_answer_promises_more_than_comes(server, edge):
    """Half of the body, then the end of the connection, without a reset."""
    edge.faults.replace([Fault(cut=True)])
    with connect(server) as connection:
        connection.sendall(head(INTERACT, len(BODY)) + BODY)
        top, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert top.startswith(b"HTTP/1.1 200")
    promised = next(
        int(line.split(b":")[1]) for line in top.splitlines() if line.startswith(b"content-length")
    )
    assert len(body) == promised // 2
    assert len(edge.events) == 1


def test_a_cut_answer_without_a_body_does_not_come(server, edge):
    """The connection ends in its place."""
    edge.faults.replace([Fault(cut=True)])
    with connect(server) as connection:
        connection.sendall(head(COLLECT, len(BODY)) + BODY)
        assert read_all(connection) == b""
    assert len(edge.events) == 1


def read_all_encrypted(connection, authority, request):
    """Send a request over https; read below the encryption, which would take a reset for an end."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    trusting = ssl.create_default_context(cadata=authority)
    encrypted = trusting.wrap_bio(incoming, outgoing, server_hostname="localhost")
    while True:
        try:
            encrypted.do_handshake()
            break
        except ssl.SSLWantReadError:
            connection.sendall(outgoing.read())
            incoming.write(connection.recv(65_536))
    encrypted.write(request)
    connection.sendall(outgoing.read())
    return read_all(connection)


@pytest.fixture
def certificate():
    pytest.importorskip("trustme")
    return throw_away_certificate()


def test_a_reset_over_https_is_one_of_the_connection_below(edge, certificate):
    """No farewell of the encryption comes before it."""
    edge.faults.replace([Fault(reset="after")])
    request = head(INTERACT, len(BODY)) + BODY
    expected = pytest.raises(ConnectionResetError)
    with serving(create_app(edge), tls=certificate) as server, connect(server) as connection, expected:
        read_all_encrypted(connection, certificate.authority, request)
    assert len(edge.events) == 1


def test_a_cut_answer_over_https_ends_early(edge, certificate):
    """The client misses the rest of the body."""
    edge.faults.replace([Fault(cut=True)])
    trusting = ssl.create_default_context(cadata=certificate.authority)
    expected = pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body")
    client = httpx.Client(verify=trusting, trust_env=False)
    with serving(create_app(edge), tls=certificate) as server, client, expected:
        client.post(server.url + INTERACT, json={"events": [{}]})
    assert len(edge.events) == 1


def test_a_slow_answer_comes_in_pieces_and_whole(server, edge):
    """It takes at least the time that was asked for."""
    edge.faults.replace([Fault(slow=40)])
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        answer = client.post(INTERACT, content=BODY, headers={"content-type": "application/json"})
    assert answer.json()["handle"]
    assert answer.elapsed >= timedelta(milliseconds=38)


async def test_latency_holds_up_nobody_else_and_ends_with_its_client(server, edge):
    """One client waits for an hour, another is answered; when the first leaves, the server forgets it."""
    edge.faults.replace([Fault(latency=3_600_000, path="/interact")])
    taken = asyncio.Event()
    loop = asyncio.get_running_loop()
    edge.faults.listen(lambda: loop.call_soon_threadsafe(taken.set))
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=PATIENCE) as client:
        waiting = asyncio.create_task(client.post(INTERACT, json={"events": [{}]}))
        await taken.wait()
        assert (await client.post(COLLECT, json={"events": [{}]})).status_code == 204
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    # The fixture ends the server: it would complain in its log if the request were still there.


async def test_the_library_delivers_in_spite_of_all_of_them(server, edge, tmp_path):
    """Each fault once, then a good answer: one event, the same id every time, and a result at the end."""
    faults = [
        Fault(reset="before", times=1),
        Fault(reset="after", times=1),
        Fault(status=503, retry_after=0, times=1),
        Fault(text="bad gateway", times=1),
    ]
    edge.faults.replace(faults)
    async with Alloy() as alloy:
        await alloy.configure(
            config_id="ds",
            ims_org_id="o@AdobeOrg",
            endpoint=server.url,
            opt_in_enabled=True,
            state_dir=tmp_path,
        )
        await alloy.opt_in(purposes="all")
        result = await asyncio.wait_for(alloy.event(type="commerce.purchases"), PATIENCE)
    assert [item["event"]["xdm"]["_id"] for item in edge.events] == [result.event_id] * 2
    assert [fault["acted"] for fault in edge.faults.as_json()["faults"]] == [1, 1, 1, 1]


def test_a_head_without_end_ends_the_connection(server):
    """It would fill the memory; others are answered meanwhile and afterwards."""
    with connect(server) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"POST /ee/v1/collect HTTP/1.1\r\n")
        while True:
            connection.sendall(b"x-long: " + b"x" * 8_192 + b"\r\n")
            if select.select([connection], [], [], 0)[0] and not connection.recv(65_536):
                break
    assert httpx.get(f"{server.url}/_dev/events", trust_env=False).status_code == 200


def test_who_is_not_done_when_the_server_stops_is_no_error(edge, monkeypatch, caplog):
    """A client that waits for a late answer is cut off after a while, without a traceback."""
    edge.faults.replace([Fault(latency=3_600_000)])
    arrived = threading.Event()
    edge.recorder.subscribe(arrived.set)

    def begin(connection):
        connection.sendall(head(COLLECT, len(BODY)) + BODY)
        assert arrived.wait(PATIENCE)

    stop_while_one_waits(edge, begin, monkeypatch)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_reader_that_no_longer_reads_is_no_error_when_the_server_stops(edge, monkeypatch, caplog):
    """A page in a browser that sleeps, with more of the feed to come than sockets take."""
    body = json.dumps({"events": [{"xdm": {"_id": f"{n}" + "x" * 5_000}} for n in range(4_000)]}).encode()
    edge.answer(EdgeRequest("POST", "/ee/v1/collect", {"configId": "ds"}, {}, body))

    def begin(connection):
        connection.sendall(b"GET /_dev/feed HTTP/1.1\r\nHost: localhost\r\n\r\n")
        read = b""
        while b"event: entries" not in read:
            read += connection.recv(1_024)

    stop_while_one_waits(edge, begin, monkeypatch)
    assert not [record for record in caplog.records if record.exc_info]


def stop_while_one_waits(edge, begin, monkeypatch):
    monkeypatch.setattr(server_module, "_GRACE", 0.1)
    with contextlib.ExitStack() as until_then:
        with serving(create_app(edge)) as running:
            connection = until_then.enter_context(connect(running))
            begin(connection)
        with pytest.raises(ConnectionResetError):
            read_all(connection)


def test_a_trailer_without_end_ends_the_connection(server):
    """It follows the last chunk of a body, and is a head of its own."""
    with connect(server) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(
            b"POST /ee/v1/collect HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
        )
        for _ in range(1_000):
            connection.sendall(b"x-long: " + b"x" * 8_192 + b"\r\n")
            if select.select([connection], [], [], 0)[0] and not connection.recv(65_536):
                break
        else:
            pytest.fail("eight megabytes of a trailer were read")
    assert httpx.get(f"{server.url}/_dev/events", trust_env=False).status_code == 200


def test_a_body_in_many_chunks_is_no_trailer(server, monkeypatch):
    """Whatever their sum."""
    monkeypatch.setattr(connection_module, "MAX_HEAD", 1_024)
    body = b'{"events":[{"xdm":{"x":"' + b"x" * 60_000 + b'"}}]}'
    pieces = (body[start : start + 500] for start in range(0, len(body), 500))
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server.url}{COLLECT}", content=pieces, headers=headers, trust_env=False)
    assert answer.status_code == 204


def test_connections_are_bounded(server, monkeypatch):
    """One too many is closed; there is room again when another goes."""
    monkeypatch.setattr(connection_module, "MAX_CONNECTIONS", 2)
    with connect(server) as first, connect(server):
        with connect(server) as third, contextlib.suppress(ConnectionResetError):
            assert third.recv(1) == b""
        first.sendall(b"GET /_dev/events HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        assert first.recv(12) == b"HTTP/1.1 200"
