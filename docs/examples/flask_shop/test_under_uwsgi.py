"""The shop under uWSGI, two processes and their master: it serves, and what was released when it is told to end arrives."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

pytest.importorskip("flask_shop", reason="needs Flask", exc_type=ImportError)

HERE = Path(__file__).parent
UWSGI = shutil.which("uwsgi", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

pytestmark = pytest.mark.skipif(UWSGI is None, reason="needs uWSGI: pip install uwsgi, which compiles it")


@contextmanager
def serving(log, *words):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        *(UWSGI, "--http", f"127.0.0.1:{port}", "--wsgi", "flask_shop:create_app()", "--need-app"),
        *("--master", "--processes", "2", "--enable-threads", *words),
        # Not --die-on-term, which ends a worker that has answered a moment ago without what Python does at exit.
        *("--hook-master-start", "unix_signal:15 gracefully_kill_them_all"),
    ]
    path = os.pathsep.join(["", *filter(None, sys.path)])
    environment = os.environ | {"SECRET_KEY": "of the test", "PYTHONPATH": path}
    with log.open("wb") as file:
        master = subprocess.Popen(
            command, cwd=HERE, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield f"http://127.0.0.1:{port}", master
    finally:
        if master.poll() is None:
            os.killpg(master.pid, signal.SIGKILL)
            master.wait()


@pytest.mark.parametrize(
    "words", [["--lazy-apps"], ["--py-call-uwsgi-fork-hooks"]], ids=lambda words: words[0]
)
def test_nothing_that_was_bought_is_lost(edge, tmp_path, words):
    """Each worker has a thread of its own, whether it loads the application or its master did, and closes at the end."""
    with serving(tmp_path / "log", *words) as (address, master):
        browsers = [httpx.Client(base_url=address, headers={"connection": "close"}) for _ in range(6)]
        _until_it_answers(address)
        for browser in browsers:
            assert browser.get("/").status_code == 200
            assert browser.post("/consent", data={"purposes": "all"}).status_code == 303
        for browser in browsers:
            assert browser.post("/checkout").status_code == 303
            browser.close()
        _until_all_have_loaded(tmp_path / "log", 2 if "--lazy-apps" in words else 1)
        master.send_signal(signal.SIGTERM)
        assert master.wait(60) == 0, (tmp_path / "log").read_text()
    types = [record["event"]["xdm"]["eventType"] for record in edge.events]
    assert types.count("commerce.purchases") == 6


def test_a_fork_that_python_did_not_hear_of_is_said(edge, tmp_path):
    """Where the master loads the application and says nothing of the fork, views fail at once, with what to do."""
    with serving(tmp_path / "log") as (address, _):
        _until_it_answers(address)
        assert httpx.get(address, timeout=5).status_code == 500
    assert "py-call-uwsgi-fork-hooks = true" in (tmp_path / "log").read_text()


def _until_all_have_loaded(log, count):
    """Wait for those that load the application: uWSGI cannot tell one to end that still loads it, and waits for ever."""
    deadline = time.monotonic() + 60
    while log.read_text().count("WSGI app 0 ") < count:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def _until_it_answers(address):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{address}/no-such-page", timeout=20)
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("it does not answer")
