"""Blocking programs as real processes: forks, ends that nobody prepared, and signals."""

from __future__ import annotations

import os
import signal
import socket
import textwrap
from collections import Counter

import pytest
from common import IDS, connections_of
from processes import running

from alloy_async.testing import LoopbackEdge

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.name != "posix", reason="forks and signals as POSIX has them"),
]

IMPORTS = """
import atexit, time
from alloy_async import blocking
from alloy_async.blocking import BlockingAlloy
"""

BRIEFLY = """
blocking.EXIT_GRACE = blocking.RELEASE_TIME = blocking.STOP_TIME = 0.1
"""


@pytest.fixture
async def edge():
    async with LoopbackEdge() as edge:
        yield edge


@pytest.fixture
def options(edge, tmp_path):
    """Options of an instance that keeps choice and identity in a file, and has to look its endpoint up."""
    endpoint = edge.url.replace("127.0.0.1", "localhost")
    return {**IDS, "endpoint": endpoint, "opt_in_enabled": True, "state_dir": str(tmp_path / "state")}


@pytest.fixture
def fleeting(edge):
    """Options of an instance that keeps everything in memory, and asks for no consent."""
    return {**IDS, "endpoint": edge.url.replace("127.0.0.1", "localhost"), "store": "memory"}


def program(script, options, **how):
    return running(IMPORTS + textwrap.dedent(script), options, **how)


# Forks


async def test_a_fork_that_python_did_not_hear_of(fleeting):
    """As uWSGI forks: the child has no thread, and says so at once instead of waiting for one; its exit hangs nowhere."""
    script = """
    import ctypes
    alloy = BlockingAlloy()
    alloy.configure(**options)
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        try:
            alloy.event(type="child").result()
        except InvalidCommand as error:
            say(error)
        began = time.monotonic()
        blocking._thread.end()
        say(time.monotonic() - began < 1.0)
        os._exit(0)
    os.waitpid(child, 0)
    print(alloy.event(type="parent").result().event_id is not None)
    """
    async with program(script, fleeting) as process:
        said, quick, parent = await process.ends_well()
    assert "forked without Python hearing of it" in said and "py-call-uwsgi-fork-hooks" in said
    assert (quick, parent) == ("True", "True")


FORKING = """
alloy = BlockingAlloy()  # the module is loaded by the parent

def in_child():
    before = alloy.statistics()
    outcomes = [alloy.event(type=f"child {n}") for n in range(20)]
    assert all([outcome.result() for outcome in outcomes])
    say("child", before.accepted, alloy.statistics().delivered)

def by_os_fork():
    number = os.fork()
    if not number:
        in_child()
        sys.exit(0)  # as the worker of a preloading server ends
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])

def by_multiprocessing():
    process = multiprocessing.get_context("fork").Process(target=in_child)
    process.start()
    process.join()
    return process.exitcode

alloy.configure(**options)
alloy.opt_in(purposes="all")
alloy.event(type="parent early").result()
say("early")
hear()
flying = [alloy.event(type=f"parent flying {n}", view_start=True) for n in range(3)]
say("flying")
hear()
status = FORK()
if status:
    sys.exit(status)
say("forked")
for outcome in [*flying, alloy.event(type="parent late")]:
    outcome.result()
books = alloy.close()
say("parent", books.accepted, books.delivered)
"""


@pytest.mark.parametrize("outbox", ["memory", "sqlite"])
@pytest.mark.parametrize("fork", ["by_os_fork", "by_multiprocessing"])
async def test_a_forked_child_has_a_thread_of_its_own(edge, options, fork, outbox):
    """The child delivers its events over its own connections; what its parent has on the wire is unharmed."""
    async with program(FORKING.replace("FORK", fork), options | {"outbox": outbox}) as process:
        assert await process.hear() == "early"
        edge.hold()
        process.tell()
        assert await process.hear() == "flying"
        await edge.until(lambda: edge.holding == 3)
        process.tell()
        await edge.until(lambda: any("child" in name for name in edge.event_types))
        edge.release()
        assert await process.hear() == "child 0 20"
        assert await process.ends_well() == ["forked", "parent 5 5"]
    parents = ["parent early", "parent late", *[f"parent flying {n}" for n in range(3)]]
    assert Counter(edge.event_types) == Counter([*parents, *[f"child {n}" for n in range(20)]])
    assert not connections_of(edge, "parent") & connections_of(edge, "child")


async def test_preloaded_workers_configure_for_themselves(edge, options):
    """An instance that was only made before the fork has no thread to lose; each worker starts its own."""
    script = """
    alloy = BlockingAlloy()

    def fork(name):
        number = os.fork()
        if number:
            return number
        with alloy:
            alloy.configure(**options)
            alloy.opt_in(purposes="all")
            for number in range(20):
                alloy.event(type=f"{name} {number}")
        sys.exit(0)

    assert threading.active_count() == 1
    workers = [fork(name) for name in ("one", "two")]
    sys.exit(sum(os.waitpid(number, 0)[1] for number in workers))
    """
    async with program(script, options) as process:
        await process.ends_well()
    assert Counter(edge.event_types) == Counter(f"{name} {n}" for name in ("one", "two") for n in range(20))
    assert not connections_of(edge, "one") & connections_of(edge, "two")


FORK = """
import faulthandler

def forked(work):
    # Fork a child that does something; it says why when it fails, or hangs.
    number = os.fork()
    if number:
        return number
    faulthandler.dump_traceback_later(30, exit=True)
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)
"""


async def test_a_fork_in_the_middle_of_other_threads_calls_hangs_nobody(edge, fleeting):
    """Whatever another thread holds at that moment, the child goes on without it."""
    script = """
    alloy = BlockingAlloy()
    alloy.configure(**options)
    over, counts = threading.Event(), []

    def call():
        sent = 0
        while not over.is_set():
            alloy.event(type="parent").result()
            sent += 1
        counts.append(sent)

    def in_child():
        alloy.event(type="child").result()
        alloy.close()

    threads = [threading.Thread(target=call, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        assert os.waitpid(forked(in_child), 0)[1] == 0
    over.set()
    for thread in threads:
        thread.join()
    say(sum(counts), alloy.close().delivered)
    """
    async with program(FORK + textwrap.dedent(script), fleeting) as process:
        (line,) = await process.ends_well()
    sent, delivered = line.split()
    assert sent == delivered
    assert Counter(edge.event_types) == {"parent": int(sent), "child": 10}


async def test_a_fork_waits_until_the_loop_holds_no_lock(tmp_path, fleeting):
    """A module that the loop is importing would stay locked in the child for ever."""
    script = """
    def hook(record):
        import slow_module

    def about_to_fork():
        forking.set()

    def in_child():
        import slow_module

    sys.path.insert(0, MODULES)
    begun, forking = threading.Event(), threading.Event()
    sys.modules["known_to_slow_module"] = sys.modules["__main__"]
    alloy = BlockingAlloy()
    alloy.configure(**options, hooks=[hook])
    os.register_at_fork(before=about_to_fork)
    threading.Thread(target=lambda: alloy.event(), daemon=True).start()
    begun.wait()
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(forked(in_child), 0)[1]))
    """
    module = """
    from known_to_slow_module import begun, forking, time
    begun.set()
    forking.wait()
    time.sleep(0.3)  # long enough for a fork that does not wait
    """
    (tmp_path / "slow_module.py").write_text(textwrap.dedent(module), "utf-8")
    script = textwrap.dedent(script).replace("MODULES", repr(str(tmp_path)))
    async with program(FORK + script, fleeting, dev=False) as process:
        await process.end()
    assert process.status == 0, process.stderr


async def test_an_outcome_of_the_parent_is_not_touched_in_a_child(edge, options):
    """To cancel it there withdraws nothing here, and waits for no lock that a thread of the parent holds."""
    script = """
    alloy = BlockingAlloy()
    alloy.configure(**options)
    order = alloy.event(type="parent")

    def hold():
        with blocking._thread._lock:
            holding.set()
            over.wait()

    holding, over = threading.Event(), threading.Event()
    threading.Thread(target=hold).start()
    holding.wait()
    number = os.fork()
    if not number:
        assert order.cancel()
        assert alloy.statistics().accepted == 0
        sys.exit(0)
    over.set()
    assert os.waitpid(number, 0)[1] == 0
    alloy.opt_in(purposes="all")
    say(bool(order.result().event_id))
    """
    async with program(script, options) as process:
        assert await process.ends_well() == ["True"]
    assert edge.event_types == ["parent"]


# Ends that nobody prepared


async def test_a_program_that_ends_without_closing_delivers_what_was_called(edge, fleeting):
    """Events of the last moment too, for which the endpoint is looked up only now."""
    script = """
    alloy = BlockingAlloy()
    alloy.configure(**options)

    @atexit.register
    def last_words():
        for number in range(20):
            alloy.event(type=str(number))
    """
    async with program(script, fleeting) as process:
        assert await process.ends_well() == []
    assert Counter(edge.event_types) == Counter(str(number) for number in range(20))


async def test_a_program_that_ends_says_how_many_still_waited_for_consent(edge, options):
    """Those are gone, none of them was sent, and one line says so."""
    script = """
    alloy = BlockingAlloy()
    alloy.configure(**options)
    for number in range(3):
        alloy.event(type="parked")
    """
    async with program(script, options) as process:
        await process.end()
    assert (process.status, edge.requests) == (0, [])
    lines = [line for line in process.stderr.splitlines() if "that nobody awaited" not in line]
    assert len(lines) == 1, process.stderr
    assert "3 events could not be sent and are gone (3 waited for consent" in lines[0]


async def test_threads_that_outlive_the_main_one_are_still_served(edge, fleeting):
    """The loop ends at exit, and that comes after the last thread that Python waits for."""
    script = """
    alloy = BlockingAlloy()
    alloy.configure(**options)

    def work():
        threading.main_thread().join()
        for number in range(5):
            alloy.event(type=str(number)).result()
        say("done")

    threading.Thread(target=work).start()
    """
    async with program(script, fleeting) as process:
        assert await process.ends_well() == ["done"]
    assert edge.event_types == [str(number) for number in range(5)]


async def test_daemon_threads_that_call_until_the_end_hold_nothing_up(edge, fleeting):
    """Their last events end with ``AlloyClosed``; the process ends as it should."""
    script = """
    alloy = BlockingAlloy()
    alloy.configure(**options)
    sending = threading.Event()

    def work():
        while True:
            alloy.event(type="again")
            sending.set()

    for _ in range(3):
        threading.Thread(target=work, daemon=True).start()
    sending.wait()
    """
    async with program(script, fleeting) as process:
        assert await process.ends_well() == []


HANGING = {
    "an endpoint that never answers": """
alloy.configure(**options)
alloy.event(type="unanswered")
""",
    "a hook that never returns": """
def hook(record):
    hanging.set()
    threading.Event().wait()

hanging = threading.Event()
alloy.configure(**options, hooks=[hook])
threading.Thread(target=alloy.event, daemon=True).start()
hanging.wait()
""",
    "a task of the application's own": """
async def event_filter(event):
    asyncio.create_task(asyncio.sleep(3600))
    running.set()

running = threading.Event()
alloy.configure(**options, on_before_event_send=event_filter)
alloy.event(type="unanswered")
running.wait()
""",
    "a look-up that never returns": """
def never(*arguments, **options):
    hanging.set()
    threading.Event().wait()

import socket
socket.getaddrinfo, hanging = never, threading.Event()
alloy.configure(**options)
alloy.event(type="no address")
hanging.wait()
""",
}


@pytest.mark.parametrize("what", HANGING)
async def test_what_hangs_does_not_hold_the_exit(fleeting, what):
    """The process ends with status 0, without a warning of asyncio's."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        fleeting["endpoint"] = f"http://localhost:{silent.getsockname()[1]}"
        script = f"{BRIEFLY}\nalloy = BlockingAlloy()\n{HANGING[what]}"
        async with program(script, fleeting) as process:
            await process.end()
    assert process.status == 0
    for word in ("never retrieved", "destroyed", "Traceback", "never awaited", "unclosed"):
        assert word not in process.stderr


# Signals


async def test_sigterm_that_ends_a_worker_delivers_what_was_called(edge, options):
    """As application servers end their workers, here while one waits for a visitor: by ``SystemExit`` in the main thread."""
    script = """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    alloy = BlockingAlloy()
    alloy.configure(**options)
    ada, bob = alloy.visitor("ada", purposes="all"), alloy.visitor("bob")
    for number in range(20):
        ada.event(type=str(number))
    parked = bob.event(type="never")
    say("called")
    threading.Event().wait()
    """
    edge.hold()
    async with program(script, options) as process:
        assert await process.hear() == "called"
        await edge.until(lambda: edge.holding > 0)
        process.signal(signal.SIGTERM)
        edge.release()
        await process.end()
    assert process.status == 0
    assert Counter(edge.event_types) == Counter(str(number) for number in range(20))
    lines = [line for line in process.stderr.splitlines() if "that nobody awaited" not in line]
    assert len(lines) == 1, process.stderr
    assert "1 events could not be sent and are gone (1 waited for consent" in lines[0]


async def test_sigint_interrupts_a_call_that_waits(edge, options):
    """Ctrl-C reaches the caller at once; the instance goes on and can be closed."""
    script = """
    alloy = BlockingAlloy()
    alloy.configure(**options)
    order = alloy.event(type="order")
    try:
        say("waiting")
        order.result(timeout=None)
    except KeyboardInterrupt:
        alloy.opt_in(purposes="all")
        say("interrupted", alloy.close().delivered)
    """
    async with program(script, options) as process:
        assert await process.hear() == "waiting"
        process.signal(signal.SIGINT)
        assert await process.ends_well() == ["interrupted 1"]
    assert edge.event_types == ["order"]


async def test_sigterm_that_nobody_handles_leaves_stored_events_to_the_next_start(edge, options):
    """It ends the process at once, as ``kill -9`` does; a durable outbox has what was stored."""
    script = """
    alloy = BlockingAlloy()
    alloy.configure(**options)
    alloy.opt_in(purposes="all")
    if hear() == "store":
        assert alloy.event(type="kept", ack="stored").result().stored
        say("stored")
        hear()
    alloy.flush()
    say("flushed", alloy.close().recovered)
    """
    edge.hold()
    async with program(script, options | {"outbox": "sqlite"}) as process:
        process.tell("store")
        assert await process.hear() == "stored"
        process.signal(signal.SIGTERM)
        await process.end()
    assert process.status == -signal.SIGTERM
    edge.release()
    async with program(script, options | {"outbox": "sqlite"}) as process:
        process.tell("go on")
        assert await process.ends_well() == ["flushed 1"]
    assert set(edge.event_types) == {"kept"}
