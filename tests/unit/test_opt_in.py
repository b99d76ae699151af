"""``OptInState``, used alone."""

from __future__ import annotations

import asyncio
import threading

import pytest
from common import settle
from hypothesis import given, strategies as st

from alloy_async import ConsentDeclined, ConsentTimeout, InvalidCommand, OptInState, ParkingFull
from alloy_async._consent import _opt_in


@pytest.fixture
def state(clock):
    return OptInState(clock=clock, max_parked=1_000, parked_ttl=60)


async def test_starts_undecided(state):
    """Nothing is known at first, and nobody is opted in."""
    assert state.purposes == "pending"
    assert not state.is_opted_in


async def test_all_releases_waiters_in_order(state):
    """Waiters go on in the order in which they came."""
    order = []

    async def wait(number):
        await state.when_opted_in()
        order.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(wait(number))
        await settle()
        assert order == []
        state.choose("all")
    assert order == [0, 1, 2, 3, 4]
    assert state.statistics().released == 5


async def test_none_refuses_waiters_each_with_its_own_error(state):
    """Each waiter gets an ordinary exception of its own, never a cancellation."""
    waiters = [state.when_opted_in() for _ in range(3)]
    state.choose("none")
    errors = [waiter.exception() for waiter in waiters]
    assert all(type(error) is ConsentDeclined for error in errors)
    assert len({id(error) for error in errors}) == 3
    assert not any(waiter.cancelled() for waiter in waiters)


async def test_wait_returns_whichever_choice_comes(state):
    """``wait`` ends with the choice, a refusal included."""
    first = state.wait()
    state.choose("none")
    assert await first == "none"
    assert await state.wait() == "none"
    state.choose("all")
    assert await state.wait() == "all"


async def test_later_waiters_need_not_wait(state):
    """Once the choice is known, a waiter goes on or is refused at once."""
    state.choose("ALL")
    assert state.when_opted_in().done()
    state.choose("None")
    assert isinstance(state.when_opted_in().exception(), ConsentDeclined)


async def test_a_waiter_may_leave_from_the_middle(state):
    """Cancelling one waiter frees its place and disturbs nobody."""
    first, second, third = (state.when_opted_in() for _ in range(3))
    second.cancel()
    assert state.statistics().parked == 2
    assert state.statistics().left == 1
    state.choose("all")
    assert first.done()
    assert third.done()
    assert second.cancelled()


async def test_wait_for_leaves_the_queue_when_its_time_is_up(state):
    """``asyncio.timeout`` around a wait leaves nothing behind."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await state.when_opted_in()
    assert state.statistics().parked == 0


async def test_release_and_cancel_in_the_same_breath_lose_nothing(state):
    """A waiter that is released and cancelled at once takes nothing from the others."""
    reached = []

    async def wait(number):
        await state.when_opted_in()
        reached.append(number)

    tasks = [asyncio.create_task(wait(number)) for number in range(4)]
    await settle()
    state.choose("all")
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert reached == [0, 2, 3]


async def test_nested_waits_work(state):
    """A released coroutine may wait again."""

    async def nested():
        await state.when_opted_in()
        await state.when_opted_in()
        return await state.wait()

    task = asyncio.create_task(nested())
    await settle()
    state.choose("all")
    assert await task == "all"


async def test_a_refused_waiter_stays_refused_after_a_new_all(state, monkeypatch):
    """Slices do not revive what was refused before they got to it."""
    monkeypatch.setattr(_opt_in, "SLICE", 2)
    waiters = [state.when_opted_in() for _ in range(7)]
    state.choose("none")
    state.choose("all")
    late = state.when_opted_in()
    await settle()
    assert all(isinstance(waiter.exception(), ConsentDeclined) for waiter in waiters)
    assert late.result() is None


async def test_nobody_overtakes_those_being_released(state, monkeypatch):
    """One that comes while others are being released goes behind them."""
    monkeypatch.setattr(_opt_in, "SLICE", 2)
    waiters = [state.when_opted_in() for _ in range(5)]
    state.choose("all")
    late = state.when_opted_in()
    assert not late.done()
    await settle()
    assert all(waiter.done() for waiter in [*waiters, late])


async def test_bounds_are_told(clock):
    """At the bound the one that finds no room is told, the others stay."""
    state = OptInState(clock=clock, max_parked=2)
    waiters = [state.when_opted_in() for _ in range(3)]
    error = waiters[2].exception()
    assert isinstance(error, ParkingFull)
    assert "max_parked=2" in str(error)
    assert state.statistics().parked == 2
    assert state.statistics().overflowed == 1


async def test_waiting_ends_after_its_time(state, clock):
    """Each waiter waits as long as it may, the oldest first."""
    first = state.when_opted_in()
    clock.advance(40)
    second = state.when_opted_in()
    clock.advance(20)
    assert isinstance(first.exception(), ConsentTimeout)
    assert not second.done()
    clock.advance(40)
    assert "60 s" in str(second.exception())
    assert state.statistics().expired == 2


async def test_many_expire_in_slices(state, clock, monkeypatch):
    """Also when many expire at once, the loop gets its turns."""
    monkeypatch.setattr(_opt_in, "SLICE", 3)
    waiters = [state.when_opted_in() for _ in range(8)]
    clock.advance(60)
    assert sum(waiter.done() for waiter in waiters) in {3, 8}
    clock.advance(0)
    clock.advance(0)
    assert all(isinstance(waiter.exception(), ConsentTimeout) for waiter in waiters)


async def test_a_choice_may_expire(state, clock):
    """An expired choice is pending again, and waiters wait."""
    state.choose("all", until=clock.time() + 10)
    assert state.is_opted_in
    clock.advance(10)
    assert state.purposes == "pending"
    assert not state.when_opted_in().done()


async def test_wrong_words_change_nothing(state):
    """A word that is no choice raises, names the two, and leaves the gate as it was."""
    waiter = state.when_opted_in()
    with pytest.raises(InvalidCommand, match='"all" or "none"'):
        state.choose("yes")
    assert state.purposes == "pending"
    assert not waiter.done()


def test_needs_a_running_loop(state):
    """Where no loop runs, Python says so."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        state.when_opted_in()


async def test_another_loop_is_told_plainly(state):
    """A second loop, in another thread, gets a clear error and changes nothing."""
    waiter = state.when_opted_in()
    seen = []

    async def elsewhere():
        seen.append(state.when_opted_in().exception())
        try:
            state.choose("all")
        except InvalidCommand as error:
            seen.append(error)

    thread = threading.Thread(target=asyncio.run, args=(elsewhere(),))
    thread.start()
    thread.join()
    assert [type(error) for error in seen] == [InvalidCommand, InvalidCommand]
    assert "another event loop" in str(seen[0])
    assert not waiter.done()


@given(st.lists(st.sampled_from(["wait", "leave", "all", "none", "forget"]), max_size=40))
def test_everyone_ends_as_the_first_choice_after_them(steps):
    """Whatever happens in between, a waiter ends as the first choice that follows it, or by leaving."""
    asyncio.run(_play(steps))


async def _play(steps):
    state = OptInState()
    waiting, expected = [], []
    for step in steps:
        if step == "wait":
            waiting.append(state.when_opted_in())
            expected.append({"pending": None, "all": "released", "none": "refused"}[state.purposes])
        elif step == "leave" and waiting:
            left = waiting[-1].cancel()
            expected[-1] = "left" if left else expected[-1]
        elif step in {"all", "none", "forget"}:
            state.forget() if step == "forget" else state.choose(step)
            word = "released" if step == "all" else "refused"
            expected = [word if outcome is None else outcome for outcome in expected]
        assert [_outcome(waiter) for waiter in waiting] == expected


def _outcome(waiter):
    if not waiter.done():
        return None
    if waiter.cancelled():
        return "left"
    return "refused" if waiter.exception() else "released"
