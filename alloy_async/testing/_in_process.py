"""The way to an ASGI application in the same process: no socket, and the consent gate's last question is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from ..edge import EdgeRequest, EdgeResponse, Withdrawn

__all__ = ["InProcess"]


class InProcess:
    """A ``Transport`` into an ASGI application.

    An ``httpx.AsyncClient(transport=httpx.ASGITransport(app))`` given to ``configure(client=...)`` would do as well, but
    for one thing: it never says that the first byte is about to be written, so that nobody would ask ``may_start``.

    Args:
        app: the application.
    """

    def __init__(self, app: Any) -> None:
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app))

    async def send(self, request: EdgeRequest, may_start: Callable[[], bool]) -> EdgeResponse:
        """Send a request and read its answer; see ``Transport``."""
        if not may_start():
            raise Withdrawn
        answer = await self._client.post(request.url, content=request.body, headers=request.headers)
        return EdgeResponse(answer.status_code, dict(answer.headers), answer.content)

    async def aclose(self) -> None:
        """Leave it open: it holds nothing, and the next instance may use it."""
