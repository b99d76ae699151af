"""What an HTTP request says about its visitor, as XDM: the page, the browser, and a refusal in its headers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, TypeAlias
from urllib.parse import quote, urlsplit

from ._event import EventContext

__all__ = ["Network", "RequestHeaders", "client_address", "parse_networks", "request_context"]

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

MAX_URL = 2_048
MAX_USER_AGENT = 512
MAX_HINT = 128
MAX_HOPS = 32
MAX_REMEMBERED = 1_024
"""Bytes of a header by which something is remembered; anybody may send as many as they like, of any length."""

_LANGUAGE = re.compile(r"[A-Za-z]{1,8}(-[A-Za-z0-9]{1,8}){0,7}")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?")
_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}

_HINTS = {
    b"sec-ch-ua-arch": "architecture",
    b"sec-ch-ua-bitness": "bitness",
    b"sec-ch-ua-model": "model",
    b"sec-ch-ua-platform-version": "platformVersion",
}

_BROWSER_HEADERS = (b"user-agent", b"accept-language", b"sec-ch-ua-wow64", *_HINTS)
_SIGNALS = (b"sec-gpc", b"dnt")
_WOW64 = {"?1": True, "?0": False}

# RFC 3986: what may stand in a path besides letters and digits; "%" begins an escape that is there already.
_PATH = "!$%&'()*+,-./:;=@_~"


class RequestHeaders:
    """The headers of a request.

    Args:
        headers: names in lower case and values, as ASGI has them.
    """

    __slots__ = ("_all", "_first")

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._all = tuple(headers)
        self._first = dict(reversed(self._all))

    def all(self, name: bytes) -> list[bytes]:
        """Return the values of every header of this name."""
        return [value for key, value in self._all if key == name] if name in self._first else []

    def get(self, name: bytes) -> str:
        """Return a header's value; empty where there is none, or where it holds what a person cannot read."""
        value = self._first.get(name)
        return _readable(value) if value else ""

    def of_the_browser(self) -> tuple[bytes, ...]:
        """Return what the browser says of itself, in the order of ``_BROWSER_HEADERS``."""
        first = self._first
        return tuple([first.get(name, b"")[:MAX_REMEMBERED] for name in _BROWSER_HEADERS])

    @property
    def host(self) -> str:
        """The name, and perhaps the port, by which the application was asked; one that is too long is cut, and is none."""
        return self.get(b"host")[:MAX_REMEMBERED]

    @property
    def refuses(self) -> bool:
        """Whether the browser says for its person that nothing be collected.

        Source: Global Privacy Control, section 3.1: ``Sec-GPC: 1``; Tracking Preference Expression (DNT): ``DNT: 1``.
        """
        return b"1" in [value.strip() for name in _SIGNALS for value in self.all(name)]

    @property
    def is_page(self) -> bool:
        """Whether a page is asked for, and not something that a page asks for.

        Source: Fetch Metadata: ``Sec-Fetch-Mode: navigate``. A browser without it asks for HTML.
        """
        mode = self.get(b"sec-fetch-mode")
        return mode == "navigate" if mode else "text/html" in self.get(b"accept")


def request_context(
    scope: Mapping[str, Any],
    headers: RequestHeaders | None = None,
    *,
    proxies: Sequence[Network] = (),
    tell_address: bool = False,
) -> EventContext:
    """Return what a request says about its visitor, for the ``xdm`` of events.

    A page request is about its own URL, and ``Referer`` is where the visitor came from. A call that a page makes is
    about that page, which ``Referer`` names.

    Args:
        scope: of ASGI, ``http`` or ``websocket``.
        headers: of the request, where they have been read already.
        proxies: whose ``X-Forwarded-Proto`` and ``X-Forwarded-For`` count.
        tell_address: whether the visitor's address is told, which is personal data.

    Returns:
        ``{"environment": …, "web": …}``; what is not known, too long or malformed is not there.

    Source: XDM, field groups environment and web; Adobe's Server SDK takes ``Referer`` as the page of a call.
    """
    headers = RequestHeaders(scope["headers"]) if headers is None else headers
    environment = _environment(headers.of_the_browser())
    address = client_address(scope, proxies) if tell_address else None
    if address is not None:
        environment = environment | {f"ipV{address.version}": str(address)}
    web = _web(headers, _request_url(scope, headers, proxies) if headers.is_page else None)
    return EventContext(environment=environment, web=web) if web else EventContext(environment=environment)


def client_address(scope: Mapping[str, Any], proxies: Sequence[Network]) -> Address | None:
    """Return the visitor's address; None when it is not known for certain.

    ``X-Forwarded-For`` is believed only when one of ``proxies`` has sent it, and read from the right: each proxy adds the
    address that it was called from, and the first that is no proxy is the visitor's. What stands left of it, anybody
    may have written.

    Args:
        scope: of ASGI.
        proxies: whose word counts.
    """
    if not _is_from(scope, proxies):
        return _peer(scope)
    hops = b",".join(RequestHeaders(scope["headers"]).all(b"x-forwarded-for")).decode("latin-1").split(",")
    for hop in hops[: -MAX_HOPS - 1 : -1]:
        address = _parse_address(hop.strip(" \t"))
        if address is None or not _within(address, proxies):
            return address
    return None


def parse_networks(proxies: Iterable[str]) -> tuple[Network, ...]:
    """Read addresses and networks such as ``10.0.0.0/8``.

    Raises:
        ValueError: one of them is neither.
    """
    return tuple(ip_network(proxy, strict=False) for proxy in proxies)


def _web(headers: RequestHeaders, url: str | None) -> dict[str, Any]:
    """Return the page: the one that is asked for, or for a call, where ``url`` is None, the one that makes it."""
    referer = _page_url(headers.get(b"referer"))
    page, origin = (referer, "") if url is None else (url, referer)
    web = {"webPageDetails": {"URL": page}} if page else {}
    return {**web, "webReferrer": {"URL": origin}} if origin else web


def _request_url(scope: Mapping[str, Any], headers: RequestHeaders, proxies: Sequence[Network]) -> str:
    """Return the address that is asked for, as ``_page_url`` does; what is put together here need not be taken apart."""
    site = _site(_scheme(scope, headers, proxies), headers.host)
    path = scope.get("raw_path") or scope.get("path", "").encode("utf-8", "replace")
    query = scope.get("query_string", b"").decode("latin-1")
    if not site or path[:1] not in {b"", b"/"} or not query.isprintable():
        return ""
    return _bounded(site + quote(path.partition(b"?")[0], safe=_PATH), query.partition("#")[0])


def _scheme(scope: Mapping[str, Any], headers: RequestHeaders, proxies: Sequence[Network]) -> str:
    if proxies and _is_from(scope, proxies):
        forwarded = headers.get(b"x-forwarded-proto").rpartition(",")[2].strip(" \t")
        if forwarded in {"http", "https"}:
            return forwarded
    return _SCHEMES.get(scope.get("scheme", "http"), "")


@lru_cache(maxsize=256)
def _site(scheme: str, host: str) -> str:
    """Return the beginning of an application's addresses; empty when it is none. An application has few."""
    return _page_url(f"{scheme}://{host}") if _HOST.fullmatch(host) else ""


def _page_url(url: str) -> str:
    """Return an address as it may be told: without a password and a fragment; empty when it is none."""
    if not url:
        return ""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    if parts.scheme not in {"http", "https"} or not _HOST.fullmatch(parts.netloc) or not url.isprintable():
        return ""
    return _bounded(f"{parts.scheme}://{parts.netloc}{parts.path}", parts.query)


def _bounded(address: str, query: str) -> str:
    """Join the two. What is too long loses its query, and is left out when it still is: half of it is another page."""
    whole = f"{address}?{query}" if query else address
    if len(whole) > MAX_URL:
        whole = address
    return whole if len(whole) <= MAX_URL else ""


def _readable(value: bytes) -> str:
    text = value.decode("latin-1").strip(" \t")
    return text if text.isprintable() else ""


@lru_cache(maxsize=1_024)
def _environment(headers: tuple[bytes, ...]) -> dict[str, Any]:
    """Describe a browser by its headers, in the order of ``_BROWSER_HEADERS``; many visitors have the same one."""
    agent, languages, wow64, *hints = map(_readable, headers)
    language = languages.partition(",")[0].partition(";")[0].strip(" \t")
    details: dict[str, Any] = {
        "userAgent": agent[:MAX_USER_AGENT],
        "acceptLanguage": language if _LANGUAGE.fullmatch(language) else "",
    }
    told: dict[str, Any] = dict(zip(_HINTS.values(), map(_text_hint, hints), strict=True))
    told = {field: hint for field, hint in told.items() if hint}
    if wow64 in _WOW64:
        told["wow64"] = _WOW64[wow64]
    known = {field: text for field, text in details.items() if text}
    if told:
        known["userAgentClientHints"] = told
    return {"type": "browser", "browserDetails": known} if known else {"type": "browser"}


def _text_hint(value: str) -> str:
    """Read a string as structured headers write it, between quotes. Source: RFC 8941, section 3.3.3."""
    if len(value) > MAX_HINT or not re.fullmatch(r'"([^"\\]|\\["\\])*"', value):
        return ""
    return re.sub(r"\\(.)", r"\1", value[1:-1])


def _peer(scope: Mapping[str, Any]) -> Address | None:
    client = scope.get("client")
    return _parse_address(str(client[0])) if client else None


def _is_from(scope: Mapping[str, Any], networks: Sequence[Network]) -> bool:
    peer = _peer(scope) if networks else None
    return peer is not None and _within(peer, networks)


def _within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _parse_address(text: str) -> Address | None:
    """Read an address, with or without a port; one of IPv4 that is written as IPv6 is one of IPv4."""
    match = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](:\d{1,5})?|([0-9.]+):\d{1,5}", text)
    if match is not None:
        text = match[1] or match[3]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
