"""An edge on a real socket of this machine, whose every step a test controls; no step of it waits for time."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Any, Self, TypeAlias

from ..edge.transport import EdgeRequest, EdgeResponse
from ._recording import RecordedRequest, RecordingEdge, _record

__all__ = ["Arrival", "Chunked", "Cut", "Drip", "LoopbackAnswer", "LoopbackEdge", "Reset"]

LOCAL = "127.0.0.1"

UNFIT = EdgeResponse(400, {"content-type": "text/plain"}, b"the body is not JSON, or requestId is missing")

_LEAVE_WITH_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, for no seconds: closing throws away what is unsent and tells the peer so with RST."""


class Reset(Enum):
    """The connection is reset instead of an answer."""

    BEFORE_READING = "before reading"
    """As soon as a request begins; it is not recorded."""
    AFTER_READING = "after reading"
    """Once the request has arrived and is recorded: the edge may have taken it, and nobody will say so."""


@dataclass(frozen=True, slots=True)
class Cut:
    """An answer whose content-length promises more than is sent, before the connection ends.

    Attributes:
        response: what is sent.
        missing: bytes that are promised and never sent.
    """

    response: EdgeResponse
    missing: int = 1


@dataclass(frozen=True, slots=True)
class Chunked:
    """An answer in chunked transfer coding.

    Attributes:
        response: what is sent.
        size: bytes of each chunk.
    """

    response: EdgeResponse
    size: int = 16


class Drip:
    """An answer whose body comes when the test says so, one chunk for each ``feed``.

    Args:
        status: HTTP status.
        headers: added to the answer.
    """

    def __init__(self, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.headers: dict[str, str] = dict(headers or {})
        self._parts: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._complete = False

    def feed(self, part: bytes) -> None:
        """Send the next part of the body."""
        self._parts.put_nowait(part)

    def end(self) -> None:
        """End the body as it should end."""
        self._complete = True
        self._parts.put_nowait(None)

    def cut(self) -> None:
        """End the connection in the middle of the body."""
        self._parts.put_nowait(None)

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield what is fed until the end.

        Raises:
            ConnectionAbortedError: the body was cut.
        """
        while (part := await self._parts.get()) is not None:
            yield part
        if not self._complete:
            raise ConnectionAbortedError


LoopbackAnswer: TypeAlias = EdgeResponse | Cut | Chunked | Drip | Reset
"""What may stand in ``LoopbackEdge.answers``."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and how it came.

    Attributes:
        request: what it said.
        headers: names in lower case.
        connection: the number of its connection; the first one is 1.
    """

    request: RecordedRequest
    headers: Mapping[str, str] = field(repr=False)
    connection: int


class LoopbackEdge:
    """An HTTP/1.1 server on a free port of 127.0.0.1 that remembers what it was sent.

    ::

        async with LoopbackEdge() as edge:
            await alloy.configure(..., endpoint=edge.url)

    It answers like ``RecordingEdge``. Put answers into ``answers`` to have them used first, one for each request in the
    order in which requests begin. ``hold()`` keeps answers back until ``release()``; ``shut()`` lets clients wait at
    the door until ``open()``. ``until()`` waits for something to happen here, so that no test needs to sleep.

    Attributes:
        answers: what to answer next.
        arrivals: every request that arrived whole, in order of arrival, with its headers and connection.
        connections: how many connections were opened so far.
        started: how many requests began so far, whole or not.
    """

    def __init__(self) -> None:
        self.answers: list[LoopbackAnswer] = []
        self.arrivals: list[Arrival] = []
        self.connections: int = 0
        self.started: int = 0
        self._recorder = RecordingEdge()
        self._server: asyncio.Server | None = None
        self._door = asyncio.Event()
        self._door.set()
        self._serving: set[asyncio.Task[None]] = set()
        self._watchers: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._welcome, LOCAL, 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)
            await self._server.wait_closed()

    @property
    def url(self) -> str:
        """Scheme, host and port; for ``configure(endpoint=...)``. Known once the server runs."""
        if self._server is None:
            raise RuntimeError("LoopbackEdge: the port is known inside `async with LoopbackEdge() as edge`.")
        return f"http://{LOCAL}:{self._server.sockets[0].getsockname()[1]}"

    @property
    def requests(self) -> list[RecordedRequest]:
        """Every request that arrived whole, in order of arrival."""
        return self._recorder.requests

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every event that arrived, in order."""
        return self._recorder.events

    @property
    def event_types(self) -> list[str | None]:
        """``xdm.eventType`` of every event that arrived, in order."""
        return self._recorder.event_types

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._serving)

    @property
    def holding(self) -> int:
        """How many requests wait for their answer."""
        return self._recorder.holding

    def hold(self) -> None:
        """Keep back the answers to requests that arrive from now on."""
        self._recorder.hold()

    def release(self, count: int | None = None) -> None:
        """Give the oldest held answers; all of them, and no longer hold any, when no count is given."""
        self._recorder.release(count)

    def shut(self) -> None:
        """Read nothing from connections that are opened from now on.

        The operating system still shakes hands with the client: what the client sees is a server that is slow to take
        notice of it.
        """
        self._door.clear()

    def open(self) -> None:
        """Read from the connections that waited, and no longer let any wait."""
        self._door.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on this edge holds; it is looked at whenever something happens here.

        ::

            await edge.until(lambda: edge.holding == 2)

        Args:
            condition: asked again after each connection, request and answer.
        """
        while not condition():
            watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._watchers.append(watcher)
            await watcher

    def _changed(self) -> None:
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)

    # One connection

    def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = _Connection(reader, writer, self.connections)
        task = asyncio.get_running_loop().create_task(self._serve(connection), name="loopback-connection")
        self._serving.add(task)
        task.add_done_callback(self._left)
        self._changed()

    def _left(self, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        self._changed()

    async def _serve(self, connection: _Connection) -> None:
        """Answer one request after the other, until one side has had enough."""
        try:
            await self._door.wait()
            while await self._serve_one(connection):
                self._changed()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left, or the test ended the connection
        finally:
            await connection.close()

    async def _serve_one(self, connection: _Connection) -> bool:
        """Read and answer one request; return whether another may follow."""
        first_line = await connection.first_line()
        if not first_line:
            return False
        self.started += 1
        scripted = self.answers.pop(0) if self.answers else None
        self._changed()
        if scripted is Reset.BEFORE_READING:
            connection.reset()
            return False
        headers = await connection.headers()
        body = await connection.body(headers)
        url = f"{self.url}{first_line.split()[1]}"
        usual = await self._usual(EdgeRequest(url, headers, body), connection.number)
        return await connection.answer(scripted or usual) and headers.get("connection") != "close"

    async def _usual(self, request: EdgeRequest, connection: int) -> EdgeResponse:
        """Record a request, wait while answers are held, and return the usual answer."""
        try:
            self.arrivals.append(Arrival(_record(request), request.headers, connection))
            # A turn later a held request is counted as held.
            asyncio.get_running_loop().call_soon(self._changed)
            return await self._recorder.send(request, lambda: True)
        except (ValueError, KeyError):
            return UNFIT


class _Connection:
    """Bytes in, bytes out."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.number = number
        self._reader = reader
        self._writer = writer

    async def first_line(self) -> str:
        """Return the request line; an empty text when the client has closed the connection."""
        return (await self._reader.readline()).decode("ascii").strip()

    async def headers(self) -> dict[str, str]:
        """Read the rest of the head."""
        headers: dict[str, str] = {}
        while line := (await self._reader.readline()).decode("latin-1").strip():
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        return headers

    async def body(self, headers: Mapping[str, str]) -> bytes:
        """Read the body. A client of an edge knows how long its body is, so that is the only form read here."""
        return await self._reader.readexactly(int(headers.get("content-length", "0")))

    async def answer(self, answer: LoopbackAnswer) -> bool:
        """Answer; return whether the connection is still good."""
        if isinstance(answer, Reset):
            self.reset()
            return False
        if isinstance(answer, EdgeResponse):
            await self._send(_head(answer, length=len(answer.body)) + answer.body)
            return True
        if isinstance(answer, Cut):
            response = answer.response
            await self._send(_head(response, length=len(response.body) + answer.missing) + response.body)
            return False
        await self._send_chunks(answer)
        return True

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        sock: socket.socket = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LEAVE_WITH_RESET)
        self._writer.transport.abort()

    async def close(self) -> None:
        """End the connection; what was written is still sent."""
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    async def _send_chunks(self, answer: Chunked | Drip) -> None:
        response = (
            answer.response
            if isinstance(answer, Chunked)
            else EdgeResponse(answer.status, answer.headers, b"")
        )
        await self._send(_head(response, length=None))
        async for part in _parts(answer):
            await self._send(b"%x\r\n%b\r\n" % (len(part), part))
        await self._send(b"0\r\n\r\n")

    async def _send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


async def _parts(answer: Chunked | Drip) -> AsyncIterator[bytes]:
    if isinstance(answer, Drip):
        async for part in answer.parts():
            yield part
        return
    body = answer.response.body
    for start in range(0, len(body), answer.size):
        yield body[start : start + answer.size]


def _head(response: EdgeResponse, length: int | None) -> bytes:
    """Write status line and headers; a length of None announces chunks."""
    headers = dict(response.headers)
    if length is None:
        headers["transfer-encoding"] = "chunked"
    elif response.status not in {204, 304}:  # these have no body, and must not say how long it is
        headers["content-length"] = str(length)
    lines = [f"HTTP/1.1 {response.status} ", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
