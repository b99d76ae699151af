"""Who may read what was received: the person at this desk, and no web page from elsewhere."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from .problems import Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["DeskOnly", "check_desk", "refusal"]

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^][:/@?#\s]+)(?::[0-9]{1,5})?")

# Against pages that embed what they may not read, and against copies in caches.
_PRIVATE = {
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def check_desk(
    hosts: Sequence[str],
    origins: Sequence[str],
    *,
    scheme: str,
    named: Collection[str],
    site: str | None = None,
    mode: str | None = None,
) -> None:
    """Refuse a request that a web page from elsewhere may have caused.

    A page on another origin can reach loopback, and by pointing its own name at 127.0.0.1 (DNS rebinding) it can even
    look like the same origin to the browser. The browser then still says the page's name in ``Host``: so only
    loopback names pass.

    Args:
        hosts: values of the ``Host`` header.
        origins: values of the ``Origin`` header.
        scheme: http or https.
        named: further host names that the operator trusts, in lower case.
        site: value of the ``Sec-Fetch-Site`` header. Images and scripts come without ``Origin``; their page may not read
            the answer, but how long it takes, and readers of the feed would hold their places.
        mode: value of the ``Sec-Fetch-Mode`` header; links may lead here from anywhere.

    Raises:
        Problem: 403.

    Source: W3C, Fetch Metadata Request Headers.
    """
    host = hosts[0].lower() if len(hosts) == 1 else ""
    if not _is_trusted(host, named):
        raise Problem("403", "The Host header names neither loopback nor a host that the operator named.")
    elsewhere = site in {"cross-site", "same-site"} and mode != "navigate"
    if elsewhere or any(origin.lower() != f"{scheme}://{host}" for origin in origins):
        raise Problem("403", "Pages of another origin may not read what was received.")


def _is_trusted(host: str, named: Collection[str]) -> bool:
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    name = found["name"]
    return name == "localhost" or name in named or _is_loopback_address(name)


def _is_loopback_address(name: str) -> bool:
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def refusal(problem: Problem) -> JSONResponse:
    """Answer the person at the desk with a problem."""
    content = {
        "type": problem.type,
        "status": problem.status,
        "title": problem.title,
        "detail": problem.detail,
    }
    return JSONResponse(content, problem.status, media_type="application/problem+json")


class DeskOnly:
    """ASGI middleware that lets only the desk in.

    Args:
        app: what it guards.
        hosts: further host names that the operator trusts.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] = ()) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or pass the request on and mark its answer as private."""

        async def send_privately(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_PRIVATE)
            await send(message)

        headers = Headers(scope=scope)
        try:
            check_desk(
                headers.getlist("host"),
                headers.getlist("origin"),
                scheme=scope["scheme"],
                named=self._hosts,
                site=headers.get("sec-fetch-site"),
                mode=headers.get("sec-fetch-mode"),
            )
        except Problem as problem:
            await refusal(problem)(scope, receive, send_privately)
        else:
            await self._app(scope, receive, send_privately)
