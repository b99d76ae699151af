"""Events to try things out with: a small shop, its app, a media player and a help desk, all invented."""

import json
from importlib.resources import files
from typing import Any

__all__ = ["sample_events"]


def sample_events() -> list[dict[str, Any]]:
    """Return the bundled XDM events, in the order in which they happened to their visitors.

    About a third carry their own ``_id``, ``timestamp`` and ``identityMap``, as events replayed from elsewhere
    do; to the others the SDK adds them. Each call returns new objects, which the caller may change.

    Returns:
        240 events in wire form, from 60 bytes to 8 kilobytes, in many scripts, with nulls, empty containers and
        integers beyond 64 bits among them.
    """
    # Split as bytes: as text, splitlines() would also cut at the line separators inside the events' strings.
    lines = files(__name__).joinpath("events.jsonl").read_bytes().splitlines()
    return [json.loads(line) for line in lines]
