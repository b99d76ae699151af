"""Event loops that behave unusually: tasks that start at once, and loops that stand still between two runs."""

from __future__ import annotations

import asyncio
import sys

import pytest
from common import settle

from alloy_async import Alloy, ConsentDeclined
from alloy_async.edge import EdgeResponse

eager = pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")


@pytest.fixture
def loop():
    """A loop that the test runs piece by piece."""
    loop = asyncio.new_event_loop()
    loop.set_debug(True)
    yield loop
    loop.run_until_complete(end_tasks())
    loop.close()


async def end_tasks():
    """Leave nothing behind that would be reported in the place of a failure."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


async def done(*futures):
    """Return results and errors; fail when one of them is still pending."""
    await settle(200)
    assert [future for future in futures if not future.done()] == []
    return [future.exception() or future.result() for future in futures]


@pytest.fixture
async def eager_alloy(options):
    """An instance in a loop whose tasks run their first step in ``create_task``."""
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    alloy = Alloy()
    await alloy.configure(**options)
    return alloy


@eager
async def test_eager_tasks_deliver_the_second_event_too(eager_alloy, edge):
    """A task that has ended when it is made does not stand for one that runs."""
    assert await done(eager_alloy.opt_in(purposes="all")) == ["all"]
    for name in "abc":
        (result,) = await done(eager_alloy.event(type=name))
        assert result.event_id
    assert edge.event_types == ["a", "b", "c"]


@eager
async def test_eager_tasks_write_the_second_choice_too(eager_alloy):
    """Each choice ends, and so does forgetting."""
    assert await done(eager_alloy.opt_in(purposes="all")) == ["all"]
    assert await done(eager_alloy.opt_in(purposes="none")) == ["none"]
    assert isinstance((await done(eager_alloy.event()))[0], ConsentDeclined)
    assert await done(eager_alloy.forget()) == ["pending"]
    assert await done(eager_alloy.opt_in(purposes="all")) == ["all"]


@eager
async def test_eager_tasks_answer_the_second_get_ecid_too(eager_alloy, edge):
    """An answer that names no ECID ends the command that asked; the next one asks again."""
    await done(eager_alloy.opt_in(purposes="all"))
    edge.answers.append(EdgeResponse(200, {}, b'{"handle": []}'))
    first, second = *(await done(eager_alloy.get_ecid())), *(await done(eager_alloy.get_ecid()))
    assert isinstance(first, Exception)
    assert len(second) == 38


@eager
async def test_eager_tasks_let_the_instance_close(eager_alloy):
    """``flush`` and ``aclose`` end, and nothing is open."""
    await done(eager_alloy.opt_in(purposes="all"))
    events = [eager_alloy.event() for _ in range(3)]
    await done(eager_alloy.flush(), *events)
    closing = asyncio.ensure_future(eager_alloy.aclose())
    (statistics,) = await done(closing)
    assert (statistics.delivered, statistics.open) == (3, 0)


def test_a_queued_event_can_be_cancelled_while_no_loop_runs(loop, options, edge):
    """Between two runs of the loop a caller may leave; the books are right, and the others go on."""

    async def begin():
        alloy = Alloy()
        await alloy.configure(**options | {"ordered": True, "opt_in_enabled": False})
        edge.hold()
        events = [alloy.event(type="a")]
        await settle()
        events += [alloy.event(type=name) for name in "bc"]
        await settle()
        return alloy, events

    async def end(alloy):
        edge.release()
        return await alloy.aclose()

    alloy, events = loop.run_until_complete(begin())
    assert events[1].cancel()
    assert (alloy.statistics().cancelled, alloy.statistics().queued) == (1, 1)
    statistics = loop.run_until_complete(end(alloy))
    assert edge.event_types == ["a", "c"]
    assert events[2].result().event_id
    assert (statistics.accepted, statistics.delivered, statistics.cancelled, statistics.open) == (3, 2, 1, 0)


def test_a_flush_that_waits_does_not_hinder_cancelling_while_no_loop_runs(loop, options, edge):
    """Whoever waits for the books to change is told in the next run of the loop."""

    async def begin():
        alloy = Alloy()
        await alloy.configure(**options | {"ordered": True, "opt_in_enabled": False})
        edge.hold()
        events = [alloy.event(type="a")]
        await settle()
        events.append(alloy.event(type="b"))
        flushed = alloy.flush()
        await settle()
        return alloy, events, flushed

    async def end(alloy, flushed):
        edge.release()
        await flushed
        return await alloy.aclose()

    alloy, events, flushed = loop.run_until_complete(begin())
    assert events[1].cancel()
    statistics = loop.run_until_complete(end(alloy, flushed))
    assert (statistics.accepted, statistics.delivered, statistics.cancelled, statistics.open) == (2, 1, 1, 0)
