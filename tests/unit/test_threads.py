"""Threads of ours are none of the host's business."""

import signal
import threading

import pytest

from alloy_async import _threads
from alloy_async._threads import start_thread

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "pthread_sigmask"), reason="the system has no signal masks"
)


def blocked():
    return signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_no_signal_for_the_process_reaches_a_thread_of_ours():
    """From its first moment; faults stay with whose they are, and the starter hears what it heard before."""
    seen, before = [], blocked()
    thread = start_thread(lambda: seen.append(blocked()), name="alloy-test")
    thread.join()
    assert seen[0] >= {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    assert not seen[0] & {signal.SIGSEGV, signal.SIGABRT}
    assert blocked() == before
    assert (thread.name, thread.daemon) == ("alloy-test", True)


def test_the_starter_hears_again_when_no_thread_can_be_started(monkeypatch):
    """The failure is the caller's to tell."""

    def fail(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    before = blocked()
    with pytest.raises(RuntimeError):
        start_thread(print, name="alloy-test")
    assert blocked() == before


def test_systems_without_masks_start_threads_too(monkeypatch):
    """As Windows."""
    monkeypatch.delattr(_threads.signal, "pthread_sigmask")
    start_thread(int, name="alloy-test").join()
