"""The door to the web: pure ASGI middleware that gives each request its visitor, and writes cookies into its response.

Works with everything that speaks ASGI: Starlette, FastAPI, Litestar, Quart, Django. Nothing of them is imported.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar, Unpack

from ._consent_endpoint import ConsentEndpoint
from ._cookies import CookieAttributes
from ._request_context import parse_networks
from ._request_visitor import (
    SCOPE_KEY,
    App,
    KeyOf,
    Message,
    Receive,
    RequestVisitor,
    Scope,
    Send,
    Site,
    request_visitor,
)
from .errors import ConfigurationError

if TYPE_CHECKING:
    from ._client import Alloy
    from ._options import ConfigureOptions

__all__ = ["AlloyMiddleware", "ConsentEndpoint", "RequestVisitor", "lifespan", "request_visitor"]

T = TypeVar("T")


class AlloyMiddleware:
    """Gives each request its visitor, ``scope["alloy.visitor"]``, and writes cookies into its response.

    The visitor is made when it is first used; until then a request costs little more than an empty ``RequestVisitor``.
    A websocket has a visitor too, for as long as it is open; it is told no cookies, so that without a key a choice is
    not taken there.

    Whose consent counts. Of these the first that says something:

    1. ``Sec-GPC: 1`` or ``DNT: 1``, unless ``gpc="ignore"``: "none", and no yes of the same request loosens it.
    2. A choice that is made in this request, by ``opt_in``.
    3. The cookie ``kndctr_…_consent``, which alloy.js in the page writes as well. ``general=out`` holds.
       ``general=in`` never lifts a refusal that the store knows, unless the browser has seen that refusal: a request
       that was under way while the person said no still carries the cookie of before, and must not turn the no into a
       yes. That it has seen it, the browser shows by our own cookie, which holds the moment of the last choice that the
       server told it, and which no script can write.
    4. Our own cookie ``alloy_…_choice``; its yes, likewise, lifts no later refusal.
    5. The store, under the visitor's key.

    What is written. Before there is consent nothing but the preference. A choice that is made in this request is written
    twice, for alloy.js and for us; so is a refusal that the store knew and the browser did not. With consent, what the
    edge wants the browser to keep, and a first-party id where the browser has neither one nor an ECID. It names the
    browser, not the key. A refusal deletes every cookie by which the browser could be recognised.

    When. With the beginning of the response, for which a choice that is being written is waited for, a second at most.
    What is decided later, in the body of a stream or in a background task, no response can tell: with a key the choice
    is kept in the store and a refusal is told with the next response; without one ``opt_in`` ends with
    ``ConsentStoreError``. A response that gets cookies is marked ``Cache-Control: private`` unless it is already, so that
    no shared cache hands one visitor's cookies to another.

    Args:
        app: the application.
        alloy: configured before the first request, as ``lifespan`` does.
        key: returns the application's own name for a request's visitor, such as the session's id; never what a browser
            can choose by itself. None, or without it: the choice lives in the browser's cookies alone.
        cookie_domain: where cookies are sent besides the host that answers; with alloy.js in the page the site's
            registrable domain, which it uses itself. Default: that host only.
        secure: whether cookies are sent over https only; browsers make an exception for localhost.
        gpc: whether ``Sec-GPC`` and ``DNT`` are obeyed.
        trusted_proxies: addresses and networks whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are believed.
        tell_address: whether the visitor's address goes into events, which is personal data.
        fpid_cookie: whether the browser is given a first-party id; False where several persons share one.

    Raises:
        ConfigurationError: at once; an argument cannot be used.

    Source: Edge Network, hybrid personalization; Global Privacy Control, section 3; Tracking Preference Expression.
    """

    def __init__(
        self,
        app: App,
        alloy: Alloy,
        *,
        key: KeyOf | None = None,
        cookie_domain: str | None = None,
        secure: bool = True,
        gpc: Literal["obey", "ignore"] = "obey",
        trusted_proxies: Iterable[str] = (),
        tell_address: bool = False,
        fpid_cookie: bool = True,
    ) -> None:
        if gpc not in {"obey", "ignore"}:
            raise ConfigurationError('gpc: must be "obey" or "ignore".', option="gpc")
        self._app = app
        self._site = Site(
            alloy,
            key=key,
            attributes=_checked("cookie_domain", lambda: CookieAttributes(cookie_domain, secure)),
            obeys_signals=gpc == "obey",
            proxies=_checked("trusted_proxies", lambda: parse_networks(trusted_proxies)),
            tells_address=tell_address,
            fpid_cookie=fpid_cookie,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection; see the ASGI specification."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        visitor = scope[SCOPE_KEY] = RequestVisitor(self._site, scope)
        if scope["type"] == "http":
            send = partial(_send_with_cookies, visitor, send)
        try:
            await self._app(scope, receive, send)
        finally:
            await visitor.end()


@asynccontextmanager
async def lifespan(alloy: Alloy, /, **options: Unpack[ConfigureOptions]) -> AsyncIterator[None]:
    """Configure an instance while an application starts, and close it when it ends.

    ::

        app = Starlette(lifespan=lambda app: lifespan(alloy, config_id="…", ims_org_id="…", opt_in_enabled=True))

    Args:
        alloy: made where the application is.
        options: of ``configure``.

    Raises:
        AlloyError: as ``configure``; then the application does not start.
    """
    async with alloy:
        await alloy.configure(**options)
        yield


def _send_with_cookies(visitor: RequestVisitor, send: Send, message: Message) -> Awaitable[None]:
    if message["type"] == "http.response.start":
        return _begin_with_cookies(visitor, send, message)
    return send(message)


async def _begin_with_cookies(visitor: RequestVisitor, send: Send, message: Message) -> None:
    cookies = await visitor.begin_response()
    if cookies:
        headers = _private(message.get("headers", ()))
        message = {**message, "headers": [*headers, *((b"set-cookie", line) for line in cookies)]}
    await send(message)


def _private(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Keep shared caches from handing one visitor's cookies to another. Source: RFC 9111, section 7.3."""
    kept, directives = [], []
    for name, value in headers:
        if name.lower() == b"cache-control":
            directives += [part.strip() for part in value.split(b",")]
        else:
            kept.append((name, value))
    names = {part.partition(b"=")[0].lower() for part in directives}
    if not names & {b"private", b"no-store"}:
        directives = [b"private", *(part for part in directives if not _is_for_shared_caches(part))]
    return [*kept, (b"cache-control", b", ".join(part for part in directives if part))]


def _is_for_shared_caches(directive: bytes) -> bool:
    return directive.partition(b"=")[0].lower() in {b"public", b"s-maxage"}


def _checked(option: str, make: Callable[[], T]) -> T:
    problem = ""
    try:
        return make()
    except (TypeError, ValueError) as error:
        problem = str(error)
    raise ConfigurationError(f"{option}: {problem}.", option=option)
