"""What an event costs more when it is kept on disk until it is delivered."""

from __future__ import annotations

import statistics
from functools import partial

from measure import Finding, compare
from side_by_side import by_rounds, collector

REACH = 15.0  # µs of CPU more for each event


def findings(*, smoke: bool) -> list[Finding]:
    """Measure a busy client with the outbox in memory, and with the one on disk."""
    events, rounds = (500, 1) if smoke else (10_000, 5)
    with collector() as bench:
        run = partial(bench.run, "alloy", events=events)
        found = by_rounds({"memory": run, "disk": partial(run, options={"outbox": "sqlite"})}, rounds)
    if "disk" not in found:
        return []
    pairs = [
        (disk.cpu * 1e6, memory.cpu * 1e6)
        for disk, memory in zip(found["disk"], found["memory"], strict=True)
    ]
    more = statistics.median(disk - memory for disk, memory in pairs)
    return [
        compare("outbox on disk, against the one in memory: CPU", "µs", pairs),
        Finding("outbox on disk: more CPU for each event", more, "µs", reach=REACH),
    ]
