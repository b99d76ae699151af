"""The circuit breaker: an endpoint that is down is probed, not hammered."""

from __future__ import annotations

from hypothesis import given, strategies as st

from alloy_async.edge.breaker import FIRST_COOL_DOWN, LONGEST_COOL_DOWN, TOLERATED, Breaker


def opened(now=0.0):
    breaker = Breaker()
    for _ in range(TOLERATED):
        breaker.started()
        breaker.failed(now, 0.0)
    return breaker


def test_a_few_outages_change_nothing():
    """One fewer than the bound, and an answer in between counts them anew."""
    breaker = Breaker()
    for _ in range(3):
        for _ in range(TOLERATED - 1):
            breaker.failed(0.0, 0.0)
        breaker.answered()
    assert breaker.circuit == "closed"
    assert breaker.lets_start(0.0)


def test_an_open_circuit_lets_one_probe_start_after_its_cool_down():
    """Nothing before, one request then, and no second one beside it."""
    breaker = opened()
    assert breaker.circuit == "open"
    assert not breaker.lets_start(FIRST_COOL_DOWN - 0.001)
    assert breaker.lets_start(FIRST_COOL_DOWN)
    breaker.started()
    assert breaker.circuit == "half-open"
    assert not breaker.lets_start(1_000.0)


def test_a_probe_that_is_answered_closes_the_circuit():
    """Requests flow again, and the next outages are counted from nothing."""
    breaker = opened()
    breaker.started()
    breaker.answered()
    assert breaker.lets_start(0.0)
    breaker.failed(0.0, 0.0)
    assert breaker.circuit == "closed"


def test_each_failed_probe_doubles_the_cool_down_up_to_a_bound():
    """A dead endpoint sees fewer and fewer probes, and one a minute in the end."""
    breaker, now, waits = opened(), 0.0, []
    for _ in range(10):
        waits.append(breaker.until - now)
        now = breaker.until
        breaker.started()
        breaker.failed(now, 0.0)
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert waits[-1] == LONGEST_COOL_DOWN


def test_what_was_under_way_before_tells_nothing_new():
    """Requests that started before the circuit opened do not lengthen the cool-down."""
    breaker = opened()
    until = breaker.until
    for _ in range(20):
        breaker.failed(0.5, 0.0)
    assert breaker.until == until


def test_a_probe_that_was_not_sent_leaves_its_place_to_another():
    """Consent went while it was connecting: that says nothing about the endpoint."""
    breaker = opened()
    breaker.started()
    breaker.gave_up()
    assert breaker.lets_start(FIRST_COOL_DOWN)


@given(
    st.lists(st.sampled_from(["start", "answer", "fail", "give up", "later"]), max_size=60), st.floats(0, 1)
)
def test_whatever_happens_it_never_stays_shut(steps, chance):
    """In each state something lets requests start again: time, or the end of the probe."""
    breaker, now = Breaker(), 0.0
    for step in steps:
        if step == "start" and breaker.lets_start(now):
            breaker.started()
        elif step == "answer":
            breaker.answered()
        elif step == "fail":
            breaker.failed(now, chance)
        elif step == "give up":
            breaker.gave_up()
        elif step == "later":
            now += 5.0
    if breaker.circuit == "half-open":
        breaker.failed(now, chance)
    assert breaker.lets_start(now + LONGEST_COOL_DOWN)
