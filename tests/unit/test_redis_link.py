"""The nodes of a cluster that a link to Redis has asked: whose connections it keeps, and when it closes others."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("redis")

from common import settle
from redis.asyncio.connection import ConnectionPool
from redis.exceptions import ConnectionError as NotConnected, MovedError, ResponseError

from alloy_async import _redis
from alloy_async._redis import RedisLink


class Cluster:
    """Says where the keys are, and which pools are open; nothing is connected."""

    def __init__(self):
        self.master = 7000
        self.open = []

    def make_pool(self, *_, port=6379, **__):
        cluster = self

        class Pool(ConnectionPool):
            async def disconnect(self, inuse_connections=True):  # noqa: FBT002 - theirs
                cluster.open.remove(port)
                await super().disconnect(inuse_connections)

        cluster.open.append(port)
        return Pool(host="node", port=port)

    def asks(self, work=None):
        """Return a call that is sent on to where the keys are, and is done there."""

        async def call(redis):
            if redis.connection_pool.connection_kwargs["port"] != self.master:
                raise MovedError(f"1 node:{self.master}")
            return "done" if work is None else await work()

        return call


@pytest.fixture
def cluster(monkeypatch):
    """A cluster without nodes."""
    cluster = Cluster()
    monkeypatch.setattr(_redis, "_pool", cluster.make_pool)
    return cluster


@pytest.fixture
async def link(cluster):
    """A link to it; at the end all is closed."""
    link = RedisLink("redis://node:6379")
    cluster.open.clear()
    yield link
    await link.aclose()
    assert cluster.open == []


async def test_nodes_that_were_not_asked_for_long_are_let_go(cluster, link, monkeypatch):
    """However often the keys move; a call that is still on its way there is not disturbed."""
    monkeypatch.setattr(_redis, "_KEPT", 2)
    answering = asyncio.get_running_loop().create_future()
    slow = asyncio.ensure_future(link.run(cluster.asks(lambda: answering)))
    await settle()
    for port in range(7001, 7005):
        cluster.master = port
        assert await link.run(cluster.asks()) == "done"
    await settle()
    assert cluster.open == [6379, 7000, 7001, 7002, 7003, 7004]
    answering.set_result("late")
    assert await slow == "late"
    await settle()
    assert cluster.open == [6379, 7003, 7004]
    for port in (7003, 7004) * 3:
        cluster.master = port
        await link.run(cluster.asks())
    await settle()
    assert cluster.open == [6379, 7003, 7004]


@pytest.mark.parametrize("error", [NotConnected, ConnectionResetError, TimeoutError])
async def test_a_node_that_does_not_answer_is_let_go(cluster, link, error):
    """It may have left the cluster; one that refuses a call has not."""

    async def fail(error):
        raise error

    with pytest.raises(ResponseError):
        await link.run(cluster.asks(lambda: fail(ResponseError("OOM"))))
    await settle()
    assert cluster.open == [6379, 7000]
    with pytest.raises(error):
        await link.run(cluster.asks(lambda: fail(error())))
    await settle()
    assert cluster.open == [6379]
    assert await link.run(cluster.asks()) == "done"


async def test_closing_closes_also_what_somebody_kept_from_being_closed(cluster, link, monkeypatch):
    """Whoever cancels every task leaves nothing open."""
    monkeypatch.setattr(_redis, "_KEPT", 1)
    answering = asyncio.get_running_loop().create_future()
    slow = asyncio.ensure_future(link.run(cluster.asks(lambda: answering)))
    await settle()
    cluster.master = 7001
    await link.run(cluster.asks())
    for task in asyncio.all_tasks():
        if task.get_name() == "alloy-redis-node":
            task.cancel()
    answering.set_result("late")
    await slow
    await settle()
    assert cluster.open == [6379, 7000, 7001]
