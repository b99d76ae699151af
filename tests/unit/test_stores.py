"""Every store of ours keeps the promises of the protocol."""

import asyncio
import queue
import subprocess
import sys
import threading

import pytest
from common import settle

from alloy_async import Alloy, ConfigurationError, ConsentDeclined
from alloy_async.stores import Change, MemoryStore, Preference, SQLiteStore, VisitorKey, memory
from alloy_async.stores.base import consents_since
from alloy_async.testing import StoreConformance


class TestMemoryStore(StoreConformance):
    """The store in memory."""

    @pytest.fixture
    def store(self):
        return MemoryStore()


class TestSQLiteStore(StoreConformance):
    """The store in one file."""

    @pytest.fixture
    async def store(self, tmp_path):
        store = SQLiteStore(tmp_path / "state")
        yield store
        await store.aclose()


class _Forgetful(MemoryStore):
    """A store that breaks one promise: a refusal leaves the identity."""

    async def save_preference(self, key, preference, *, by=""):
        identity = await self.load_identity(key)
        await super().save_preference(key, preference, by=by)
        if identity is not None:
            self._identities[key] = identity


class _Mixing(MemoryStore):
    """A store that breaks one promise: all visitors of a datastream are one."""

    async def save_preference(self, key, preference, *, by=""):
        await super().save_preference(key._replace(visitor=""), preference)

    async def load_preference(self, key):
        return await super().load_preference(key._replace(visitor=""))


@pytest.mark.parametrize(
    ("store", "test"),
    [
        (_Forgetful(), "test_refusal_erases_identity"),
        (_Mixing(), "test_keys_do_not_mix"),
        (_Mixing(), "test_odd_keys_do_not_mix"),
    ],
)
async def test_suite_finds_a_broken_promise(store, test):
    """The suite fails, and says which rule, for a store that breaks one."""
    with pytest.raises(AssertionError, match=r"expected .*, the store says "):
        await getattr(StoreConformance(), test)(store)


class _Foreign(MemoryStore):
    """A store that raises what no store should raise, wherever an identity is concerned."""

    async def load_identity(self, key):
        raise RuntimeError("the cable is out")

    async def save_identity(self, key, identity):
        raise RuntimeError("the cable is out")


async def test_store_that_raises_a_foreign_error_holds_no_event(options, edge):
    """An event goes out with a new identity although the store raises what it should not."""
    options["store"] = _Foreign()
    async with Alloy() as alloy:
        await alloy.configure(**options)
        await alloy.opt_in(purposes="all")
        event = alloy.event(type="a")
        await settle(100)
        event.cancel()  # where it has not ended, closing would wait for it
    assert not event.cancelled()
    assert edge.event_types == ["a"]


async def test_a_choice_in_one_instance_holds_in_another(options, edge):
    """With a store in memory that both were given: what the other has parked is released, what comes after a no is refused."""
    async with Alloy() as one, Alloy() as other:
        await one.configure(**options)
        await other.configure(**options)
        parked = other.visitor("anne").event(type="parked")
        await one.visitor("anne").opt_in(purposes="all")
        await settle()
        assert parked.done()
        await one.visitor("anne").opt_in(purposes="none")
        await settle()
        refused = other.visitor("anne").event(type="refused")
        await settle()
        assert isinstance(refused.exception(), ConsentDeclined)
        await one.visitor("anne").forget()
        await settle()
        assert other.visitor("anne").purposes == "pending"
    assert edge.event_types == ["parked"]


async def test_a_store_in_memory_tells_other_event_loops(store):
    """Of other threads; those that are closed are forgotten."""
    said: queue.Queue = queue.Queue()
    key = VisitorKey("org", "datastream", "anne")

    async def listen(heard):
        store.watch(heard.put)
        said.put(None)
        while await asyncio.to_thread(heard.get, timeout=60) is None:
            pass  # others listen, and may have changed something before

    ended, heard = queue.Queue(), queue.Queue()
    for changes in (ended, heard):
        thread = threading.Thread(target=asyncio.run, args=[listen(changes)])
        thread.start()
        said.get(timeout=60)
        if changes is ended:
            changes.put([])
            thread.join(timeout=60)
    own = []
    store.watch(own.append)
    await store.save_preference(key, Preference("none", 1.0, 2.0), by="me")
    thread.join(timeout=60)
    await settle()
    assert not thread.is_alive()
    assert own == [None, [Change(store.digest(key), refused=True, by="me")]]
    assert ended.empty()


async def test_a_choice_made_while_another_instance_starts_holds_there(options):
    """It has read what there was before, and does not hear yet."""

    class SlowToRead(MemoryStore):
        reading = None

        async def load_preference(self, key):
            preference = await super().load_preference(key)
            if self.reading is not None:
                await self.reading
            return preference

    slow = options["store"] = SlowToRead()
    async with Alloy() as one, Alloy() as other:
        await one.configure(**options)
        await one.opt_in(purposes="all")
        await settle()
        slow.reading = asyncio.get_running_loop().create_future()
        starting = other.configure(**options)
        await settle()
        await one.opt_in(purposes="none")
        slow.reading.set_result(None)
        await starting
        await settle()
        refused = other.event(type="refused")
        await settle()
        assert isinstance(refused.exception(), ConsentDeclined)


@pytest.mark.parametrize("first", ["all", "none"])
async def test_threads_take_turns_to_change_a_store_in_memory(store, first, monkeypatch):
    """A refusal that comes while a yes is being saved is kept after it, not overwritten by it."""
    key = VisitorKey("org", "datastream", "anne")
    other = threading.Thread(
        target=asyncio.run, args=[store.save_preference(key, Preference("none", 2.0, 9.0))]
    )

    def interrupted(kept, chosen):
        monkeypatch.undo()
        other.start()
        other.join(timeout=0.1)  # it is done by then, where nothing holds it back
        return consents_since(kept, chosen)

    await store.save_preference(key, Preference(first, 0.5, 9.0))
    monkeypatch.setattr(memory, "consents_since", interrupted)
    await store.save_preference(key, Preference("all", 1.0, 9.0))
    await asyncio.to_thread(other.join, 60)
    kept = await store.load_preference(key)
    assert (kept.purposes, kept.epoch) == ("none", 1 if first == "all" else 2)


@pytest.mark.parametrize("method", ["save_preference", "forget"])
async def test_a_store_that_tells_must_take_who_says_it(options, method):
    """Otherwise one's own refusals would pass for somebody else's, and what came after them would be lost."""

    class Nameless(MemoryStore):
        pass

    async def change(self, *arguments):
        """Take no name."""

    change.__name__ = method
    setattr(Nameless, method, change)
    async with Alloy() as alloy:
        with pytest.raises(
            ConfigurationError, match=rf"^store: {method}\(\) of Nameless must take the keyword by"
        ) as caught:
            await alloy.configure(**options | {"store": Nameless()})
        assert caught.value.option == "store"
        await alloy.configure(**options | {"store": MemoryStore()})


@pytest.mark.parametrize("method", ["digest", "aclose"])
async def test_what_a_store_lacks_is_named(options, method):
    """One that tells has nothing to tell of without the names of visitors."""
    lacking = MemoryStore()
    setattr(lacking, method, None)
    async with Alloy() as alloy:
        with pytest.raises(
            ConfigurationError, match=rf"^store: an object of type MemoryStore has no {method}\(\)"
        ):
            await alloy.configure(**options | {"store": lacking})


def test_suite_needs_no_pytest():
    """The testing package is imported without pytest: it is no dependency."""
    code = "import sys, alloy_async.testing; sys.exit('pytest' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
