"""What an event costs from the call to its outcome, and how many go through, next to what others offer.

Each client runs in a fresh process and sends the same purchases over loopback to one collector, which counts them.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

from measure import Finding, compare
from side_by_side import Measured, SideBySide, by_rounds, collector

Runs = dict[str, list[Measured]]

FULL_BODY = 65_536
LATENCY = 0.02  # seconds of an endpoint that is not next door
IN_FLIGHT = 8  # requests of ours on the wire, by default

# Client, how many events it gets (slow ones fewer; what is measured is one event), and its bound: how many times its CPU
# ours may take.
PEERS = {
    "segment": (5_000, 0.4),
    "posthog queued": (1_500, 0.15),
    "posthog awaited": (300, 0.015),
    "snowplow": (500, None),
}
LIMITS = {"httpx": (20_000, 3.5), "raw socket": (20_000, None)}
NAMES = {
    "segment": "segment-analytics-python",
    "posthog queued": "AsyncPosthog, queued",
    "posthog awaited": "AsyncPosthog, awaited",
    "snowplow": "snowplow-tracker",
    "httpx": "httpx posting the same bodies",
    "raw socket": "a socket posting the same bodies, a future for each event",
}
_HOW = {"snowplow": " with a larger batch than its ten"}  # which queues fewer than ten by default
FASTEST: dict[str, Any] = {"fast": True, "options": {"transport": "aiohttp"}}
REACH_FASTEST = 0.25  # times segment-analytics-python
REACH_RATE = 2.0  # times the best peer
REACH_CALL = 0.5  # times segment-analytics-python's track()
REACH_MEMORY = 0.5  # times the best peer


def findings(*, smoke: bool) -> list[Finding]:
    """Measure CPU at an endpoint without delay, the rate at one with, then calls and memory."""
    rounds = 1 if smoke else 5
    with collector() as bench:
        return [
            *_cpu(bench, rounds, smoke=smoke),
            *_rate(bench, rounds, smoke=smoke),
            *_calls(bench, rounds, smoke=smoke),
            *_memory(bench, smoke=smoke),
        ]


def _cpu(bench: SideBySide, rounds: int, *, smoke: bool) -> list[Finding]:
    """Compare the client's CPU for each delivered event."""
    scale = 10 if smoke else 1
    bodies = bench.bodies(FULL_BODY)
    runs = {"alloy": partial(bench.run, "alloy", events=10_000 // scale)}
    runs["fastest"] = partial(bench.run, "alloy", events=10_000 // scale, **FASTEST)
    for name, (events, _) in PEERS.items():
        runs[name] = partial(bench.run, name, events=events // scale)
    for name, (events, _) in LIMITS.items():
        runs[name] = partial(bench.run, name, events=events // scale, bodies=bodies)
    found = by_rounds(runs, rounds)
    rows = [
        _compared(f"CPU, against {NAMES[name]}", found, "alloy", name, reach)
        for name, (_, reach) in (PEERS | LIMITS).items()
        if name in found
    ]
    if {"fastest", "segment"} <= found.keys():
        question = f"CPU with orjson and aiohttp, against {NAMES['segment']}"
        rows.append(_compared(question, found, "fastest", "segment", REACH_FASTEST))
    return [*rows, *_collectors(found)]


def _compared(question: str, found: Runs, own: str, other: str, reach: float | None) -> Finding:
    pairs = [(one.cpu * 1e6, two.cpu * 1e6) for one, two in zip(found[own], found[other], strict=True)]
    return compare(question, "µs", pairs, reach=reach)


def _collectors(found: Runs) -> list[Finding]:
    """Show that the collector is no bottleneck: what it takes for an event of ours and of each peer."""
    shown = {"alloy": "ours"} | {name: NAMES[name] for name in PEERS}
    return [
        Finding(
            f"CPU of the collector, {shown[name]}, {statistics.median(one.batch for one in found[name]):,.0f} in a request",
            statistics.median(one.collector for one in found[name]) * 1e6,
            "µs",
        )
        for name in shown
        if name in found
    ]


def _rate(bench: SideBySide, rounds: int, *, smoke: bool) -> list[Finding]:
    """Compare events per second at an endpoint that takes its time."""
    scale = 10 if smoke else 1
    at = partial(bench.run, latency=LATENCY)
    runs = {
        "alloy": partial(at, "alloy", events=20_000 // scale),
        "segment": partial(at, "segment", events=2_000 // scale),
        "posthog queued": partial(at, "posthog queued", events=1_000 // scale),
        "posthog awaited": partial(at, "posthog awaited", events=300 // scale, concurrency=50),
        "snowplow": partial(at, "snowplow", events=200 // scale),
        "httpx": partial(
            at, "httpx", events=20_000 // scale, bodies=bench.bodies(FULL_BODY), concurrency=IN_FLIGHT
        ),
    }
    if smoke:
        runs = {name: runs[name] for name in ("alloy", "segment")}
    found = by_rounds(runs, min(rounds, 3))
    rates = {name: [1 / one.wall for one in measured] for name, measured in found.items()}
    best = max(PEERS.keys() & rates.keys(), key=lambda name: statistics.median(rates[name]), default=None)
    return [
        compare(
            f"events per second at 20 ms, against {NAMES[name]}{' (the best peer)' if name == best else ''}",
            "/s",
            list(zip(rates["alloy"], rates[name], strict=True)),
            reach=REACH_RATE if name == best else None,
            at_least=True,
        )
        for name in rates
        if name != "alloy"
    ]


def _calls(bench: SideBySide, rounds: int, *, smoke: bool) -> list[Finding]:
    """Compare the CPU of calls that nobody awaits, in the thread that calls.

    Nearly as many as the peers' queues take: among fewer the garbage collector goes through everything once or not at all.
    """
    names, events = ("alloy", "segment", "posthog queued"), 8_000
    if smoke:
        names, events = names[:2], 200
    found = by_rounds({name: partial(bench.calls, name, events) for name in names}, rounds)
    return [
        _compared(
            f"a call that nobody awaits, against {NAMES[name]}",
            found,
            "alloy",
            name,
            REACH_CALL if name == "segment" else None,
        )
        for name in names[1:]
        if name in found
    ]


def _memory(bench: SideBySide, *, smoke: bool) -> list[Finding]:
    """Compare the bytes of an event that waits in the queue, as Python counts them."""
    names, events = ("segment", "posthog queued", "snowplow"), 5_000
    if smoke:
        names, events = names[:1], 200
    ours = bench.memory("alloy", events)
    held = {name: bench.memory(name, events) for name in names}
    there = {name: size for name, size in held.items() if size is not None}
    best = min(there, key=lambda name: there[name], default=None)
    return [
        compare(
            f"held by a queued event, against {NAMES[name]}{_HOW.get(name, '')}{' (the best peer)' if name == best else ''}",
            "bytes",
            [(ours or 0.0, size)],
            reach=REACH_MEMORY if name == best else None,
        )
        for name, size in there.items()
    ]
