"""Where a visitor's choice arrives: a form or a script of the page posts it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, quote

from ._consent._rules import Choice, Purposes, parse_choice
from ._request_context import RequestHeaders
from ._request_visitor import Receive, RequestVisitor, Scope, Send, request_visitor
from .errors import AlloyClosed, ConsentStoreError, NotConfigured

__all__ = ["ConsentEndpoint"]

MAX_BODY = 4_096
"""Bytes of a body that holds nothing but a choice."""


class ConsentEndpoint:
    """Takes a visitor's choice: ``POST`` with ``{"purposes": "all" | "none"}``, as JSON or as a form. An ASGI application.

    ::

        routes = [Route("/consent", ConsentEndpoint())]

    It answers 204; with a form field, or JSON member, ``next`` 303 to that path of the same site, whatever holds now;
    without it 409 with ``{"purposes": "none"}`` when the browser's own signal forbids the yes; 503 when the choice could
    not be kept.
    Only pages of the same origin may call it, others get 403, so that no other site chooses for a visitor.

    Args:
        origins: further origins whose pages may call it, such as ``https://shop.example``; needed where a proxy
            changes ``Host`` and the browser sends no ``Sec-Fetch-Site``.

    Source: Fetch Metadata, ``Sec-Fetch-Site``; RFC 6454, ``Origin``.
    """

    def __init__(self, *, origins: Iterable[str] = ()) -> None:
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; see the ASGI specification."""
        try:
            answer = await self._answer(scope, receive)
        except _Refusal as refusal:
            answer = refusal.answer
        await _respond(send, answer)

    async def _answer(self, scope: Scope, receive: Receive) -> _Answer:
        if scope["method"] != "POST":
            raise _Refusal(405, "send a POST", (b"allow", b"POST"))
        headers = RequestHeaders(scope["headers"])
        if not self._is_same_site(headers):
            raise _Refusal(403, "only pages of this site may choose")
        wish = _read_wish(headers.get(b"content-type"), await _read_body(receive))
        outcome = await _choose(request_visitor(scope), wish.purposes)
        if wish.next is not None:
            return _Answer(303, headers=((b"location", wish.next),))
        if outcome != wish.purposes:
            return _Answer(
                409, json.dumps({"purposes": outcome}).encode(), ((b"content-type", b"application/json"),)
            )
        return _Answer(204)

    def _is_same_site(self, headers: RequestHeaders) -> bool:
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
        if origin in self._origins:
            return True
        if site:
            return site in {"same-origin", "none"}
        return bool(origin) and origin.partition("://")[2].lower() == headers.get(b"host").lower()


class _Answer(NamedTuple):
    status: int
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()


class _Wish(NamedTuple):
    purposes: Choice
    next: bytes | None


class _Refusal(Exception):
    def __init__(self, status: int, reason: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(reason)
        plain = (b"content-type", b"text/plain; charset=utf-8")
        self.answer = _Answer(status, f"{reason}\n".encode(), (plain, *headers))


async def _choose(visitor: RequestVisitor, choice: Choice) -> Purposes | None:
    try:
        outcome: Purposes | None = await visitor.opt_in(purposes=choice)
    except (AlloyClosed, ConsentStoreError, NotConfigured):
        outcome = None
    if outcome is None:
        raise _Refusal(503, "the choice could not be kept; try again later")
    return outcome


async def _read_body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Refusal(400, "the request has ended too early")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY:
            raise _Refusal(413, "the body is too long")
    return body


def _read_wish(content_type: str, body: bytes) -> _Wish:
    media_type = content_type.partition(";")[0].strip().lower()
    fields = _read_fields(media_type, body)
    choice = parse_choice(fields.get("purposes"))
    if choice is None:
        raise _Refusal(400, 'purposes must be "all" or "none"')
    target = fields.get("next")
    return _Wish(choice, None if target is None else _same_site_path(target))


def _read_fields(media_type: str, body: bytes) -> Mapping[str, object]:
    try:
        if media_type == "application/json":
            fields = json.loads(body)
        elif media_type == "application/x-www-form-urlencoded":
            fields = dict(
                parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=20)
            )
        else:
            raise _Refusal(415, "send JSON or a form")
    except (ValueError, RecursionError):
        raise _Refusal(400, "the body cannot be read") from None
    if not isinstance(fields, dict):
        raise _Refusal(400, "the body must be an object")
    return fields


def _same_site_path(target: object) -> bytes:
    """Return a path of this site for ``Location``; another one would send visitors where somebody else wants them.

    Browsers read a backslash as ``/``, leave out tabs and line breaks, and take ``//host`` for another site.
    """
    if not isinstance(target, str) or not target.isprintable() or "\\" in target:
        raise _Refusal(400, "next must be a path of this site")
    if not target.startswith("/") or target.startswith("//"):
        raise _Refusal(400, "next must be a path of this site")
    return quote(target, safe="/?&=%:;,.~!$'()*+@-_#").encode("ascii")


async def _respond(send: Send, answer: _Answer) -> None:
    length = () if answer.status in {204, 303} else ((b"content-length", str(len(answer.body)).encode()),)
    headers = [*answer.headers, *length, (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
