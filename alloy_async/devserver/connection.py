"""The connection below an application, for answers that end it. ASGI itself has no word for that.

An application may close nothing and reset nothing: it can only answer. So each connection of our server offers itself
in the scope, as the extension ``alloy.connection``, which ASGI leaves room for. Raising an exception instead would close
a connection too, never reset it, and would log a traceback for what was asked for.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Connection", "find_connection", "offering_connections"]

MAX_CONNECTIONS = 1_000
"""Open at once; the next one is closed."""

MAX_HEAD = 65_536
"""Bytes of a request's line and headers, as those that h11 reads."""

_NAME = "alloy.connection"
_LEAVE_WITH_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, for no seconds: closing throws away what is unsent and tells the peer so with RST."""


class Connection:
    """One connection of the server."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def reset(self) -> None:
        """End it with a TCP reset."""
        connected: socket.socket = self._transport.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LEAVE_WITH_RESET)
        self._transport.abort()

    def close(self) -> None:
        """End it once everything written has left."""
        self._transport.close()


def find_connection(scope: Scope) -> Connection | None:
    """Return the connection that a request came on; None where another server, or none, runs the application."""
    connection: Connection | None = scope.get("extensions", {}).get(_NAME)
    return connection


def offering_connections(protocol: type[asyncio.Protocol] = AutoHTTPProtocol) -> type[asyncio.Protocol]:
    """Make a protocol class whose requests offer their connection, and whose number and heads are bounded.

    Args:
        protocol: one of uvicorn's for HTTP/1.1; by default the one that uvicorn itself takes.
    """
    # The parser of h11 bounds heads itself; the other one, which says when a head begins, does not.
    bases = (_BoundedHead, protocol) if hasattr(protocol, "on_message_begin") else (protocol,)
    return type(f"Offering{protocol.__name__}", (_Offering, *bases), {})


class _Offering(asyncio.Protocol):
    """Put before one of uvicorn's protocols, each of which keeps the application in ``app``, per connection."""

    app: ASGIApp
    connections: set[object]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.app = _with_connection(self.app, Connection(cast("asyncio.Transport", transport)))
        if len(self.connections) > MAX_CONNECTIONS:
            cast("asyncio.Transport", transport).abort()


class _BoundedHead(asyncio.Protocol):
    """Put before uvicorn's protocol with httptools: a head without end, or its trailer, would fill the memory."""

    transport: asyncio.Transport
    _head = -1  # bytes of the head, or of what follows the line of a chunk, so far; below 0 outside

    def on_message_begin(self) -> None:
        self._head = 0
        super().on_message_begin()  # type: ignore[misc]  # of uvicorn's protocol

    def on_headers_complete(self) -> None:
        self._head = -1
        super().on_headers_complete()  # type: ignore[misc]  # of uvicorn's protocol

    def on_chunk_header(self) -> None:
        self._head = 0  # after the last chunk's line comes the trailer, after others their content

    def on_body(self, body: bytes) -> None:
        self._head = -1
        super().on_body(body)  # type: ignore[misc]  # of uvicorn's protocol

    def on_message_complete(self) -> None:
        self._head = -1
        super().on_message_complete()  # type: ignore[misc]  # of uvicorn's protocol

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head >= 0:
            self._head += len(data)
        if self._head > MAX_HEAD:
            self.transport.abort()


def _with_connection(app: ASGIApp, connection: Connection) -> ASGIApp:
    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        extensions: dict[str, Any] = {**scope.get("extensions", {}), _NAME: connection}
        try:
            await app({**scope, "extensions": extensions}, receive, send)
        except asyncio.CancelledError:
            # The server stops and has waited for long enough. It would take the cancellation for an error of ours.
            connection.reset()
            with suppress(asyncio.CancelledError):  # once more, where the loop ends meanwhile
                while (await receive())["type"] != "http.disconnect":
                    pass

    return call
