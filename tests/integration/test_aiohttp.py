"""Both ways to the edge, looked at from below: the moment of asking, bounds, proxies, certificates, and the end."""

from __future__ import annotations

import asyncio
import importlib
import random
import socket
import ssl
import subprocess
import sys

import pytest
from certificates import make_certificate
from common import IDS

from alloy_async import Alloy, ConfigurationError, ConsentDeclined, NetworkError
from alloy_async.edge import EdgeRequest, Withdrawn
from alloy_async.settings import Settings
from alloy_async.testing import LoopbackEdge

pytestmark = pytest.mark.integration

HEADERS = {"content-type": "application/json"}
BODY = b'{"events":[{"xdm":{}}],"more":"' + b"x" * 60_000 + b'"}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
HOME = {"httpx": ("_httpx", "HttpxTransport"), "aiohttp": ("_aiohttp", "AiohttpTransport")}


@pytest.fixture
async def loopback():
    async with asyncio.timeout(60), LoopbackEdge() as edge:
        yield edge


def make_transport(kind, endpoint, **more):
    pytest.importorskip(kind)
    module, name = HOME[kind]
    transport = getattr(importlib.import_module(f"alloy_async.edge.{module}"), name)
    return transport(Settings.resolve({**IDS, "endpoint": endpoint, **more}, {}))


@pytest.fixture(params=list(HOME))
async def make(request):
    """What makes transports; they are closed in the end."""
    made = []

    def remember(endpoint, **more):
        made.append(make_transport(request.param, endpoint, **more))
        return made[-1]

    yield remember
    for transport in made:
        await transport.aclose()


@pytest.fixture
async def make_aiohttp(make, request):
    if "[aiohttp" not in request.node.name:
        pytest.skip("of aiohttp only")
    return make


def post(endpoint, body=BODY):
    return EdgeRequest(f"{endpoint}/ee/v1/collect?configId=c&requestId=a%2Fb", HEADERS, body)


def yes():
    return True


class Answers(list):
    """Says what it was given, one answer after the other."""

    def __call__(self):
        return self.pop(0)


class Server:
    """Does with each connection what it is told, and remembers every byte."""

    def __init__(self, serve, room=65_536):
        self._room = room
        self.seen = b""
        self.connections = 0
        self._serve = serve
        self._left = asyncio.Event()
        self._serving = set()

    async def __aenter__(self):
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._room)
        listening.bind(("127.0.0.1", 0))
        self._server = await asyncio.start_server(self._welcome, sock=listening, limit=self._room)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._serving:
            task.cancel()
        await self._server.wait_closed()

    async def _welcome(self, reader, writer):
        self.connections += 1
        self._serving.add(asyncio.current_task())
        try:
            await self._serve(self, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._left.set()

    async def head(self, reader):
        head = await reader.readuntil(b"\r\n\r\n")
        self.seen += head
        return head

    async def remember_all(self, reader):
        while part := await reader.read(65_536):
            self.seen += part

    async def left(self):
        await self._left.wait()


# The moment of asking


async def test_the_url_is_sent_as_it_is(loopback, make):
    """Nobody quotes what is quoted."""
    transport = make(loopback.url)
    assert (await transport.send(post(loopback.url), yes)).status == 204
    assert loopback.requests[0].url.endswith("?configId=c&requestId=a%2Fb")


@pytest.mark.parametrize("kind", list(HOME))
async def test_a_refusal_before_connecting_connects_nothing(loopback, kind):
    """Not even the edge's port learns of it: whoever starts a request asks once more before it goes to the transport."""
    pytest.importorskip(kind)
    async with Alloy() as alloy:
        await alloy.configure(
            **IDS, endpoint=loopback.url, transport=kind, store="memory", opt_in_enabled=True
        )
        await alloy.opt_in(purposes="all")
        event = alloy.event(type="test")
        while not alloy.statistics().sending:
            await asyncio.sleep(0)  # its task has been made, and has not run
        refusal = alloy.opt_in(purposes="none")
        with pytest.raises(ConsentDeclined):
            await event
        await refusal
    assert loopback.connections == 0


@pytest.mark.parametrize("body", [BODY, b""])
async def test_a_refusal_while_connecting_writes_nothing(make, body):
    """The connection stands, and not one byte comes through it."""

    async def read_all(server, reader, writer):
        await server.remember_all(reader)

    async with asyncio.timeout(20), Server(read_all) as server:
        transport = make(server.url)
        with pytest.raises(Withdrawn) as caught:
            await transport.send(post(server.url, body), Answers([False]))
        assert caught.value.__cause__ is caught.value.__context__ is None
        await transport.aclose()
        await server.left()
        assert (server.connections, server.seen) == (1, b"")


async def test_a_refusal_on_a_used_connection_writes_nothing(loopback, make):
    """What was opened for one visitor does not carry another's event after the refusal; the next one goes."""
    transport = make(loopback.url)
    await transport.send(post(loopback.url), yes)
    with pytest.raises(Withdrawn):
        await transport.send(post(loopback.url), Answers([False]))
    assert (loopback.connections, loopback.started) == (1, 1)
    await transport.send(post(loopback.url), yes)
    assert loopback.started == len(loopback.requests) == 2


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
async def test_nothing_happens_between_the_question_and_the_first_byte(
    loopback, make_aiohttp, monkeypatch, used
):
    """The event loop takes no turn in between, in which a refusal could come; a new aiohttp might change that."""
    transport, log = make_aiohttp(loopback.url), []
    if used:
        await transport.send(post(loopback.url), yes)
    kind = asyncio.selector_events._SelectorSocketTransport
    write = kind.write

    def logged_write(self, data):
        if bytes(data[:5]) == b"POST ":
            log.append("written")
        write(self, data)

    def asked():
        log.append("asked")
        asyncio.get_running_loop().call_soon(log.append, "turn")
        return True

    def logged_lines(self, parts):
        logged_write(self, b"".join(parts))

    monkeypatch.setattr(kind, "write", logged_write)
    monkeypatch.setattr(kind, "writelines", logged_lines)
    await transport.send(post(loopback.url), asked)
    assert log.count("asked") == 1
    last = len(log) - log[::-1].index("asked")
    assert log[last] == "written"
    assert log.count("written") == 1


async def test_withdrawals_and_cancellations_leak_no_connection(loopback, make_aiohttp):
    """After hundreds of both, in every order, the pool is idle, and what was refused was never written."""
    generator, transport, allowed = random.Random(11), make_aiohttp(loopback.url), set()

    async def one(number):
        answers = generator.choice([[True], [False]])
        if answers == [True]:
            allowed.add(str(number))
        request = post(loopback.url, b'{"events":[{"xdm":{"eventType":"%d"}}]}' % number)
        async with asyncio.timeout(generator.choice([0, 0.002, 0.05, 20])):
            await transport.send(request, Answers(answers))

    outcomes = await asyncio.gather(*[one(number) for number in range(900)], return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {type(None), Withdrawn, TimeoutError}
    assert set(loopback.event_types) <= allowed
    assert sum(isinstance(outcome, Withdrawn) for outcome in outcomes) > 50
    connector = (await transport._line.get()).session.connector
    assert not connector._acquired
    assert not connector._waiters
    assert sum(map(len, connector._conns.values())) <= 8
    await asyncio.gather(*[transport.send(post(loopback.url), yes) for _ in range(16)])
    assert loopback.open_connections <= 8


# Bounds of time


async def test_no_answer_in_time(make):
    """A silent edge costs request_timeout."""

    async def silence(server, reader, writer):
        await server.remember_all(reader)

    async with asyncio.timeout(20), Server(silence) as server:
        transport = make(server.url, request_timeout=0.1)
        with pytest.raises(NetworkError, match="did not answer in time"):
            await transport.send(post(server.url), yes)


@pytest.mark.parametrize("dripping", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"])
async def test_an_answer_that_drips(make, dripping):
    """Bytes that come one by one, of a head or a body, do not keep a request alive."""

    async def drip(server, reader, writer):
        await server.head(reader)
        writer.write(dripping or b"HTTP/1.1 200 OK\r\nx-long: ")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with asyncio.timeout(20), Server(drip) as server:
        transport = make(server.url, request_timeout=0.1, connect_timeout=0.1)
        begun = asyncio.get_running_loop().time()
        with pytest.raises(NetworkError, match=r"too slowly|too long"):
            await transport.send(post(server.url), yes)
        assert asyncio.get_running_loop().time() - begun < 2


async def test_waiting_for_others_is_not_connecting(make):
    """Requests that find every connection in use wait longer than connecting may take."""

    async def slow(server, reader, writer):
        while await server.head(reader):
            await reader.readexactly(2)
            await asyncio.sleep(0.2)
            writer.write(ANSWER)

    async with asyncio.timeout(20), Server(slow) as server:
        transport = make(server.url, max_in_flight=1, connect_timeout=0.3)
        sending = [transport.send(post(server.url, b"{}"), yes) for _ in range(4)]
        assert [answer.status for answer in await asyncio.gather(*sending)] == [200] * 4
        await transport.aclose()
    assert server.connections == 1


async def test_an_edge_that_does_not_read(make):
    """A request that nobody takes fails after request_timeout too."""

    async def ignore(server, reader, writer):
        writer.transport.pause_reading()
        await asyncio.sleep(5)

    async with asyncio.timeout(20), Server(ignore, room=4_096) as server:
        transport = make(server.url, request_timeout=0.2, connect_timeout=15)
        sending = asyncio.create_task(transport.send(post(server.url, b"x" * 1_000_000), yes))
        done, _ = await asyncio.wait({sending}, timeout=3)
        assert done
        with pytest.raises(NetworkError):
            await sending


async def test_a_name_that_is_not_found_in_time(make, monkeypatch):
    """connect_timeout bounds the name look-up too."""

    async def hang(*args, **kwargs):
        await asyncio.sleep(60)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", hang)
    transport = make("https://edge.example", connect_timeout=0.1)
    async with asyncio.timeout(5):
        with pytest.raises(NetworkError, match=r"https://edge\.example"):
            await transport.send(post("https://edge.example"), yes)


# Answers


async def test_headers_are_joined_and_long_ones_taken(make):
    """Several headers of one name are one, and a few kilobytes are no reason to refuse an answer."""
    long = b"y" * 20_000

    async def serve(server, reader, writer):
        await server.head(reader)
        writer.write(
            b"HTTP/1.1 200 OK\r\nX-A: 1\r\nx-a: \xe9\r\nx-long: " + long + b"\r\ncontent-length: 2\r\n\r\n{}"
        )
        await server.remember_all(reader)

    async with asyncio.timeout(20), Server(serve) as server:
        answer = await make(server.url).send(post(server.url), yes)
    assert (answer.status, answer.body) == (200, b"{}")
    assert answer.headers["x-a"] == "1, é"
    assert len(answer.headers["x-long"]) == 20_000


async def test_an_answer_that_is_no_http(make):
    """It is a network error; what aiohttp says of it is not repeated, since it could be our own words come back."""

    async def serve(server, reader, writer):
        await server.head(reader)
        writer.write(b"secret words\r\n\r\n")
        await server.remember_all(reader)

    async with asyncio.timeout(20), Server(serve) as server:
        with pytest.raises(NetworkError) as caught:
            await make(server.url).send(post(server.url), yes)
    assert caught.value.__cause__ is caught.value.__context__ is None


# Proxies


async def serve_one(server, reader, writer):
    await server.head(reader)
    writer.write(ANSWER)
    await server.remember_all(reader)


@pytest.fixture
def no_proxy(monkeypatch):
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY", None])
async def test_a_proxy_is_used(make, monkeypatch, no_proxy, variable):
    """It is told the whole address, and gets its own password; whether set or found in the environment."""
    async with asyncio.timeout(20), Server(serve_one) as server:
        address, more = server.url.replace("//", "//user:hunter2@"), {}
        if variable is None:
            more = {"proxy": address}
        else:
            monkeypatch.setenv(variable, address)
        transport = make("http://edge.example", allow_insecure=True, **more)
        assert (await transport.send(post("http://edge.example"), yes)).body == b"{}"
    assert server.seen.startswith(b"POST http://edge.example/ee/v1/collect?")
    assert b"proxy-authorization: basic dxnlcjpodw50zxiy\r\n" in server.seen.lower()


async def test_an_address_without_scheme_is_a_proxy_too(make, monkeypatch, no_proxy):
    """As other programs take it."""
    async with asyncio.timeout(20), Server(serve_one) as server:
        monkeypatch.setenv("HTTP_PROXY", server.url.removeprefix("http://"))
        transport = make("http://edge.example", allow_insecure=True)
        assert (await transport.send(post("http://edge.example"), yes)).status == 200


async def test_the_environment_has_no_say_about_this_machine(loopback, make, monkeypatch, no_proxy):
    """A proxy does not hear what is said on loopback."""
    async with Server(serve_one) as server:
        monkeypatch.setenv("HTTP_PROXY", server.url)
        assert (await make(loopback.url).send(post(loopback.url), yes)).status == 204
        assert server.connections == 0


async def test_hosts_can_be_excepted_from_proxies(make, monkeypatch, no_proxy):
    """NO_PROXY names domains: the request goes past the proxy, here into the void."""
    async with asyncio.timeout(20), Server(serve_one) as server:
        monkeypatch.setenv("HTTP_PROXY", server.url)
        monkeypatch.setenv("NO_PROXY", "localhost,invalid")
        transport = make("http://edge.invalid", allow_insecure=True)
        for _ in range(2):
            with pytest.raises(NetworkError):
                await transport.send(post("http://edge.invalid"), yes)
        assert server.connections == 0


async def test_a_proxy_that_refuses_does_not_betray_its_password(make, no_proxy):
    """Neither the proxy's address nor what it answers is in the error."""

    async def refuse(server, reader, writer):
        await server.head(reader)
        writer.write(b"HTTP/1.1 407 who are you\r\ncontent-length: 0\r\n\r\n")
        await server.remember_all(reader)

    async with asyncio.timeout(20), Server(refuse) as server:
        transport = make("https://edge.example", proxy=server.url.replace("//", "//user:hunter2@"))
        with pytest.raises(NetworkError) as caught:
            await transport.send(post("https://edge.example"), yes)
    assert server.seen.startswith(b"CONNECT edge.example:443 ")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("proxy", ["ftp://user:hunter2@proxy", "http://[::hunter2"])
async def test_a_proxy_that_cannot_be_used(make, proxy):
    """It is said before anything is sent, without a password."""
    with pytest.raises(ConfigurationError, match="proxy: must be") as caught:
        make("https://edge.example", proxy=proxy)
    assert caught.value.option == "proxy"
    assert "hunter2" not in f"{caught.value}{caught.value.__cause__}{caught.value.__context__}"


@pytest.mark.parametrize("proxy", ["socks5://proxy.example:1080", "http://"])
async def test_socks_needs_the_other_transport(make_aiohttp, proxy):
    """The error says which one."""
    with pytest.raises(ConfigurationError, match='use transport="httpx"'):
        make_aiohttp("https://edge.example", proxy=proxy)


# Certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for localhost that nobody signed but itself, and its key."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
async def secure(certificate):
    """An address of a server that speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    async def welcome(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(welcome, "127.0.0.1", 0, ssl=context)
    async with asyncio.timeout(20):
        yield f"https://localhost:{server.sockets[0].getsockname()[1]}"
    server.close()


async def test_certificates_are_verified(secure, make):
    """A stranger's certificate is a network error, without a cause."""
    with pytest.raises(NetworkError, match=r"(?i)certificate.verify.failed") as caught:
        await make(secure).send(post(secure), yes)
    assert caught.value.__cause__ is caught.value.__context__ is None


async def test_certificates_can_be_given(secure, make, certificate):
    """One that the bundle holds is believed, for the names in it."""
    assert (await make(secure, ca_bundle=certificate[0]).send(post(secure), yes)).body == b"{}"
    elsewhere = secure.replace("localhost", "127.0.0.1")
    with pytest.raises(NetworkError, match=r"(?i)certificate"):
        await make(elsewhere, ca_bundle=certificate[0]).send(post(elsewhere), yes)


@pytest.mark.parametrize("heeded", [True, False])
async def test_the_environments_certificates(make, certificate, monkeypatch, tmp_path, heeded):
    """SSL_CERT_FILE counts outside this machine."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    if not heeded:
        make("https://localhost")
        return
    with pytest.raises(OSError, match="No such file"):
        make("https://edge.example")


# The end


async def test_what_is_forgotten_is_closed(loopback, request):
    """A transport that is dropped leaves no connection open, and no warning."""
    pytest.importorskip("aiohttp")
    transport = make_transport("aiohttp", loopback.url)
    await transport.send(post(loopback.url), yes)
    assert loopback.open_connections == 1
    del transport
    await loopback.until(lambda: loopback.open_connections == 0)


async def test_a_closed_transport_opens_nothing(loopback, make):
    """What comes after aclose fails, and aclose may come again."""
    transport = make(loopback.url)
    await transport.send(post(loopback.url), yes)
    await transport.aclose()
    await transport.aclose()
    with pytest.raises(RuntimeError):
        await transport.send(post(loopback.url), yes)
    assert loopback.connections == 1


@pytest.mark.parametrize("kind", list(HOME))
def test_each_loop_has_its_own_connections(kind):
    """A transport that is used in one loop after the other works in each."""
    pytest.importorskip(kind)
    made = []

    async def main():
        async with LoopbackEdge() as edge:
            if not made:
                made.append(make_transport(kind, edge.url))
            for _ in range(2):
                assert (await made[0].send(post(edge.url), yes)).status == 204
            return edge.connections

    assert [asyncio.run(main()), asyncio.run(main())] == [1, 1]
    asyncio.run(made[0].aclose())


END = """
import asyncio, logging, sys, warnings
warnings.simplefilter("error")
logging.getLogger("asyncio").setLevel(logging.ERROR)  # debug mode calls imports slow
from alloy_async.edge import EdgeRequest
from alloy_async.edge.{module} import {name}
from alloy_async.settings import Settings

async def main(url, kept, waiting):
    global transport, sending
    transport = {name}(Settings.resolve({{"config_id": "c", "ims_org_id": "o", "endpoint": url}}, {{}}))
    request = EdgeRequest(url + "/ee/v1/collect", {{}}, b'{{"events": []}}')
    await transport.send(request, lambda: True)
    print("sent", flush=True)
    if waiting:
        await asyncio.to_thread(sys.stdin.readline)
        sending = asyncio.create_task(transport.send(request, lambda: True))
        await asyncio.to_thread(sys.stdin.readline)
    if not kept:
        del transport

asyncio.run(main({url!r}, {kept}, {waiting}))
"""


@pytest.mark.parametrize("kind", list(HOME))
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("waiting", [False, True])
async def test_a_process_that_does_not_close_is_told_of_nothing(loopback, kind, kept, waiting):
    """No unclosed session, connection or socket is heard of, whatever was going on."""
    pytest.importorskip(kind)
    module, name = HOME[kind]
    script = END.format(module=module, name=name, url=loopback.url, kept=kept, waiting=waiting)
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = await asyncio.create_subprocess_exec(sys.executable, "-X", "dev", "-c", script, **pipes)
    said = await process.stdout.readline()
    loopback.hold()
    if waiting and said:
        process.stdin.write(b"\n")
        await loopback.until(lambda: loopback.holding == 1)
    _, complaints = await process.communicate(b"\n")
    assert (said, process.returncode, complaints.decode()) == (b"sent\n", 0, "")


@pytest.mark.parametrize("lack", ["missing", "old"])
def test_the_extra_must_be_there(monkeypatch, lack):
    """Without aiohttp, or with one that would ask too late, configure says what to install."""
    monkeypatch.delitem(sys.modules, "alloy_async.edge._aiohttp", raising=False)
    if lack == "missing":
        monkeypatch.setitem(sys.modules, "aiohttp", None)
    else:
        monkeypatch.delattr(pytest.importorskip("aiohttp").BytesPayload, "write_with_length")
        monkeypatch.delattr(sys.modules["aiohttp"].payload.Payload, "write_with_length")
    with pytest.raises(ConfigurationError, match="needs the extra aiohttp: pip install") as caught:
        importlib.import_module("alloy_async.edge._aiohttp")
    assert caught.value.option == "transport"
