"""Whether a request is tried again, and when; pure.

Retried is what may succeed later and cannot harm: the edge was not reached, stopped answering, or said that it is busy.
An event keeps its ``_id`` over all attempts, so that a repetition can be told from a second event.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from ..errors import AlloyError, EdgeError, NetworkError

__all__ = ["RetryPolicy", "is_about_input", "is_outage", "next_wait", "retry_after_seconds"]

FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
"""Seconds within which the first retry comes, doubled each time up to the second. Source: adobe/alloy waits 1, 2 and 3 s
with 30 % of jitter; full jitter spreads the clients of an edge that comes back."""

OUTAGES = frozenset({502, 503, 504})
"""Statuses that say that the endpoint, or what stands behind it, is down."""

INPUT_CODES = frozenset({"0304", "0305", "0306", "0308"})
"""Codes about what an event says of persons; all that begin with 01 are about input too.

Source: Edge Network error codes.
"""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The limits of trying again.

    Attributes:
        max_attempts: times a request is made; None: as often as the deadline allows.
        max_retry_after: seconds of an answer's Retry-After that are obeyed at most.
    """

    max_attempts: int | None
    max_retry_after: float


def next_wait(
    policy: RetryPolicy,
    failure: AlloyError,
    *,
    attempt: int,
    consents: bool,
    remaining: float,
    now: float,
    chance: float,
) -> float | None:
    """Decide what follows a failed attempt.

    Args:
        policy: the limits.
        failure: what the attempt ended with; carries the answer's status and ``Retry-After``.
        attempt: how many attempts were made, this one included.
        consents: whether the visitor still consents.
        remaining: seconds until the deadline of the events.
        now: seconds since 1970, to read a Retry-After that names a date.
        chance: a random number from 0 to 1.

    Returns:
        Seconds to wait, or None: the failure is final.

    Source: Edge Network documentation, section on errors (429, 502, 503, 504; never 500 or another 4xx); Adobe's mobile
    SDKs add 408 and 507; RFC 9110, section 10.2.3, Retry-After.
    """
    if not consents or not getattr(failure, "retryable", False):
        return None
    if policy.max_attempts is not None and attempt >= policy.max_attempts:
        return None
    asked = retry_after_seconds(failure.retry_after, now) if isinstance(failure, EdgeError) else None
    wait = min(asked, policy.max_retry_after) if asked is not None else _backoff(attempt, chance)
    return wait if wait < remaining else None


def retry_after_seconds(text: str | None, now: float) -> float | None:
    """Read a Retry-After header: seconds from now, never negative; None when there is none that can be read.

    Args:
        text: whole seconds, or an HTTP date.
        now: seconds since 1970.
    """
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])  # more digits would be decades
    try:
        moment = parsedate_to_datetime(text[:100])
    except (ValueError, OverflowError):
        return None
    # A date without a zone is UTC. Source: RFC 9110, section 5.6.7.
    return max((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now, 0.0)


def is_outage(failure: AlloyError) -> bool:
    """Return whether a failure says that the endpoint is down, rather than that it minds this one request."""
    if isinstance(failure, EdgeError):
        return failure.status in OUTAGES
    return isinstance(failure, NetworkError)


def is_about_input(failure: AlloyError) -> bool:
    """Return whether a request was refused for something in it, so that its parts may be taken one by one.

    Never so for a datastream that is unknown or switched off, nor for a missing permission: each part would be refused
    alike.
    """
    code = failure.code if isinstance(failure, EdgeError) and not failure.retryable else ""
    return code.startswith("01") or code in INPUT_CODES


def _backoff(attempt: int, chance: float) -> float:
    """Full jitter: anything between at once and the bound, so that no two clients keep in step."""
    return chance * min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(attempt - 1, 16))
