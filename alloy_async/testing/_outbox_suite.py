"""What every outbox must do, as tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import ClassVar, TypeAlias

from ..errors import OutboxError
from ..outbox.base import LEASE, Claimed, Outbox, OutboxEvent, Shelf, Stored, VisitorKey
from ._clock import ManualClock

__all__ = ["OutboxConformance"]

MAX_EVENTS = 20
MAX_BYTES = 10_000

ANNE = VisitorKey("ADB3LETTERSANDNUMBERS@AdobeOrg", "ebebf826-a01f-4458-8cec-ef61de241c93", "anne")
BERT = ANNE._replace(visitor="bert")

NEIGHBOURS = [
    ANNE._replace(organisation="ANOTHER@AdobeOrg"),
    ANNE._replace(datastream="another"),
    ANNE._replace(visitor="ann"),
    ANNE._replace(visitor="anne "),
    ANNE._replace(visitor="ANNE"),
    ANNE._replace(visitor=""),
    ANNE._replace(datastream=ANNE.datastream + "a", visitor="nne"),
    ANNE._replace(visitor="anne\0"),
    ANNE._replace(visitor="a%"),
    ANNE._replace(visitor="ann\u00e9"),
    ANNE._replace(visitor="anne\u0301"),
]
"""Keys that an outbox may take for Anne's."""

HALF_A_CHARACTER = "half \ud83d of a surrogate pair"

MakeOutbox: TypeAlias = Callable[[], Outbox]


class OutboxConformance:
    """Checks that an outbox keeps the promises of the ``Outbox`` protocol.

    Make a subclass whose name begins with ``Test`` and give it two fixtures: ``clock`` with a ``ManualClock``, and
    ``make_outbox``, a function without arguments that returns an outbox on that clock, not yet open, with the
    ``bounds`` of this class. All that it returns within one test share one place, which is empty at first.
    With pytest-asyncio in strict mode mark the subclass with ``pytest.mark.asyncio``. ::

        class TestRedisOutbox(OutboxConformance):
            @pytest.fixture
            async def make_outbox(self, redis_url, clock):
                made = []

                def make():
                    made.append(RedisOutbox(redis_url, clock=clock, **self.bounds))
                    return made[-1]

                yield make
                for outbox in made:
                    await outbox.aclose()

    What it cannot check from inside one process is that a method that has returned survives ``kill -9``.
    """

    bounds: ClassVar[Mapping[str, int]] = {"max_events": MAX_EVENTS, "max_bytes": MAX_BYTES}
    """Events, and bytes of their bodies, that an outbox under test takes at most; small, so that they are met soon."""

    # Storing

    async def test_empty_outbox_is_empty(self, make_outbox: MakeOutbox) -> None:
        """In a new place nothing waits, for nobody."""
        outbox, epoch = await _opened(make_outbox)
        _equal(await outbox.shelf(), Shelf(workers=1), "a new outbox is empty")
        _equal(await outbox.claim([ANNE], count=10, size=MAX_BYTES), [], "there is nothing to take over")
        changes = await outbox.changes(epoch)
        _equal(
            (changes.epoch, dict(changes.refused), changes.gone), (epoch, {}, frozenset()), "nothing happened"
        )

    async def test_events_come_back_as_they_were(self, make_outbox: MakeOutbox) -> None:
        """Each attribute of an event comes back as it was stored."""
        events = [
            OutboxEvent(ANNE, "id", b'{"a": 1}', needs_answer, names_person, 1_767_225_600.123456 + number)
            for number, (needs_answer, names_person) in enumerate(_PAIRS)
        ]
        events += [OutboxEvent(BERT, "", bytes(range(256)), False, False, 0.0)]
        outbox, epoch = await _opened(make_outbox)
        stored = await outbox.write(events, [], epoch=epoch)
        await outbox.aclose()
        other, _ = await _opened(make_outbox)
        claimed = await other.claim([ANNE, BERT], count=10, size=MAX_BYTES)
        _equal([one.event for one in claimed], events, "events come back as they were")
        _equal([one.key for one in claimed], list(stored.keys), "and keep their keys")

    async def test_keys_grow(self, make_outbox: MakeOutbox) -> None:
        """Keys grow in the order of the events, over calls and workers, and none is given twice."""
        one, epoch = await _opened(make_outbox)
        other, _ = await _opened(make_outbox)
        keys: list[int] = []
        for outbox in (one, other, one, other):
            new = await _store(outbox, epoch, 2)
            await outbox.write([], new, epoch=epoch)
            keys += new
        _equal(keys, sorted(set(keys)), "keys grow")

    async def test_same_id_twice_is_two_events(self, make_outbox: MakeOutbox) -> None:
        """Two events with one ``_id`` are both kept, and erased one by one."""
        outbox, epoch = await _opened(make_outbox)
        event = _event(ANNE, "twice")
        stored = await outbox.write([event, event], [], epoch=epoch)
        await outbox.write([], _keys(stored)[:1], epoch=epoch)
        _equal((await outbox.shelf()).events, 1, "one of two events with the same id is left")

    async def test_ended_events_are_erased(self, make_outbox: MakeOutbox) -> None:
        """What has ended is not kept, and gives its room back."""
        outbox, epoch = await _opened(make_outbox)
        first, second, third = await _store(outbox, epoch, 3)
        await outbox.write([], [second], epoch=epoch)
        shelf = await outbox.shelf()
        _equal((shelf.events, shelf.size), (2, 2 * _SIZE), "what has ended no longer counts")
        await outbox.aclose()
        _equal(await _left(make_outbox), [first, third], "what has ended does not come back")

    async def test_ending_twice_is_harmless(self, make_outbox: MakeOutbox) -> None:
        """Keys that have gone, that never were, and the same one twice are passed over."""
        outbox, epoch = await _opened(make_outbox)
        keys = await _store(outbox, epoch, 3)
        await outbox.write([], [*keys[:1], *keys[:1], 1_000_000], epoch=epoch)
        await outbox.write([], keys[:2], epoch=epoch)
        shelf = await outbox.shelf()
        _equal((shelf.events, shelf.size), (1, _SIZE), "each event is counted once")

    async def test_events_of_another_worker_are_not_erased(self, make_outbox: MakeOutbox) -> None:
        """A worker cannot end the events of another one, whether it knows the key or not."""
        one, epoch = await _opened(make_outbox)
        other, _ = await _opened(make_outbox)
        mine = await _store(one, epoch, 2)
        theirs = await _store(other, epoch, 2)
        await other.write([], [*mine, *theirs], epoch=epoch)
        shelf = await one.shelf()
        _equal((shelf.events, shelf.size), (2, 2 * _SIZE), "events of the other worker are left")

    # Bounds

    async def test_bound_of_count(self, make_outbox: MakeOutbox) -> None:
        """As many events are kept as may wait; those behind are turned away, and the bound is named."""
        outbox, epoch = await _opened(make_outbox)
        stored = await outbox.write(_events(MAX_EVENTS + 3, size=10), [], epoch=epoch)
        _equal(
            [key is not None for key in stored.keys], [True] * MAX_EVENTS + [False] * 3, "the bound is kept"
        )
        _equal((stored.bound, stored.refused), ("max_queued", frozenset()), "the bound is named")
        again = await outbox.write(_events(1, size=10), [], epoch=epoch)
        _equal((again.keys, again.bound), ((None,), "max_queued"), "a full outbox takes nothing")

    async def test_bound_of_bytes(self, make_outbox: MakeOutbox) -> None:
        """As many bytes are kept as may wait, to the last one."""
        outbox, epoch = await _opened(make_outbox)
        fits = await outbox.write(_events(2, size=MAX_BYTES // 2), [], epoch=epoch)
        _equal((len(_keys(fits)), fits.bound), (2, None), "all the bytes may be used")
        await outbox.write([], _keys(fits)[:1], epoch=epoch)
        stored = await outbox.write(_events(1, size=MAX_BYTES // 2 + 1), [], epoch=epoch)
        _equal((stored.keys, stored.bound), ((None,), "max_queued_bytes"), "one byte more is turned away")

    async def test_nothing_overtakes_what_was_turned_away(self, make_outbox: MakeOutbox) -> None:
        """Behind an event that met a bound none is kept, even where it would fit."""
        outbox, epoch = await _opened(make_outbox)
        events = [_event(ANNE, f"{size}", size=size) for size in (100, MAX_BYTES, 100)]
        stored = await outbox.write(events, [], epoch=epoch)
        _equal([key is not None for key in stored.keys], [True, False, False], "order is kept at the bound")
        _equal(stored.bound, "max_queued_bytes", "the bound is named")

    async def test_bounds_are_those_of_all_workers(self, make_outbox: MakeOutbox) -> None:
        """What one worker keeps, living or dead, leaves less room for the others."""
        one, epoch = await _opened(make_outbox)
        other, _ = await _opened(make_outbox)
        await _store(one, epoch, MAX_EVENTS - 1)
        await one.aclose()
        stored = await other.write(_events(2), [], epoch=epoch)
        _equal((len(_keys(stored)), stored.bound), (1, "max_queued"), "bounds hold for the whole outbox")

    async def test_ended_events_make_room_in_the_same_step(self, make_outbox: MakeOutbox) -> None:
        """The room of events that ended is used by those that are stored along with it."""
        outbox, epoch = await _opened(make_outbox)
        keys = await _store(outbox, epoch, MAX_EVENTS)
        stored = await outbox.write(_events(3), keys[:2], epoch=epoch)
        _equal((len(_keys(stored)), stored.bound), (2, "max_queued"), "what ended makes room")

    # Refusals, and the epoch

    async def test_erasing(self, make_outbox: MakeOutbox) -> None:
        """Erasing takes a visitor's events of all workers, and nobody else's."""
        one, epoch = await _opened(make_outbox)
        dead, _ = await _opened(make_outbox)
        for outbox in (one, dead):
            await outbox.write([_event(ANNE, "a"), _event(BERT, "b")], [], epoch=epoch)
        await dead.aclose()
        await one.erase(ANNE)
        shelf = await one.shelf()
        _equal(
            (shelf.events, shelf.size, shelf.unclaimed), (2, 2 * _SIZE, 1), "only this visitor's are erased"
        )
        await one.aclose()
        left = await _claimed_by_another(make_outbox, [ANNE, BERT])
        _equal([item.event.visitor for item in left], [BERT, BERT], "only this visitor's are erased")

    async def test_erasing_leaves_neighbours(self, make_outbox: MakeOutbox) -> None:
        """Visitors whose keys look alike keep their events, and may store more."""
        outbox, epoch = await _opened(make_outbox)
        await outbox.write([_event(key, "a") for key in NEIGHBOURS], [], epoch=epoch)
        await outbox.erase(ANNE)
        changes = await outbox.changes(epoch)
        _true(not set(changes.refused) & set(NEIGHBOURS), "nobody else is refused")
        stored = await outbox.write([_event(NEIGHBOURS[0], "b")], [], epoch=epoch)
        _equal((len(_keys(stored)), stored.refused), (1, frozenset()), "nobody else is turned away")
        _equal((await outbox.shelf()).events, len(NEIGHBOURS) + 1, "nobody else's events are erased")

    async def test_erasing_starts_an_epoch(self, make_outbox: MakeOutbox) -> None:
        """Each erasing returns a greater epoch, whether there was anything to erase or not; every worker sees it."""
        one, epoch = await _opened(make_outbox)
        other, same = await _opened(make_outbox)
        _equal(same, epoch, "opening starts no epoch")
        epochs = [epoch]
        for outbox, visitor in ((one, ANNE), (other, ANNE), (one, BERT)):
            epochs.append(await outbox.erase(visitor))
            _equal((await other.changes(epoch)).epoch, epochs[-1], "the epoch is everybody's")
        _equal(epochs, sorted(set(epochs)), "epochs grow")
        _equal((await _opened(make_outbox))[1], epochs[-1], "a new worker begins with the present epoch")

    async def test_refusal_is_heard(self, make_outbox: MakeOutbox) -> None:
        """Another worker hears who declined, and when, and which of its events are gone; once."""
        one, epoch = await _opened(make_outbox)
        other, _ = await _opened(make_outbox)
        stored = await one.write([_event(ANNE, "a"), _event(BERT, "b"), _event(ANNE, "c")], [], epoch=epoch)
        first, _, third = _keys(stored)
        refused_at = await other.erase(ANNE)
        changes = await one.changes(epoch)
        _equal(changes.epoch, refused_at, "the epoch is up to date")
        _equal(dict(changes.refused), {ANNE: refused_at}, "the refusal is told")
        _equal(changes.gone, frozenset({first, third}), "what is gone is told")
        later = await one.changes(changes.epoch)
        _equal((dict(later.refused), later.gone), ({}, frozenset()), "and told once")

    async def test_last_refusal_is_told(self, make_outbox: MakeOutbox) -> None:
        """Of several refusals of one visitor the epoch of the last one is told."""
        one, epoch = await _opened(make_outbox)
        other, _ = await _opened(make_outbox)
        await one.write([_event(ANNE, "a"), _event(BERT, "b")], [], epoch=epoch)
        await other.erase(ANNE)
        refused_bert = await other.erase(BERT)
        refused_anne = await other.erase(ANNE)
        _equal(
            dict((await one.changes(epoch)).refused),
            {ANNE: refused_anne, BERT: refused_bert},
            "the last is told",
        )
        _equal(
            dict((await one.changes(refused_bert)).refused), {ANNE: refused_anne}, "what came after is told"
        )

    async def test_refused_before_it_was_stored(self, make_outbox: MakeOutbox) -> None:
        """An event of a visitor that declined since the worker looked is turned away; others are kept."""
        one, epoch = await _opened(make_outbox)
        other, _ = await _opened(make_outbox)
        refused_at = await other.erase(ANNE)
        stored = await one.write([_event(ANNE, "a"), _event(BERT, "b"), _event(ANNE, "c")], [], epoch=epoch)
        _equal([key is not None for key in stored.keys], [False, True, False], "what was refused is not kept")
        _equal((stored.refused, stored.bound), (frozenset({ANNE}), None), "the refusal is told")
        again = await one.write([_event(ANNE, "d")], [], epoch=refused_at)
        _equal((len(_keys(again)), again.refused), (1, frozenset()), "later consent counts again")

    async def test_refused_events_take_no_room(self, make_outbox: MakeOutbox) -> None:
        """Events that were refused count for no bound, and none behind them is turned away because of them."""
        one, epoch = await _opened(make_outbox)
        await one.erase(ANNE)
        refused = [_event(ANNE, "a", size=MAX_BYTES) for _ in range(MAX_EVENTS)]
        stored = await one.write([*refused, _event(BERT, "b")], [], epoch=epoch)
        _equal((len(_keys(stored)), stored.bound), (1, None), "what is refused takes no room")

    async def test_refusal_survives_its_worker(self, make_outbox: MakeOutbox) -> None:
        """A refusal is heard also when whoever recorded it is gone, and others have come."""
        one, epoch = await _opened(make_outbox)
        other, _ = await _opened(make_outbox)
        await one.claim([ANNE], count=1, size=MAX_BYTES)
        refused_at = await other.erase(ANNE)
        await other.aclose()
        await (await _opened(make_outbox))[0].erase(BERT)
        _equal((await one.changes(epoch)).refused.get(ANNE), refused_at, "the refusal is still told")

    async def test_stale_worker_stores_nothing_that_was_refused(self, make_outbox: MakeOutbox) -> None:
        """However many refusals and workers come between, a worker that knows an old epoch revives nothing."""
        stale, epoch = await _opened(make_outbox)
        for _ in range(3):
            other, _ = await _opened(make_outbox)
            await other.changes(await other.erase(ANNE))
            await other.erase(BERT)
            await other.aclose()
        stored = await stale.write([_event(ANNE, "a")], [], epoch=epoch)
        _equal((stored.keys, stored.refused), ((None,), frozenset({ANNE})), "what was refused is not kept")

    # Leases

    async def test_may_send(self, make_outbox: MakeOutbox, clock: ManualClock) -> None:
        """Sending is allowed while the lease holds and the epoch is the present one."""
        outbox, epoch = await _opened(make_outbox)
        _true(outbox.may_send(epoch), "a new worker may send")
        _true(not outbox.may_send(epoch - 1), "not with an old epoch")
        clock.advance(LEASE - 0.001)
        _true(outbox.may_send(epoch), "the lease holds as long as it was given")
        clock.advance(0.001)
        _true(not outbox.may_send(epoch), "not without a lease")

    async def test_may_send_only_while_open(self, make_outbox: MakeOutbox) -> None:
        """Before it is opened and after it is closed nothing may be sent."""
        outbox = make_outbox()
        _true(not outbox.may_send(0), "not before it is open")
        epoch = await outbox.open()
        await outbox.aclose()
        _true(not outbox.may_send(epoch), "not after it was closed")

    async def test_refusal_stops_sending_at_once(self, make_outbox: MakeOutbox) -> None:
        """From the moment a refusal is recorded no worker may send, until it has heard of it."""
        one, epoch = await _opened(make_outbox)
        other, _ = await _opened(make_outbox)
        await other.erase(ANNE)
        _true(not one.may_send(epoch) and not other.may_send(epoch), "nobody may send with the old epoch")
        changes = await one.changes(epoch)
        _true(one.may_send(changes.epoch), "who has heard of it may send again")

    async def test_events_that_are_too_old_are_erased(self, make_outbox: MakeOutbox) -> None:
        """What no living worker has and is older than asked is erased; the living keep theirs."""
        await _left_behind(make_outbox, 2)
        outbox, epoch = await _opened(make_outbox)
        await _store(outbox, epoch, 1)
        _equal(await outbox.expire(1.0), 0, "nothing is older than itself")
        _equal(await outbox.expire(2.0), 2, "what was left behind is too old")
        _equal((await outbox.shelf()).events, 1, "a living worker's event stays, however old")

    async def test_renewing(self, make_outbox: MakeOutbox, clock: ManualClock) -> None:
        """A lease that is renewed in time goes on; one that had run out is given again, and it is said."""
        outbox, epoch = await _opened(make_outbox)
        for _ in range(4):
            clock.advance(LEASE / 3)
            _true(await outbox.renew(), "the lease held")
        clock.advance(LEASE)
        _equal((await outbox.shelf()).workers, 0, "a worker without a lease is not counted")
        _true(not await outbox.renew(), "the lease had run out")
        _true(outbox.may_send(epoch), "it holds again")
        _equal((await outbox.shelf()).workers, 1, "the worker is counted again")
        _true(await outbox.renew(), "and in time once more")

    async def test_living_workers_keep_their_events(
        self, make_outbox: MakeOutbox, clock: ManualClock
    ) -> None:
        """As long as its lease holds nobody takes over a worker's events."""
        one, epoch = await _opened(make_outbox)
        await _store(one, epoch, 2)
        other, _ = await _opened(make_outbox)
        clock.advance(LEASE - 0.001)
        _equal(await other.claim([ANNE], count=9, size=MAX_BYTES), [], "a living worker keeps its events")
        _equal((await other.shelf()).unclaimed, 0, "its events are claimed")

    async def test_dead_worker(self, make_outbox: MakeOutbox, clock: ManualClock) -> None:
        """When its lease has run out another one takes over, and the first hears of it when it comes back."""
        one, epoch = await _opened(make_outbox)
        keys = await _store(one, epoch, 3)
        clock.advance(LEASE)
        other, _ = await _opened(make_outbox)
        _equal((await other.shelf()).unclaimed, 3, "its events belong to nobody")
        claimed = await other.claim([ANNE], count=2, size=MAX_BYTES)
        _equal([item.key for item in claimed], keys[:2], "the oldest are taken over")
        _equal((await other.shelf()).unclaimed, 1, "the rest belongs to nobody")
        _true(not await one.renew(), "its lease had run out")
        _equal((await one.changes(epoch)).gone, frozenset(keys[:2]), "it hears which events are gone")
        _equal(await other.claim([ANNE], count=9, size=MAX_BYTES), [], "the rest is its own again")

    async def test_lost_events_cannot_be_ended(self, make_outbox: MakeOutbox, clock: ManualClock) -> None:
        """A worker that has lost its events to another one cannot erase them."""
        one, epoch = await _opened(make_outbox)
        keys = await _store(one, epoch, 3)
        clock.advance(LEASE)
        other, _ = await _opened(make_outbox)
        await other.claim([ANNE], count=2, size=MAX_BYTES)
        await one.write([], keys, epoch=epoch)
        shelf = await other.shelf()
        _equal((shelf.events, shelf.size), (2, 2 * _SIZE), "the other worker's events are left")
        await other.write([], keys[:2], epoch=epoch)
        _equal((await other.shelf()).events, 0, "their new owner may end them")

    async def test_own_events_are_not_claimed(self, make_outbox: MakeOutbox, clock: ManualClock) -> None:
        """A worker whose lease has run out is not given its own events a second time."""
        outbox, epoch = await _opened(make_outbox)
        await _store(outbox, epoch, 2)
        clock.advance(LEASE)
        _equal(await outbox.claim([ANNE], count=9, size=MAX_BYTES), [], "it has them already")

    async def test_dropped_worker(self, make_outbox: MakeOutbox, clock: ManualClock) -> None:
        """A worker that vanished without closing is dead when its lease has run out; what it stored is not lost."""
        keys = await _store(*await _opened(make_outbox), 2)
        clock.advance(LEASE)
        _equal(await _left(make_outbox), keys, "what a dropped worker stored is taken over")

    # Taking over

    async def test_claim_is_for_some_visitors(self, make_outbox: MakeOutbox) -> None:
        """Only events of the visitors that are named are taken over."""
        one, epoch = await _opened(make_outbox)
        everybody = [ANNE, BERT, *NEIGHBOURS]
        await one.write([_event(key, "a") for key in everybody], [], epoch=epoch)
        await one.aclose()
        other, _ = await _opened(make_outbox)
        _equal(await other.claim([], count=9, size=MAX_BYTES), [], "for nobody there is nothing")
        claimed = await other.claim([ANNE], count=99, size=MAX_BYTES)
        _equal([item.event.visitor for item in claimed], [ANNE], "only what was asked for")
        claimed = await other.claim(everybody, count=99, size=MAX_BYTES)
        _equal([item.event.visitor for item in claimed], everybody[1:], "the rest, in order")

    async def test_abandoned(self, make_outbox: MakeOutbox) -> None:
        """Whose events belong to no living worker can be asked, each visitor once."""
        one, epoch = await _opened(make_outbox)
        other, _ = await _opened(make_outbox)
        everybody = [ANNE, BERT, *NEIGHBOURS]
        await one.write([_event(key, "a") for key in [*everybody, ANNE]], [], epoch=epoch)
        _equal(sorted(await other.abandoned()), [], "their worker lives")
        await one.aclose()
        _equal(sorted(await other.abandoned()), sorted(everybody), "their worker has gone")
        await other.claim([ANNE, *NEIGHBOURS], count=99, size=MAX_BYTES)
        _equal(sorted(await other.abandoned()), [BERT], "the others' events have a worker again")

    async def test_release(self, make_outbox: MakeOutbox) -> None:
        """A worker that leaves its events to others goes on, and has to do with them no more."""
        one, epoch = await _opened(make_outbox)
        other, _ = await _opened(make_outbox)
        first = (await one.write([_event(ANNE, "a"), _event(BERT, "b")], [], epoch=epoch)).keys
        await one.release()
        claimed = await other.claim([ANNE, BERT], count=9, size=MAX_BYTES)
        _equal([item.event.visitor for item in claimed], [ANNE, BERT], "others may take them at once")
        await one.write([_event(ANNE, "c")], [key for key in first if key is not None], epoch=epoch)
        _equal((await one.shelf()).events, 3, "and they are no longer for the one to end")
        _equal((await one.changes(epoch)).gone, frozenset(), "nor does it hear of them")
        await one.release()
        await one.release()
        _equal(len(await other.claim([ANNE], count=9, size=MAX_BYTES)), 1, "what came later likewise")

    async def test_release_forgets_no_refusal(self, make_outbox: MakeOutbox) -> None:
        """Who declined before a release is still refused after it, for a worker that has not heard of it."""
        one, epoch = await _opened(make_outbox)
        other, _ = await _opened(make_outbox)
        await one.write([_event(ANNE, "a")], [], epoch=epoch)
        await other.erase(ANNE)
        await one.write([_event(BERT, "b")], [], epoch=epoch)
        await one.release()
        stored = await one.write([_event(ANNE, "c")], [], epoch=epoch)
        _equal(stored.refused, frozenset({ANNE}), "the refusal is still known")

    async def test_claim_is_bounded(self, make_outbox: MakeOutbox) -> None:
        """No more than was asked for is taken over, by count and by bytes; the oldest first, whoever left them."""
        keys: list[int] = []
        for _ in range(2):
            outbox, epoch = await _opened(make_outbox)
            keys += await _store(outbox, epoch, 4)
            await outbox.aclose()
        other, _ = await _opened(make_outbox)
        sizes = [(0, MAX_BYTES), (1, MAX_BYTES), (9, 2 * _SIZE), (9, 2 * _SIZE - 1), (9, 0), (9, MAX_BYTES)]
        taken = [[item.key for item in await other.claim([ANNE], count=n, size=s)] for n, s in sizes]
        _equal(
            [len(some) for some in taken], [0, 1, 2, 1, 1, 3], "the bounds are kept; one is always returned"
        )
        _equal([key for some in taken for key in some], keys, "the oldest first")

    async def test_claimed_events_are_the_workers_own(self, make_outbox: MakeOutbox) -> None:
        """What was taken over is taken over by nobody else, may be ended, and is left to others in turn."""
        keys = await _left_behind(make_outbox, 3)
        one, epoch = await _opened(make_outbox)
        other, _ = await _opened(make_outbox)
        await one.claim([ANNE], count=9, size=MAX_BYTES)
        _equal(await other.claim([ANNE], count=9, size=MAX_BYTES), [], "it is taken over once")
        await one.write([], keys[:1], epoch=epoch)
        await one.aclose()
        claimed = await other.claim([ANNE], count=9, size=MAX_BYTES)
        _equal([item.key for item in claimed], keys[1:], "and left to others in turn")

    async def test_claiming_at_once(self, make_outbox: MakeOutbox) -> None:
        """Workers that take over at the same time never get the same event."""
        keys = await _left_behind(make_outbox, 10)
        workers = [(await _opened(make_outbox))[0] for _ in range(4)]
        claims = await asyncio.gather(*(one.claim([ANNE], count=4, size=MAX_BYTES) for one in workers))
        _equal(sorted(item.key for claimed in claims for item in claimed), keys, "each event has one owner")

    async def test_refused_events_are_not_taken_over(self, make_outbox: MakeOutbox) -> None:
        """What a dead worker left of a visitor that declined is gone."""
        await _left_behind(make_outbox, 3)
        one, _ = await _opened(make_outbox)
        await one.erase(ANNE)
        _equal(await one.claim([ANNE], count=9, size=MAX_BYTES), [], "what was refused is erased")

    # The end, and what goes wrong

    async def test_closing_leaves_events_to_others_at_once(self, make_outbox: MakeOutbox) -> None:
        """After closing, others need not wait for the lease to run out."""
        one, epoch = await _opened(make_outbox)
        keys = await _store(one, epoch, 2)
        other, _ = await _opened(make_outbox)
        await one.aclose()
        _equal((await other.shelf()).workers, 1, "a closed worker does not count")
        claimed = await other.claim([ANNE], count=9, size=MAX_BYTES)
        _equal([item.key for item in claimed], keys, "its events are free")

    async def test_closing_twice_is_harmless(self, make_outbox: MakeOutbox) -> None:
        """An outbox may be closed unopened, once, twice, and twice at the same time."""
        outbox = make_outbox()
        await outbox.aclose()
        await outbox.open()
        await asyncio.gather(outbox.aclose(), outbox.aclose())
        await outbox.aclose()

    async def test_opening_again_is_a_new_worker(self, make_outbox: MakeOutbox) -> None:
        """An outbox that was closed, or was not, may be opened again: a new worker, that takes over its own events."""
        outbox, epoch = await _opened(make_outbox)
        keys = await _store(outbox, epoch, 2)
        for close in (True, False):
            if close:
                await outbox.aclose()
            await outbox.open()
            _equal((await outbox.shelf()).workers, 1, "it is one worker")
            _equal((await outbox.changes(epoch)).gone, frozenset(), "it has nothing to lose")
            claimed = await outbox.claim([ANNE], count=9, size=MAX_BYTES)
            _equal([item.key for item in claimed], keys, "it takes over what it left")

    async def test_closed_outbox_raises_only_its_own_error(self, make_outbox: MakeOutbox) -> None:
        """A worker's call before opening or after closing ends with ``OutboxError``; the others may work."""
        outbox = make_outbox()
        for _ in range(2):
            for call in _worker_calls(outbox):
                await _fails(call)
            with suppress(OutboxError):
                await outbox.shelf()
            await outbox.open()
            await outbox.aclose()

    async def test_text_that_cannot_be_written(self, make_outbox: MakeOutbox) -> None:
        """Text that cannot be kept ends with ``OutboxError``, keeps nothing of that call, and harms no later one."""
        outbox, epoch = await _opened(make_outbox)
        odd = ANNE._replace(visitor=HALF_A_CHARACTER)
        with suppress(OutboxError):
            await outbox.write([_event(ANNE, "a"), _event(odd, "b")], [], epoch=epoch)
            await outbox.erase(odd)
            await outbox.erase(ANNE)
        with suppress(OutboxError):
            await outbox.claim([odd], count=1, size=1)
        with suppress(OutboxError):
            await outbox.erase(odd)
        epoch = (await outbox.changes(epoch)).epoch
        _equal((await outbox.shelf()).events, 0, "nothing of the call is kept")
        _equal(len(await _store(outbox, epoch, 2)), 2, "the outbox still works")

    async def test_calls_at_once(self, make_outbox: MakeOutbox) -> None:
        """Calls of several workers at the same time each do their own work."""
        workers = [await _opened(make_outbox) for _ in range(3)]
        writes = [_store(outbox, epoch, 2) for outbox, epoch in workers for _ in range(2)]
        keys = [key for some in await asyncio.gather(*writes) for key in some]
        _equal(len(set(keys)), 12, "each event has a key of its own")
        epochs = await asyncio.gather(*(outbox.erase(BERT) for outbox, _ in workers))
        _equal(len(set(epochs)), 3, "each erasing has an epoch of its own")
        _equal((await workers[0][0].shelf()).events, 12, "nothing was lost")

    async def test_cancelled_call_leaves_a_working_outbox(self, make_outbox: MakeOutbox) -> None:
        """A caller that is cancelled while storing leaves all or nothing, and an outbox that works."""
        outbox, epoch = await _opened(make_outbox)
        writing = asyncio.ensure_future(outbox.write(_events(3), [], epoch=epoch))
        await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait([writing])
        _true((await outbox.shelf()).events in {0, 3}, "all or nothing")
        _equal(len(await _store(outbox, epoch, 2)), 2, "the outbox still works")


_SIZE = 100
_PAIRS = [(False, False), (True, False), (False, True), (True, True)]


def _event(visitor: VisitorKey, event_id: str, *, size: int = _SIZE) -> OutboxEvent:
    return OutboxEvent(
        visitor, event_id, b"x" * size, needs_answer=False, names_person=False, accepted_at=1.0
    )


def _events(count: int, *, size: int = _SIZE) -> list[OutboxEvent]:
    return [_event(ANNE, f"{number}", size=size) for number in range(count)]


def _keys(stored: Stored) -> list[int]:
    return [key for key in stored.keys if key is not None]


async def _opened(make_outbox: MakeOutbox) -> tuple[Outbox, int]:
    outbox = make_outbox()
    return outbox, await outbox.open()


async def _store(outbox: Outbox, epoch: int, count: int) -> list[int]:
    return _keys(await outbox.write(_events(count), [], epoch=epoch))


async def _left_behind(make_outbox: MakeOutbox, count: int) -> list[int]:
    """Return the keys of events whose worker has closed."""
    outbox, epoch = await _opened(make_outbox)
    keys = await _store(outbox, epoch, count)
    await outbox.aclose()
    return keys


async def _claimed_by_another(make_outbox: MakeOutbox, visitors: Sequence[VisitorKey]) -> list[Claimed]:
    outbox, _ = await _opened(make_outbox)
    return await outbox.claim(visitors, count=1_000, size=MAX_BYTES)


async def _left(make_outbox: MakeOutbox) -> list[int]:
    return [item.key for item in await _claimed_by_another(make_outbox, [ANNE])]


def _worker_calls(outbox: Outbox) -> Iterable[Awaitable[object]]:
    yield outbox.write(_events(1), [], epoch=0)
    yield outbox.claim([ANNE], count=1, size=1)
    yield outbox.renew()
    yield outbox.changes(0)


async def _fails(call: Awaitable[object]) -> None:
    try:
        await call
    except OutboxError:
        return
    raise AssertionError("only a worker that is open can do this: the outbox did it")


# Errors are raised by hand: assert would vanish under -O, and pytest explains an assert only in files of the tests.


def _equal(actual: object, expected: object, rule: str) -> None:
    if actual != expected:
        raise AssertionError(f"{rule}: expected {expected!r}, the outbox says {actual!r}")


def _true(fact: bool, rule: str) -> None:  # noqa: FBT001 - a fact, not an option
    if not fact:
        raise AssertionError(rule)
