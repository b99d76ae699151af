"""The only file that imports aiohttp; its exceptions end here. Installed by the extra ``aiohttp``."""

from __future__ import annotations

import asyncio
import math
import os
import ssl
from collections.abc import Callable
from functools import partial
from urllib.request import getproxies, proxy_bypass

from ..errors import ConfigurationError, NetworkError
from ..settings import Settings
from ._answers import BoundedBody, flat_headers, origin
from ._loop_bound import LoopBound
from ._trust import heeds_environment, load_bundle, unusable_proxy
from .transport import EdgeRequest, EdgeResponse, Withdrawn

_missing = ConfigurationError(
    "transport: needs the extra aiohttp: pip install 'alloy-async[aiohttp]'", option="transport"
)
try:
    import aiohttp
    import certifi
    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.http import StreamWriter
    from yarl import URL
except ImportError:
    raise _missing from None
if not hasattr(aiohttp.BytesPayload, "write_with_length"):
    # Before 3.12 the head is written before the body is asked for, and a refusal would come too late.
    raise _missing

__all__ = ["AiohttpTransport"]

_KEEP_ALIVE = 5.0
"""Seconds that an idle connection is kept, as in httpx."""

_LONGEST_HEADER = 65_536
"""Bytes; httpx takes about as much."""

_SENTENCES: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.ConnectionTimeoutError, "could not connect in time"),
    (aiohttp.ServerTimeoutError, "the edge did not answer in time"),
    (aiohttp.ServerDisconnectedError, "the edge closed the connection without an answer"),
    (aiohttp.ClientPayloadError, "the answer ended too early"),
    (aiohttp.ClientHttpProxyError, "the proxy refused to connect"),
    (aiohttp.ClientResponseError, "the answer is not HTTP"),
)
"""aiohttp's own words for these may hold parts of an answer, or a proxy's address with its password."""


class AiohttpTransport:
    """Sends requests through one ``aiohttp.ClientSession``, which is made with the first request.

    Args:
        settings: timeouts, proxy, certificates, bounds.

    Raises:
        ConfigurationError: the proxy or the certificates cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._line = LoopBound(partial(_Line, settings, _make_context(settings)), _Line.close)
        self._proxies = _Proxies(settings)
        self._limit = settings.max_answer_bytes
        self._timeout = settings.request_timeout
        self._longest = settings.connect_timeout + 2 * settings.request_timeout

    async def send(self, request: EdgeRequest, may_start: Callable[[], bool]) -> EdgeResponse:
        """Send a request and read its answer; see ``Transport``."""
        body = _AskingBody(request.body, may_start, self._timeout)
        try:
            # aiohttp's own timeout starts again with every byte of a header.
            async with asyncio.timeout(self._longest):
                return await self._exchange(request, body)
        except aiohttp.ClientError as error:
            problem = _describe(error)
        except TimeoutError:
            problem = "the exchange took too long"
        # Raised out here, without a cause: aiohttp's own errors lead to the request, and so to the visitor's events.
        if body.withdrawn:
            raise Withdrawn
        raise NetworkError(origin(request.url), problem)

    async def aclose(self) -> None:
        """Close connections."""
        await self._line.aclose()

    async def _exchange(self, request: EdgeRequest, body: _AskingBody) -> EdgeResponse:
        deadline = asyncio.get_running_loop().time() + self._timeout
        line = await self._line.get()
        url = URL(request.url, encoded=True)
        async with line.slots:
            response = await line.session.post(
                url,
                data=body,
                headers=request.headers,
                allow_redirects=False,
                proxy=self._proxies.leading_to(url),
            )
            try:
                return await self._read(response, deadline)
            finally:
                response.close()  # does nothing to the connection of an answer that was read to its end

    async def _read(self, response: aiohttp.ClientResponse, deadline: float) -> EdgeResponse:
        headers = flat_headers(response.raw_headers)
        body = BoundedBody(response.status, headers, self._limit)
        while not response.content.at_eof():
            body.feed(await response.content.readany())
            # aiohttp's own timeout starts again with every byte that drips in.
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError
        return EdgeResponse(response.status, headers, body.whole())


class _AskingBody(aiohttp.BytesPayload):
    """A body that asks whether it may go, when aiohttp takes it to write it.

    That is the one place which is exact. aiohttp keeps the head until the first bytes of the body come and writes both
    with one call; nothing is awaited between our question and that call. Neither trace signals nor middlewares nor
    ``ClientRequest.send`` will do: before Python 3.12 the body is written by a task that starts a turn of the loop
    later, and a refusal fits into that turn. A body that raises costs the connection, which is closed, never used
    again. tests/integration/test_aiohttp.py looks at the bytes, and would notice if a new aiohttp wrote earlier.

    Args:
        value: the bytes.
        may_start: asked right before the request's first byte is written.
        patience: seconds that the edge may take to accept the bytes; aiohttp sets no bound to that.

    Attributes:
        withdrawn: whether the answer was no.
    """

    def __init__(self, value: bytes, may_start: Callable[[], bool], patience: float) -> None:
        super().__init__(value)
        self.withdrawn = False
        self._bytes = value
        self._may_start = may_start
        self._patience = patience

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Ask, and write everything."""
        assert isinstance(writer, StreamWriter)  # noqa: S101 - tells type checkers about its transport
        if not self._may_start():
            self.withdrawn = True
            raise Withdrawn
        await writer.write(self._bytes, drain=False)
        if writer.transport is not None and writer.transport.get_write_buffer_size():
            async with asyncio.timeout(self._patience):
                await writer.drain()


class _Proxies:
    """Finds the proxy that leads to a host: the one that is set, or the environment's, as httpx does.

    Args:
        settings: the proxy.

    Raises:
        ConfigurationError: a proxy cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._fixed = None if settings.proxy is None else _check_proxy(settings.proxy)
        heeded = getproxies() if self._fixed is None and heeds_environment(settings) else {}
        self._environment = {
            scheme: _check_proxy(address if "://" in address else f"http://{address}")
            for scheme, address in heeded.items()
            if scheme in {"http", "https", "all"}
        }
        self._known: dict[str, URL | None] = {}

    def leading_to(self, url: URL) -> URL | None:
        """Return the proxy for an address; a few hosts are all that is ever asked for."""
        if self._fixed is not None or not self._environment:
            return self._fixed
        host = url.host or ""
        if host not in self._known:
            proxy = self._environment.get(url.scheme, self._environment.get("all"))
            self._known[host] = None if proxy_bypass(host) else proxy
        return self._known[host]


def _check_proxy(address: str) -> URL:
    try:
        proxy = URL(address)
    except ValueError:
        proxy = URL()  # refused below, outside: the error holds the address, and with it a password
    if proxy.scheme not in {"http", "https"} or not proxy.host:
        raise unusable_proxy('http or https (for socks5 use transport="httpx")')
    return proxy


class _Line:
    """A session, made in the loop that runs, and as many slots as it has connections.

    Who waits for a slot is not connecting yet, so that connect_timeout means name look-up, TCP and TLS alone.
    """

    def __init__(self, settings: Settings, context: ssl.SSLContext) -> None:
        self.slots = asyncio.Semaphore(settings.max_in_flight)
        self.session = aiohttp.ClientSession(
            connector=_make_connector(settings, context),
            timeout=aiohttp.ClientTimeout(
                connect=settings.connect_timeout, sock_read=settings.request_timeout, ceil_threshold=math.inf
            ),
            cookie_jar=aiohttp.DummyCookieJar(),  # one visitor's cookie must never travel with another's event
            auto_decompress=False,  # of a few kilobytes it could make gigabytes
            trust_env=False,  # would read .netrc, and look for proxies in a thread, for each request
            max_line_size=_LONGEST_HEADER,
            max_field_size=_LONGEST_HEADER,
        )

    async def close(self) -> None:
        await self.session.close()


def _make_connector(settings: Settings, context: ssl.SSLContext) -> aiohttp.TCPConnector:
    return aiohttp.TCPConnector(
        limit=settings.max_in_flight,
        keepalive_timeout=_KEEP_ALIVE,
        ssl=context,
        resolver=aiohttp.ThreadedResolver(),  # asks the operating system, whatever else is installed
    )


def _make_context(settings: Settings) -> ssl.SSLContext:
    """Believe the certificates that httpx would believe, and verify with them."""
    if settings.ca_bundle is not None:
        context = load_bundle(settings.ca_bundle)
    else:
        environment = os.environ if heeds_environment(settings) else {}
        file, folder = environment.get("SSL_CERT_FILE"), environment.get("SSL_CERT_DIR")
        if file:
            folder = None
        elif not folder:
            file = certifi.where()
        context = ssl.create_default_context(cafile=file or None, capath=folder)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _describe(error: aiohttp.ClientError) -> str:
    """Say what happened, in words that hold nothing of request or answer."""
    for kind, sentence in _SENTENCES:
        if isinstance(error, kind):
            return sentence
    name = type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"{name}: {error}"  # host, port, and what the operating system or OpenSSL said
    if isinstance(error, OSError) and error.errno is not None:
        return f"{name}: {os.strerror(error.errno)}"
    return name
