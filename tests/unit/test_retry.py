"""The retry decision: what is tried again, when, and when it ends."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given, strategies as st

from alloy_async import AlloyError, ConsentDeclined, EdgeError, NetworkError
from alloy_async.edge.retry import (
    FIRST_WAIT,
    LONGEST_WAIT,
    RetryPolicy,
    is_about_input,
    is_outage,
    next_wait,
    retry_after_seconds,
)

NOW = 1_767_225_600.0
POLICY = RetryPolicy(max_attempts=5, max_retry_after=300.0)
RETRIED = [408, 429, 502, 503, 504, 507]
FINAL = [200, 207, 400, 401, 403, 404, 409, 413, 415, 422, 500, 501]


def refusal(status, **facts):
    return EdgeError(status, title="no", retryable=status in RETRIED, **facts)


def wait(failure, **changes):
    facts = {"attempt": 1, "consents": True, "remaining": 1_000.0, "now": NOW, "chance": 1.0}
    return next_wait(POLICY, failure, **facts | changes)


@pytest.mark.parametrize("failure", [*map(refusal, RETRIED), NetworkError("http://edge", "reset")], ids=str)
def test_what_may_succeed_later_is_tried_again(failure):
    """Busy, rate limited, or not reached: the same request follows."""
    assert wait(failure) == FIRST_WAIT


@pytest.mark.parametrize(
    "failure", [*map(refusal, FINAL), AlloyError("a mistake"), ConsentDeclined("event")], ids=str
)
def test_what_will_not_change_is_final(failure):
    """Input, authorisation, a server error that must not be repeated, and what the edge has taken."""
    assert wait(failure) is None


@given(
    attempt=st.integers(1, 10_000),
    chance=st.floats(0, 1),
    remaining=st.floats(-10, 1e6),
    consents=st.booleans(),
)
def test_no_wait_leads_past_the_deadline_nor_past_consent(attempt, chance, remaining, consents):
    """Whatever the numbers, a wait is bounded, and ends before the events are too old."""
    policy = RetryPolicy(max_attempts=None, max_retry_after=300.0)
    failure = NetworkError("http://edge", "reset")
    seconds = next_wait(
        policy, failure, attempt=attempt, consents=consents, remaining=remaining, now=NOW, chance=chance
    )
    if seconds is not None:
        assert consents
        assert 0 <= seconds <= min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(attempt - 1, 60))
        assert seconds < remaining


def test_attempts_are_counted():
    """The last attempt's failure is final."""
    failure = refusal(503)
    assert [wait(failure, attempt=attempt) is None for attempt in (1, 4, 5, 6)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 120 ", 120.0),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
        ("Thu, 01 Jan 2026 00:01:00 -0000", 60.0),
        ("9" * 400, 999_999_999.0),
        ("-3", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("\N{ARABIC-INDIC DIGIT SEVEN}", None),
        ("Thu, 99 Jan 99999 00:00:00 GMT", None),
        (None, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date(text, seconds):
    """What cannot be read is as if it were not there."""
    assert retry_after_seconds(text, NOW) == seconds


@given(st.text(max_size=60))
def test_no_retry_after_does_harm(text):
    """Whatever a server writes there, reading it gives seconds or nothing."""
    seconds = retry_after_seconds(text, NOW)
    assert seconds is None or seconds >= 0


def test_retry_after_wins_over_the_usual_wait_and_is_capped():
    """The edge is obeyed, within the bound that the settings give."""
    assert wait(refusal(429, retry_after="17")) == 17.0
    assert wait(refusal(503, retry_after="0")) == 0.0
    assert wait(refusal(503, retry_after="86400")) == 300.0
    assert wait(refusal(503, retry_after="nonsense")) == FIRST_WAIT
    assert wait(refusal(429, retry_after="17"), remaining=17.0) is None


def test_what_says_that_the_endpoint_is_down():
    """A refusal of one request says nothing about the endpoint."""
    assert is_outage(NetworkError("http://edge", "reset"))
    assert [status for status in (408, 429, 500, 502, 503, 504, 507) if is_outage(refusal(status))] == [
        502,
        503,
        504,
    ]


@pytest.mark.parametrize(
    ("code", "status", "about_input"),
    [
        ("0102", 400, True),
        ("0104", 422, True),
        ("0112", 413, True),
        ("0304", 400, True),
        ("0305", 400, True),
        ("0306", 400, True),
        ("0308", 400, True),
        ("0003", 400, False),
        ("0004", 422, False),
        ("0302", 409, False),
        ("0503", 401, False),
        ("0109", 408, False),
    ],
)
def test_only_what_is_about_input_is_looked_for_in_parts(code, status, about_input):
    """Never for a datastream that is unknown, nor for a missing permission."""
    failure = refusal(status, type=f"https://ns.adobe.com/aep/errors/EXEG-{code}-{status}")
    assert is_about_input(failure) is about_input
