"""Who a process is, so that another one can tell whether it is certainly dead.

A number alone says little: numbers are given again, and each container counts its own. On Linux the machine's boot, the
namespace that counts, the number and the moment of the start say it together. Elsewhere nothing is certain.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

__all__ = ["identify", "is_dead"]

_PROC = Path("/proc")

_ENDED = {"Z", "X", "x"}
"""States of a process that runs no more and whose parent has not asked for it yet.

Source: Linux, proc_pid_stat(5), field 3.
"""


class _Process(NamedTuple):
    boot: str
    namespace: str
    number: str
    started: str


def identify() -> str:
    """Return who this process is; an empty text where that cannot be told."""
    try:
        boot, namespace = _here()
        _, started = _state(os.getpid())
    except (OSError, ValueError, IndexError):
        return ""
    return " ".join(_Process(boot, namespace, str(os.getpid()), started))


def is_dead(identity: str) -> bool:
    """Return whether a process is certainly dead; False where that cannot be told.

    Args:
        identity: what ``identify`` returned in that process.
    """
    try:
        process = _Process(*identity.split(" "))
        if (process.boot, process.namespace) != _here():
            return False  # it may run in another container, or on another machine
        return _has_ended(int(process.number), process.started)
    except (OSError, TypeError, ValueError, IndexError):
        return False


def _has_ended(number: int, started: str) -> bool:
    try:
        state, found = _state(number)
    except FileNotFoundError:
        return _is_missing(number)
    return state in _ENDED or found != started


def _is_missing(number: int) -> bool:
    """Ask the kernel too: /proc may be mounted so that it hides the processes of others."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    return False


def _here() -> tuple[str, str]:
    boot = (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
    return boot, str((_PROC / "self/ns/pid").readlink())


def _state(number: int) -> tuple[str, str]:
    """Return a process's state, and when it started, in clock ticks since the boot.

    Source: Linux, proc_pid_stat(5), fields 3 and 22. The second field is a name in parentheses and may hold anything.
    """
    fields = (_PROC / str(number) / "stat").read_bytes().rpartition(b")")[2].decode("ascii").split()
    return fields[0], fields[19]
