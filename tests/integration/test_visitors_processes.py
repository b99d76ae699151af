"""Visitors over real sockets and after forks."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
from common import IDS, settle
from processes import running

from alloy_async import Alloy
from alloy_async.edge._httpx import _Clients
from alloy_async.stores import MemoryStore
from alloy_async.testing import LoopbackEdge

pytestmark = pytest.mark.integration


@pytest.fixture
async def loopback():
    async with asyncio.timeout(60), LoopbackEdge() as edge:
        yield edge


@pytest.mark.skipif(os.name != "posix", reason="forks as POSIX has them")
async def test_a_refusal_of_a_visitor_without_a_key_holds_after_a_fork(loopback):
    """What the visitor said last, and not what the browser said at first."""
    script = """
    async def main():
        alloy = Alloy()
        await alloy.configure(**options)
        visitor = alloy.visitor(purposes="all")
        await visitor.opt_in(purposes="none")
        number = fork(child, alloy, visitor)
        status = await asyncio.to_thread(os.waitpid, number, 0)
        await alloy.aclose()
        say("parent", os.waitstatus_to_exitcode(status[1]))

    async def child(alloy, visitor):
        try:
            await visitor.event(type="child")
        except ConsentDeclined:
            say("declined")
        await alloy.aclose()

    asyncio.run(main())
    """
    options = {**IDS, "endpoint": loopback.url, "opt_in_enabled": True, "store": "memory"}
    async with running(script, options) as process:
        assert await process.ends_well() == ["declined", "parent 0"]
    assert not loopback.requests


async def test_waiting_for_a_connection_is_no_part_of_a_request(loopback, monkeypatch):
    """However long others take, a request has its whole time once a connection is free for it."""
    options = {**IDS, "endpoint": loopback.url, "opt_in_enabled": True, "store": MemoryStore()}
    async with Alloy() as alloy:
        await alloy.configure(**options, max_in_flight=1)
        clients = await alloy._engine._edge._transport._way._clients.get()
        lent = await clients.take()
        ecid = alloy.visitor("anne", purposes="all").get_ecid()
        await settle()
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: time.monotonic() + 50)
        await settle()
        assert not ecid.done()
        clients.give_back(lent)
        assert await ecid
    assert loopback.started == 1


async def test_a_client_that_could_not_be_made_takes_no_room():
    """The next request gets the place that it would have had."""
    made = [ValueError("out of files"), ValueError("still"), object()]

    def make():
        client = made.pop(0)
        if isinstance(client, Exception):
            raise client
        return client

    clients = _Clients(make, 2)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"out of files|still"):
            await clients.take()
    lent = asyncio.create_task(clients.take())
    await settle()
    assert lent.done()
