"""Run the benchmarks: ``python benchmarks/run.py [--smoke] [--slowest COUNT] [name ...]``."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

sys.modules["orjson"] = None  # type: ignore[assignment]  # only the rows that say so use the extra `fast`

import devserver  # noqa: E402 - the line above comes first
import durable  # noqa: E402
import event_cost  # noqa: E402
import import_time  # noqa: E402
import release  # noqa: E402
import scaling  # noqa: E402
import throughput  # noqa: E402
import trickle  # noqa: E402
import visitors  # noqa: E402
import web  # noqa: E402
from measure import Finding  # noqa: E402

BENCHMARKS = {
    "event_cost": event_cost,
    "release": release,
    "import_time": import_time,
    "throughput": throughput,
    "trickle": trickle,
    "scaling": scaling,
    "durable": durable,
    "visitors": visitors,
    "web": web,
    "devserver": devserver,
}
PACKAGES = (
    "alloy-async",
    "httpx",
    "pydantic",
    "orjson",
    "aiohttp",
    "fastapi",
    "uvicorn",
    "segment-analytics-python",
    "posthog",
    "snowplow-tracker",
)
HEADINGS = ("", "measured", "reference", "ratio", "reach", "reached")


def main() -> None:
    """Print the surroundings, then a table for each benchmark; a bound that is not kept is shown, never an error."""
    options = _options()
    print(_surroundings())
    for name in options.names or BENCHMARKS:
        module = BENCHMARKS[name]
        print(f"\n{name}: {(module.__doc__ or '').strip()}\n")
        print(_table([HEADINGS, *(_cells(finding) for finding in module.findings(smoke=options.smoke))]))
    if options.slowest:
        print("\nmodules by the µs they take themselves, then with what they import\n")
        print("\n".join(import_time.slowest(options.slowest)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure alloy_async: ratios in one run on one machine.")
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"one of {', '.join(BENCHMARKS)}; default: all"
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="few repetitions: shows that everything runs, the numbers mean nothing",
    )
    parser.add_argument(
        "--slowest",
        type=int,
        default=0,
        metavar="COUNT",
        help="also list the modules that are slowest to import",
    )
    options = parser.parse_args()
    unknown = set(options.names) - BENCHMARKS.keys()
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(BENCHMARKS)}")
    return options


def _surroundings() -> str:
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return "\n".join(
        [
            f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores, {_processor()}",
            f"{platform.python_implementation()} {platform.python_version()}; {versions}",
        ]
    )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """Return the processor's name, where the system tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def _cells(finding: Finding) -> tuple[str, ...]:
    return (
        finding.question,
        f"{finding.value:,.2f} {finding.unit}",
        "" if finding.reference is None else f"{finding.reference:,.2f} {finding.unit}",
        "" if finding.ratio is None else f"{finding.ratio:.2f}",
        _bound(finding),
        finding.verdict,
    )


def _bound(finding: Finding) -> str:
    if finding.reach is None:
        return ""
    sign = "≥" if finding.at_least else "≤"
    return f"{sign} {finding.reach:,g}" + (f" {finding.unit}" if finding.ratio is None else "")


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths) for row in rows]
    return "\n".join([lines[0], "-" * sum(widths, 2 * len(widths) - 2), *lines[1:]])


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    first, *others = (
        cell.rjust(width) if place else cell.ljust(width)
        for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()


if __name__ == "__main__":
    main()
