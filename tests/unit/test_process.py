"""Who a process is, and whether it is certainly dead."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alloy_async import _process
from alloy_async._process import identify, is_dead

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who a process is")


@pytest.fixture
def child():
    """A process that waits for the end of its input."""
    code = "import sys; from alloy_async._process import identify; print(identify(), flush=True); sys.stdin.read()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        yield process
        process.kill()


@linux
def test_this_process_is_alive():
    """A process never takes itself for dead, and always says the same of itself."""
    assert identify() == identify()
    assert str(os.getpid()) in identify().split(" ")
    assert not is_dead(identify())


@linux
def test_another_process_is_alive_until_it_is_killed(child):
    """A process counts as dead once it was killed: as soon as it is a zombie, and when its parent has buried it."""
    identity = child.stdout.readline().strip()
    assert identity != identify()
    assert not is_dead(identity)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # until it is a zombie, and leave it one
    assert is_dead(identity)
    child.wait()
    assert is_dead(identity)


@linux
@pytest.mark.parametrize(
    ("part", "dead"),
    [(0, False), (1, False), (2, True), (3, True)],
    ids=["boot", "namespace", "number", "start"],
)
def test_each_part_counts(part, dead):
    """Of another boot or namespace nothing is known; another number, or another start of this one, is dead."""
    parts = identify().split(" ")
    parts[part] = {0: "another", 1: "pid:[1]", 2: "4194305", 3: "1"}[part]
    assert is_dead(" ".join(parts)) is dead


@pytest.mark.parametrize("identity", ["", " ", "a", "a b c", "a b c d", "a b c d e", "\0", "🎉 1 2 3"])
def test_nonsense_is_not_known_to_be_dead(identity):
    """What is not who a process is says nothing."""
    assert not is_dead(identity)


def test_where_nothing_is_told_nobody_is_dead(monkeypatch, tmp_path):
    """Without /proc a process is nobody, and nobody is dead."""
    known = identify()
    monkeypatch.setattr(_process, "_PROC", tmp_path)
    assert identify() == ""
    assert not is_dead(known)


@linux
def test_hidden_process_is_not_dead(monkeypatch, tmp_path):
    """Where /proc hides a process, the kernel is asked whether there is one of that number."""
    (tmp_path / "self" / "ns").mkdir(parents=True)
    (tmp_path / "self" / "ns" / "pid").symlink_to(Path("/proc/self/ns/pid").readlink())
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    boot = identify().split(" ")[0]
    (tmp_path / "sys/kernel/random/boot_id").write_text(f"{boot}\n")
    known, (first, second, _, started) = identify(), identify().split(" ")
    monkeypatch.setattr(_process, "_PROC", tmp_path)
    assert not is_dead(known)
    assert is_dead(f"{first} {second} 4194305 {started}")
