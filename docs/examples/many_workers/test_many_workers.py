"""A yes that one worker hears releases what another one has parked; a no refuses it; a relay sends."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

for package in ("fastapi", "itsdangerous", "redis", "uvicorn", "typer"):
    pytest.importorskip(package)

HERE = Path(__file__).parent
IDS = ["--config-id", "ebebf826", "--org-id", "ADB3@AdobeOrg"]


@contextlib.contextmanager
def running(*command, **environment):
    process = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=HERE, env=os.environ | environment, stdout=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def shop(edge, redis_url):
    """Two workers and a relay; returns the shop's address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {"ALLOY_REDIS_URL": redis_url, "SHOP_SECRET": "not-a-secret"}
    serve = ("uvicorn", "shop:app", "--port", str(port), "--workers", "2", "--log-level", "error")
    with running(*serve, **settings), running("alloy_async", "relay", *IDS, **settings):
        address = f"http://localhost:{port}"
        _until(lambda: _answers(address))
        yield address


def test_workers_share_what_their_visitors_chose(shop, edge):
    """Over many connections, so that both workers have parked something."""
    visitors = {choice: httpx.Cookies() for choice in ("all", "none")}
    workers = {choice: set() for choice in visitors}
    for choice, cookies in visitors.items():
        for number in range(30):
            answer = _get(f"{shop}/page-{number}", cookies)
            assert answer["choice"] == "pending"
            workers[choice].add(answer["worker"])
    for choice, cookies in visitors.items():
        _post(f"{shop}/consent", {"purposes": choice}, cookies)
    _until(lambda: _arrived(edge) >= {f"page-{number}" for number in range(30)})
    after = [_get(f"{shop}/after-{number}", visitors["none"]) for number in range(10)]
    assert {answer["choice"] for answer in after} == {"none"}
    assert len(edge.events) == 30
    assert all(len(found) == 2 for found in workers.values())


def test_pages_come_while_redis_does_not_answer(shop, redis_url):
    """Later than otherwise, and nothing is known of the visitor's choice."""
    import redis

    with redis.Redis.from_url(redis_url) as server:
        server.execute_command(
            "CLIENT", "PAUSE", 6_000
        )  # it goes on by itself, after what a page waits for it
    assert _get(f"{shop}/page", httpx.Cookies())["choice"] == "pending"


def _get(url, cookies):
    with httpx.Client(cookies=cookies) as client:  # a connection of its own, to whichever worker takes it
        answer = client.get(url)
        cookies.update(client.cookies)
    return answer.json()


def _post(url, choice, cookies):
    with httpx.Client(cookies=cookies, headers={"sec-fetch-site": "same-origin"}) as client:
        assert client.post(url, json=choice).status_code == 204
        cookies.update(client.cookies)


def _answers(address):
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{address}/ready").status_code == 200
    return False


def _arrived(edge):
    return {record["event"]["data"]["page"] for record in edge.events}


def _until(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
