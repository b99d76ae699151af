"""The only file on the way to the edge that imports httpx; its exceptions end here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from http.cookiejar import CookieJar
from typing import Any

import httpx

from ..errors import ConfigurationError, NetworkError
from ..settings import Settings
from ._answers import BoundedBody, flat_headers, origin
from ._loop_bound import LoopBound
from ._trust import heeds_environment, load_bundle, unusable_proxy
from .transport import EdgeRequest, EdgeResponse, Withdrawn

__all__ = ["HttpxTransport"]

_WRITING = "send_request_headers.started"
"""How httpcore announces, for HTTP/1.1 and HTTP/2, that a connected request is about to be written."""


class HttpxTransport:
    """Sends requests through ``httpx``.

    Args:
        settings: timeouts, proxy, certificates, bounds; ``client`` brings a client of the caller's.

    Raises:
        ConfigurationError: the client, the proxy or the certificates cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._way = _OwnClients(settings) if settings.client is None else _CallersClient(settings.client)
        self._limit = settings.max_answer_bytes
        self._timeout = settings.request_timeout
        self._longest = settings.connect_timeout + 2 * settings.request_timeout

    async def send(self, request: EdgeRequest, may_start: Callable[[], bool]) -> EdgeResponse:
        """Send a request and read its answer; see ``Transport``."""
        try:
            async with self._way.client() as client:  # for which others may have to end first
                return await self._send(client, request, may_start)
        except TimeoutError:
            problem = "the answer came too slowly"
        except httpx.HTTPError as error:
            problem = _describe(error)
        # Raised out here, without a cause: httpx' own error holds the request, and with it the visitor's events.
        raise NetworkError(origin(request.url), problem)

    async def aclose(self) -> None:
        """Close connections, unless the client belongs to the caller."""
        await self._way.aclose()

    async def _send(
        self, client: httpx.AsyncClient, request: EdgeRequest, may_start: Callable[[], bool]
    ) -> EdgeResponse:
        deadline = time.monotonic() + self._timeout
        outgoing = self._way.build(client, request, {"trace": _check_before_writing(may_start)})
        async with asyncio.timeout(self._longest):  # httpx' own starts again with every byte of a header
            response = await client.send(outgoing, stream=True, follow_redirects=False, auth=None)
            try:
                headers = flat_headers(response.headers.raw)
                body = await self._read(response, headers, deadline)
            finally:
                await response.aclose()
        return EdgeResponse(response.status_code, headers, body)

    async def _read(self, response: httpx.Response, headers: Mapping[str, str], deadline: float) -> bytes:
        if response.is_stream_consumed:  # a mock that was made with its content
            return response.content
        body = BoundedBody(response.status_code, headers, self._limit)
        async for chunk in response.aiter_raw():
            body.feed(chunk)
            if time.monotonic() > deadline:  # httpx' own timeout starts again with every byte that drips in
                raise httpx.ReadTimeout("the answer came too slowly")
        return body.whole()


class _OwnClients:
    """Clients of ours, with whose requests nobody else has a say; each has one connection and makes one request at a time.

    One client with a pool of them would cost more: at the beginning and at the end of each request httpcore looks at
    every idle connection once for every other one. With eight that is a third of all that a request takes.
    """

    def __init__(self, settings: Settings) -> None:
        make = partial(_Clients, _client_factory(settings), settings.max_in_flight)
        self._clients = LoopBound(make, _Clients.aclose)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        clients = await self._clients.get()
        client = await clients.take()
        try:
            yield client
        except BaseException:
            # Whether its connection is free again after a cancellation or a failure is not for us to know.
            await clients.discard(client)
            raise
        clients.give_back(client)

    @staticmethod
    def build(_: httpx.AsyncClient, request: EdgeRequest, extensions: dict[str, Any]) -> httpx.Request:
        """Build a request by itself, which is cheaper: the client has no headers, cookies or address to merge in."""
        return httpx.Request(
            "POST", request.url, headers=request.headers, content=request.body, extensions=extensions
        )

    async def aclose(self) -> None:
        await self._clients.aclose()


class _Clients:
    """The clients of one event loop. The one that was used last goes first, so that no more are open than are needed.

    Args:
        make: makes one.
        most: how many may be in use at once; whoever finds none waits.
    """

    def __init__(self, make: Callable[[], httpx.AsyncClient], most: int) -> None:
        self._make = make
        self._room = asyncio.Semaphore(most)
        self._idle: list[httpx.AsyncClient] = []
        self._lent: set[httpx.AsyncClient] = set()

    async def take(self) -> httpx.AsyncClient:
        """Return a client that nobody uses."""
        await self._room.acquire()
        try:
            client = self._idle.pop() if self._idle else self._make()
        except BaseException:
            self._room.release()
            raise
        self._lent.add(client)
        return client

    def give_back(self, client: httpx.AsyncClient) -> None:
        """Take one back whose request has come to its end."""
        self._lent.discard(client)
        self._idle.append(client)
        self._room.release()

    async def discard(self, client: httpx.AsyncClient) -> None:
        """Close one, whatever it is doing."""
        self._lent.discard(client)
        self._room.release()
        await client.aclose()

    async def aclose(self) -> None:
        """Close them all."""
        clients, self._idle = [*self._idle, *self._lent], []
        for client in clients:
            await client.aclose()


class _CallersClient:
    """A client that the caller brought, closes, and may have given headers of its own."""

    def __init__(self, client: object) -> None:
        self._client = _check_client(client)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        yield self._client

    @staticmethod
    def build(client: httpx.AsyncClient, request: EdgeRequest, extensions: dict[str, Any]) -> httpx.Request:
        outgoing = client.build_request(
            "POST", request.url, headers=request.headers, content=request.body, extensions=extensions
        )
        outgoing.headers.pop("cookie", None)  # its jar may hold somebody's
        return outgoing

    async def aclose(self) -> None:
        """Leave it open."""


class _NoCookies(CookieJar):
    """Keeps none: one visitor's cookie must never travel with another's event."""

    def extract_cookies(self, response: object, request: object) -> None:
        """Take nothing."""


def _check_client(client: object) -> httpx.AsyncClient:
    if isinstance(client, httpx.AsyncClient):
        return client
    raise ConfigurationError(
        f"client: must be an httpx.AsyncClient, not {type(client).__name__}.", option="client"
    )


def _client_factory(settings: Settings) -> Callable[[], httpx.AsyncClient]:
    """Return what makes clients; whatever is wrong with the settings is said now."""
    trust_env = heeds_environment(settings)
    # Made here: certificates take longer to load than a command may hold up the loop.
    bundle = settings.ca_bundle
    context = httpx.create_ssl_context(trust_env=trust_env) if bundle is None else load_bundle(bundle)
    make = partial(
        httpx.AsyncClient,
        verify=context,
        proxy=None if settings.proxy is None else _check_proxy(settings.proxy),
        limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
        cookies=_NoCookies(),
        trust_env=trust_env,
        timeout=httpx.Timeout(settings.request_timeout, connect=settings.connect_timeout),
    )
    make()  # hears now what is wrong with proxies of the environment, and imports what httpx imports late
    return make


def _check_proxy(url: str) -> httpx.Proxy:
    try:
        return httpx.Proxy(url)
    except (ValueError, httpx.InvalidURL):
        pass  # raised below, outside: their errors hold the address, and with it a password
    raise unusable_proxy("http, https or socks5")


def _check_before_writing(may_start: Callable[[], bool]) -> Callable[[str, Any], Any]:
    async def trace(event: str, _: Any) -> None:
        # Connecting may take seconds, and a visitor may say no in that time.
        if event.endswith(_WRITING) and not may_start():
            raise Withdrawn

    return trace


def _describe(error: httpx.HTTPError) -> str:
    kind = type(error).__name__
    text = str(error) or {"ReadTimeout": "the edge did not answer in time"}.get(kind, "")
    return f"{kind}: {text}" if text else kind
