"""Access tokens for requests from server to server: fetched when first needed, shared, kept, replaced when refused."""

from __future__ import annotations

import asyncio
import re
from copy import copy
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

from .._clock import Clock
from .._json import decode
from ..errors import AlloyClosed, AlloyError, EdgeError
from .protocol import Access
from .transport import EdgeRequest, EdgeResponse, Transport, send_once

__all__ = ["AccessRefused", "Credentials", "TokenSource"]

LONGEST_LIFE = 86_400.0
"""Seconds that a token is used at most, whatever is said of it. Source: IMS documentation, 24 hours."""

MARGIN = 300.0
"""Seconds before its end at which a token is no longer used; a tenth of its life where that is less."""

REPLACEMENT_PAUSE = 60.0
"""Seconds in which a refused token is replaced once. When the edge refuses the new one too, more of them are no help,
and IMS throttles clients that mint needlessly."""

REFUSAL_PAUSE = 10.0
"""Seconds for which a refusal of the credentials stands for further requests: asked more often, it stays a refusal."""

MAX_ANSWER = 65_536
"""Bytes of an answer that are read as a token's."""

_HEADERS = {
    "content-type": "application/x-www-form-urlencoded",
    "accept": "application/json",
    "accept-encoding": "identity",
}

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{1,16384}=*")
"""Source: RFC 6750, section 2.1; it becomes part of a header."""

_REASONS = frozenset(
    {
        "invalid_client",
        "invalid_grant",
        "invalid_request",
        "invalid_scope",
        "unauthorized_client",
        "unsupported_grant_type",
    }
)
"""What a refusal may say why; nothing else of it is repeated, since it could be a secret. Source: RFC 6749, section 5.2."""


class AccessRefused(EdgeError):
    """The identity service, which answers in the edge's place here, gave no access token; nothing was sent.

    Attributes:
        host: the identity service.
    """

    def __init__(
        self,
        status: int,
        *,
        host: str,
        detail: str,
        retryable: bool = False,
        retry_after: str | None = None,
    ) -> None:
        super().__init__(
            status,
            title="no access token could be had",
            detail=detail,
            retryable=retryable,
            retry_after=retry_after,
        )
        self.host = host

    def __str__(self) -> str:
        return f"{self.title}: {self.host} answered {self.status}, {self.detail}"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a token is asked for with.

    Attributes:
        client_id: the client.
        client_secret: its secret, never shown.
        scopes: what the token shall be good for.
        ims_org_id: the organisation, with ``@``.
    """

    client_id: str
    client_secret: str = field(repr=False)
    scopes: tuple[str, ...]
    ims_org_id: str


class _Kept(NamedTuple):
    """The outcome of a fetch, and until when it holds, in monotonic seconds."""

    outcome: Access | AlloyError
    until: float


class TokenSource:
    """Hands out the access token that holds now.

    One fetch serves everybody who waits. It belongs to a task of ours: a caller who is cancelled stops waiting, and the
    others still get their token.

    Args:
        transport: the way to the identity service; the one to the edge.
        url: address of the identity service.
        credentials: what the token is asked for with.
        clock: where time comes from.
    """

    def __init__(self, transport: Transport, *, url: str, credentials: Credentials, clock: Clock) -> None:
        self._transport = transport
        self._credentials = credentials
        self._clock = clock
        self._request = EdgeRequest(url, _HEADERS, _form(credentials))
        self._kept: _Kept | None = None
        self._fetching: asyncio.Task[_Kept] | None = None
        self._replaced_at: float | None = None
        self._closed = False

    async def access(self) -> Access:
        """Return what lets a request in, fetching it when there is none, or its time is over.

        Raises:
            AccessRefused: the identity service gave none; ``retryable`` says whether it may later.
            NetworkError: it could not be reached, or stopped answering.
            AlloyClosed: closing came first.
        """
        kept = self._kept
        if kept is None or self._clock.monotonic() >= kept.until:
            kept = await self._fetched()
        if isinstance(kept.outcome, AlloyError):
            raise copy(kept.outcome)  # each one gets its own: a raised error collects its own traceback
        return kept.outcome

    def replace(self, refused: Access) -> bool:
        """Take note that the edge refused a token; return whether it is worth asking for access again.

        Only the token that was refused is given up, never one that somebody else has fetched meanwhile.
        """
        if self._kept is None or self._kept.outcome is not refused:
            return True
        now = self._clock.monotonic()
        if self._replaced_at is not None and now < self._replaced_at + REPLACEMENT_PAUSE:
            return False
        self._kept = None
        self._replaced_at = now
        return True

    async def aclose(self) -> None:
        """Stop fetching; whoever waits gets ``AlloyClosed``."""
        self._closed = True
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])

    async def _fetched(self) -> _Kept:
        if self._closed:
            raise AlloyClosed("access token")
        task = self._fetching
        if task is None:
            task = self._fetching = asyncio.Task(self._fetch(), name="alloy-token")
            task.add_done_callback(self._keep)
        # Unlike with `await task`, whoever is cancelled here cancels nothing but the waiting.
        await asyncio.wait([task])
        if task.cancelled():
            raise AlloyClosed("access token")
        return task.result()

    def _keep(self, task: asyncio.Task[_Kept]) -> None:
        self._fetching = None
        if not task.cancelled():
            self._kept = task.result()

    async def _fetch(self) -> _Kept:
        """Ask once. An error is an outcome like any other, so that no traceback of this task holds what it saw."""
        try:
            response = await send_once(self._transport, self._request, lambda: True)
            return self._read(response)
        except AlloyError as error:
            failure: AlloyError = error.with_traceback(None)
        except Exception as error:  # noqa: BLE001 - a mistake of ours must not leave anybody waiting
            failure = AlloyError(f"internal error ({type(error).__name__}); please report it")
        failure.__context__ = None
        now = self._clock.monotonic()
        return _Kept(failure, now if _may_pass(failure) else now + REFUSAL_PAUSE)

    def _read(self, response: EdgeResponse) -> _Kept:
        """Read an answer strictly.

        Source: IMS documentation, ``{"access_token", "token_type", "expires_in"}``, in seconds; RFC 6749, section 5.1.
        """
        if not 200 <= response.status < 300:
            raise self._refusal(response)
        document = _document(response)
        token, kind, life = (document.get(name) for name in ("access_token", "token_type", "expires_in"))
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise self._unreadable(response, "access_token")
        if not isinstance(kind, str) or kind.lower() != "bearer":
            raise self._unreadable(response, "token_type")
        if not isinstance(life, int) or isinstance(life, bool) or life <= 0:
            raise self._unreadable(response, "expires_in")
        access = Access(token, self._credentials.client_id, self._credentials.ims_org_id)
        return _Kept(access, self._clock.monotonic() + _usable_life(life))

    def _refusal(self, response: EdgeResponse) -> AccessRefused:
        busy = response.status >= 500 or response.status in {408, 429}
        reason = _document(response).get("error")
        named = f"{reason}; " if isinstance(reason, str) and reason in _REASONS else ""
        advice = "which may pass" if busy else "check client_id, client_secret, scopes and ims_host"
        return AccessRefused(
            response.status,
            host=self._host,
            detail=named + advice,
            retryable=busy,
            retry_after=response.headers.get("retry-after"),
        )

    def _unreadable(self, response: EdgeResponse, name: str) -> AccessRefused:
        detail = f"and the answer has no usable {name}; check ims_host"
        return AccessRefused(response.status, host=self._host, detail=detail)

    @property
    def _host(self) -> str:
        return urlsplit(self._request.url).netloc


def _form(credentials: Credentials) -> bytes:
    """Source: IMS documentation, client credentials."""
    fields = {
        "grant_type": "client_credentials",
        "client_id": credentials.client_id,
        "client_secret": credentials.client_secret,
    }
    if credentials.scopes:
        fields["scope"] = ",".join(credentials.scopes)
    return urlencode(fields).encode()


def _document(response: EdgeResponse) -> dict[str, object]:
    """Return the object that an answer is; an empty one when it is none."""
    if len(response.body) > MAX_ANSWER:
        return {}
    try:
        document = decode(response.body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _usable_life(life: int) -> float:
    seconds = min(life, LONGEST_LIFE)
    return seconds - min(MARGIN, seconds / 10)


def _may_pass(failure: AlloyError) -> bool:
    return bool(getattr(failure, "retryable", False))
