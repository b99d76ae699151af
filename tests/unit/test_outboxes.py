"""Every outbox of ours keeps the promises of the protocol."""

import inspect
from dataclasses import replace

import pytest

from alloy_async.outbox import MemoryOutbox, MemoryShelf, SQLiteOutbox, Stored
from alloy_async.testing import OutboxConformance


class TestMemoryOutbox(OutboxConformance):
    """The outbox in memory."""

    @pytest.fixture
    def make_outbox(self, clock):
        shelf = MemoryShelf()
        return lambda: MemoryOutbox(shelf, clock=clock, **self.bounds)


class TestSQLiteOutbox(OutboxConformance):
    """The outbox in one file."""

    @pytest.fixture
    async def make_outbox(self, tmp_path, clock):
        made = []

        def make():
            made.append(SQLiteOutbox(tmp_path / "state" / "outbox.sqlite3", clock=clock, **self.bounds))
            return made[-1]

        yield make
        for outbox in made:
            await outbox.aclose()


class _Reviving(MemoryOutbox):
    """An outbox that breaks one promise: it keeps what was refused in the meantime."""

    async def write(self, events, ended, *, epoch):
        return await super().write(events, ended, epoch=self._shelf.epoch)


class _Overtaking(MemoryOutbox):
    """An outbox that breaks one promise: behind an event that found no room others are kept."""

    async def write(self, events, ended, *, epoch):
        one_by_one = [await super(_Overtaking, self).write([event], [], epoch=epoch) for event in events]
        await super().write([], ended, epoch=epoch)
        bound = next((stored.bound for stored in one_by_one if stored.bound), None)
        return Stored(tuple(key for stored in one_by_one for key in stored.keys), frozenset(), bound)


class _Careless(MemoryOutbox):
    """An outbox that breaks one promise: it never looks at the lease."""

    def may_send(self, epoch):
        return self._worker is not None and self._shelf.epoch == epoch


class _Silent(MemoryOutbox):
    """An outbox that breaks one promise: it does not tell what is gone."""

    async def changes(self, since):
        return replace(await super().changes(since), gone=frozenset())


class _Greedy(MemoryOutbox):
    """An outbox that breaks one promise: it takes over what belongs to the living."""

    def _others(self):
        return [worker for worker in self._shelf.workers if worker is not self._worker]


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (_Reviving, "test_refused_before_it_was_stored"),
        (_Reviving, "test_stale_worker_stores_nothing_that_was_refused"),
        (_Overtaking, "test_nothing_overtakes_what_was_turned_away"),
        (_Careless, "test_may_send"),
        (_Silent, "test_refusal_is_heard"),
        (_Silent, "test_dead_worker"),
        (_Greedy, "test_living_workers_keep_their_events"),
    ],
)
async def test_suite_finds_a_broken_promise(broken, test, clock):
    """The suite fails, and says which rule, for an outbox that breaks one."""
    shelf = MemoryShelf()
    suite = OutboxConformance()
    run = getattr(suite, test)
    needed = {"clock": clock} if "clock" in inspect.signature(run).parameters else {}
    with pytest.raises(AssertionError):
        await run(make_outbox=lambda: broken(shelf, clock=clock, **suite.bounds), **needed)
