"""The way to Redis encrypted (``rediss://``), and to nobody whose certificate is not trusted."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import aclosing, suppress
from urllib.parse import urlsplit

import pytest

pytest.importorskip("redis")

from certificates import make_certificate
from common import IDS
from redis_server import redis_server

from alloy_async import Alloy
from alloy_async.errors import ConfigurationError, ConsentStoreError, OutboxError
from alloy_async.outbox.redis import RedisOutbox
from alloy_async.stores import VisitorKey
from alloy_async.stores.redis import RedisStore
from alloy_async.testing import RecordingEdge

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def server():
    with redis_server() as server:
        yield server


@pytest.fixture
async def port(server, certificate):
    """Where TLS is spoken: not every Redis that a machine has can do so by itself, so it ends in front of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    address = urlsplit(server.url)

    async def serve(reader, writer):
        if address.scheme == "unix":
            from_redis, to_redis = await asyncio.open_unix_connection(address.path)
        else:
            from_redis, to_redis = await asyncio.open_connection(address.hostname, address.port)
        await asyncio.gather(_pass_on(reader, to_redis), _pass_on(from_redis, writer))

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield listener.sockets[0].getsockname()[1]
    listener.close()


async def _pass_on(reader, writer):
    with suppress(OSError, asyncio.CancelledError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def test_choices_and_events_go_over_tls(server, port, certificate):
    """A CA of one's own is named in the URL, and all that store and outbox do works, messages of others too."""
    url = f"rediss://localhost:{port}/0?ssl_ca_certs={certificate[0]}"
    edge = RecordingEdge()
    async with Alloy("here") as here, Alloy("there") as there:
        for alloy in (here, there):
            await alloy.configure(
                **IDS, opt_in_enabled=True, store="redis", outbox="redis", redis_url=url, transport=edge
            )
        event = here.event(type="parked")
        await there.opt_in(purposes="all")
        assert (await event).event_id
    assert edge.event_types == ["parked"]
    assert server.keys()


@pytest.mark.parametrize(
    ("host", "ca", "reason"),
    [("localhost", False, "self-signed certificate"), ("127.0.0.1", True, "not valid for '127.0.0.1'")],
    ids=["an unknown CA", "another name"],
)
async def test_a_certificate_that_is_not_trusted_is_refused(server, port, certificate, host, ca, reason):
    """Nothing is told to such a server; the error has the reason and what to do, and no cause."""
    url = f"rediss://me:secret@{host}:{port}/0" + (f"?ssl_ca_certs={certificate[0]}" if ca else "")
    visitor = VisitorKey("o", "d")
    async with aclosing(RedisOutbox(url)) as outbox, aclosing(RedisStore(url)) as store:
        with pytest.raises(OutboxError) as in_outbox:
            await outbox.open()
        with pytest.raises(ConsentStoreError) as in_store:
            await store.load_preference(visitor)
    for caught in (in_outbox, in_store):
        said = str(caught.value)
        assert f"{host}:{port}" in said and "certificate is refused" in said and reason in said
        assert "?ssl_ca_certs=" in said and "secret" not in said
        assert caught.value.__cause__ is caught.value.__context__ is None
    assert server.keys() == []


@pytest.mark.parametrize("make", [RedisOutbox, RedisStore])
@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
def test_a_file_that_is_missing_is_named(tmp_path, make, option):
    """The URL is refused at once."""
    with pytest.raises(ConfigurationError, match=f"{option}={tmp_path}/none.pem") as caught:
        make(f"rediss://me:secret@localhost/0?{option}={tmp_path}/none.pem")
    assert "secret" not in str(caught.value)
