"""Drives Alloy at random beside a model of two people, and checks the promises after every step.

The model is ``world.Person``: what somebody said last, and how often they said no. The edge and the store of the model
look at each deed in the moment it happens; the rules below look at the futures and the books.
"""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule
from world import ANSWERS, MAX_AGE, MAX_PARKED, MAX_QUEUED, PARKED_TTL, Call, Mortal, World

from alloy_async import (
    Alloy,
    AlloyClosed,
    AlloyError,
    ConsentDeclined,
    ConsentStoreError,
    InvalidCommand,
    ParkingFull,
    _courier,
    _departures,
    _slices,
)
from alloy_async._consent import _opt_in
from alloy_async.outbox import LEASE
from alloy_async.testing import CountingIds, ManualClock

ENOUGH_TURNS = 60

USUAL_SLICE = _slices.SLICE

BURST = ["event", "event", "event", "ask", "all", "all", "none", "turn", "turn", "turn", "consent expires"]

people = st.sampled_from(["one@AdobeOrg", "two@AdobeOrg"])
words = st.sampled_from(["all", "ALL", "none", "None", "yes", " all ", "", None, 1, True])


class Promises(RuleBasedStateMachine):
    """Two people, each with an instance; one store, one edge, one clock."""

    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(debug=True)
        self.clock = ManualClock()
        self.world = World(self.clock)
        self.ids = CountingIds()
        self.alloys: dict[str, Alloy] = {}
        self.choices: list[tuple[str, str, asyncio.Future]] = []
        self.said: dict[str, set[str]] = {name: set() for name in self.world.people}
        self.accepted = dict.fromkeys(self.world.people, 0)
        self.durable = False
        self.buried: list[Alloy] = []
        self.mortals: dict[str, list[Mortal]] = {}

    def cut_slices(self, size: int) -> None:
        for module in (_slices, _opt_in, _courier, _departures):
            module.SLICE = size

    def run(self, coroutine):
        return self.runner.run(coroutine)

    async def turns(self, count: int = ENOUGH_TURNS) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async def open_instance(self, name: str) -> None:
        alloy = self.alloys[name] = Alloy()
        self.accepted[name] = 0
        mortals = [Mortal(self.world.edge), Mortal(self.world.store)]
        if self.durable:
            mortals.append(Mortal(self.world.outbox()))
        self.mortals[name] = mortals
        configured = alloy.configure(
            outbox=mortals[2] if self.durable else "memory",
            config_id=f"datastream-{name.removesuffix('@AdobeOrg')}",
            ims_org_id=name,
            opt_in_enabled=True,
            transport=mortals[0],
            store=mortals[1],
            clock=self.clock,
            ids=self.ids,
            max_parked=MAX_PARKED,
            max_queued=MAX_QUEUED,
            parked_ttl=PARKED_TTL,
            preference_max_age=MAX_AGE,
            max_in_flight=2,
            max_body_bytes=1_024,
        )
        self.world.store.go_on()
        await configured

    @initialize(size=st.sampled_from([2, 500]), durable=st.booleans())
    def begin(self, size, durable) -> None:
        self.durable = durable
        self.slice = (
            size  # 2: long work is cut into slices even here, so that everything else happens in between
        )
        self.cut_slices(size)
        for name in self.world.people:
            self.run(self.open_instance(name))

    # What people and applications do

    @rule(target=calls, name=people, asks=st.booleans(), stored=st.booleans())
    def event(self, name, asks, stored):
        return self.run(self._event(name, asks, stored=stored))

    async def _event(self, name, asks, *, stored=False):
        person, alloy = self.world.people[name], self.alloys[name]
        number = len(person.calls)
        before = alloy.statistics()
        ack = "stored" if stored and self.durable else "delivered"
        future = alloy.event(type=f"{name} {number}", xdm={"n": "x" * 300}, view_start=asks, ack=ack)
        assert isinstance(future, asyncio.Future)
        call = Call(number, person.refusals, future)
        person.calls.append(call)
        self.accepted[name] += 1
        if person.said == "none" and person.heard and not self.expired(name):
            assert isinstance(self.failure(call), ConsentDeclined), "a later event is refused too"
        if before.parked >= MAX_PARKED and person.said == "pending" and person.heard:
            assert isinstance(self.failure(call), ParkingFull | ConsentDeclined), (
                "the bound of parking is kept"
            )
        return name, call

    @rule(name=people, word=words, wait=st.booleans())
    def opt_in(self, name, word, wait):
        self.run(self._opt_in(name, word, wait))

    async def _opt_in(self, name, word, wait):
        person, alloy = self.world.people[name], self.alloys[name]
        choice = word.lower() if isinstance(word, str) and word.lower() in {"all", "none"} else None
        if choice is not None:
            person.said, person.said_at, person.heard = choice, self.clock.time(), True
        person.refusals += choice == "none"
        under_way = alloy.statistics().sending
        future = alloy.opt_in(purposes=word)
        if choice is None:
            assert isinstance(future.exception(), InvalidCommand)
            return
        if choice == "none":  # before any await
            now = alloy.statistics()
            if self.slice > MAX_PARKED + MAX_QUEUED:
                assert (now.parked, now.queued) == (0, 0), "a refusal reaches everything at once"
            assert now.sending == under_way, "what is on the wire settles with the truth"
        self.choices.append((name, choice, future))
        self.said[name].add(choice)
        if wait and not self.world.store.slow:
            await asyncio.wait([future])

    @rule(name=people)
    def forget(self, name):
        self.run(self._forget(name))

    async def _forget(self, name):
        person = self.world.people[name]
        person.said, person.heard = "pending", True
        person.refusals += 1
        self.choices.append((name, None, self.alloys[name].forget()))
        self.said[name].add("pending")
        now = self.alloys[name].statistics()
        if self.slice > MAX_PARKED + MAX_QUEUED:
            assert (now.parked, now.queued) == (0, 0), "forgetting reaches everything at once"

    @rule(owned=calls)
    def cancel(self, owned):
        name, call = owned
        self.run(self._cancel(name, call))

    async def _cancel(self, name, call):
        before = self.alloys[name].statistics().cancelled
        call.future.cancel()
        call.cancelled = (
            self.alloys[name].statistics().cancelled > before
        )  # the books say: it will not be sent

    @rule(name=people, steps=st.lists(st.sampled_from(BURST), min_size=3, max_size=16))
    def much_happens_within_a_few_turns(self, name, steps):
        self.run(self._burst(name, steps))

    async def _burst(self, name, steps):
        for step in steps:
            if step == "turn":
                await asyncio.sleep(0)
            elif step in {"event", "ask"}:
                await self._event(name, step == "ask")
            elif step in {"all", "none"}:
                await self._opt_in(name, step, wait=False)
            else:
                self.clock.advance(MAX_AGE + 1)

    # What the world does

    @rule(count=st.integers(1, 8))
    def let_the_loop_turn(self, count):
        self.run(self.turns(count))

    @rule()
    def let_everything_happen(self):
        self.run(self.turns())

    @rule(seconds=st.sampled_from([0.004, 0.01, 2.0, PARKED_TTL + 1, MAX_AGE + 1]))
    def let_time_pass(self, seconds):
        self.run(self._advance(seconds))

    async def _advance(self, seconds):
        self.clock.advance(seconds)
        await self.turns(2)

    @rule(answer=st.sampled_from(sorted(ANSWERS)))
    def edge_will_answer(self, answer):
        if len(self.world.edge.answers) < 3:
            self.world.edge.answers.append(ANSWERS[answer]())

    @rule()
    def edge_holds_its_answers(self):
        self.world.edge.hold()

    @rule(everything=st.booleans())
    def edge_answers(self, everything):
        self.run(self._release(None if everything else 1))

    async def _release(self, count):
        self.world.edge.release(count)
        await self.turns(3)

    @rule(failing=st.booleans())
    def store_fails_or_works(self, failing):
        self.world.store.failing = failing

    @rule(slow=st.booleans())
    def store_is_slow_or_quick(self, slow):
        if slow:
            self.world.store.slow = True
        else:
            self.run(self._store_goes_on())

    async def _store_goes_on(self):
        self.world.store.go_on()
        await self.turns(3)

    @rule(name=people, quietly=st.booleans())
    def restart(self, name, quietly):
        self.run(self._restart(name, quietly))

    async def _restart(self, name, quietly):
        if quietly:
            self.world.edge.release()
        await self.close(name)
        await self._start_again(name)

    @precondition(lambda self: self.durable)
    @rule(name=people, leases_run_out=st.booleans())
    def kill(self, name, leases_run_out):
        self.run(self._kill(name, leases_run_out))

    async def _kill(self, name, leases_run_out):
        """Nothing of the process goes on, from this moment; what it has on the shelf stays."""
        for mortal in self.mortals[name]:
            mortal.dead = True
        kept = self.world.kept_numbers(name)
        for call in self.world.people[name].calls:
            call.killed = call.killed or not call.future.done()
            call.cancelled = call.cancelled and call.number not in kept  # it had not come to erasing it
        self.buried.append(self.alloys.pop(name))
        if not leases_run_out:
            self.world.left_behind[name] |= kept
        if leases_run_out:
            await self._advance(LEASE + 1)
        await self._start_again(name)

    @precondition(lambda self: self.durable and not self.world.store.slow)
    @rule(name=people)
    def refuse_elsewhere(self, name):
        self.run(self._refuse_elsewhere(name))

    async def _refuse_elsewhere(self, name):
        person = self.world.people[name]
        person.said, person.said_at, person.heard = "none", self.clock.time(), False
        person.refusals += 1
        self.said[name].add("none")
        await self.world.refuse_elsewhere(name)

    async def _start_again(self, name):
        person = self.world.people[name]
        kept = self.world.store.kept(name)
        self.world.store.failing = False
        person.heard = True
        valid = kept is not None and self.clock.time() < kept.expires_at
        person.said, person.said_at = (kept.purposes, kept.chosen_at) if valid else ("pending", 0.0)
        await self.open_instance(name)
        probe = self.alloys[name].event(type=f"{name} {len(person.calls)}", xdm={"n": "probe"})
        person.calls.append(Call(len(person.calls), person.refusals, probe))
        self.accepted[name] += 1
        refused = probe.done() and not probe.cancelled() and isinstance(probe.exception(), ConsentDeclined)
        assert refused == (person.said == "none"), "the next start uses the choice that is kept"

    async def close(self, name):
        alloy = self.alloys[name]
        closing = asyncio.ensure_future(alloy.aclose(grace=3))
        await self.turns()
        self.clock.advance(3.5)
        self.world.store.go_on()
        self.world.edge.release()
        summary = await closing
        assert summary.open == 0, "nothing is open after aclose"
        assert not any(state.released for state in alloy._engine._everybody()), "nor counted of anybody"
        assert all(call.future.done() or call.killed for call in self.world.people[name].calls), (
            "nothing is pending after aclose"
        )
        assert isinstance(alloy.event(type="late").exception(), AlloyClosed)

    def expired(self, name) -> bool:
        person = self.world.people[name]
        return person.said_at + MAX_AGE <= self.clock.time()

    def failure(self, call) -> BaseException | None:
        return call.future.exception() if call.future.done() and not call.future.cancelled() else None

    # What must always hold

    @invariant()
    def nothing_forbidden_happened(self):
        assert self.world.violations == []

    @invariant()
    def books_add_up(self):
        for name, alloy in self.alloys.items():
            books = alloy.statistics()
            assert books.accepted == self.accepted[name] + books.recovered == books.ended + books.open
            assert min(books.parked, books.queued, books.sending) >= 0

    @invariant()
    def bounds_hold(self):
        for alloy in self.alloys.values():
            books = alloy.statistics()
            let_through = MAX_QUEUED + MAX_PARKED + books.recovered
            assert books.queued <= let_through
            # What was let through comes back when consent expires, and has been accepted: no bound turns it away.
            # That a new event finds no room beside what is parked is looked at where it is called.
            assert books.parked <= MAX_PARKED + let_through

    @invariant()
    def futures_end_once(self):
        for person in self.world.people.values():
            for call in person.calls:
                if not call.future.done():
                    assert call.ended_as is None
                elif call.ended_as is None:
                    call.ended_as = self.outcome(call)
                else:
                    assert self.outcome(call) is call.ended_as

    def outcome(self, call):
        if call.future.cancelled():
            return "cancelled"
        error = call.future.exception()
        assert error is None or isinstance(error, AlloyError), "only documented errors"
        return error or call.future.result()

    @invariant()
    def delivered_means_that_the_edge_took_it(self):
        for name, person in self.world.people.items():
            for call in person.calls:
                result = self.result(call)
                if result is not None and not result.stored:
                    assert call.number in self.world.arrived[name]

    @invariant()
    def stored_means_that_it_is_kept_until_the_edge_took_it(self):
        for name, person in self.world.people.items():
            kept = self.world.kept_numbers(name)
            for call in person.calls:
                result = self.result(call)
                if result is not None and result.stored and call.refusals == person.refusals:
                    assert call.number in self.world.arrived[name] or call.number in kept

    def result(self, call):
        ended = call.future.done() and not call.future.cancelled()
        return call.future.result() if ended and call.future.exception() is None else None

    @invariant()
    def choices_are_durable(self):
        for name, choice, future in self.choices:
            if future.done() and not future.cancelled():
                error = future.exception()
                assert error is None or isinstance(error, ConsentStoreError | AlloyClosed)
                if error is None and future.result() not in {choice, None}:
                    assert future.result() in self.said[name], (
                        "of overlapping choices a later one is returned"
                    )
        self.choices = [entry for entry in self.choices if not entry[2].done()]

    @precondition(lambda self: not self.world.store.failing)
    @rule(name=people, choice=st.sampled_from(["all", "none"]))
    def a_choice_that_ended_is_kept(self, name, choice):
        self.run(self._choose_and_check(name, choice))

    async def _choose_and_check(self, name, choice):
        await self._opt_in(name, choice, wait=False)
        last = self.choices[-1][2]
        self.world.store.go_on()
        assert await last == choice
        assert self.world.store.kept(name).purposes == choice, "the choice is written when its future ends"

    def teardown(self):
        for name in list(self.alloys):
            self.run(self.close(name))
        for worker in self.world.shelf.workers:
            assert worker.lease_until <= self.clock.time() or not worker.events or self.buried, (
                "left to others"
            )
        self.cut_slices(USUAL_SLICE)
        self.runner.close()
        self.nothing_forbidden_happened()


Promises.TestCase.settings = settings(stateful_step_count=40)


@pytest.mark.filterwarnings("error")
class TestPromises(Promises.TestCase):
    """Runs the machine."""
