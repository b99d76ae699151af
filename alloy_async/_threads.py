"""Threads of ours, which the host program need not know of."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["start_thread"]

_FOR_THE_HOST = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGCHLD")
    if hasattr(signal, name)
]
"""What a host may want to hear. Those of a fault stay as they are: they belong to the thread that is at fault."""


def start_thread(target: Callable[..., object], *args: Any, name: str) -> threading.Thread:
    """Start a daemon thread that no signal for the process reaches.

    Python's own handlers run in the main thread, whoever is interrupted. Those of a server written in C run in the thread
    that the kernel picks: uWSGI ends a worker from there, and where that is a thread which the end waits for, it waits
    for itself.

    Args:
        target: what it does.
        *args: with what.
        name: of the thread, for debuggers.

    Raises:
        RuntimeError: no thread can be started.
    """
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    with _blocked_signals():  # from the first moment: a thread inherits what its starter blocks
        thread.start()
    return thread


@contextmanager
def _blocked_signals() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_HOST)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
