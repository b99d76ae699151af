"""An answer on its way out: as it is, or late, slowly, in part, or not at all."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.responses import Response

from .connection import find_connection

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from .messages import EdgeAnswer

__all__ = ["ConnectionFault", "deliver", "reset_connection"]

_DROPS = 20
"""Pieces into which a slow body is cut."""


class ConnectionFault(ConnectionError):
    """A fault should end the connection, and nobody offers one to end.

    Only `serving` and `run` offer connections. Elsewhere the application raises this instead: behind another server the
    client gets a 500, or an answer that breaks off, and below ``httpx.ASGITransport`` it gets this exception.
    """


async def deliver(answer: EdgeAnswer, scope: Scope, receive: Receive, send: Send) -> None:
    """Send an answer, the way its fault wants it.

    Nobody else waits meanwhile, and waiting ends at once when the client leaves.

    Raises:
        ConnectionFault: the fault ends the connection, and the server offers none.
    """
    response = Response(answer.body, answer.status, answer.headers)
    fault = answer.fault
    if fault is not None and fault.reset is not None:
        await reset_connection(scope, receive)
    elif fault is not None and fault.cut:
        await _cut(response, scope, receive, send)
    elif fault is not None and fault.slow is not None:
        await _drip(response, fault.slow / 1000, scope, receive, send)
    elif fault is None or fault.latency is None or await _client_stays(fault.latency / 1000, receive):
        await response(scope, receive, send)


async def reset_connection(scope: Scope, receive: Receive) -> None:
    """Reset the connection, without an answer.

    Raises:
        ConnectionFault: the server offers none.
    """
    connection = find_connection(scope)
    if connection is None:
        raise ConnectionFault("a fault switch resets the connection")
    connection.reset()
    await _client_gone(receive)


async def _cut(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Promise the whole body, send half of it and close. An answer without a body is not even begun."""
    body = bytes(response.body)
    if body:
        await send(_head(response))
        await send(_piece(body[: len(body) // 2]))
    connection = find_connection(scope)
    if connection is None:
        raise ConnectionFault("a fault switch cuts the answer")
    connection.close()
    await _client_gone(receive)


async def _drip(response: Response, seconds: float, scope: Scope, receive: Receive, send: Send) -> None:
    """Spread a body over a time. An answer without a body waits that long instead."""
    body = bytes(response.body)
    if not body:
        if await _client_stays(seconds, receive):
            await response(scope, receive, send)
        return
    size = -(-len(body) // _DROPS)
    drops = [body[start : start + size] for start in range(0, len(body), size)]
    await send(_head(response))
    for drop in drops:
        await send(_piece(drop))
        if not await _client_stays(seconds / len(drops), receive):
            return
    await send({"type": "http.response.body", "body": b""})


def _head(response: Response) -> dict[str, object]:
    return {
        "type": "http.response.start",
        "status": response.status_code,
        "headers": response.raw_headers,
    }


def _piece(content: bytes) -> dict[str, object]:
    return {"type": "http.response.body", "body": content, "more_body": True}


async def _client_stays(seconds: float, receive: Receive) -> bool:
    """Wait, unless the client leaves; tell whether it is still there."""
    try:
        async with asyncio.timeout(seconds):
            await _client_gone(receive)
    except TimeoutError:
        return True
    return False


async def _client_gone(receive: Receive) -> None:
    # What else may come is the body, which nobody wants any more.
    while (await receive())["type"] != "http.disconnect":
        pass
