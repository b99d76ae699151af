"""What an event costs when 500 come in a second, against one request for each.

The pace is kept by one loop, whose own cost is in every number; it is shown by itself as well. At an endpoint without delay
each event finds an idle courier, which sends it at once and alone: there is nothing to reach, only to be known.
"""

from __future__ import annotations

import statistics
from functools import partial

from measure import Finding, compare
from side_by_side import Measured, by_rounds, collector

RATE = 500.0  # events in a second
IN_FLIGHT = 20  # requests of the reference at once: enough for 500 a second at 20 ms
REACH = 0.3  # times the CPU of one request for each event
ONE_EVENT = 1_400  # bytes of a body that has room for one event and no second


def findings(*, smoke: bool) -> list[Finding]:
    """Measure at an endpoint without delay, and at one that takes 20 ms."""
    events, rounds = (100, 1) if smoke else (1_000, 3)
    found = []
    with collector() as bench:
        for latency in (0.02,) if smoke else (0.0, 0.02):
            at = partial(bench.run, events=events, rate=RATE, latency=latency)
            runs = {
                "alloy": partial(at, "alloy"),
                "httpx": partial(at, "httpx", bodies=bench.bodies(ONE_EVENT), concurrency=IN_FLIGHT),
            }
            if not latency:  # one by one, the pace cannot be kept at an endpoint that takes longer than that
                runs |= {"alloy awaited": partial(at, "alloy awaited"), "nothing": partial(at, "nothing")}
            measured = by_rounds(runs, rounds)
            _tell_who_was_late(measured)
            found += [
                compare(
                    f"500 a second, {latency * 1e3:.0f} ms, against {_NAMES[name]}: CPU",
                    "µs",
                    [
                        (own.cpu * 1e6, other.cpu * 1e6)
                        for own, other in zip(measured["alloy"], measured[name], strict=True)
                    ],
                    reach=REACH if name == "httpx" and latency else None,
                )
                for name in runs
                if name != "alloy"
            ]
            batch = statistics.median(one.batch for one in measured["alloy"])
            found.append(Finding(f"500 a second, {latency * 1e3:.0f} ms: events in a request", batch, ""))
    return found


def _tell_who_was_late(measured: dict[str, list[Measured]]) -> None:
    """Say whose pace the machine could not keep: who is overloaded takes more than at that pace."""
    for name, rounds in measured.items():
        rate = 1 / statistics.median(one.wall for one in rounds)
        if rate < 0.9 * RATE:
            print(f"{name}: only {rate:.0f} events a second on this machine now; its numbers are too high")


_NAMES = {
    "httpx": "httpx with one request for each",
    "alloy awaited": "our own events, awaited one by one",
    "nothing": "the pace alone",
}
