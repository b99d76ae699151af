"""Store and outbox in a cluster: whichever node the URL names, calls go where the keys lie."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, contextmanager

import pytest

pytest.importorskip("redis")

from common import IDS
from redis_server import redis_cluster

from alloy_async import Alloy
from alloy_async._redis import key_prefix
from alloy_async.errors import ConsentStoreError
from alloy_async.stores import Preference, VisitorKey
from alloy_async.stores.redis import RedisStore
from alloy_async.testing import RecordingEdge

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def nodes():
    with redis_cluster() as nodes:
        yield nodes


@pytest.fixture
def urls(nodes):
    for node in nodes:
        node.command("FLUSHDB")
    return [f"redis://127.0.0.1:{node.port}/0" for node in nodes]


def visitor_in(node, nodes) -> VisitorKey:
    """Return a visitor of a datastream whose keys lie in a node."""
    share = -(-16_384 // len(nodes))
    for number in range(1_000):
        slot = node.command("CLUSTER", "KEYSLOT", key_prefix("o", f"stream-{number}"))
        if slot // share == nodes.index(node):
            return VisitorKey("o", f"stream-{number}", "anne")
    raise AssertionError


def chosen(purposes) -> Preference:
    return Preference(purposes, chosen_at=1.0, expires_at=4_000_000_000.0)


@pytest.mark.parametrize("number", range(3))
async def test_any_node_will_do(nodes, urls, number):
    """Two processes of which each knows another node share choices, hear of them at once, and send what was stored."""
    edge = RecordingEdge()
    common = {**IDS, "opt_in_enabled": True, "store": "redis", "outbox": "redis", "transport": edge}
    async with Alloy("here") as here, Alloy("there") as there:
        await here.configure(**common, redis_url=urls[number])
        await there.configure(**common, redis_url=urls[number - 1])
        event = here.event(type="parked")
        await there.opt_in(purposes="all")
        assert (await event).event_id
        await here.opt_in(purposes="none")
        assert (await there.get_outbox_info()).workers == 2
    assert edge.event_types == ["parked"]


async def test_datastreams_in_different_nodes(nodes, urls):
    """One store serves them all, and hears of the choices of each."""
    visitors = [visitor_in(node, nodes) for node in nodes]
    async with aclosing(RedisStore(urls[0])) as here, aclosing(RedisStore(urls[1])) as there:
        for visitor in visitors:
            await there.load_preference(visitor)
        told = asyncio.Queue()
        there.watch(told.put_nowait)
        async with asyncio.timeout(20):
            assert await told.get() is None
            await asyncio.gather(*[here.save_preference(visitor, chosen("none")) for visitor in visitors])
            heard = set()
            while len(heard) < 3:
                heard |= {change.visitor for change in await told.get()}
        assert heard == {there.digest(visitor) for visitor in visitors}
        loaded = await asyncio.gather(*[there.load_preference(visitor) for visitor in visitors * 5])
        assert {one.purposes for one in loaded} == {"none"}


@contextmanager
def moved(nodes, visitor, *, to, told):
    """Have another node own the keys of a visitor for a block, and let some nodes know; what lies there is not moved."""
    slot = nodes[0].command("CLUSTER", "KEYSLOT", key_prefix(visitor.organisation, visitor.datastream))
    ids = {node: node.command("CLUSTER", "MYID") for node in nodes}
    try:
        for node in told:
            node.command("CLUSTER", "SETSLOT", slot, "NODE", ids[to])
        yield
    finally:
        to.command("FLUSHDB")
        for node in nodes:
            node.resume()
            node.command("CLUSTER", "SETSLOT", slot, "NODE", ids[nodes[0]])


async def test_keys_that_have_moved(nodes, urls):
    """Where keys have moved to another node, calls go there from then on."""
    visitor = visitor_in(nodes[0], nodes)
    async with aclosing(RedisStore(urls[2])) as store:
        await store.save_preference(visitor, chosen("all"))
        nodes[0].command("FLUSHDB")
        with moved(nodes, visitor, to=nodes[1], told=(nodes[1], nodes[0], nodes[2])):
            await store.save_preference(visitor, chosen("none"))
            assert (await store.load_preference(visitor)).purposes == "none"
            assert nodes[1].keys() and not nodes[0].keys()


async def test_a_node_that_is_gone(nodes, urls):
    """A call that its node does not answer ends in time; the next one asks again which node it is."""
    visitor = visitor_in(nodes[0], nodes)
    async with aclosing(RedisStore(urls[1], timeout=0.5)) as store:
        await store.save_preference(visitor, chosen("all"))
        with moved(nodes, visitor, to=nodes[2], told=(nodes[2], nodes[1])):
            nodes[0].pause()
            with pytest.raises(ConsentStoreError, match="did not answer in time"):
                await store.load_preference(visitor)
            assert await store.load_preference(visitor) is None
