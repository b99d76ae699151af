"""What it costs to say "all" or "none" while very many commands wait, and how long the event loop stands still."""

from __future__ import annotations

import asyncio

from measure import Finding, Spent, watch
from stage import AnswersAtOnce, NeverAnswers, waiting_for_consent

from alloy_async import OptInState

REACH = 10.0  # µs of CPU time for each command
REACH_GAP = 50.0  # ms between two turns of the event loop


def findings(*, smoke: bool) -> list[Finding]:
    """Measure waiters of a gate alone, then events."""
    count = 1_000 if smoke else 100_000
    return [
        *asyncio.run(_waiters("all", count), debug=False),
        *asyncio.run(_waiters("none", count), debug=False),
        *asyncio.run(_events_leave_the_gate(count), debug=False),
        *asyncio.run(_events_are_delivered(count), debug=False),
        *asyncio.run(_events_are_refused(count), debug=False),
    ]


async def _waiters(purposes: str, count: int) -> list[Finding]:
    """Settle the futures of ``when_opted_in()``: the gate, and nothing below it."""
    gate = OptInState(max_parked=count)
    waiters = [gate.when_opted_in() for _ in range(count)]
    spent, gap = await watch(lambda: gate.choose(purposes), waiters[-1].done)
    for waiter in waiters:
        waiter.exception()  # looked at, so that nobody is told of refusals
    return _found(f'OptInState alone, "{purposes}"', spent, gap, count)


async def _events_leave_the_gate(count: int) -> list[Finding]:
    """Release events into a queue that cannot empty, because no request is ever answered."""
    async with waiting_for_consent(NeverAnswers(), events=count) as alloy:
        spent, gap = await watch(lambda: alloy.opt_in(purposes="all"), lambda: not alloy.statistics().parked)
    return _found('events, "all", from the gate into the queue', spent, gap, count)


async def _events_are_delivered(count: int) -> list[Finding]:
    """Release events and deliver them all: batches, requests, answers and results included."""
    async with waiting_for_consent(AnswersAtOnce(), events=count) as alloy:
        spent, gap = await watch(lambda: alloy.opt_in(purposes="all"), lambda: not alloy.statistics().open)
    return _found('events, "all", until each has its result', spent, gap, count)


async def _events_are_refused(count: int) -> list[Finding]:
    """Refuse events that nobody awaits: each failure is counted for the log, which is the costly case."""
    async with waiting_for_consent(AnswersAtOnce(), events=count) as alloy:
        spent, gap = await watch(lambda: alloy.opt_in(purposes="none"), lambda: not alloy.statistics().open)
    return _found('events, "none", until each is refused', spent, gap, count)


def _found(question: str, spent: Spent, gap: float, count: int) -> list[Finding]:
    return [
        Finding(f"{question}: CPU each", spent.cpu * 1e6 / count, "µs", reach=REACH),
        Finding(f"{question}: longest gap", gap * 1e3, "ms", reach=REACH_GAP),
    ]
