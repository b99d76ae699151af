"""What a development edge received, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["lines_of"]

_STYLES = {"recorded": "green", "duplicate": "yellow", "withheld": "magenta", "refused": "red"}


def lines_of(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield a line and its style for each event of an exchange, or one for the exchange where it has none.

    Args:
        entry: shape as `alloy_async.devserver.Exchange.entry`.
    """
    for event in entry["events"]:
        yield (
            _join(entry, event["type"] or "(no type)", event["outcome"], *_about(entry, event)),
            _STYLES[event["outcome"]],
        )
        for finding in event["findings"]:
            yield (
                f"    {finding['level']}: {finding['path']}: {finding['message']} {finding['advice']}",
                "yellow",
            )
    if not entry["events"]:
        consent = f"consent {entry['consent']}" if entry["consent"] else ""
        yield (
            _join(
                entry, entry["action"] or f"{entry['method']} {entry['path']}", consent, *_about(entry, entry)
            ),
            "",
        )
    if entry["problem"]:
        yield (
            f"    {entry['problem']['code']} {entry['problem']['title']}: {entry['problem']['detail']}",
            "red",
        )


def _join(entry: Mapping[str, Any], what: str, outcome: str, *more: str) -> str:
    columns = [entry["receivedAt"][11:23], f"{entry['status']:>3}", f"{what:<32}", f"{outcome:<9}", *more]
    return "  ".join(filter(None, columns)).rstrip()


def _about(entry: Mapping[str, Any], subject: Mapping[str, Any]) -> list[str]:
    waited = subject.get("waitedMs")
    return [
        subject["visitor"] or "",
        "" if waited is None else f"waited {waited} ms",
        f"[{entry['tag']}]" if entry["tag"] else "",
        f"fault: {entry['fault']}" if entry["fault"] else "",
    ]
