"""The fault switches of the person at the desk, over HTTP."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from .bounded import read_bounded
from .faults import FaultError, read_faults

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from .faults import Faults

__all__ = ["FaultSwitches"]

_MAX_BODY = 1_048_576  # bytes


class FaultSwitches:
    """ASGI application: shows and changes what goes wrong.

    Args:
        faults: the switches.
    """

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; nobody is answered who leaves while sending."""
        request = Request(scope, receive)
        try:
            answer = await self._answer(request)
        except ClientDisconnect:
            return
        await answer(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if request.method == "DELETE":
            self._faults.clear()
            return Response(status_code=204)
        if request.method == "POST":
            try:
                self._faults.replace(*read_faults(_parse(await read_bounded(request, _MAX_BODY))))
            except FaultError as error:
                return _unusable(error)
        return _json(self._faults.as_json())


def _parse(body: bytes | None) -> object:
    if body is None:
        raise FaultError("", "the body is too large")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise FaultError("", "the body is not JSON") from None


def _json(content: object, status: int = 200, media_type: str = "application/json") -> Response:
    # ASCII: texts of faults may hold what UTF-8 cannot.
    return Response(json.dumps(content), status, media_type=media_type)


def _unusable(error: FaultError) -> Response:
    problem = {
        "type": "about:blank",
        "status": 400,
        "title": "Faults that cannot be used",
        "detail": str(error),
        "path": error.path,
    }
    return _json(problem, 400, "application/problem+json")
