"""The visitor of one request, made when it is first used."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from copy import copy
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, TypeVar
from urllib.parse import urlsplit

from ._clock import RandomIds
from ._consent._rules import Choice, Purposes, parse_choice
from ._cookies import (
    CHOICE_MAX_AGE,
    NO_COOKIES,
    BrowserChoice,
    CookieAttributes,
    CookieNames,
    CookieWriter,
    Outcome,
    browser_choice,
    read_cookies,
)
from ._request_context import Network, RequestHeaders, request_context
from .edge.protocol import EventResult
from .edge.state import ClientState
from .errors import (
    AlloyError,
    ConfigurationError,
    ConsentDeclined,
    ConsentStoreError,
    InvalidCommand,
    NotConfigured,
)

if TYPE_CHECKING:
    from ._client import Alloy
    from .visitor import Visitor

__all__ = [
    "SCOPE_KEY",
    "App",
    "KeyOf",
    "Message",
    "Receive",
    "RequestVisitor",
    "Scope",
    "Send",
    "Site",
    "request_visitor",
]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
KeyOf: TypeAlias = Callable[[Scope], str | None]

T = TypeVar("T")

SCOPE_KEY = "alloy.visitor"
"""Where the visitor stands in the scope of a request."""

CHOICE_WAIT = 1.0
"""Seconds that a response waits at most for a choice that is being written."""

MAX_PROBLEMS = 20
"""Problems that are logged; they hold nothing of a request, and an application can have only so many."""

_logger = logging.getLogger("alloy_async")

_new_fpid = RandomIds()


class _BrowserIdentity(TypedDict):
    """What ``Alloy.visitor`` takes of a browser's identity."""

    fpid: str | None
    ecid: str | None
    state: ClientState


class RequestVisitor:
    """The visitor of one request: the commands of ``Visitor``, made when first used.

    Where there is no visitor, because the instance is not configured or the key cannot be used, commands end with the
    reason, and ``purposes`` is "pending".
    """

    __slots__ = (
        "_begun",
        "_choosing",
        "_chosen",
        "_cookies",
        "_forgotten",
        "_fpid",
        "_identified",
        "_on_websocket",
        "_problem",
        "_refused",
        "_scope",
        "_signalled",
        "_site",
        "_visitor",
        "_wish",
    )

    def __init__(self, site: Site, scope: Scope) -> None:
        self._site = site
        self._scope: Scope | None = scope
        self._visitor: Visitor | None = None
        self._problem: AlloyError | None = None
        self._cookies = NO_COOKIES
        self._fpid: str | None = None
        self._signalled = False
        self._refused = False
        self._identified = False
        self._on_websocket = scope["type"] == "websocket"
        self._begun = self._on_websocket  # nothing that is chosen there comes early enough for a cookie
        self._chosen = False
        self._forgotten = False
        self._choosing: asyncio.Future[Purposes] | None = None
        self._wish: Choice | None = None

    @property
    def key(self) -> str | None:
        """The application's own name for the visitor; None for one whose choice lives in the browser alone."""
        visitor = self._open()
        return None if visitor is None else visitor.key

    @property
    def purposes(self) -> Purposes:
        """What is known of the visitor's choice here and now: "all", "none" or "pending"."""
        visitor = self._open()
        if visitor is None:
            return "none" if isinstance(self._problem, ConsentDeclined) else "pending"
        if visitor.purposes == "pending" and self._is_choosing_all and visitor.key is None:
            return "all"  # nothing has to be written that could still fail
        return visitor.purposes

    def get_purposes(self) -> asyncio.Future[Purposes]:
        """Tell what the visitor has chosen, once that has been read; see ``Visitor.get_purposes``."""
        visitor = self._open()
        if (
            visitor is not None
            and visitor.key is None
            and self._is_choosing_all
            and self._choosing is not None
        ):
            return asyncio.shield(self._choosing)
        return self._command(lambda visitor: visitor.get_purposes())

    def event(
        self,
        *,
        xdm: object = None,
        data: object = None,
        type: str | None = None,  # noqa: A002 - the name Adobe gives it
        merge_id: str | None = None,
        view_start: bool = False,
        decision_scopes: Sequence[str] = (),
        ack: Literal["delivered", "stored"] = "delivered",
    ) -> asyncio.Future[EventResult]:
        """Record that something happened; see ``Visitor.event``. The page and the browser are added."""
        # Its arguments are named once more: an unknown one raises at the call, also where there is no visitor.
        self._identified = True
        visitor = self._open()
        if visitor is None:
            return self._nobody()
        return visitor.event(
            xdm=xdm,
            data=data,
            type=type,
            merge_id=merge_id,
            view_start=view_start,
            decision_scopes=decision_scopes,
            ack=ack,
        )

    def opt_in(self, *, purposes: str | None = None) -> asyncio.Future[Purposes]:
        """Tell what the visitor chose; see ``Visitor.opt_in``. The browser is told with the response.

        Returns:
            Besides, a future that ends with "none" when the browser's own signal forbids "all"; with
            ``ConsentStoreError`` when the response has begun, or there is only a websocket, and no key under which the
            choice could be kept.
        """
        choice, visitor = parse_choice(purposes), self._open()
        if visitor is None or choice is None or not self._site.asks:
            return self._command(lambda visitor: visitor.opt_in(purposes=purposes))
        if choice == "all" and self._signalled:
            return visitor.opt_in(purposes="none")
        if self._begun and visitor.key is None:
            if choice == "none":  # it holds for the rest of the request all the same
                visitor.opt_in(purposes="none")
            return self._too_late("save")
        self._chosen, self._refused = True, self._refused or choice == "none"
        return self._choose(visitor, choice)

    def forget(self) -> asyncio.Future[Purposes]:
        """Erase the visitor's choice, identity and waiting events, and with the response the cookies.

        Returns:
            See ``Visitor.forget``; besides, a future that ends with ``ConsentStoreError`` when the response has begun, or
            there is only a websocket: the cookies are still there.
        """
        self._forgotten, self._chosen = True, False
        forgotten = self._command(lambda visitor: visitor.forget())
        return self._too_late("forget") if self._begun and self._visitor is not None else forgotten

    def get_ecid(self) -> asyncio.Future[str]:
        """Ask for the visitor's id at the edge; see ``Visitor.get_ecid``."""
        self._identified = True
        return self._command(lambda visitor: visitor.get_ecid())

    def set_customer_ids(self, customer_ids: Mapping[str, Mapping[str, Any]]) -> asyncio.Future[None]:
        """Tell who the visitor is in systems of yours; see ``Visitor.set_customer_ids``."""
        self._identified = True
        return self._command(lambda visitor: visitor.set_customer_ids(customer_ids))

    def browser_payload(self) -> dict[str, Any]:
        """Return what the page hands to ``applyResponse`` of the browser SDK; see ``Visitor.browser_payload``."""
        visitor = self._open()
        return ClientState("").browser_payload() if visitor is None else visitor.browser_payload()

    async def begin_response(self) -> list[bytes]:
        """Return the ``Set-Cookie`` headers for the response, which begins now."""
        if self._choosing is not None:
            await self._written(self._choosing)
        self._begun = True
        visitor, writer = self._visitor, self._site.writer
        if visitor is None or writer is None:
            return []
        if visitor.purposes == "pending" and not self._refused and not self._forgotten:
            return []  # as with most responses, and what would be written here is nothing
        return writer.lines(self._cookies, self._outcome(visitor))

    async def end(self) -> None:
        """Take note that the request has ended: what is still parked of a visitor without key ends."""
        self._begun = True
        if self._scope is not None:  # what may still be asked for, but not in a circle
            self._scope = {name: value for name, value in self._scope.items() if name != SCOPE_KEY}
        if self._visitor is not None:
            try:
                if self._choosing is not None:
                    await self._written(self._choosing)
            finally:
                self._visitor.close()

    def __repr__(self) -> str:
        return f"<RequestVisitor, {'not yet used' if self._visitor is None else repr(self._visitor)}>"

    def _command(self, call: Callable[[Visitor], asyncio.Future[T]]) -> asyncio.Future[T]:
        visitor = self._open()
        return self._nobody() if visitor is None else call(visitor)

    def _nobody(self) -> asyncio.Future[Any]:
        return self._site.failed(self._problem or NotConfigured("visitor"))

    def _too_late(self, action: str) -> asyncio.Future[Any]:
        problem = (
            "a websocket tells the browser nothing; do it in a request."
            if self._on_websocket
            else "the response has begun; do it before answering."
        )
        error = ConsentStoreError(action, "the browser's cookies", problem)
        self._site.say(error)
        return self._site.failed(error)

    @property
    def _is_choosing_all(self) -> bool:
        return self._choosing is not None and not self._choosing.done() and self._wish == "all"

    @staticmethod
    async def _written(choice: asyncio.Future[Purposes]) -> None:
        """Wait until a choice is written, so that the browser is told what is kept."""
        if not choice.done():
            await asyncio.wait([choice], timeout=CHOICE_WAIT)

    def _outcome(self, visitor: Visitor) -> Outcome:
        purposes = visitor.purposes
        return Outcome(
            purposes=purposes,
            chosen_at=visitor.chosen_at or time.time(),
            chosen_here=self._chosen,
            refused=self._refused,
            signalled=self._signalled,
            forgotten=self._forgotten,
            fpid=self._fpid if self._identified else None,
            updates=visitor.state_updates,
        )

    def _open(self) -> Visitor | None:
        """Return the visitor, made now if need be; None where there is none."""
        if self._scope is not None:
            try:
                self._visitor = self._meet(self._scope)
            except AlloyError as error:
                self._problem = error.with_traceback(None)  # whose frames hold the request
                if not isinstance(error, ConsentDeclined):
                    self._site.say(error)
            self._scope = None
        return self._visitor

    def _meet(self, scope: Scope) -> Visitor:
        """Make the visitor from what the request says.

        Raises:
            AlloyError: there can be none.
        """
        site, headers = self._site, RequestHeaders(scope["headers"])
        self._cookies = read_cookies(headers.all(b"cookie"), site.names())
        key, said = site.key(scope), self._said(headers)
        visitor = site.alloy.visitor(
            key,
            purposes=said.purposes if key is not None or self._refused else None,
            seen_at=said.seen or None,
            context=request_context(scope, headers, proxies=site.proxies, tell_address=site.tells_address),
            **self._identity(site.domain(headers)),
        )
        if key is None and said.purposes == "all" and visitor.purposes == "pending":
            # Said here, and not above, because of this one the response must know when it holds.
            self._choose(visitor, "all")
        return visitor

    def _identity(self, domain: str) -> _BrowserIdentity:
        """Return who the browser says it is, with a new id where it does not say; what a refusal erased is not believed."""
        site, known = self._site, NO_COOKIES if self._refused else self._cookies
        fpid = known.fpid if site.fpid_cookie else None
        if site.fpid_cookie and fpid is None and known.ecid is None:
            fpid = self._fpid = _new_fpid()
        return {"fpid": fpid, "ecid": known.ecid, "state": ClientState(domain, known.entries)}

    def _choose(self, visitor: Visitor, choice: Choice) -> asyncio.Future[Purposes]:
        self._wish, self._choosing = choice, visitor.opt_in(purposes=choice)
        return self._choosing

    def _said(self, headers: RequestHeaders) -> BrowserChoice:
        """Return what the browser says about consent, by a signal or else by its cookies.

        Raises:
            ConsentDeclined: it refuses where nobody is asked; a refusal is never ignored.
        """
        self._signalled = self._site.obeys_signals and headers.refuses
        said = browser_choice(self._cookies, now=time.time(), max_age=self._site.max_age)
        if self._signalled:
            said = BrowserChoice("none")
        self._refused = said.purposes == "none"
        if self._refused and not self._site.asks:
            raise ConsentDeclined("visitor")
        return said


class Site:
    """What all requests of an application have in common."""

    def __init__(
        self,
        alloy: Alloy,
        *,
        key: KeyOf | None,
        attributes: CookieAttributes,
        obeys_signals: bool,
        proxies: Sequence[Network],
        tells_address: bool,
        fpid_cookie: bool,
    ) -> None:
        self.alloy = alloy
        self.obeys_signals = obeys_signals
        self.proxies = proxies
        self.tells_address = tells_address
        self.fpid_cookie = fpid_cookie
        self.asks: bool = True
        self.max_age: float = CHOICE_MAX_AGE
        self.writer: CookieWriter | None = None
        self._key = key
        self._attributes = attributes
        self._names: CookieNames | None = None
        self._errors_enabled = True
        self._said: set[str] = set()

    def names(self) -> CookieNames:
        """Return what the organisation's cookies are called.

        Raises:
            AlloyError: the instance is not configured, or not yet.
        """
        if self._names is None:
            settings = _settings(self.alloy)
            self._names = CookieNames.of(settings["ims_org_id"])
            self.asks = settings["opt_in_enabled"]
            self.max_age = settings["preference_max_age"]
            self._errors_enabled = settings["errors_enabled"]
            self.writer = CookieWriter(self._names, self._attributes, self.max_age)
        return self._names

    def key(self, scope: Scope) -> str | None:
        """Return the application's own name for a request's visitor.

        Raises:
            InvalidCommand: the application could not say. Nobody's consent is taken for somebody else's then.
        """
        try:
            return None if self._key is None else self._key(scope)
        except Exception as error:  # noqa: BLE001 - the application's own; analytics must not break its pages
            problem = f"the middleware's key raised {type(error).__name__}."
        raise InvalidCommand("visitor", problem, path="key")

    def domain(self, headers: RequestHeaders) -> str:
        """Return where the site's cookies live."""
        return self._attributes.domain or _host_name(headers.host)

    def say(self, error: AlloyError) -> None:
        """Log what is wrong with how requests use their visitors; each problem once."""
        problem = str(error)
        if problem not in self._said and len(self._said) < MAX_PROBLEMS:
            self._said.add(problem)
            _logger.warning("in a request: %s", problem)

    def failed(self, error: AlloyError) -> asyncio.Future[Any]:
        """Return a future that has ended with an error; with None where errors are switched off."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._errors_enabled:
            future.set_exception(copy(error))
            future.exception()  # it is logged by us, once
        else:
            future.set_result(None)
        return future


def request_visitor(scope: Mapping[str, Any]) -> RequestVisitor:
    """Return the visitor of a request.

    Args:
        scope: of ASGI; ``request.scope`` in most frameworks.

    Raises:
        ConfigurationError: the application is not wrapped in ``AlloyMiddleware``.
    """
    visitor = scope.get(SCOPE_KEY)
    if not isinstance(visitor, RequestVisitor):
        raise ConfigurationError(
            "this request has no visitor; wrap the application in alloy_async.asgi.AlloyMiddleware."
        )
    return visitor


def _settings(alloy: Alloy) -> dict[str, Any]:
    info = alloy.get_library_info()
    if not info.done():
        info.cancel()
        raise NotConfigured("visitor")  # not yet: the names of the cookies, and so a refusal, are not known
    error = info.exception()
    if error is not None:
        raise error
    if info.result() is None:  # errors are switched off
        raise NotConfigured("visitor")
    settings: dict[str, Any] = info.result()["settings"]
    return settings


@lru_cache(maxsize=256)
def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
