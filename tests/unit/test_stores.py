"""Every store of ours keeps the promises of the protocol."""

import subprocess
import sys

import pytest
from common import settle

from alloy_async import Alloy
from alloy_async.stores import MemoryStore, SQLiteStore
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

    async def save_preference(self, key, preference):
        identity = await self.load_identity(key)
        await super().save_preference(key, preference)
        if identity is not None:
            self._identities[key] = identity


class _Mixing(MemoryStore):
    """A store that breaks one promise: all visitors of a datastream are one."""

    async def save_preference(self, key, preference):
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


def test_suite_needs_no_pytest():
    """The testing package is imported without pytest: it is no dependency."""
    code = "import sys, alloy_async.testing; sys.exit('pytest' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
