"""Choices in a real Redis: the conformance suite, news of changes, and a server that fails in every way."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import traceback
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from common import IDS
from redis_server import redis_server

from alloy_async import Alloy
from alloy_async.errors import ConfigurationError, ConsentDeclined, ConsentStoreError
from alloy_async.identity import StoredIdentity
from alloy_async.stores.base import Change, Preference, VisitorKey, visitor_digest
from alloy_async.testing import RecordingEdge, StoreConformance

pytest.importorskip("redis")

from alloy_async._redis import AT_ONCE, RedisLink, Script, describe, key_prefix
from alloy_async.stores import redis as redis_module
from alloy_async.stores.redis import RedisStore

pytestmark = pytest.mark.integration

KEY = VisitorKey("ADB3@AdobeOrg", "ebebf826", "somebody@example.org")
OTHER = KEY._replace(visitor="another")
ALL = Preference("all", 1_000.5, 2_000.25)
NONE = Preference("none", 1_000.5, 2_000.25, "cli")
IDENTITY = StoredIdentity("f7e0c8a2-6a3b-4d0e-9d70-0b1f7a8c1d21", None, {})
PREFIX = key_prefix(KEY.organisation, KEY.datastream)
CHOICE = f"{PREFIX}choice:{visitor_digest(KEY)}"

PERMISSIONS = (
    "~alloy:* resetchannels &alloy:* +evalsha +eval +hget +hmget +hset +hdel +del +expire +pexpire"
    " +xadd +xlen +xrange +publish +subscribe +select"
)

HOWTO = Path(__file__).parents[2] / "docs/howto/redis.md"

IN_TIME = 0.3
"""Seconds that a call may take in tests of a server that does not answer."""

PATIENCE = 8.0
"""Seconds after which what does not happen counts as missing; far above what a slow machine needs."""


@pytest.fixture(scope="module")
def shared_server():
    with redis_server() as server:
        yield server


@pytest.fixture
def server(shared_server):
    """A server with an empty database, that nobody harms."""
    shared_server.command("FLUSHDB")
    return shared_server


@pytest.fixture
def own_server():
    """A server for one test, which may do to it what it wants."""
    with redis_server("--appendonly", "yes") as server:
        yield server


@asynccontextmanager
async def stores(server, number=1, **options):
    made = [RedisStore(server.url, **options) for _ in range(number)]
    try:
        yield made[0] if number == 1 else made
    finally:
        for store in made:
            await store.aclose()


@pytest.fixture
async def store(server):
    async with stores(server) as store:
        yield store


def signed_in(url, user):
    """The URL with a user and a password."""
    if "@" in url:
        pytest.skip("ALLOY_TEST_REDIS_URL names a user, who may not make others")
    return url.replace("://", f"://{user}@")


class TestRedisStore(StoreConformance):
    """The store in Redis keeps the promises of the protocol."""


class Listener:
    """Hears what a store tells."""

    def __init__(self):
        self.told = []
        self._event = asyncio.Event()

    def __call__(self, changes):
        self.told.append(changes)
        self._event.set()

    @property
    def digests(self):
        return [change.visitor for change in self.changes]

    @property
    def changes(self):
        return [change for changes in self.told for change in changes or ()]

    async def until(self, condition):
        """Wait until a condition holds of what was told."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._event.clear()
                await self._event.wait()


async def listening(store):
    """Return a listener whose listening has begun."""
    listener = Listener()
    await store.load_preference(KEY)
    store.watch(listener)
    await listener.until(lambda: listener.told)
    assert listener.told == [None]
    listener.told.clear()
    return listener


def connections(server, kind="normal"):
    """The ids of connections, without that of the one who asks."""
    lines = server.command("CLIENT", "LIST", "TYPE", kind).decode().splitlines()
    return {line.split()[0] for line in lines if " cmd=client" not in line}


async def subscription(server):
    """Wait until somebody has subscribed to news."""
    async with asyncio.timeout(PATIENCE):
        while server.command("PUBSUB", "NUMSUB", f"{PREFIX}news")[1] == 0:
            await asyncio.sleep(0.02)


# What is kept


async def test_keys_lie_in_one_slot_and_name_nobody(store, server):
    """Names begin with one hash tag for the instance, and hold digests only."""
    await store.save_preference(KEY, NONE)
    await store.save_preference(OTHER, ALL)
    names = server.keys()
    assert [name.removeprefix(PREFIX) for name in names] == sorted(
        [f"choice:{visitor_digest(KEY)}", f"choice:{visitor_digest(OTHER)}", "choices", "news"]
    )
    assert PREFIX.startswith("alloy:{")
    assert PREFIX.endswith("}:")
    kept = repr([names, server.command("XRANGE", f"{PREFIX}news", "-", "+")])
    assert [part for part in (*KEY, OTHER.visitor) if part in kept] == []


def test_digests_are_those_of_other_rooms():
    """No two visitors have one digest, however their names are cut."""
    keys = [VisitorKey(*parts) for parts in ("abc", ("ab", "c", ""), ("a", "bc", ""), ("", "ab", "c"))]
    assert len({visitor_digest(key) for key in keys}) == len(keys)


async def test_a_choice_goes_by_itself_and_the_identity_with_it(store, server):
    """Redis erases a visitor's hash when the choice has lasted; the clock of the application does not matter."""
    await store.save_preference(KEY, ALL)
    await store.save_identity(KEY, IDENTITY)
    left = server.command("PTTL", CHOICE)
    assert 900_000 < left <= 999_750
    server.command("PEXPIRE", CHOICE, 1)
    async with asyncio.timeout(PATIENCE):
        while server.command("EXISTS", CHOICE):
            await asyncio.sleep(0.01)
    assert await store.load_preference(KEY) is None
    assert await store.load_identity(KEY) is None


async def test_the_epoch_grows_over_a_choice_that_went_by_itself(store, server):
    """A visitor whose refusal has expired does not start again at zero, nor does one whose common counter is lost."""
    await store.save_preference(KEY, NONE)
    before = (await store.load_preference(KEY)).epoch
    server.command("DEL", CHOICE)
    await store.save_preference(KEY, ALL)
    assert (await store.load_preference(KEY)).epoch == before
    await store.save_preference(KEY, NONE)
    server.command("DEL", f"{PREFIX}choices")
    await store.save_preference(KEY, NONE)
    assert (await store.load_preference(KEY)).epoch == before + 2


@pytest.mark.parametrize(
    "cells",
    [
        {"purposes": "ALL"},
        {"purposes": "yes"},
        {"purposes": b"\xff"},
        {"chosen_at": "nan"},
        {"chosen_at": "-1.0"},
        {"chosen_at": "1_0.0"},
        {"chosen_at": "3000.0"},  # after its end
        {"expires_at": "inf"},
        {"expires_at": "2000"},
        {"expires_at": ""},
        {"source": b"\xff\xfe"},
        {"epoch": "1.5"},
        {"epoch": "one"},
        {"epoch": "01"},
        {"consents_since": "nan"},
        {"consents_since": "1"},
        {"consents_since": "-1.0"},
    ],
    ids=repr,
)
async def test_what_is_not_understood_is_no_choice(store, server, caplog, cells):
    """Whatever is not exactly what was written counts as not chosen, is said in the log, and gives way to a choice."""
    await store.save_preference(KEY, ALL)
    for name, value in cells.items():
        server.command("HSET", CHOICE, name, value)
    assert await store.load_preference(KEY) is None
    assert [one.levelname for one in caplog.records if one.name == "alloy_async"] == ["WARNING"]
    assert "cannot be understood" in caplog.text
    for preference in (NONE, ALL):
        for name, value in cells.items():
            server.command("HSET", CHOICE, name, value)
        await store.save_preference(KEY, preference)
        assert (await store.load_preference(KEY)).purposes == preference.purposes


@pytest.mark.parametrize("name", ["purposes", "chosen_at", "expires_at", "source", "epoch"])
async def test_half_a_choice_is_no_choice(store, server, name):
    """A choice of which a part is missing counts as not chosen."""
    await store.save_preference(KEY, ALL)
    server.command("HDEL", CHOICE, name)
    assert await store.load_preference(KEY) is None


async def test_a_refusal_takes_the_place_of_a_foreign_value(store, server):
    """Where another program has written something else, reading fails, and a refusal is kept all the same."""
    server.command("SET", CHOICE, "hello")
    with pytest.raises(ConsentStoreError, match="not what it was written as"):
        await store.load_preference(KEY)
    await store.save_preference(KEY, NONE)
    assert (await store.load_preference(KEY)).purposes == "none"


@pytest.mark.parametrize("name", ["choices", "news"])
async def test_a_step_that_cannot_be_done_in_full_is_not_begun(store, server, name):
    """Where a common key is not ours nothing of a choice is changed."""
    await store.save_preference(KEY, ALL)
    await store.save_identity(KEY, IDENTITY)
    server.command("SET", f"{PREFIX}{name}", "hello")
    for call in (store.save_preference(KEY, NONE), store.forget(KEY)):
        with pytest.raises(ConsentStoreError):
            await call
    assert (await store.load_preference(KEY)).purposes == "all"
    assert await store.load_identity(KEY) == IDENTITY


async def test_changes_are_remembered_within_bounds(store, server):
    """The list of changes goes by itself, and does not grow for ever."""
    await store.save_preference(KEY, ALL)
    assert 0 < server.command("TTL", f"{PREFIX}news") <= 3_600
    news = f"{PREFIX}news"
    server.command("EVAL", f"for _ = 1, 10400 do redis.call('XADD', '{news}', '*', 'visitor', '') end", "0")
    await store.save_preference(KEY, ALL)
    assert 10_000 <= server.command("XLEN", news) <= 10_200


async def test_a_choice_with_impossible_times_is_not_kept(store):
    """Times that are no times end with the store's own error, which does not hold them."""
    for until in (float("nan"), float("inf")):
        with pytest.raises(ConsentStoreError, match="cannot be written"):
            await store.save_preference(KEY, Preference("all", 1.0, until))
    await store.save_preference(KEY, Preference("none", 1.0, 1e300))
    assert (await store.load_preference(KEY)).expires_at == 1e300


# News


async def test_a_change_is_heard_by_a_message(server, monkeypatch):
    """A choice and a forgetting in one process are heard in another, before it would have looked by itself."""
    monkeypatch.setattr(redis_module, "LOOK_EVERY", 100 * PATIENCE)
    async with stores(server, 2) as (here, there):
        listener = await listening(there)
        await subscription(server)
        calls = [
            partial(here.save_preference, KEY, NONE),
            partial(here.save_preference, KEY, ALL, by="here"),
            partial(here.forget, OTHER, by="here"),
        ]
        for number, call in enumerate(calls, 1):
            await call()
            await listener.until(lambda number=number: len(listener.digests) == number)
    assert listener.changes == [
        Change(visitor_digest(KEY), refused=True),
        Change(there.digest(KEY), refused=False, by="here"),
        Change(there.digest(OTHER), refused=True, by="here"),
    ]
    assert None not in listener.told


async def test_a_change_is_heard_without_messages(server, monkeypatch):
    """Where no message comes a change is heard by looking."""
    silent = "redis.pcall('PUBLISH'"
    for name in ("_SAVE_ALL", "_SAVE_NONE", "_FORGET"):
        source = getattr(redis_module, name)._source
        assert silent in source
        monkeypatch.setattr(redis_module, name, Script(source.replace(silent, "tostring('PUBLISH'")))
    async with stores(server, 2) as (here, there):
        listener = await listening(there)
        for key in (KEY, OTHER):
            await here.save_preference(key, NONE)
            await listener.until(lambda key=key: visitor_digest(key) in listener.digests)
    assert None not in listener.told


async def test_a_change_is_heard_when_the_subscription_is_cut(server):
    """A change in the moment in which the subscription is lost is heard by looking, and the next one by a message."""
    async with stores(server, 2) as (here, there):
        listener = await listening(there)
        await subscription(server)
        assert server.command("CLIENT", "KILL", "TYPE", "pubsub") == 1
        await here.save_preference(KEY, NONE)
        await listener.until(lambda: listener.digests == [visitor_digest(KEY)])
        await subscription(server)
        await here.save_preference(OTHER, NONE)
        await listener.until(lambda: len(listener.digests) == 2)
    assert None not in listener.told


async def test_a_user_who_may_not_subscribe_hears_by_looking(server):
    """Permissions for channels make news faster, and are not needed."""
    server.command("ACL", "SETUSER", "deaf", "on", ">word", "~alloy:*", "+@all", "-subscribe", "-publish")
    try:
        store = RedisStore(signed_in(server.url, "deaf:word"))
        async with stores(server) as here:
            listener = await listening(store)
            await here.save_preference(KEY, NONE)
            await store.save_preference(OTHER, NONE)
            await listener.until(lambda: len(listener.digests) == 2)
        await store.aclose()
    finally:
        server.command("ACL", "DELUSER", "deaf")
    assert sorted(listener.digests) == sorted([visitor_digest(KEY), visitor_digest(OTHER)])


async def test_the_permissions_of_the_documentation_suffice(server):
    """A user with no other permissions saves, reads, forgets, and hears by messages."""
    server.command("ACL", "SETUSER", "least", "reset", "on", ">word", *PERMISSIONS.split())
    try:
        async with stores(server) as here:
            store = RedisStore(signed_in(server.url, "least:word"))
            listener = await listening(store)
            await subscription(server)
            await store.save_preference(KEY, ALL)
            await store.save_identity(KEY, IDENTITY)
            assert await store.load_identity(KEY) == IDENTITY
            await store.save_preference(KEY, NONE)
            await store.forget(KEY)
            await here.save_preference(OTHER, NONE)
            await listener.until(lambda: visitor_digest(OTHER) in listener.digests)
            assert connections(server, "pubsub")
            await store.aclose()
    finally:
        server.command("ACL", "DELUSER", "least")
    if HOWTO.exists():
        assert PERMISSIONS in HOWTO.read_text("utf-8")


async def test_many_changes_are_heard_each(server, monkeypatch):
    """More changes than are read at once are all heard, in order."""
    monkeypatch.setattr(redis_module, "_PAGE", 7)
    keys = [KEY._replace(visitor=str(number)) for number in range(100)]
    async with stores(server, 2) as (here, there):
        listener = await listening(there)
        for key in keys:
            await here.save_preference(key, ALL)
        await listener.until(lambda: len(listener.digests) >= len(keys) or None in listener.told)
    assert listener.digests == [visitor_digest(key) for key in keys]


async def test_a_hole_in_the_list_of_changes_is_noticed(server):
    """Where changes are gone that were not read, everything is to be read again."""
    async with stores(server, 2) as (here, there):
        listener = await listening(there)
        await here.save_preference(KEY, NONE)
        await listener.until(lambda: listener.digests == [visitor_digest(KEY)])
        listener.told.clear()
        # Trimmed between two changes, in one step, so that nobody looks meanwhile.
        script = Script(
            redis_module._SAVE_NONE._source + "redis.call('XTRIM', KEYS[3], 'MAXLEN', 0) changed('yes')"
        )
        arguments = [visitor_digest(OTHER), "", *redis_module._write_preference(NONE)]
        await here._link.run(lambda redis: script(redis, here._keys(OTHER), arguments))
        await listener.until(lambda: listener.told == [None])
        await here.save_preference(OTHER, ALL)
        await listener.until(lambda: listener.digests == [visitor_digest(OTHER)])


async def test_a_list_that_went_by_itself_is_no_news(server):
    """When the list of changes expires nothing is missing, and the next change is heard as ever."""
    async with stores(server, 2) as (here, there):
        await here.save_preference(KEY, ALL)
        listener = await listening(there)
        server.command("DEL", f"{PREFIX}news")
        await here.save_preference(OTHER, NONE)
        await listener.until(lambda: listener.told)
    assert listener.told == [[Change(visitor_digest(OTHER), refused=True)]]


async def test_an_emptied_server_is_noticed(server):
    """When all is lost everything is to be read again."""
    async with stores(server, 2) as (here, there):
        await here.save_preference(KEY, ALL)
        listener = await listening(there)
        server.command("FLUSHDB")
        await listener.until(lambda: listener.told == [None])
        await here.save_preference(OTHER, NONE)
        await listener.until(lambda: listener.digests == [visitor_digest(OTHER)])


async def test_an_instance_that_is_used_later_is_listened_to_as_well(server):
    """Watching may begin before anything is read; each organisation and datastream is followed from its first use on."""
    elsewhere = KEY._replace(datastream="another")
    async with stores(server, 2) as (here, there):
        listener = Listener()
        there.watch(listener)
        await here.save_preference(elsewhere, ALL)
        await there.load_preference(KEY)
        await listener.until(lambda: listener.told == [None])
        await there.load_preference(elsewhere)
        await listener.until(lambda: listener.told == [None, None])
        await here.save_preference(KEY, NONE)
        await here.save_preference(elsewhere, NONE)
        await listener.until(lambda: len(listener.digests) == 2)
    assert listener.digests == [visitor_digest(KEY), visitor_digest(elsewhere)]


async def test_listeners_do_not_harm_one_another(server, caplog):
    """A listener that raises is said in the log without what it raised, and others hear."""

    def raising(changes):
        raise ValueError("a secret")

    async with stores(server, 2) as (here, there):
        there.watch(raising)
        listener = await listening(there)
        await here.save_preference(KEY, NONE)
        await listener.until(lambda: listener.digests == [visitor_digest(KEY)])
    assert "a listener to the store raised ValueError" in caplog.text
    assert "secret" not in caplog.text


async def test_a_listener_that_comes_late_is_told_to_read_again(server):
    """What it read before it came may have changed since, and the others were told of that without it."""
    async with stores(server, 2) as (here, there):
        await listening(there)
        late = Listener()
        there.watch(late)
        await late.until(lambda: late.told == [None])
        await here.save_preference(KEY, NONE)
        await late.until(lambda: late.digests == [visitor_digest(KEY)])


async def test_listening_survives_whatever_fails(server, monkeypatch, caplog):
    """A failure that nobody thought of is said in the log, and all is read again."""
    follow = redis_module._follow
    broken = [True]

    async def sometimes(*arguments):
        if broken:
            broken.clear()
            raise AttributeError("a secret")
        return await follow(*arguments)

    async with stores(server, 2) as (here, there):
        listener = await listening(there)
        monkeypatch.setattr(redis_module, "_follow", sometimes)
        await here.save_preference(KEY, NONE)
        await listener.until(lambda: listener.told == [None])
        await here.save_preference(OTHER, NONE)
        await listener.until(lambda: listener.digests == [visitor_digest(OTHER)])
    assert "Redis cannot be used (AttributeError)" in caplog.text
    assert "secret" not in caplog.text


async def test_nothing_runs_that_was_not_asked_for(server):
    """Without watching there is no task, with it one, however many watch, and none after closing."""
    before = asyncio.all_tasks()
    store = RedisStore(server.url)
    await store.save_preference(KEY, ALL)
    assert asyncio.all_tasks() == before
    for _ in range(3):
        store.watch(Listener())
    assert [task.get_name() for task in asyncio.all_tasks() - before] == ["alloy-redis-news"]
    await store.aclose()
    assert asyncio.all_tasks() == before
    assert connections(server, "pubsub") == set()


async def test_closing_ends_in_whatever_moment(server):
    """A store is closed while its listening begins, subscribes and looks; a cancellation that is swallowed is repeated."""
    for turns in range(30):
        store = RedisStore(server.url)
        await listening(store)
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE):
            await store.aclose()


async def test_watching_a_closed_store_ends_by_itself(server):
    """A store that is closed tells nothing, and keeps no task."""
    store = RedisStore(server.url)
    await store.aclose()
    before = asyncio.all_tasks()
    store.watch(Listener())
    tasks = asyncio.all_tasks() - before
    if tasks:
        await asyncio.wait(tasks, timeout=PATIENCE)
    assert asyncio.all_tasks() == before


async def test_a_choice_made_in_one_process_holds_in_another(server):
    """A yes elsewhere releases what is parked here, and a no elsewhere refuses what is parked or called here."""
    edges = RecordingEdge(), RecordingEdge()
    async with stores(server, 2) as both, Alloy("here") as here, Alloy("there") as there:
        for alloy, store, edge in zip((here, there), both, edges, strict=True):
            await alloy.configure(
                **IDS, opt_in_enabled=True, store=store, transport=edge, parked_wait=9_999.0
            )
        anne, bert = (here.visitor(name).event(type=name) for name in ("anne", "bert"))
        async with asyncio.timeout(PATIENCE):
            await there.visitor("anne").opt_in(purposes="all")
            await anne
            await there.visitor("bert").opt_in(purposes="none")
            with pytest.raises(ConsentDeclined):
                await bert
            await there.visitor("anne").opt_in(purposes="none")
            while here.visitor("anne").purposes != "none":
                await asyncio.sleep(0.01)
        assert [edge.event_types for edge in edges] == [["anne"], []]


# Faults


async def test_a_server_that_comes_back_is_watched_again(own_server, caplog):
    """After a server was killed and restarted all is to be read again; the log has one line for each."""
    async with stores(own_server, 2) as (here, there):
        await here.save_preference(KEY, NONE)
        listener = await listening(there)
        own_server.kill()
        for call in (here.load_preference(KEY), here.save_preference(KEY, ALL), here.forget(KEY)):
            with pytest.raises(ConsentStoreError, match="Redis cannot be used") as caught:
                await call
            assert_tells_nothing(caught.value)
        async with asyncio.timeout(PATIENCE):
            while "not heard for now" not in caplog.text:
                await asyncio.sleep(0.02)
        await asyncio.sleep(3 * redis_module.LOOK_EVERY)  # several attempts, that nobody hears of
        own_server.restart()
        await listener.until(lambda: listener.told == [None])
        assert (await here.load_preference(KEY)).purposes == "none"
        await here.save_preference(KEY, ALL)
        await listener.until(lambda: listener.digests == [visitor_digest(KEY)])
        words = [record.getMessage() for record in caplog.records if record.name == "alloy_async"]
    assert [word.split(": ")[1].split(";")[0] for word in words] == [
        "choices that others make are not heard for now",
        "within reach again",
    ]


async def test_a_server_that_hangs_holds_nobody_up(own_server):
    """Calls end in time with the store's own error, the loop stays free, and after the pause all works again."""
    async with stores(own_server, timeout=IN_TIME) as store:
        await store.save_preference(KEY, ALL)
        own_server.pause()
        loop = asyncio.get_running_loop()
        began, turns = loop.time(), 0
        calls = [asyncio.ensure_future(store.load_preference(KEY)) for _ in range(30 * AT_ONCE)]
        while not all(call.done() for call in calls):
            await asyncio.sleep(0.005)
            turns += 1
        elapsed = loop.time() - began
        for call in calls:
            assert isinstance(call.exception(), ConsentStoreError)
            assert call.exception().problem == "Redis did not answer in time."
        assert elapsed < 10 * IN_TIME
        assert turns > 10
        own_server.resume()
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    assert (await store.load_preference(KEY)).purposes == "all"
                    break
                except ConsentStoreError:
                    await asyncio.sleep(0.01)


async def test_a_hanging_server_is_noticed_by_whoever_watches(own_server, caplog):
    """A pause counts as out of reach, and its end is heard."""
    async with stores(own_server, timeout=IN_TIME) as store:
        listener = await listening(store)
        own_server.pause()
        async with asyncio.timeout(PATIENCE):
            while "Redis did not answer in time" not in caplog.text:
                await asyncio.sleep(0.02)
        own_server.resume()
        await listener.until(lambda: None in listener.told)


async def test_closing_ends_while_the_server_hangs(own_server):
    """``aclose`` waits for calls, which end in time."""
    store = RedisStore(own_server.url, timeout=IN_TIME)
    await listening(store)
    own_server.pause()
    call = asyncio.ensure_future(store.load_preference(KEY))
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        await store.aclose()
    with pytest.raises(ConsentStoreError):
        await call


async def test_many_more_calls_than_connections_all_end_well(server):
    """Calls that wait for a connection are not failed while others get on, and connections are few."""
    async with stores(server, timeout=PATIENCE) as store:
        keys = [KEY._replace(visitor=str(number)) for number in range(600)]
        await asyncio.gather(*(store.save_preference(key, ALL) for key in keys))
        assert len(connections(server)) <= AT_ONCE


async def test_calls_wait_for_their_turn_as_long_as_others_get_on(server):
    """A call may wait for its turn for longer than one call may take."""
    link = RedisLink(server.url, timeout=1.0)

    async def slow(redis):
        await asyncio.sleep(0.3)
        return await redis.ping()

    answers = await asyncio.gather(*(link.run(slow) for _ in range(5 * AT_ONCE)))
    assert answers == [True] * len(answers)
    await link.aclose()


async def test_a_cancelled_call_comes_to_its_end(server):
    """Whoever is cancelled while saving leaves a whole choice, a working connection, and no task."""
    async with stores(server) as store:
        await store.save_preference(KEY, ALL)
        await store.save_identity(KEY, IDENTITY)
        for turns in range(12):
            saving = asyncio.ensure_future(store.save_preference(OTHER, NONE if turns % 2 else ALL))
            for _ in range(turns):
                await asyncio.sleep(0)
            saving.cancel()
            await asyncio.wait([saving])
        assert (await store.load_preference(KEY)).purposes == "all"
        await asyncio.gather(*store._link._client._thing._calls)
        assert (await store.load_preference(OTHER)).purposes in {"all", "none"}
        assert len(connections(server)) <= AT_ONCE


async def test_a_cancelled_refusal_is_kept(server):
    """A refusal whose caller is cancelled at once is written all the same, and closing waits for it."""
    async with stores(server, 2) as (here, there):
        await there.save_preference(KEY, ALL)
        saving = asyncio.ensure_future(here.save_preference(KEY, NONE))
        await asyncio.sleep(0)  # it has begun to connect
        saving.cancel()
        await asyncio.wait([saving])
        assert saving.cancelled()
        await here.aclose()
        assert (await there.load_preference(KEY)).purposes == "none"


async def test_a_full_server_takes_a_refusal_and_nothing_else(own_server):
    """A yes and an identity end with an error that says why; a refusal and a forgetting erase, and are kept."""
    async with stores(own_server) as store:
        await store.save_preference(KEY, ALL)
        await store.save_identity(KEY, IDENTITY)
        own_server.command("CONFIG", "SET", "maxmemory", "1")
        for call in (store.save_preference(OTHER, ALL), store.save_identity(KEY, IDENTITY)):
            with pytest.raises(ConsentStoreError, match="Redis is full") as caught:
                await call
            assert_tells_nothing(caught.value)
        await store.save_preference(KEY, NONE)
        assert (await store.load_preference(KEY)).purposes == "none"
        assert await store.load_identity(KEY) is None
        await store.forget(KEY)
        assert await store.load_preference(KEY) is None


async def test_a_replica_says_that_it_is_one(own_server):
    """As in a fail-over: reading works, writing ends with an error that says why."""
    async with stores(own_server) as store:
        await store.save_preference(KEY, NONE)
        own_server.command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(ConsentStoreError, match="replica"):
            await store.save_preference(KEY, ALL)
        own_server.command("REPLICAOF", "NO", "ONE")
        await store.save_preference(KEY, ALL)


async def test_scripts_are_sent_again_where_they_are_unknown(server, store):
    """A server that has forgotten its scripts, or another one after a fail-over, gets them again."""
    await store.save_preference(KEY, ALL)
    server.command("SCRIPT", "FLUSH")
    await store.save_preference(KEY, NONE)
    await store.save_preference(KEY, NONE)
    assert (await store.load_preference(KEY)).epoch == 2


async def test_a_connection_that_was_cut_is_replaced(server, store):
    """An idle connection that the server has closed costs no call."""
    await store.save_preference(KEY, ALL)
    server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await asyncio.sleep(0.05)  # the socket tells the loop
    assert (await store.load_preference(KEY)).purposes == "all"


async def test_a_call_is_bounded_as_a_whole(server):
    """What a call does may be many steps; together they end in time."""
    link = RedisLink(server.url, timeout=IN_TIME)
    with pytest.raises(TimeoutError):
        await link.run(lambda redis: asyncio.sleep(3_600))
    await link.aclose()


async def test_a_background_task_that_misses_its_cancellation_is_cancelled_again(server):
    """Closing does not depend on one cancellation."""
    link = RedisLink(server.url)

    async def deaf():
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            await asyncio.sleep(3_600)

    task = link.start(deaf(), "deaf")
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        await link.aclose()
    assert task.cancelled()


# What is told of failures


def assert_tells_nothing(error):
    """Neither the error, nor what it leads to, nor the frames of its traceback hold a secret or a person."""
    told = "".join(traceback.TracebackException.from_exception(error, capture_locals=False).format())
    for secret in ("pass-word", "somebody", IDENTITY.fpid, visitor_digest(KEY), "EVALSHA"):
        assert secret not in told
    assert error.__cause__ is None
    assert error.__context__ is None
    assert error.place.startswith("Redis at ")


@pytest.mark.parametrize("user", ["", "nobody"])
async def test_a_wrong_password_is_not_told(server, user):
    """An error says that the password is refused, and not which."""
    url = signed_in(server.url, f"{user}:pass-word")
    store = RedisStore(url)
    for call in (store.load_preference(KEY), store.save_preference(KEY, NONE)):
        with pytest.raises(ConsentStoreError, match="refuses the user name or the password") as caught:
            await call
        assert_tells_nothing(caught.value)
    assert "pass-word" not in repr(store) + repr(store._link) + repr(vars(store))
    await store.aclose()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "pass-word",
        "http://:pass-word@localhost",
        "redis://:half/pass-word@localhost",
        "redis://:12/pass-word@localhost",
        "redis://:12#pass-word@localhost",
        "redis://:12?pass-word@localhost",
        "redis://localhost:pass-word",
        "redis://localhost?pass-word=1",
        "redis://localhost?socket_timeout=pass-word",
        "unix://",
        "unix://:pass-word@",
        None,
    ],
)
def test_a_bad_url_is_refused_without_telling_it(url):
    """A URL that would not be read in full is refused when the store is made."""
    with pytest.raises(ConfigurationError, match="the Redis URL cannot be used") as caught:
        RedisStore(url)
    assert "pass-word" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://", "localhost:6379"),
        ("redis://user:pass-word@example.org/2", "example.org:6379"),
        ("rediss://:pass-word@example.org:1/", "example.org:1"),
        ("redis://[::1]:7000", "[::1]:7000"),
        ("unix://:pass-word@/run/redis.sock?db=1", "/run/redis.sock"),
        ("redis://example.org?password=pass-word&decode_responses=yes&protocol=3", "example.org:6379"),
    ],
)
def test_a_store_shows_where_it_leads(url, place):
    """Host and port, or the path, and nothing else of the URL."""
    assert repr(RedisStore(url)) == f"RedisStore({place!r})"


async def test_options_of_the_url_do_not_change_what_is_read(server):
    """Options that redis-py would take from the URL cannot make the store misread."""
    async with stores(server) as here:
        await here.save_preference(KEY, NONE)
        store = RedisStore(f"{server.url}?decode_responses=yes")
        assert (await store.load_preference(KEY)).purposes == "none"
        await store.aclose()


def test_without_redis_py_the_store_says_what_to_install(monkeypatch):
    """The error names the extra."""
    import sys

    for name in [name for name in sys.modules if name == "redis" or name.startswith("redis.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match=r"pip install 'alloy-async\[redis\]'"):
        RedisStore("redis://localhost")


def test_the_module_is_imported_without_redis_py():
    """Importing the store imports nothing that may be missing."""
    import subprocess
    import sys

    code = "import sys, alloy_async.stores.redis; sys.exit('redis' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


# Loops and processes


@pytest.mark.filterwarnings("error")
def test_a_loop_that_ends_without_closing_leaves_nothing_open(server):
    """The next loop gets connections of its own, and no warning tells of those of the first."""
    store = RedisStore(server.url)

    async def use(turns):
        await store.save_preference(KEY, ALL)
        choice = await store.load_preference(KEY)
        await listening(store)
        for _ in range(turns):
            await asyncio.sleep(0)
        return choice.purposes

    assert {asyncio.run(use(turns), debug=True) for turns in range(12)} == {"all"}
    gc.collect()
    asyncio.run(store.aclose())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks as POSIX has them")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
async def test_a_forked_child_uses_connections_of_its_own(server):
    """A child that inherits a used store works, and its parent's connections go on, its subscription too."""
    async with stores(server) as store:
        listener = await listening(store)
        await store.save_preference(KEY, ALL)
        await subscription(server)
        before = connections(server) | connections(server, "pubsub")
        process = multiprocessing.get_context("fork").Process(target=_in_child, args=(store,))
        process.start()
        await asyncio.to_thread(process.join, PATIENCE)
        assert process.exitcode == 0
        await listener.until(lambda: visitor_digest(OTHER) in listener.digests)
        assert (await store.load_preference(OTHER)).purposes == "none"
        assert (await store.load_preference(KEY)).purposes == "all"
        assert before <= connections(server) | connections(server, "pubsub")


def _in_child(store):
    async def use():
        assert (await store.load_preference(KEY)).purposes == "all"
        await store.save_preference(OTHER, NONE)
        await store.aclose()

    asyncio.run(use())
    gc.collect()


async def test_words_for_errors_hold_nothing_of_them():
    """Whatever an error says, what is told of it comes from a table."""
    from redis import exceptions

    told = {
        describe(error)
        for error in (
            exceptions.ResponseError(
                "Error running script: @user_script:12: -OOM command not allowed, pass-word"
            ),
            exceptions.ReadOnlyError("pass-word"),
            exceptions.BusyLoadingError("pass-word"),
            exceptions.AuthenticationError("pass-word"),
            exceptions.NoPermissionError("pass-word"),
            exceptions.ResponseError("Command # 1 (EVALSHA pass-word) of pipeline caused error: pass-word"),
            exceptions.ConnectionError("Error 111 connecting to pass-word"),
            exceptions.TimeoutError("pass-word"),
            TimeoutError("pass-word"),
            ConnectionRefusedError(111, "Connection refused"),
        )
    }
    assert not [text for text in told if "pass-word" in text]
    assert "Redis cannot be used (ConnectionRefusedError: Connection refused)." in told
    assert len(told) == 9
