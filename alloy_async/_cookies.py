"""Cookies of one organisation in a visitor's browser: the edge's own, which alloy.js shares, and two of ours.

What is read decides nothing it does not clearly say: whatever is malformed, too long or unknown counts as not there. Of
two cookies with one name, as a host and its parent domain may both have set one, the stricter counts.
"""

from __future__ import annotations

import binascii
import contextlib
import math
import re
from base64 import b64decode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar
from urllib.parse import quote, unquote

from ._consent._rules import Choice, Purposes
from .edge.state import StateUpdate

__all__ = [
    "CHOICE_MAX_AGE",
    "IDENTITY_MAX_AGE",
    "NO_COOKIES",
    "BrowserChoice",
    "BrowserCookies",
    "CookieAttributes",
    "CookieNames",
    "CookieWriter",
    "Outcome",
    "ToldChoice",
    "browser_choice",
    "delete_cookie",
    "parse_consent",
    "parse_ecid",
    "read_cookies",
    "set_cookie",
    "write_consent",
    "write_told_choice",
]

T = TypeVar("T")

CHOICE_MAX_AGE = 15_552_000
"""Seconds: 180 days. Source: Edge Network, ``kndctr_…_consent``."""

IDENTITY_MAX_AGE = 34_128_000
"""Seconds: 395 days. Source: Edge Network, ``kndctr_…_identity``."""

MAX_VALUE = 4_096
MAX_ENTRIES_SIZE = 16_384

_CLOCKS_DIFFER = 300.0
"""Seconds by which the clock of another worker may differ; a moment later than that was not written by one."""

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_UUID_V4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_ECID = re.compile(r"[0-9]{38}")
_TOLD = re.compile(r"(all|none)\.([0-9]{1,14})")
_DOMAIN = re.compile(
    r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)

# RFC 6265, section 4.1.1: cookie-octet, without the "%" that begins an escape.
_OCTETS = "!#$&'()*+-./:<=>?@[]^_`{|}~"

_GENERAL: dict[str, Choice] = {"in": "all", "out": "none"}
_WORDS: dict[Choice, str] = {choice: word for word, choice in _GENERAL.items()}

_PREFERENCES = ("consent", "consent_check", "optout")
"""Ends of names whose cookies say what a visitor wants, and not who it is."""


@dataclass(frozen=True, slots=True)
class CookieNames:
    """The names of one organisation's cookies.

    Attributes:
        prefix: what all of the edge's begin with.
        consent: ``general=in`` or ``general=out``, shared with alloy.js.
        identity: the ECID, in a protobuf.
        cluster: the region that answers this visitor.
        choice: ours: the last choice that the server told this browser, and when: ``none.1767225600000``.
        fpid: ours: the first-party id, a UUIDv4.
        pattern: finds names and values of these in a ``Cookie`` header, most of which are somebody else's.
    """

    prefix: str
    consent: str
    identity: str
    cluster: str
    choice: str
    fpid: str
    pattern: re.Pattern[bytes]

    @classmethod
    def of(cls, ims_org_id: str) -> CookieNames:
        """Return the names for an organisation.

        Source: adobe/alloy, getNamespacedCookieName: only the first ``@`` becomes ``_``; js-cookie escapes whatever a
        name must not hold.
        """
        organisation = quote(ims_org_id.replace("@", "_", 1), safe="!#$&'*+-.^_`|~")
        prefix, own = f"kndctr_{organisation}_", f"alloy_{organisation}_"
        return cls(
            prefix=prefix,
            consent=f"{prefix}consent",
            identity=f"{prefix}identity",
            cluster=f"{prefix}cluster",
            choice=f"{own}choice",
            fpid=f"{own}fpid",
            pattern=re.compile(
                rb"(?:^|;)[ \t]*(%b[^=;]*|%b(?:choice|fpid)[ \t]*)=([^;]*)"
                % (re.escape(prefix.encode()), re.escape(own.encode()))
            ),
        )

    def is_preference(self, name: str) -> bool:
        """Return whether a cookie of the edge says what the visitor wants, so that it outlives a refusal."""
        return name.removeprefix(self.prefix) in _PREFERENCES


class ToldChoice(NamedTuple):
    """What the server last told the browser of the visitor's choice.

    Attributes:
        purposes: the choice.
        at: when it was told, in milliseconds since 1970; the browser knows of every choice before.
    """

    purposes: Choice
    at: int


class BrowserChoice(NamedTuple):
    """What a visitor's browser says about consent.

    Attributes:
        purposes: "all", "none", or None when it says nothing.
        seen: seconds since 1970; whoever said so may have known of every choice until then, and of none after.
    """

    purposes: Choice | None
    seen: float = 0.0


class BrowserCookies(NamedTuple):
    """What a request's cookies say.

    Attributes:
        consent: what the page's cookie says; None when there is none, or it is not understood.
        told: our choice cookie.
        fpid: our first-party id.
        ecid: the ECID in the identity cookie.
        entries: name and value of every cookie of the edge, for ``meta.state``.
        names: the names of all of them and of ours, also of those that could not be read.
    """

    consent: Choice | None = None
    told: ToldChoice | None = None
    fpid: str | None = None
    ecid: str | None = None
    entries: tuple[tuple[str, str], ...] = ()
    names: frozenset[str] = frozenset()

    def identifying(self, names: CookieNames) -> list[str]:
        """Return the names of the cookies that a refusal deletes: whoever carries them can be recognised."""
        return sorted(name for name in self.names if name != names.choice and not names.is_preference(name))


NO_COOKIES = BrowserCookies()


def read_cookies(headers: Sequence[bytes], names: CookieNames) -> BrowserCookies:
    """Read an organisation's cookies out of the ``Cookie`` headers of a request; never raises.

    However long a header is, it is read to its end, since a refusal may stand there; what is kept of it is bounded:
    4 096 bytes a value, 16 384 bytes of entries.

    Args:
        headers: their values, as they came.
        names: of the organisation.
    """
    found: dict[str, list[str | None]] = {}
    for header in headers:
        for name, raw in names.pattern.findall(header):
            found.setdefault(name.decode("latin-1").rstrip(" \t"), []).append(_decode(raw))
    if not found:  # as with each first request
        return NO_COOKIES
    return BrowserCookies(
        consent=_strictest(_all(found, names.consent, parse_consent)),
        told=_newest(_all(found, names.choice, _parse_told)),
        fpid=_first(_all(found, names.fpid, _parse_fpid)),
        ecid=_first(_all(found, names.identity, parse_ecid)),
        entries=tuple(_entries(found, names)),
        names=frozenset(found),
    )


def parse_consent(value: str) -> Choice | None:
    """Read the page's consent cookie: exactly ``general=in`` or ``general=out``; None for everything else.

    Source: adobe/alloy, parseConsentCookie: pairs separated by ``;``, of which only ``general`` means anything.
    """
    pairs = [part.strip().partition("=") for part in value.split(";")]
    words = [word for name, _, word in pairs if name == "general"]
    return _strictest([_GENERAL.get(word) for word in words])


def parse_ecid(value: str) -> str | None:
    """Read the ECID in an identity cookie: 38 digits, or None.

    Source: adobe/alloy, the identity cookie: a protobuf in base64, plain or URL-safe, whose field 1 is the ECID.
    """
    text = value.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        message = b64decode(text + "=" * (-len(text) % 4), validate=True)
        ecid = _protobuf_text(message, 1).decode("ascii")
    except (binascii.Error, IndexError, ValueError):
        return None
    return ecid if _ECID.fullmatch(ecid) else None


def browser_choice(cookies: BrowserCookies, *, now: float, max_age: float = CHOICE_MAX_AGE) -> BrowserChoice:
    """Weigh the page's cookie and ours.

    A "no" in the page's cookie holds. A "yes" there was said after the last choice that the server told this browser,
    and answers that one, but no refusal that the server has learned since. Where the page says nothing, ours holds.

    Args:
        cookies: of the request.
        now: seconds since 1970.
        max_age: seconds a choice is valid.
    """
    told = cookies.told if cookies.told and _is_current(cookies.told, now, max_age) else None
    seen = 0.0 if told is None else told.at / 1_000
    if cookies.consent is not None:
        return BrowserChoice(cookies.consent, seen)
    return BrowserChoice(None) if told is None else BrowserChoice(told.purposes, seen)


def write_consent(purposes: Choice) -> str:
    """Return the value of the page's consent cookie."""
    return f"general={_WORDS[purposes]}"


def write_told_choice(purposes: Choice, now: float) -> str:
    """Return the value of our choice cookie.

    Args:
        purposes: the choice that is told.
        now: seconds since 1970; rounded up, so that a refusal of this very moment is among those told.
    """
    return f"{purposes}.{math.ceil(now * 1_000)}"


@dataclass(frozen=True, slots=True)
class CookieAttributes:
    """What all cookies of an application have in common.

    Args:
        domain: where they are sent besides this host; None: to this host only.
        secure: whether they are sent over https only.

    Raises:
        ValueError: the domain is none.
    """

    domain: str | None = None
    secure: bool = True

    def __post_init__(self) -> None:
        if self.domain is not None and not _DOMAIN.fullmatch(self.domain):
            raise ValueError("is not a domain in lower case, such as example.com")


_SAME_SITE: Mapping[str, str] = {"strict": "Strict", "lax": "Lax", "none": "None"}


def set_cookie(
    name: str,
    value: str,
    attributes: CookieAttributes,
    *,
    max_age: int | None,
    same_site: str = "Lax",
    http_only: bool = False,
) -> bytes:
    """Write a ``Set-Cookie`` header by hand: ``general=in`` stays as it is, where ``http.cookies`` would quote it.

    Args:
        name: of the cookie.
        value: escaped as js-cookie escapes it, so that whatever it holds, it cannot end the value.
        attributes: domain and security.
        max_age: seconds; 0 or less deletes, None lasts as long as the browser runs.
        same_site: in any letter case; another word counts as ``Lax``. ``None`` is always ``Secure``.
        http_only: whether scripts of the page cannot read it.

    Raises:
        ValueError: the name or the value cannot be written. What it holds is not told.

    Source: RFC 6265, section 4.1.1; js-cookie.
    """
    if not _TOKEN.fullmatch(name):
        raise ValueError("the name of a cookie must be a token")
    site = _SAME_SITE.get(same_site.lower(), "Lax")
    parts = [f"{name}={_encode(value)}", "Path=/"]
    if attributes.domain is not None:
        parts.append(f"Domain={attributes.domain}")
    if max_age is not None:
        parts.append(f"Max-Age={max(max_age, 0)}")
    parts.append(f"SameSite={site}")
    parts += ["Secure"] * (attributes.secure or site == "None") + ["HttpOnly"] * http_only
    return "; ".join(parts).encode("ascii")


def delete_cookie(name: str, attributes: CookieAttributes) -> bytes:
    """Write the header that deletes a cookie."""
    return set_cookie(name, "", attributes, max_age=0)


class Outcome(NamedTuple):
    """What became of a visitor during a request, as far as the browser is concerned.

    Attributes:
        purposes: what is known of the choice when the response begins.
        chosen_at: seconds since 1970 of that choice.
        chosen_here: whether it was made in this request.
        refused: whether there was a refusal before, of which the identity must not outlive it.
        signalled: whether it is a header's refusal, which holds as long as it is sent.
        forgotten: whether the visitor was forgotten in this request.
        fpid: the first-party id that the browser is to have; None: none.
        updates: what the edge handed back to be kept by the browser.
    """

    purposes: Purposes
    chosen_at: float
    chosen_here: bool = False
    refused: bool = False
    signalled: bool = False
    forgotten: bool = False
    fpid: str | None = None
    updates: tuple[StateUpdate, ...] = ()


class CookieWriter:
    """Writes what a browser is told with a response.

    Args:
        names: of the organisation.
        attributes: of all cookies.
        max_age: seconds a choice is valid.
    """

    def __init__(self, names: CookieNames, attributes: CookieAttributes, max_age: float) -> None:
        self._names = names
        self._attributes = attributes
        self._max_age = int(max_age)

    def lines(self, cookies: BrowserCookies, outcome: Outcome) -> list[bytes]:
        """Return the ``Set-Cookie`` headers for a response, at most one for each name.

        Args:
            cookies: of the request.
            outcome: what became of the visitor.
        """
        lines: dict[str, bytes] = {}
        if outcome.forgotten:
            lines |= self._deleted(sorted(cookies.names))
        if outcome.refused or outcome.purposes == "none":
            lines |= self._deleted(cookies.identifying(self._names))
        if outcome.purposes == "all":
            lines |= self._identity(outcome)
        if self._is_news(cookies, outcome):
            lines |= self._choice("all" if outcome.purposes == "all" else "none", outcome.chosen_at)
        return list(lines.values())

    def _is_news(self, cookies: BrowserCookies, outcome: Outcome) -> bool:
        """Return whether the browser must be told the choice: one that was made here, or a refusal it does not know.

        A yes that the store knew is not told: it may have been given in another browser.
        """
        if outcome.purposes == "pending" or outcome.chosen_here:
            return outcome.chosen_here and outcome.purposes != "pending"
        knows = cookies.consent == "none" and cookies.told is not None and cookies.told.purposes == "none"
        return outcome.purposes == "none" and not outcome.signalled and not knows

    def _choice(self, purposes: Choice, at: float) -> Iterator[tuple[str, bytes]]:
        """Tell a choice: to alloy.js with its own cookie, and to us with the moment, which scripts need not see."""
        names, age = self._names, self._max_age
        yield names.consent, set_cookie(names.consent, write_consent(purposes), self._attributes, max_age=age)
        told = write_told_choice(purposes, at)
        yield names.choice, set_cookie(names.choice, told, self._attributes, max_age=age, http_only=True)

    def _identity(self, outcome: Outcome) -> Iterator[tuple[str, bytes]]:
        for update in outcome.updates:
            if self._may_keep(update.key):
                with contextlib.suppress(ValueError):  # what cannot be written is not worth a broken response
                    yield update.key, self._state(update)
        if outcome.fpid is not None:
            name, age = self._names.fpid, IDENTITY_MAX_AGE
            yield name, set_cookie(name, outcome.fpid, self._attributes, max_age=age, http_only=True)

    def _may_keep(self, name: str) -> bool:
        """Return whether the edge may have a cookie kept: one of its own, and never the choice, which is not its to make."""
        return name.startswith(self._names.prefix) and name != self._names.consent

    def _state(self, update: StateUpdate) -> bytes:
        site = update.attrs.get("SameSite", "Lax")
        return set_cookie(update.key, update.value, self._attributes, max_age=update.max_age, same_site=site)

    def _deleted(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        return ((name, delete_cookie(name, self._attributes)) for name in names if _TOKEN.fullmatch(name))


def _decode(raw: bytes) -> str | None:
    """Undo quotes and escapes, once; None for what cannot be a value."""
    text = raw.decode("latin-1").strip(" \t")
    if len(text) > MAX_VALUE:
        return None
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    try:
        value = unquote(text, errors="strict")
    except UnicodeDecodeError:
        return None
    return value if value.isprintable() else None


def _encode(value: str) -> str:
    if not value.isprintable() or len(value) > MAX_VALUE:
        raise ValueError(
            "the value of a cookie must be a text of at most 4 096 characters, without control characters"
        )
    return quote(value, safe=_OCTETS)


def _all(
    found: Mapping[str, list[str | None]], name: str, parse: Callable[[str], T | None]
) -> list[T | None]:
    """Read every cookie of this name."""
    return [None if value is None else parse(value) for value in found.get(name, ())]


def _strictest(choices: Collection[Choice | None]) -> Choice | None:
    """Of several, a refusal counts; a yes only where all say so."""
    if "none" in choices:
        return "none"
    return "all" if choices and None not in choices else None


def _newest(told: Iterable[ToldChoice | None]) -> ToldChoice | None:
    found = [one for one in told if one is not None]
    return max(found, key=lambda one: (one.at, one.purposes == "none"), default=None)


def _first(values: Iterable[T | None]) -> T | None:
    for value in values:
        if value is not None:
            return value
    return None


def _parse_told(value: str) -> ToldChoice | None:
    match = _TOLD.fullmatch(value)
    if match is None:
        return None
    return ToldChoice("all" if match[1] == "all" else "none", int(match[2]))


def _parse_fpid(value: str) -> str | None:
    fpid = value.lower()
    return fpid if _UUID_V4.fullmatch(fpid) else None


def _entries(found: Mapping[str, list[str | None]], names: CookieNames) -> Iterator[tuple[str, str]]:
    room = MAX_ENTRIES_SIZE
    for name, values in found.items():
        value = _first(values)
        if value is None or not name.startswith(names.prefix):
            continue
        room -= len(name) + len(value)
        if room < 0:
            return
        yield name, value


def _is_current(told: ToldChoice, now: float, max_age: float) -> bool:
    return now - max_age < told.at / 1_000 <= now + _CLOCKS_DIFFER


def _protobuf_text(message: bytes, wanted: int) -> bytes:
    """Return the first text of a field, stepping over the others.

    Raises:
        IndexError: the message ends too early, or has no such field.
        ValueError: it is no protobuf.
    """
    at = 0
    while True:
        tag, at = _varint(message, at)
        kind, length = tag & 7, {1: 8, 5: 4}.get(tag & 7, 0)
        if kind not in {0, 1, 2, 5}:
            raise ValueError("a wire type that protobuf no longer uses")
        if kind in {0, 2}:
            number, at = _varint(message, at)
            length = number if kind == 2 else 0
        if kind == 2 and tag >> 3 == wanted:
            return message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):  # 64 bits take ten bytes
        value |= (message[at] & 0x7F) << shift
        at += 1
        if not message[at - 1] & 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")
