"""The only file that imports httpx; its exceptions end here."""

from __future__ import annotations

import asyncio
import ssl
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from ..errors import ConfigurationError, EdgeError, NetworkError
from ..settings import LOOPBACK, Settings
from .transport import EdgeRequest, EdgeResponse, Withdrawn

__all__ = ["HttpxTransport"]

_WRITING = "send_request_headers.started"
"""How httpcore announces, for HTTP/1.1 and HTTP/2, that a connected request is about to be written."""


class HttpxTransport:
    """Sends requests through one ``httpx.AsyncClient``.

    Args:
        settings: timeouts, proxy, certificates, bounds; ``client`` brings a client of the caller's.
    """

    def __init__(self, settings: Settings) -> None:
        self._client = _make_client(settings) if settings.client is None else _check_client(settings.client)
        self._owned = settings.client is None
        self._limit = settings.max_answer_bytes
        self._timeout = settings.request_timeout
        self._longest = settings.connect_timeout + 2 * settings.request_timeout

    async def send(self, request: EdgeRequest, may_start: Callable[[], bool]) -> EdgeResponse:
        """Send a request and read its answer; see ``Transport``."""
        check = _check_before_writing(may_start)
        outgoing = self._client.build_request(
            "POST",
            request.url,
            content=request.body,
            headers=dict(request.headers),
            extensions={"trace": check},
        )
        # Of a client that the caller brought, and whose jar may hold somebody's.
        outgoing.headers.pop("cookie", None)
        if not may_start():
            raise Withdrawn
        try:
            async with asyncio.timeout(self._longest):  # httpx' own starts again with every byte of a header
                return await self._exchange(outgoing)
        except TimeoutError:
            problem = "the answer came too slowly"
        except httpx.HTTPError as error:
            problem = _describe(error)
        # Raised out here, without a cause: httpx' own error holds the request, and with it the visitor's events.
        raise NetworkError(_origin(request.url), problem)

    async def aclose(self) -> None:
        """Close connections, unless the client belongs to the caller."""
        if self._owned:
            await self._client.aclose()

    async def _exchange(self, outgoing: httpx.Request) -> EdgeResponse:
        deadline = time.monotonic() + self._timeout
        response = await self._client.send(outgoing, stream=True, follow_redirects=False, auth=None)
        try:
            headers = {name.lower(): value for name, value in response.headers.items()}
            return EdgeResponse(response.status_code, headers, await self._read(response, deadline))
        finally:
            await response.aclose()
            if self._owned:
                self._client.cookies.clear()  # one visitor's cookie must never travel with another's event

    async def _read(self, response: httpx.Response, deadline: float) -> bytes:
        if response.is_stream_consumed:  # a mock that was made with its content
            return response.content
        read = bytearray()
        inflate = _decompressor(response)
        async for chunk in response.aiter_raw():
            try:
                read += chunk if inflate is None else inflate.decompress(chunk, self._limit + 1)
            except zlib.error:
                raise _unusable(response, "its compression is damaged") from None
            if time.monotonic() > deadline:  # httpx' own timeout starts again with every byte that drips in
                raise httpx.ReadTimeout("the answer came too slowly")
            if len(read) > self._limit:
                raise _unusable(response, f"it is longer than max_answer_bytes={self._limit}")
        return bytes(read)


def _check_client(client: object) -> httpx.AsyncClient:
    if isinstance(client, httpx.AsyncClient):
        return client
    raise ConfigurationError(
        f"client: must be an httpx.AsyncClient, not {type(client).__name__}.", option="client"
    )


def _make_client(settings: Settings) -> httpx.AsyncClient:
    limits = httpx.Limits(
        max_connections=settings.max_in_flight, max_keepalive_connections=settings.max_in_flight
    )
    return httpx.AsyncClient(
        verify=True if settings.ca_bundle is None else _trust(settings.ca_bundle),
        proxy=None if settings.proxy is None else _check_proxy(settings.proxy),
        limits=limits,
        # What the environment says about proxies is for the world outside: a proxy would be shown this machine's talk.
        trust_env=not LOOPBACK.fullmatch(urlsplit(settings.base_url()).hostname or ""),
        timeout=httpx.Timeout(settings.request_timeout, connect=settings.connect_timeout),
    )


def _trust(bundle: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(bundle))
    except OSError as error:  # ssl.SSLError is one
        problem = type(error).__name__
    raise ConfigurationError(
        f"ca_bundle: no certificates can be read from it ({problem}).", option="ca_bundle"
    )


def _check_proxy(url: str) -> httpx.Proxy:
    try:
        return httpx.Proxy(url)
    except (ValueError, httpx.InvalidURL):
        pass  # raised below, outside: their errors hold the address, and with it a password
    raise ConfigurationError(
        "proxy: must be an address such as http://proxy.example:3128, with http, https or socks5.",
        option="proxy",
    )


def _check_before_writing(may_start: Callable[[], bool]) -> Callable[[str, Any], Any]:
    async def trace(event: str, _: Any) -> None:
        # Connecting may take seconds, and a visitor may say no in that time.
        if event.endswith(_WRITING) and not may_start():
            raise Withdrawn

    return trace


def _decompressor(response: httpx.Response) -> Any:
    """Return what undoes the answer's compression in bounded steps, or None.

    We ask for none; a server that compresses all the same could make gigabytes of a few kilobytes.
    """
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding in {"", "identity"}:
        return None
    if encoding in {"gzip", "x-gzip", "deflate"}:
        return zlib.decompressobj(zlib.MAX_WBITS | 32)  # reads either by its first bytes
    raise _unusable(response, f"it is compressed with {encoding[:20]}, which was not asked for")


def _unusable(response: httpx.Response, problem: str) -> EdgeError:
    return EdgeError(
        response.status_code,
        title="the answer cannot be read",
        detail=f"{problem}; the edge may have taken the events",
        request_id=response.headers.get("x-request-id"),
    )


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _describe(error: httpx.HTTPError) -> str:
    kind = type(error).__name__
    text = str(error) or {"ReadTimeout": "the edge did not answer in time"}.get(kind, "")
    return f"{kind}: {text}" if text else kind
