"""The commands without an event loop: what waits, what does not, and that the loop's thread is never in the way."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import inspect
import logging
import threading
import weakref
from contextlib import contextmanager

import pytest
from common import IDS

from alloy_async import (
    Alloy,
    AlloyClosed,
    ConfigurationError,
    ConsentDeclined,
    InvalidCommand,
    NotConfigured,
    StillParked,
    Visitor,
    blocking,
)
from alloy_async.blocking import BlockingAlloy, BlockingVisitor, Outcome
from alloy_async.stores import MemoryStore
from alloy_async.testing import CountingIds

PATIENCE = 20.0
"""Seconds after which something that does not come counts as missing."""


@pytest.fixture
def options(edge, store):
    """Options of ``configure`` with everything in memory, and consent asked for."""
    return {**IDS, "opt_in_enabled": True, "transport": edge, "store": store}


@pytest.fixture
def alloy(options):
    """A configured instance that waits for consent."""
    with BlockingAlloy() as alloy:
        alloy.configure(**options)
        yield alloy


def in_loop(work):
    """Do something where the test tools belong, in the loop's thread, and return what comes of it."""
    answer = concurrent.futures.Future()
    blocking._thread.call_soon("test", lambda: answer.set_result(work()))
    return answer.result(PATIENCE)


@contextmanager
def busy_loop():
    """Keep the loop's thread from doing anything else."""
    holding, over = threading.Event(), threading.Event()
    blocking._thread.call_soon("test", lambda: (holding.set(), over.wait(PATIENCE)))
    assert holding.wait(PATIENCE)
    try:
        yield
    finally:
        over.set()


def in_thread(work):
    """Start a thread that does something; return the future of it."""
    future = concurrent.futures.Future()

    def run():
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


# What waits, and what does not


def test_an_event_returns_at_once_while_nobody_has_chosen(alloy, edge):
    """The outcome is there and open; the choice releases it, and it has its own answer."""
    order = alloy.event(type="commerce.purchases")
    assert isinstance(order, Outcome)
    assert not order.done()
    assert (alloy.statistics().parked, edge.requests) == (1, [])
    assert alloy.opt_in(purposes="all") == "all"
    assert order.result().event_id == edge.events[0]["xdm"]["_id"]
    assert order.exception() is None


def test_whatever_waits_for_the_visitor_returns_an_outcome(alloy):
    """No view waits for a visitor who has not chosen: the three gated commands return at once."""
    outcomes = [alloy.event(), alloy.get_ecid(), alloy.set_customer_ids({"crm": {"id": "7"}})]
    assert [outcome.done() for outcome in outcomes] == [False] * 3
    alloy.opt_in(purposes="all")
    event, ecid, nothing = [outcome.result() for outcome in outcomes]
    assert (len(event.event_id), len(ecid), nothing) == (36, 38, None)


def test_everything_else_returns_its_result(alloy):
    """The other commands wait and return what the futures of ``Alloy`` end with."""
    assert alloy.opt_in(purposes="NONE") == "none"
    assert alloy.forget() == "pending"
    assert len(alloy.create_event_merge_id()) == 36
    assert alloy.get_library_info()["name"] == "alloy"
    assert alloy.get_outbox_info().events == 0
    assert alloy.debug(enabled=False) is None
    assert alloy.flush() is None
    assert alloy.close().open == 0


def test_errors_are_raised_where_a_call_waits(alloy):
    """A command that waits raises what its future would end with."""
    with pytest.raises(InvalidCommand, match="purposes"):
        alloy.opt_in(purposes="yes")
    with pytest.raises(ConfigurationError, match="configured already"):
        alloy.configure(**IDS)


def test_errors_of_an_event_stay_in_its_outcome(alloy):
    """No event throws into a view, whatever it was given."""
    outcome = alloy.event(data={"price": float("nan")})
    assert isinstance(outcome.exception(), InvalidCommand)
    with pytest.raises(InvalidCommand, match=r"data\.price"):
        outcome.result()


def test_before_configure_commands_end_with_not_configured():
    """Events in their outcome, the others at the call."""
    with BlockingAlloy() as alloy:
        assert isinstance(alloy.event().exception(), NotConfigured)
        for command in (alloy.flush, alloy.forget, alloy.get_library_info, alloy.visitor):
            with pytest.raises(NotConfigured):
                command()


def test_configure_may_be_called_again_after_it_failed(options):
    """A wrong option is named; the right one works then."""
    with BlockingAlloy() as alloy:
        with pytest.raises(ConfigurationError, match="Did you mean opt_in_enabled"):
            alloy.configure(**options, opt_in_enable=True)
        alloy.configure(**options)
        alloy.opt_in(purposes="all")
        assert alloy.event().result().event_id


def test_a_wrong_name_is_refused_at_once():
    """As with ``Alloy``."""
    with pytest.raises(ConfigurationError, match="name"):
        BlockingAlloy("no spaces")


def test_the_browser_spelling_returns_outcomes(options, edge):
    """Each command of it, those that do not wait for the visitor too."""
    with BlockingAlloy() as alloy:
        names = {"configId": options["config_id"], "imsOrgId": options["ims_org_id"], "optInEnabled": True}
        assert alloy("configure", names | {"transport": edge, "store": MemoryStore()}).result() is None
        order = alloy("sendEvent", {"xdm": {"eventType": "commerce.purchases"}})
        assert alloy("optIn", {"purposes": "all"}).result() == "all"
        assert order.result().event_id
        with pytest.raises(InvalidCommand, match="Did you mean"):
            alloy("optInn").result()


def test_errors_switched_off_end_with_none(options):
    """``errors_enabled=False`` holds here too."""
    with BlockingAlloy() as alloy:
        alloy.configure(**options, errors_enabled=False)
        alloy.opt_in(purposes="none")
        assert alloy.event().result() is None


def test_every_command_has_the_arguments_it_has_on_alloy():
    """Whoever knows ``Alloy`` knows this; what waits takes a ``timeout`` besides."""
    # A relay does nothing else and never ends: that is a program of its own, with an event loop.
    pairs = [(Alloy, BlockingAlloy, {"aclose", "relay"}), (Visitor, BlockingVisitor, set())]
    for original, ours, others in pairs:
        names = {name for name in dir(original) if not name.startswith("_")} - others
        assert names - set(dir(ours)) == set()
        for name in names:
            method = inspect.getattr_static(original, name)
            if inspect.isfunction(method):
                assert parameters(getattr(ours, name)) == parameters(method), name
    assert parameters(BlockingAlloy.close) == parameters(Alloy.aclose)


def parameters(function):
    """Names, kinds and defaults, without ``timeout``."""
    found = inspect.signature(function).parameters.values()
    return [(one.name, one.kind, one.default) for one in found if one.name != "timeout"]


# Waiting


def test_an_outcome_is_waited_for_no_longer_than_said(alloy):
    """The error says that the command goes on, and it does."""
    order = alloy.event()
    for wait in (order.result, order.exception):
        with pytest.raises(TimeoutError, match=r"event: not ended within 0\.01 s; it goes on"):
            wait(timeout=0.01)
    alloy.opt_in(purposes="all")
    assert order.result().event_id


def test_waiting_is_bounded_when_nothing_is_said():
    """Ten seconds, unless somebody asks for ever."""
    assert inspect.signature(Outcome.result).parameters["timeout"].default == 10.0
    public = [name for name in dir(BlockingAlloy) if not name.startswith("_")]
    waiting = [name for name in public if "timeout" in signature_of(BlockingAlloy, name)]
    assert {"configure", "opt_in", "forget", "flush"} <= set(waiting)
    assert {signature_of(BlockingAlloy, name)["timeout"].default for name in waiting} == {10.0}


def signature_of(owner, name):
    member = inspect.getattr_static(owner, name)
    return inspect.signature(member).parameters if inspect.isfunction(member) else {}


class SlowStore(MemoryStore):
    """One that does nothing before it is told to; made in the loop's thread."""

    def __init__(self):
        super().__init__()
        self.go_on = asyncio.Event()

    async def load_preference(self, key):
        await self.go_on.wait()
        return await super().load_preference(key)

    async def save_preference(self, *args, **keywords):
        await self.go_on.wait()
        return await super().save_preference(*args, **keywords)


def test_configure_that_is_not_waited_for_goes_on(options):
    """The call ends in time; commands wait for the store, in order."""
    store = in_loop(SlowStore)
    with BlockingAlloy() as alloy:
        with pytest.raises(TimeoutError, match="configure"):
            alloy.configure(**options | {"store": store}, timeout=0.01)
        order = alloy.event()
        in_loop(store.go_on.set)
        assert alloy.opt_in(purposes="all") == "all"
        assert order.result().event_id


def test_a_refusal_holds_although_its_writing_is_not_waited_for(options, edge):
    """``opt_in`` that runs out of time withdraws nothing."""
    store = in_loop(SlowStore)
    in_loop(store.go_on.set)
    with BlockingAlloy() as alloy:
        alloy.configure(**options | {"store": store})
        order = alloy.event()
        in_loop(store.go_on.clear)
        with pytest.raises(TimeoutError):
            alloy.opt_in(purposes="none", timeout=0.01)
        assert isinstance(order.exception(), ConsentDeclined)
        in_loop(store.go_on.set)
    assert in_loop(lambda: [one.purposes for one in store._preferences.values()]) == ["none"]
    assert edge.requests == []


def test_an_outcome_is_a_future_like_others(alloy):
    """``wait``, ``as_completed``, callbacks and ``asyncio.wrap_future`` take it."""
    heard = concurrent.futures.Future()
    first, second = alloy.event(), alloy.event(data=float("nan"))
    first.add_done_callback(heard.set_result)
    assert concurrent.futures.wait([first, second], return_when="FIRST_COMPLETED").done == {second}
    alloy.opt_in(purposes="all")
    assert set(concurrent.futures.as_completed([first, second], PATIENCE)) == {first, second}
    assert heard.result(PATIENCE) is first

    async def wrapped():
        with pytest.raises(InvalidCommand):
            await asyncio.wrap_future(second)
        return await asyncio.wrap_future(first)

    assert asyncio.run(wrapped()) is first.result()


def test_cancelling_withdraws_what_has_not_left(alloy, edge):
    """A parked event is gone; whoever waits for it hears so, and the books count it."""
    order, kept = alloy.event(type="a"), alloy.event(type="b")
    assert order.cancel()
    assert order.cancelled()
    assert order in concurrent.futures.wait([order, kept], return_when="FIRST_COMPLETED").done
    with pytest.raises(concurrent.futures.CancelledError):
        order.result()
    alloy.opt_in(purposes="all")
    assert kept.result()
    assert not kept.cancel()
    assert edge.event_types == ["b"]
    assert (alloy.statistics().cancelled, alloy.statistics().delivered) == (1, 1)


def test_what_is_cancelled_behind_the_outcome_is_cancelled_in_it(alloy, monkeypatch):
    """Where a future of ours ends as cancelled, nobody waits for ever."""
    futures = []
    monkeypatch.setattr(alloy._alloy, "event", lambda **_: futures.append(asyncio.Future()) or futures[0])
    order = alloy.event()
    in_loop(futures[0].cancel)
    with pytest.raises(concurrent.futures.CancelledError):
        order.result()


# Failures that nobody looked at


def test_a_failure_that_nobody_looks_at_is_logged_once(alloy, caplog):
    """Dropped outcomes are counted in one line, as dropped futures of ``Alloy`` are."""
    for _ in range(5):
        alloy.event(data=float("nan"))
    gc.collect()
    alloy.close()
    (message,) = [
        record.message for record in caplog.records if "InvalidCommand that nobody awaited" in record.message
    ]
    assert message.startswith("5 InvalidCommand that nobody awaited")


def test_a_failure_that_somebody_looks_at_is_not_logged(alloy, caplog):
    """Looking at the error is enough."""
    parked = alloy.event()
    alloy.opt_in(purposes="none")
    assert isinstance(parked.exception(), ConsentDeclined)
    assert isinstance(alloy.event().exception(), ConsentDeclined)
    del parked
    gc.collect()
    alloy.close()
    assert "nobody awaited" not in caplog.text


def test_representations_show_no_content(alloy):
    """Neither an open outcome nor an ended one shows what was sent."""
    order, broken = alloy.event(data={"secret": "s3cret"}), alloy.event(data={"s3cret": float("nan")})
    alloy.opt_in(purposes="all")
    order.result(), broken.exception()
    assert "s3cret" not in repr([order, broken, alloy, alloy.visitor("s3cret")])


# The call, the loop and its thread


def test_arguments_are_read_before_the_call_returns(alloy, edge):
    """The caller changes them afterwards; what is sent does not change, however late the loop comes to it."""
    alloy.opt_in(purposes="all")

    def order():
        data = {"amount": 1}
        outcome = alloy.event(data=data)
        data["amount"] = 2
        return outcome

    with busy_loop():
        calling = in_thread(order)
        with pytest.raises(TimeoutError):  # while the loop has no time, the caller keeps the arguments
            calling.result(0.1)
    calling.result(PATIENCE).result()
    assert edge.events[0]["data"] == {"amount": 1}


def test_a_loop_without_time_costs_a_bounded_wait(alloy, edge, caplog, monkeypatch):
    """The event is withdrawn before it was read, and said to be; nothing of it is sent later."""
    alloy.opt_in(purposes="all")
    monkeypatch.setattr(blocking, "DEFAULT_TIMEOUT", 0.05)
    with busy_loop():
        outcome = alloy.event(type="withdrawn")
        assert outcome.done()
    with pytest.raises(InvalidCommand, match="hook or filter that blocks"):
        outcome.result()
    alloy.event(type="sent").result(PATIENCE)
    assert edge.event_types == ["sent"]
    assert "event: the loop did not take it" in caplog.text
    assert alloy.statistics().accepted == 1


def test_an_interrupted_call_is_withdrawn(alloy, edge, monkeypatch):
    """Ctrl-C, or a time limit that is a signal: the event is not read any more, its data may change."""
    alloy.opt_in(purposes="all")

    def interrupted(self, timeout=None):
        raise KeyboardInterrupt

    with busy_loop(), monkeypatch.context() as patch:
        patch.setattr(threading.Event, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            alloy.event(type="interrupted")
    alloy.event(type="sent").result()
    assert edge.event_types == ["sent"]


def test_a_command_that_nobody_waits_for_any_more_is_not_begun(options):
    """A merge id that was given up while the loop had no time is not made."""
    with BlockingAlloy() as alloy:
        alloy.configure(**options, ids=CountingIds())
        with busy_loop(), pytest.raises(TimeoutError):
            alloy.create_event_merge_id(timeout=0.01)
        assert alloy.create_event_merge_id() == CountingIds()()


def test_what_is_raised_at_the_call_of_a_command_is_raised_here(alloy, monkeypatch):
    """A mistake of ours hangs nobody."""

    def broken():
        raise ZeroDivisionError

    monkeypatch.setattr(alloy._alloy, "flush", broken)
    with pytest.raises(ZeroDivisionError):
        alloy.flush()


COMMANDS = {
    "event": lambda alloy: alloy.event(),
    "get_ecid": lambda alloy: alloy.get_ecid(),
    "set_customer_ids": lambda alloy: alloy.set_customer_ids({}),
    "opt_in": lambda alloy: alloy.opt_in(purposes="all"),
    "forget": lambda alloy: alloy.forget(),
    "configure": lambda alloy: alloy.configure(),
    "flush": lambda alloy: alloy.flush(),
    "statistics": lambda alloy: alloy.statistics(),
    "visitor": lambda alloy: alloy.visitor("v"),
    "close": lambda alloy: alloy.close(),
    "optIn": lambda alloy: alloy("optIn", {"purposes": "all"}),
}


@pytest.mark.parametrize("name", COMMANDS)
async def test_inside_an_event_loop_each_command_names_the_other_class(name):
    """It would stop the loop, so it is refused before anything happens."""
    with pytest.raises(RuntimeError, match=rf"^{name}: an event loop runs .* alloy_async\.Alloy"):
        COMMANDS[name](BlockingAlloy())


async def test_inside_an_event_loop_only_an_ended_outcome_may_be_looked_at(options):
    """Waiting would stop the loop; reading does not."""
    alloy = BlockingAlloy()
    await asyncio.to_thread(alloy.configure, **options)
    order = await asyncio.to_thread(alloy.event)
    with pytest.raises(RuntimeError, match="event loop runs"):
        order.result()
    await asyncio.to_thread(alloy.opt_in, purposes="all")
    await asyncio.wrap_future(order)
    assert order.result().event_id
    await asyncio.to_thread(alloy.close)


def test_a_hook_that_calls_is_refused_and_hangs_nobody(options, caplog):
    """Hooks run in the loop's thread; one that waits for the loop would wait for itself."""
    alloy = BlockingAlloy()
    with alloy:
        alloy.configure(**options, hooks=[lambda record: alloy.flush()])
        alloy.opt_in(purposes="all")
        assert alloy.event().result().event_id
    assert "raised RuntimeError; the event goes on" in caplog.text


def test_the_callers_context_is_not_kept(alloy):
    """A timer of ours must not keep the request of a web framework in memory."""

    class Request:
        pass

    current = contextvars.ContextVar("request")

    def view():
        current.set(request := Request())
        alloy.event()  # parked, with a timer
        alloy.visitor("somebody").event()
        return weakref.ref(request)

    gone = contextvars.copy_context().run(view)
    gc.collect()
    assert gone() is None


def test_instances_share_one_thread_that_starts_with_the_first_command(options, monkeypatch):
    """Making an instance starts nothing; two that are used have one loop between them."""
    monkeypatch.setattr(blocking, "_thread", blocking._LoopThread())
    first, second = BlockingAlloy("first"), BlockingAlloy("second")
    assert blocking._thread._loop is None
    before = threading.active_count()
    for alloy in (first, second):
        alloy.configure(**options | {"store": MemoryStore()})
        alloy.opt_in(purposes="all")
        alloy.event().result()
    assert threading.active_count() == before + 1
    thread, loop = blocking._thread._thread, blocking._thread._loop
    assert thread.daemon
    blocking._thread.end()
    assert not thread.is_alive()
    assert loop.is_closed()


def test_many_threads_may_call_at_once(alloy, edge):
    """Each event arrives once, those of a thread in its order, one's books with all of them."""
    alloy.opt_in(purposes="all")

    def work(name):
        return [alloy.event(type=name, data={"n": n}) for n in range(50)]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        names = [f"thread {n}" for n in range(8)]
        for outcomes in pool.map(work, names):
            assert all(outcome.result(PATIENCE).event_id for outcome in outcomes)
    arrived = {name: [] for name in names}
    for event in edge.events:
        arrived[event["xdm"]["eventType"]].append(event["data"]["n"])
    assert arrived == {name: list(range(50)) for name in names}
    assert alloy.statistics().delivered == 400


# The end


def test_close_sends_what_is_released_and_ends_the_rest(alloy):
    """It returns the books; what is called later is told so, and a second close changes nothing."""
    alloy.opt_in(purposes="all")
    order = alloy.event()
    books = alloy.close(grace=2.0)
    assert (order.result().event_id is not None, books.delivered, books.open) == (True, 1, 0)
    assert isinstance(alloy.event().exception(), AlloyClosed)
    with pytest.raises(AlloyClosed):
        alloy.flush()
    assert alloy.close() == books


def test_a_closed_instance_is_not_kept(options):
    """Only what is open has to be closed at exit."""
    with BlockingAlloy() as alloy:
        alloy.configure(**options)
        assert alloy._alloy in blocking._thread._open
    assert alloy._alloy not in blocking._thread._open


def test_the_end_of_the_thread_closes_what_is_open(options, edge, monkeypatch):
    """As at exit: released events are sent, parked ones end, later commands are told."""
    monkeypatch.setattr(blocking, "_thread", blocking._LoopThread())
    shop, kiosk = BlockingAlloy("shop"), BlockingAlloy("kiosk")
    shop.configure(**options)
    kiosk.configure(**options | {"store": MemoryStore()})
    shop.opt_in(purposes="all")
    sent, parked = shop.event(), kiosk.event()
    blocking._thread.end()
    assert sent.result(0).event_id
    assert isinstance(parked.exception(0), AlloyClosed)
    assert isinstance(shop.event().exception(), AlloyClosed)
    with pytest.raises(AlloyClosed):
        shop.statistics()
    assert not parked.cancel()


def test_the_end_of_the_thread_ends_what_the_application_left_in_the_loop(monkeypatch):
    """Its tasks are cancelled, its generators closed, as ``asyncio.run`` does; nothing complains later."""
    monkeypatch.setattr(blocking, "_thread", blocking._LoopThread())
    ended = []

    async def generate():
        try:
            yield
        finally:
            ended.append("generator")

    async def wait(generator):
        try:
            await anext(generator)
            await asyncio.sleep(3600)
        finally:
            ended.append("task")

    generator = generate()
    in_loop(lambda: asyncio.ensure_future(wait(generator)))
    in_loop(int)
    blocking._thread.end()
    assert ended == ["task", "generator"]


def test_ending_a_thread_that_never_started_does_nothing():
    """Importing the module costs no process anything at its exit."""
    blocking._LoopThread().end()


def test_a_loop_that_hangs_holds_the_end_for_a_bounded_time(monkeypatch):
    """What hangs is left to hang: the thread is a daemon."""
    monkeypatch.setattr(blocking, "_thread", blocking._LoopThread())
    for name in ("EXIT_GRACE", "RELEASE_TIME", "STOP_TIME"):
        monkeypatch.setattr(blocking, name, 0.02)
    with busy_loop():
        ending = in_thread(blocking._thread.end)
        ending.result(PATIENCE)
        thread = blocking._thread._thread
        assert thread.is_alive()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_where_no_thread_can_be_started_that_is_said(monkeypatch):
    """In the outcome of an event, by an exception elsewhere; the next command tries again."""
    monkeypatch.setattr(blocking, "_thread", blocking._LoopThread())
    alloy = BlockingAlloy()

    def start(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        assert isinstance(alloy.event().exception(), InvalidCommand)
        with pytest.raises(InvalidCommand, match="can't start new thread"):
            alloy.flush()
    assert isinstance(alloy.event().exception(), NotConfigured)
    blocking._thread.end()


# Forks; whole processes are in tests/integration


def test_the_loop_stands_still_while_another_thread_forks(alloy):
    """Between two turns, so that it holds no lock; after the fork it goes on."""
    blocking._about_to_fork()
    with pytest.raises(TimeoutError):
        alloy.create_event_merge_id(timeout=0.05)
    blocking._forked_in_parent()
    assert alloy.create_event_merge_id()


def test_two_threads_may_fork_at_once(alloy):
    """Each lets the loop go on for itself; the loop goes on when both have."""
    over = threading.Event()

    def fork():
        blocking._about_to_fork()
        over.wait(PATIENCE)
        blocking._forked_in_parent()

    forks = [in_thread(fork), in_thread(fork)]
    over.set()
    for one in forks:
        one.result(PATIENCE)
    assert alloy.create_event_merge_id()
    assert blocking._thread._pauses == {}


def test_a_loop_that_hangs_delays_a_fork_for_a_bounded_time(alloy, monkeypatch):
    """Then the fork goes ahead; the loop does not stand still afterwards, for a fork that is over."""
    monkeypatch.setattr(blocking, "FORK_TIME", 0.02)

    def fork():
        blocking._about_to_fork()
        blocking._forked_in_parent()

    with busy_loop():
        in_thread(fork).result(PATIENCE / 4)
    assert alloy.create_event_merge_id(timeout=5.0)


def test_a_fork_in_the_loops_own_thread_waits_for_nobody(alloy):
    """A hook that forks would wait for itself."""
    in_loop(blocking._about_to_fork)
    assert blocking._thread._pauses == {}


# Look-ups


def test_look_ups_run_on_daemon_threads():
    """One that hangs keeps no interpreter from exiting."""
    threads = blocking._DaemonThreads()
    assert threads.submit(lambda: threading.current_thread().daemon).result(PATIENCE)
    assert threads.submit(int, "ff", base=16).result(PATIENCE) == 255
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 / 0).result(PATIENCE)


def test_look_ups_work_where_no_thread_starts_any_more(monkeypatch):
    """Python 3.12 starts none while it exits; then it is done in the loop's thread."""

    def start(self):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert blocking._DaemonThreads().submit(threading.current_thread).result(0) is threading.current_thread()


def test_the_loop_looks_up_names_there(alloy):
    """asyncio's own resolver ends on one of those threads."""

    async def look_up():
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, threading.current_thread)

    found = concurrent.futures.Future()

    def begin():
        task = asyncio.ensure_future(look_up())
        task.add_done_callback(lambda task: found.set_result(task.result()))

    blocking._thread.call_soon("test", begin)
    assert found.result(PATIENCE).name == "alloy-lookup"


# Visitors


def test_each_visitor_has_a_choice_of_their_own(alloy, edge):
    """One says yes, one says no, one nothing: what arrives is the first one's."""
    ada, bob, eve = (alloy.visitor(name) for name in ("ada", "bob", "eve"))
    orders = {visitor.key: visitor.event(type=visitor.key) for visitor in (ada, bob, eve)}
    assert ada.opt_in(purposes="all") == "all"
    assert bob.opt_in(purposes="none") == "none"
    assert orders["ada"].result().event_id
    assert isinstance(orders["bob"].exception(), ConsentDeclined)
    assert isinstance(orders["eve"].exception(), StillParked)
    assert [visitor.purposes for visitor in (ada, bob, eve)] == ["all", "none", "pending"]
    assert edge.event_types == ["ada"]


def test_a_later_view_of_a_visitor_releases_what_an_earlier_one_parked(alloy, edge):
    """Requests come and go, on whichever thread; the visitor stays."""
    in_thread(lambda: alloy.visitor("ada").event(type="view")).result(PATIENCE)
    assert alloy.visitor("ada").opt_in(purposes="all") == "all"
    alloy.flush()
    assert edge.event_types == ["view"]


def test_a_visitors_commands_are_those_of_a_view(alloy, edge):
    """Ids, forgetting, and what is known of the visitor."""
    with alloy.visitor("ada", purposes="all", context={"web": {"page": "home"}}) as ada:
        assert len(ada.get_ecid().result()) == 38
        assert ada.set_customer_ids({"crm": {"id": "7"}}).result() is None
        ada.event(type="view", view_start=True).result()
        assert (len(ada.fpid), len(ada.ecid)) == (36, 38)
        assert ada.chosen_at
        assert ada.get_purposes() == "all"
        assert ada.state_updates == ()
        assert ada.browser_payload()
        assert ada.forget() == "pending"
        assert (ada.purposes, ada.fpid, ada.ecid) == ("pending", None, None)
    assert edge.events[0]["xdm"]["web"] == {"page": "home"}


def test_a_view_without_key_ends_with_its_block(alloy):
    """What is still parked ends with it; nobody could say yes any more."""
    with alloy.visitor() as passing:
        assert passing.key is None
        order = passing.event()
        assert not order.done()
    assert order.exception() is not None
    assert alloy.statistics().parked == 0


def test_a_view_that_cannot_be_made_is_refused_at_the_call(alloy):
    """As ``Alloy.visitor`` refuses it."""
    with pytest.raises(InvalidCommand, match="fpid"):
        alloy.visitor("ada", fpid="not one")
    alloy.close()
    with pytest.raises(AlloyClosed):
        alloy.visitor("ada")


def test_the_logger_is_that_of_the_instance():
    """Lines of one instance stand under its own name."""
    with BlockingAlloy("kiosk") as alloy:
        assert alloy.name == "kiosk"
        assert logging.getLogger("alloy_async.kiosk") is alloy._alloy._logger
