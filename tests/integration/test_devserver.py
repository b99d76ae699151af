"""The development edge on a real socket: started, spoken to, stopped."""

import asyncio
import gc
import hashlib
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
import warnings

import httpx
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from alloy_async.devserver import (
    DevelopmentEdge,
    SQLiteFile,
    create_app,
    run,
    serving,
    throw_away_certificate,
)

pytestmark = pytest.mark.integration

COLLECT = "/ee/v1/collect?configId=ds"


def batch(start, count):
    return {"events": [{"xdm": {"_id": f"e-{n}"}} for n in range(start, start + count)]}


def threads():
    return {thread.name for thread in threading.enumerate()}


def raw_answer(url, request):
    """Speak HTTP by hand, for what a client library would never send."""
    with socket.create_connection(("127.0.0.1", httpx.URL(url).port), timeout=30) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    return answer


async def test_events_sent_by_many_clients_arrive_whole(caplog):
    """None is lost, none twice; when the block ends the port is free, no thread is left, and nothing was logged."""
    before = threads()
    edge = DevelopmentEdge()
    with serving(create_app(edge)) as server:
        assert server.url.startswith("http://127.0.0.1:")
        async with httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
            answers = await asyncio.gather(
                *(client.post(COLLECT, json=batch(n * 50, 50)) for n in range(100))
            )
            listing = (await client.get("/_dev/events")).json()
        assert "development-edge" in threads()
    assert {answer.status_code for answer in answers} == {204}
    assert {item["event"]["xdm"]["_id"] for item in listing["events"]} == {f"e-{n}" for n in range(5_000)}
    assert not any(item["duplicate"] for item in listing["events"])
    assert len(listing["events"]) == 5_000
    assert threads() == before
    # asyncio's debug mode speaks of slow callbacks, also of the test's own.
    assert [record for record in caplog.records if record.name != "asyncio"] == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url, trust_env=False)


def test_a_connection_that_stays_open_does_not_hold_up_the_end():
    """An idle keep-alive connection is closed by the server."""
    with httpx.Client(trust_env=False) as client:
        with serving(create_app()) as server:
            assert client.post(server.url + COLLECT, json=batch(0, 1)).status_code == 204
        assert "development-edge" not in threads()


def test_an_error_in_the_block_comes_out_and_the_server_stops():
    """The block's own exception, not one of ours."""
    with pytest.raises(ZeroDivisionError), serving(create_app()):
        raise ZeroDivisionError
    assert "development-edge" not in threads()


def test_the_database_is_closed_with_the_server(tmp_path):
    """The application's lifespan ends with the block; a second serving opens it again."""
    edge = DevelopmentEdge(sink=SQLiteFile(tmp_path / "edge.db"))
    app = create_app(edge)
    for count in (1, 2):
        with serving(app) as server:
            httpx.post(server.url + COLLECT, json=batch(count, 1), trust_env=False)
        assert len(edge.events) == count
        assert not (tmp_path / "edge.db-wal").exists()


def test_a_port_in_use_is_an_error_at_once():
    """With no server left behind."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=r"[Aa]ddress"), serving(create_app(), port=port):
            pytest.fail("served on a port in use")
        with pytest.raises(OSError, match=r"[Aa]ddress"):
            run(create_app(), port=port)
    assert "development-edge" not in threads()


def test_an_application_that_cannot_start_is_heard():
    """Instead of a block that waits for ever."""
    app = create_app()

    async def broken(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "broken on purpose"})

    app.router.lifespan = broken
    with pytest.raises(RuntimeError, match="did not start"), serving(app):
        pytest.fail("served an application that did not start")
    assert "development-edge" not in threads()


def test_rebinding_and_foreign_pages_fail_on_the_wire():
    """The checks hold behind the real HTTP parser, where Host and Origin come as a browser writes them."""
    with serving(create_app()) as server:
        authority = server.url.removeprefix("http://")
        trusted = f"GET /_dev/events HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n".encode()
        assert raw_answer(server.url, trusted).startswith(b"HTTP/1.1 200")
        for headers in (
            f"Host: rebound.example:{httpx.URL(server.url).port}",
            f"Host: {authority}\r\nOrigin: http://rebound.example",
            f"Host: {authority}\r\nOrigin: null",
            f"X-Forwarded-Host: {authority}\r\nHost: rebound.example",
        ):
            request = f"GET /_dev/events HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n".encode()
            assert raw_answer(server.url, request).startswith(b"HTTP/1.1 403")
        assert raw_answer(server.url, b"GET /_dev/events HTTP/1.0\r\n\r\n").split(b" ")[1] in {b"400", b"403"}


def test_a_gigabyte_is_refused_before_it_is_sent():
    """By its announced length, on the real socket."""
    with serving(create_app()) as server:
        head = (
            f"POST {COLLECT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            "Content-Length: 1073741824\r\nConnection: close\r\n\r\n"
        )
        answer = raw_answer(server.url, head.encode())
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"EXEG-0112-413" in answer


def test_it_speaks_https_when_it_gets_a_certificate():
    """To clients that trust its authority, under the names that it was made for; and no http."""
    pytest.importorskip("trustme")
    certificate = throw_away_certificate("edge.shop.test")
    with serving(create_app(), tls=certificate) as server:
        assert server.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cadata=certificate.authority)
        with httpx.Client(verify=trusting, trust_env=False, base_url=server.url) as client:
            assert client.post(COLLECT, json=batch(0, 1)).status_code == 204
            origin = {"Origin": server.url}
            assert len(client.get("/_dev/events", headers=origin).json()["events"]) == 1
            named = client.get("/", extensions={"sni_hostname": "edge.shop.test"})
            assert named.status_code == 307
        shown = ssl.get_server_certificate(("127.0.0.1", httpx.URL(server.url).port))
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(shown)).hexdigest()
        assert certificate.fingerprint.replace(":", "").lower() == digest
        with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
            httpx.get(server.url, trust_env=False)
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(server.url.replace("https", "http"), trust_env=False)


def test_the_key_is_shown_to_nobody():
    """Not by repr, and the file that the server reads is gone after the block."""
    pytest.importorskip("trustme")
    certificate = throw_away_certificate()
    assert "PRIVATE KEY" not in repr(certificate) + certificate.authority
    with certificate.as_file() as file:
        assert "PRIVATE KEY" in file.read_text()
        assert file.parent.stat().st_mode & 0o077 == 0
    assert not file.parent.exists()


def test_https_without_its_extra_is_a_clear_error(monkeypatch):
    """It names the command that mends it."""
    monkeypatch.setitem(sys.modules, "trustme", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'alloy-async\[tls\]'"):
        throw_away_certificate()


def test_ipv6_loopback_is_served_under_its_brackets():
    """Where the machine has it."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with serving(create_app(), host="::1") as server:
        assert server.url.startswith("http://[::1]:")
        assert httpx.get(f"{server.url}/_dev/events", trust_env=False).status_code == 200


FOREGROUND = """
import signal, sys
from alloy_async.devserver import DevelopmentEdge, SQLiteFile, create_app, run

handler = signal.getsignal(signal.SIGINT)
run(create_app(DevelopmentEdge(sink=SQLiteFile(sys.argv[1]))), port=0)
assert signal.getsignal(signal.SIGINT) is handler
print("returned", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_foreground_server_says_where_it_is_and_returns_on_a_signal(tmp_path, number):
    """It returns: no traceback, no death by signal; what it recorded is in the file."""
    command = [sys.executable, "-W", "error", "-c", FOREGROUND, str(tmp_path / "edge.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = process.stderr.readline()
            assert "loopback only" in said
            url = said.split()[3]
            assert httpx.post(url + COLLECT, json=batch(0, 2), trust_env=False).status_code == 204
            process.send_signal(number)
            out, rest = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out, rest) == (0, "returned\n", "")
    with DevelopmentEdge(sink=SQLiteFile(tmp_path / "edge.db")) as edge:
        assert [item["event"] for item in edge.events] == batch(0, 2)["events"]


def test_a_server_beyond_loopback_says_so(monkeypatch):
    """Once it serves; the line goes where the caller wants it."""
    monkeypatch.setattr(
        "alloy_async.devserver.server._Server.run", lambda server, sockets: server.when_ready()
    )
    said = []
    run(create_app(), host="0.0.0.0", port=0, announce=said.append)
    run(create_app(), port=0, announce=said.append)
    assert "NOT loopback" in said[0]
    assert "loopback only" in said[1]
    assert json.dumps(said[1]).count("http://127.0.0.1:") == 2


def test_nothing_of_it_warns():
    """Neither starting nor stopping leaves an open socket, file or loop behind."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with serving(create_app()):
                pass
        gc.collect()


def test_a_reader_of_the_feed_does_not_hold_up_the_end(caplog):
    """The stream ends when the server does; nobody has to be cut off after a grace."""
    with serving(create_app()) as server:
        stream = urllib.request.urlopen(f"{server.url}/_dev/feed")
        assert stream.readline() == b"event: hello\n"
    with stream:
        assert stream.read().endswith(b"\n\n")
    assert caplog.records == []
