"""A warm shutdown loses nothing, and only customers who have agreed are recorded."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from alloy_async.blocking import BlockingAlloy

pytest.importorskip("celery")
pytest.importorskip("redis")

HERE = Path(__file__).parent
WORKER = [
    *(sys.executable, "-m", "celery", "--app", "celery_worker", "worker", "--concurrency", "2"),
    *("--loglevel", "info", "--without-gossip", "--without-mingle", "--without-heartbeat"),
]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks as POSIX has them")


@pytest.fixture
def shop(edge, redis_url, monkeypatch):
    """What sends the tasks: the module as a shop imports it."""
    monkeypatch.setenv("ALLOY_REDIS_URL", redis_url)
    monkeypatch.syspath_prepend(HERE)
    shop = importlib.import_module("celery_worker")
    yield shop
    shop.app.close()
    del sys.modules["celery_worker"]


@contextmanager
def working(*words):
    """Two processes that do tasks, and their parent, which hears of the end."""
    parent = subprocess.Popen(
        [*WORKER, *words],
        cwd=HERE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield parent
    finally:
        if parent.poll() is None:
            os.killpg(parent.pid, signal.SIGKILL)
            parent.communicate()


@pytest.mark.parametrize(
    "words", [[], ["--max-tasks-per-child", "10"]], ids=["", "children that are replaced"]
)
def test_a_warm_shutdown_loses_nothing(shop, edge, words):
    """What was recorded when Celery is told to end arrives once, from whichever process; a refusal sends nothing."""
    with BlockingAlloy("shop") as elsewhere:
        elsewhere.configure(**shop.SETTINGS)
        for customer, purposes in (("ada", "all"), ("bob", "none")):
            elsewhere.visitor(customer).opt_in(purposes=purposes)
    for order in range(100):
        shop.ship.delay("ada" if order % 2 else "bob", order)
    with working(*words) as parent:
        _until(lambda: edge.events)  # in the middle of it
        parent.send_signal(signal.SIGTERM)
        _, said = parent.communicate(timeout=90)  # some versions of Celery take half a minute now and then
    assert parent.returncode == 0, said
    shipped = [int(order) for order in re.findall(r"shipped: (\d+)", said)]
    recorded = [record["event"]["data"]["order"] for record in edge.events]
    assert sorted(recorded) == sorted(order for order in shipped if order % 2)
    assert (_sum("accepted", said), _sum("delivered", said)) == (len(shipped), len(recorded))


def _sum(name, said):
    return sum(map(int, re.findall(rf"books: .*\b{name}=(\d+)", said)))


def _until(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
