"""Whether an event costs the same among few and among very many events, and for one person and for 10 000."""

from __future__ import annotations

from functools import partial

from measure import Finding, compare
from side_by_side import by_rounds, collector

REACH = 1.2  # times the cost in the smallest run
VISITORS = 10_000


def findings(*, smoke: bool) -> list[Finding]:
    """Measure from 1 000 events to 1 000 000, and from one visitor to 10 000."""
    visitors = (1, VISITORS) if smoke else (1, 100, VISITORS)
    counts = (100, 1_000) if smoke else (1_000, 10_000, 100_000, 1_000_000)
    with collector() as bench:
        of_events = by_rounds({str(count): partial(bench.run, "alloy", events=count) for count in counts}, 1)
        rounds = 1 if smoke else 5
        for _ in range(rounds - 1):  # the long runs need no second round, and would take minutes
            for count in counts[:-1]:
                of_events[str(count)] += [bench.run("alloy", events=count)]  # type: ignore[list-item]  # ours is there
        events = 1_000 if smoke else 20_000
        of_visitors = by_rounds(
            {str(count): partial(bench.run, "alloy", events=events, visitors=count) for count in visitors},
            rounds,
        )
    return [
        *_grown("events", counts, of_events),
        *_grown("visitors", visitors, of_visitors),
    ]


def _grown(what: str, counts: tuple[int, ...], found) -> list[Finding]:
    smallest = found[str(counts[0])]
    return [
        compare(
            f"CPU of an event, {count:,} {what} against {counts[0]:,}",
            "µs",
            [
                (own.cpu * 1e6, other.cpu * 1e6)
                for own, other in zip(found[str(count)], smallest, strict=False)
            ],
            reach=REACH,
        )
        for count in counts[1:]
    ]
