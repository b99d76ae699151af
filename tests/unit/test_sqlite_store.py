"""The SQLite store: what it leaves on the disk, what it makes of a bad file, and its thread."""

import asyncio
import gc
import logging
import math
import os
import random
import sqlite3
import stat
import tempfile
import threading
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from common import IDS, settle
from hypothesis import given, strategies as st

from alloy_async import Alloy
from alloy_async._database import Database, _Job
from alloy_async.errors import ConsentDeclined, ConsentStoreError
from alloy_async.identity import StoredIdentity
from alloy_async.stores import Preference, SQLiteStore, VisitorKey, sqlite
from alloy_async.testing import ManualClock, RecordingEdge

KEY = VisitorKey(IDS["ims_org_id"], IDS["config_id"])
NOW = ManualClock().time()
LATER = NOW + 1_000_000.0
CUSTOMER = {"id": "a-customer-nobody-else-has", "authenticatedState": "ambiguous", "primary": False}
IDENTITY = StoredIdentity(
    "f7e0c8a2-6a3b-4d0e-9d70-0b1f7a8c1d21", "41861666193140161934276845651148876988", {}
)
NOBODY = 65_534

posix = pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
as_root = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="only root can give files to other users"
)


def choice(purposes, until=LATER):
    return Preference(purposes, NOW, until)


@contextmanager
def umask(mask):
    """Set the umask for a while."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def ordinary_user():
    """Be a user for whom permissions count; yield a folder of theirs."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if os.geteuid() != 0:
            yield Path(folder)
            return
        try:
            os.chown(folder, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        except OSError as error:
            pytest.skip(f"cannot become another user: {error}")
        try:
            yield Path(folder)
        finally:
            os.seteuid(0)


@pytest.fixture
def no_waiting(monkeypatch):
    """A lock that another connection holds is not waited for."""
    monkeypatch.setattr("alloy_async._database.LOCK_TIMEOUT", 0.0)


@pytest.fixture
async def store(tmp_path):
    """A store in a folder that is not there yet."""
    store = SQLiteStore(tmp_path / "state")
    yield store
    await store.aclose()


async def keep(folder, purposes="all", key=KEY):
    """Write a choice, and return the file."""
    store = SQLiteStore(folder)
    await store.save_preference(key, choice(purposes))
    await store.aclose()
    return store.path


async def look(folder, key=KEY):
    """Read the choice that is kept."""
    store = SQLiteStore(folder)
    try:
        return await store.load_preference(key)
    finally:
        await store.aclose()


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


# What it leaves on the disk


async def test_loading_leaves_no_trace(store):
    """Asking for a choice or an identity, and forgetting, make neither file nor folder."""
    assert await store.load_preference(KEY) is None
    assert await store.load_identity(KEY) is None
    await store.forget(KEY)
    assert not store.path.parent.exists()


@posix
async def test_new_file_and_folder_are_private(store):
    """File and folder are for the user alone, also where the umask forbids nothing."""
    with umask(0):
        await store.save_preference(KEY, choice("all"))
    assert (mode(store.path), mode(store.path.parent)) == (0o600, 0o700)


@posix
async def test_missing_parents_are_private(tmp_path):
    """Every folder that is made on the way is for the user alone: who may rename one of them may replace the file."""
    with umask(0):
        await keep(tmp_path / "a" / "b" / "c")
    assert [mode(tmp_path / folder) for folder in ("a", "a/b", "a/b/c")] == [0o700] * 3


@posix
async def test_wide_file_is_made_private(tmp_path):
    """A file that others may read is tightened when it is opened."""
    path = await keep(tmp_path)
    path.chmod(0o666)
    assert (await look(tmp_path)).purposes == "all"
    assert mode(path) == 0o600


@posix
async def test_database_of_another_program_is_left_alone(tmp_path):
    """A database that is not ours gets no tables of ours, and keeps its mode."""
    path = tmp_path / "alloy.sqlite3"
    change(path, "CREATE TABLE theirs (x)")
    path.chmod(0o644)
    before = path.read_bytes()
    with pytest.raises(ConsentStoreError, match=r"another program"):
        await look(tmp_path)
    assert (path.read_bytes(), mode(path)) == (before, 0o644)


@posix
async def test_journal_is_private(store):
    """The file that exists during a transaction is for the user alone."""

    def modes(connection):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE counter SET value = value + 1")
        found = {path.name: mode(path) for path in store.path.parent.iterdir()}
        connection.execute("ROLLBACK")
        return found

    with umask(0):
        await store.save_preference(KEY, choice("all"))
        found = await store._database.run(modes)
    assert found == {"alloy.sqlite3": 0o600, "alloy.sqlite3-journal": 0o600}


@pytest.mark.parametrize("how", ["refuse", "forget"])
async def test_erased_identity_is_not_in_the_file(store, how):
    """After a refusal, and after forgetting, no byte of the identity is in the file or next to it."""
    secrets = [IDENTITY.fpid, IDENTITY.ecid, CUSTOMER["id"]]
    await store.save_identity(KEY, StoredIdentity(IDENTITY.fpid, IDENTITY.ecid, {"CRMID": CUSTOMER}))
    assert all(secret.encode() in store.path.read_bytes() for secret in secrets)
    await (store.save_preference(KEY, choice("none")) if how == "refuse" else store.forget(KEY))
    assert [path.name for path in store.path.parent.iterdir()] == ["alloy.sqlite3"]
    assert not any(secret.encode() in store.path.read_bytes() for secret in secrets)


async def test_replaced_identity_is_not_in_the_file(store):
    """An identity that another one replaced is gone from the file."""
    for number in range(10):
        customer = {**CUSTOMER, "id": f"{number} {CUSTOMER['id']} {'x' * 90 * number}"}
        await store.save_identity(KEY, StoredIdentity(IDENTITY.fpid, None, {"CRMID": customer}))
    await store.save_identity(KEY, StoredIdentity(IDENTITY.fpid, None, {}))
    assert CUSTOMER["id"].encode() not in store.path.read_bytes()


@pytest.mark.parametrize("seed", range(3))
async def test_erased_identities_among_many_are_not_in_the_file(store, seed):
    """Nothing of an erased identity is left where SQLite had moved rows to other pages of the file."""
    generator = random.Random(seed)
    identities = {}
    for number in range(60):
        entry = {**CUSTOMER, "id": "x" * generator.randint(1, 900)}
        key = KEY._replace(visitor=f"{generator.getrandbits(128):032x}")
        identities[key] = StoredIdentity(
            f"fpid-{number}-{generator.getrandbits(64):016x}", None, {"C": entry}
        )
        await store.save_identity(key, identities[key])
    erased = generator.sample(sorted(identities), 30)
    for number, key in enumerate(erased):
        await (store.forget(key) if number % 2 else store.save_preference(key, choice("none")))
    content = store.path.read_bytes()
    assert [key for key in erased if identities[key].fpid.encode() in content] == []


async def test_identity_is_taken_before_the_thread_is_free(store):
    """An identity is kept as it was at the call, however long the thread is busy."""
    await store.save_preference(KEY, choice("all"))
    with busy(store):
        customers = {"CRMID": dict(CUSTOMER)}
        saving = asyncio.create_task(store.save_identity(KEY, StoredIdentity(IDENTITY.fpid, None, customers)))
        await settle()
        customers["LOYALTY"] = dict(CUSTOMER)
    await saving
    assert (await store.load_identity(KEY)).customer_ids == {"CRMID": CUSTOMER}


# What it makes of rows that somebody wrote by hand


@pytest.mark.parametrize(
    "values",
    [
        {"purposes": "yes"},
        {"purposes": "ALL"},
        {"purposes": " all"},
        {"purposes": "all\0"},
        {"purposes": "pending"},
        {"purposes": ""},
        {"purposes": b"all"},
        {"purposes": 1},
        {"chosen_at": "yesterday"},
        {"chosen_at": b"1"},
        {"chosen_at": math.inf},
        {"chosen_at": -1.0},
        {"expires_at": "never"},
        {"expires_at": math.inf},
        {"expires_at": -math.inf},
        {"expires_at": -5.0},
        {"source": b"\xff"},
        {"epoch": "many"},
        {"epoch": 1.5},
        {"epoch": b""},
        {"consents_since": "lately"},
        {"consents_since": -1.0},
        {"consents_since": math.inf},
    ],
    ids=str,
)
async def test_odd_row_is_no_choice(tmp_path, caplog, values):
    """A row that is not exactly what the store writes counts as no choice, is said so, and can be replaced."""
    path = await keep(tmp_path, "all")
    edit(path, values)
    assert await look(tmp_path) is None
    (record,) = warned(caplog)
    assert str(path) in record.getMessage()
    await keep(tmp_path, "none")
    assert (await look(tmp_path)).purposes == "none"


@pytest.mark.parametrize(
    "column", ["purposes", "chosen_at", "expires_at", "source", "epoch", "consents_since"]
)
@pytest.mark.parametrize("value", [None, math.nan])
async def test_missing_value_cannot_be_stored(tmp_path, column, value):
    """A missing value, and NaN, which SQLite takes for one, do not get into a row."""
    path = await keep(tmp_path)
    with pytest.raises(sqlite3.IntegrityError):
        edit(path, {column: value})


async def test_expired_row_is_pending(tmp_path):
    """A choice that has expired counts as not made; one second earlier it counts."""
    clock = ManualClock()
    for until, purposes in ((clock.time() + 1, "all"), (clock.time(), None)):
        edit(await keep(tmp_path), {"expires_at": until})
        edge = RecordingEdge()
        async with configured(tmp_path, edge, clock) as alloy:
            event = quietly(alloy.event(type="a"))
            await until_idle(alloy)
            assert event.done() is (purposes == "all")
        assert len(edge.events) == (purposes == "all")


@pytest.mark.parametrize(
    "values",
    [
        {"fpid": b"1"},
        {"ecid": b"1"},
        {"customer_ids": "{"},
        {"customer_ids": "[]x"},
        {"customer_ids": '{"a":1}'},
    ],
    ids=str,
)
async def test_odd_identity_is_none(store, values):
    """An identity that is not what the store writes is no identity."""
    await store.save_identity(KEY, IDENTITY)
    edit(store.path, values, table="identity")
    assert await store.load_identity(KEY) is None


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE preference",
        "ALTER TABLE preference DROP COLUMN source",
        "ALTER TABLE preference ADD COLUMN more TEXT",
        "ALTER TABLE preference RENAME COLUMN purposes TO purpose",
        "DELETE FROM counter",
        "UPDATE counter SET value = 'many'",
        "DROP TABLE counter",
    ],
)
async def test_other_tables_end_with_its_own_error(tmp_path, statement):
    """In a file whose tables are not ours any call works, or ends with ``ConsentStoreError``; a "none" never gives "all"."""
    path = await keep(tmp_path, "none")
    change(path, statement)
    store = SQLiteStore(tmp_path)
    with suppress(ConsentStoreError):
        kept = await store.load_preference(KEY)
        assert kept is None or kept.purposes == "none"
    for purposes in ("all", "none"):
        with suppress(ConsentStoreError):
            await store.save_preference(KEY, choice(purposes))
    with suppress(ConsentStoreError):
        await store.forget(KEY)
    await store.aclose()


# Files of older versions


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_a_file_of_an_older_version_is_brought_up_to_date(tmp_path, version):
    """What it holds stays; since when its visitors consent is not known of it."""
    path = await keep(tmp_path, "none")
    change(path, "DROP TABLE changes")
    if version > 1:
        change(path, "CREATE TABLE news (number INTEGER)")
    if version < 3:
        change(path, "ALTER TABLE preference DROP COLUMN consents_since")
    change(path, f"PRAGMA user_version = {version}")
    kept = await look(tmp_path)
    assert (kept.purposes, kept.consents_since) == ("none", 0.0 if version < 3 else NOW)
    await keep(tmp_path, "all")
    assert (await look(tmp_path)).consents_since == NOW
    with closing(sqlite3.connect(path)) as connection:
        assert not connection.execute("SELECT * FROM sqlite_master WHERE name = 'news'").fetchall()


# What it makes of damage


@pytest.mark.parametrize("length", [1, 15, 16, 100, 1_000, 4_095, 4_096, 4_097, 8_192, 12_288, -4_096, -1])
async def test_truncated_file_never_says_more_than_was_said(tmp_path, length):
    """A file that was cut short gives the choice it held, none, or the store's own error."""
    path = await keep(tmp_path, "none")
    path.write_bytes(path.read_bytes()[:length])
    with suppress(ConsentStoreError):
        kept = await look(tmp_path)
        assert kept is None or kept.purposes == "none"


async def test_empty_file_is_a_new_one(tmp_path):
    """An empty file, as a crash during the first start leaves it, holds no choice and takes one."""
    (tmp_path / "alloy.sqlite3").touch(mode=0o600)
    assert await look(tmp_path) is None
    await keep(tmp_path, "none")
    assert (await look(tmp_path)).purposes == "none"


@given(st.data())
async def test_damaged_file_never_gives_consent(data):
    """Whatever bytes are changed in a file that holds a refusal: it never says "all", nor raises a foreign error."""
    with tempfile.TemporaryDirectory() as folder:
        path = await keep(folder, "none")
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 8))):
            near = data.draw(st.sampled_from([0, 100, *range(4_096, len(content), 4_096)]))
            place = data.draw(
                st.integers(near, min(near + 200, len(content) - 1)) | st.integers(0, len(content) - 1)
            )
            content[place] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        with suppress(ConsentStoreError):
            kept = await look(folder)
            assert kept is None or kept.purposes == "none"


# Places that cannot be used, through Alloy


def as_symlink(folder):
    (folder / "elsewhere").touch(mode=0o600)
    (folder / "alloy.sqlite3").symlink_to(folder / "elsewhere")


def as_link_to_nothing(folder):
    (folder / "alloy.sqlite3").symlink_to(folder / "nothing")


def as_folder(folder):
    (folder / "alloy.sqlite3").mkdir()


def as_pipe(folder):
    os.mkfifo(folder / "alloy.sqlite3", 0o600)


def as_random_bytes(folder):
    (folder / "alloy.sqlite3").write_bytes(random.Random(1).randbytes(10_000))


def as_text(folder):
    (folder / "alloy.sqlite3").write_text("all\n" * 1_000)


async def as_truncated(folder):
    path = await keep(folder)
    path.write_bytes(path.read_bytes()[:5_000])


async def as_newer(folder):
    change(await keep(folder), f"PRAGMA user_version = {sqlite.SCHEMA_VERSION + 1}")


async def as_file_of_another_user(folder):
    if os.geteuid() != 0:
        pytest.skip("only root can give files to other users")
    os.chown(await keep(folder), NOBODY, NOBODY)


async def as_folder_for_everybody(folder):
    await keep(folder)
    folder.chmod(0o777)


async def as_folder_for_a_group(folder):
    await keep(folder)
    folder.chmod(0o770)


async def as_folder_for_everybody_but_sticky(folder):
    await keep(folder)
    folder.chmod(0o1777)


BAD_PLACES = [
    as_symlink,
    as_link_to_nothing,
    as_folder,
    as_pipe,
    as_random_bytes,
    as_text,
    as_truncated,
    as_newer,
    as_file_of_another_user,
    as_folder_for_everybody,
    as_folder_for_a_group,
]


@posix
@pytest.mark.parametrize("spoil", BAD_PLACES)
class TestBadPlace:
    """A file that cannot be used; most of them hold an "all" that must not count."""

    @pytest.fixture
    async def folder(self, tmp_path, spoil):
        """A folder with the bad file."""
        folder = tmp_path / "state"
        folder.mkdir(mode=0o700)
        outcome = spoil(folder)
        if outcome is not None:
            await outcome
        return folder

    async def test_choice_is_unknown_and_said_so(self, folder, edge, clock, caplog):
        """``configure`` succeeds, one warning names the file, and an event waits."""
        async with configured(folder, edge, clock) as alloy:
            await check_unknown(alloy, folder, caplog)
        assert edge.requests == []

    async def test_refusal_holds_in_memory(self, folder, edge, clock):
        """ "none" ends with ``ConsentStoreError`` and holds all the same."""
        async with configured(folder, edge, clock) as alloy:
            await check_refusal_holds(alloy)
        assert edge.requests == []

    async def test_consent_needs_the_store(self, folder, edge, clock):
        """ "all" ends with ``ConsentStoreError`` and releases nothing."""
        async with configured(folder, edge, clock) as alloy:
            await check_consent_needs_the_store(alloy)
        assert edge.requests == []

    async def test_consent_cannot_be_switched_off_unseen(self, folder, edge, clock):
        """With consent switched off ``configure`` fails: a refusal may be kept that nobody can read."""
        with pytest.raises(ConsentStoreError, match=r"alloy.sqlite3"):
            await Alloy().configure(**in_folder(folder, edge, clock), opt_in_enabled=False)

    async def test_file_is_left_as_it_is(self, folder, edge, clock):
        """Nothing repairs, replaces or follows the bad file."""
        before = {path.name: described(path) for path in folder.iterdir()}
        async with configured(folder, edge, clock) as alloy:
            for purposes in ("all", "none"):
                with pytest.raises(ConsentStoreError):
                    await alloy.opt_in(purposes=purposes)
        assert {path.name: described(path) for path in folder.iterdir()} == before


@posix
async def test_sticky_folder_for_everybody_is_refused(tmp_path, edge, clock, caplog):
    """A folder like /tmp is refused too: another user could put a journal there, which SQLite would play back."""
    await as_folder_for_everybody_but_sticky(tmp_path)
    async with configured(tmp_path, edge, clock) as alloy:
        await check_unknown(alloy, tmp_path, caplog)


@as_root
async def test_folder_of_another_user_is_refused(tmp_path, edge, clock, caplog):
    """Whoever owns the folder may put a journal or another file there."""
    await keep(tmp_path)
    os.chown(tmp_path, NOBODY, NOBODY)
    async with configured(tmp_path, edge, clock) as alloy:
        await check_unknown(alloy, tmp_path, caplog)


async def test_file_in_place_of_the_folder(tmp_path, edge, clock, caplog):
    """A file where the folder should be is a bad place like the others."""
    (tmp_path / "state").touch()
    async with configured(tmp_path / "state", edge, clock) as alloy:
        await check_unknown(alloy, tmp_path / "state", caplog)
        await check_refusal_holds(alloy)


@posix
@pytest.mark.parametrize("refused", ["file", "folder"])
async def test_unreadable(edge, clock, caplog, refused):
    """A file or folder that the user may not look into is a bad place like the others."""
    with ordinary_user() as folder:
        path = await keep(folder / "state")
        (path if refused == "file" else path.parent).chmod(0o000)
        async with configured(path.parent, edge, clock) as alloy:
            await check_unknown(alloy, path.parent, caplog)
            await check_consent_needs_the_store(alloy)
            await check_refusal_holds(alloy)
        with pytest.raises(ConsentStoreError):
            await Alloy().configure(**in_folder(path.parent, edge, clock), opt_in_enabled=False)
        path.parent.chmod(0o700)
    assert edge.requests == []


@posix
@pytest.mark.parametrize(("refused", "bits"), [("file", 0o400), ("folder", 0o500)])
async def test_read_only(edge, clock, refused, bits):
    """From a read-only file or folder a choice is read; a new one ends with an error that says what to do."""
    with ordinary_user() as folder:
        path = await keep(folder / "state", "all")
        (path if refused == "file" else path.parent).chmod(bits)
        async with configured(path.parent, edge, clock) as alloy:
            await alloy.event(type="a")
            with pytest.raises(ConsentStoreError, match=r"writable|permissions"):
                await alloy.opt_in(purposes="none")
            with pytest.raises(ConsentDeclined):
                await alloy.event(type="b")
        path.parent.chmod(0o700)
    assert edge.event_types == ["a"]


@posix
async def test_read_only_folder_without_a_file(edge, clock):
    """Where no file can be made there is no choice, and none can be kept."""
    with ordinary_user() as folder:
        folder.chmod(0o500)
        async with configured(folder, edge, clock) as alloy:
            await check_consent_needs_the_store(alloy)
            await check_refusal_holds(alloy)
        folder.chmod(0o700)
    assert edge.requests == []


@pytest.mark.usefixtures("no_waiting")
async def test_locked_file(tmp_path, edge, clock, caplog):
    """A file that another process holds is a bad place, until it lets go: then the refusal is written after all."""
    path = await keep(tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ConsentStoreError, match=r"locked"):
            await Alloy().configure(**in_folder(tmp_path, edge, clock), opt_in_enabled=False)
        async with configured(tmp_path, edge, clock) as alloy:
            await check_unknown(alloy, tmp_path, caplog)
            await check_consent_needs_the_store(alloy)
            await check_refusal_holds(alloy)
            other.execute("ROLLBACK")
            clock.advance(1)
            await until_idle(alloy)
            assert (await look(tmp_path)).purposes == "none"
    assert edge.requests == []


async def test_lock_that_is_released_in_time_is_waited_for(tmp_path):
    """A short transaction of another process delays a call and does not fail it."""
    path = await keep(tmp_path)
    store = SQLiteStore(tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        loading = asyncio.create_task(store.load_preference(KEY))
        await settle()
        other.execute("ROLLBACK")
        assert (await loading).purposes == "all"
    await store.aclose()


@pytest.mark.parametrize("purposes", ["all", "none"])
async def test_choice_is_written_under_one_lock(store, purposes):
    """From its first look into the file until it is written, no other process can write in between."""
    await store.save_preference(KEY, choice("all"))
    refused = []

    def while_writing(statement):
        if statement.startswith("INSERT OR REPLACE INTO preference"):
            with closing(sqlite3.connect(store.path, timeout=0, isolation_level=None)) as other:
                try:
                    other.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError as error:
                    refused.append(str(error))

    await store._database.run(lambda connection: connection.set_trace_callback(while_writing))
    await store.save_preference(KEY, choice(purposes))
    assert refused == ["database is locked"]


async def test_full_disk(tmp_path, edge, clock, monkeypatch):
    """On a full disk no choice can be kept: "all" releases nothing, "none" holds in memory."""
    prepare = sqlite._prepare

    def on_a_full_disk(connection, position):
        connection.execute("PRAGMA max_page_count = 2")
        prepare(connection, position)

    monkeypatch.setattr(sqlite, "_prepare", on_a_full_disk)
    async with configured(tmp_path, edge, clock) as alloy:
        with pytest.raises(ConsentStoreError, match=r"full.*Free some space"):
            await alloy.opt_in(purposes="all")
        await check_consent_needs_the_store(alloy)
        await check_refusal_holds(alloy)
    assert edge.requests == []


async def test_connection_that_failed_is_opened_again(store):
    """The first call after a failure finds a new connection, and what was kept before."""
    await store.save_preference(KEY, choice("none"))
    await store._database.run(lambda connection: connection.execute("PRAGMA max_page_count = 1").fetchone())
    with pytest.raises(ConsentStoreError, match=r"full"):
        await store.save_preference(KEY._replace(visitor="x" * 100_000), choice("all"))
    assert (await store.load_preference(KEY)).purposes == "none"
    await store.save_preference(KEY._replace(visitor="x" * 100_000), choice("all"))


async def test_bad_file_that_is_moved_away_is_bad_no_more(tmp_path, edge, clock):
    """Once the bad file is gone the running instance goes on with a new one."""
    as_text(tmp_path)
    async with configured(tmp_path, edge, clock) as alloy:
        with pytest.raises(ConsentStoreError):
            await alloy.opt_in(purposes="all")
        (tmp_path / "alloy.sqlite3").rename(tmp_path / "away")
        await alloy.opt_in(purposes="all")
    assert (await look(tmp_path)).purposes == "all"


async def test_write_ahead_log_of_another_tool_is_not_kept(tmp_path):
    """A file that some tool has switched to a write-ahead log is switched back: the log would keep what was erased."""
    change(await keep(tmp_path), "PRAGMA journal_mode = WAL")
    store = SQLiteStore(tmp_path)
    await store.save_identity(KEY, IDENTITY)
    await store.save_preference(KEY, choice("none"))
    found = [path.name for path in tmp_path.iterdir() if IDENTITY.fpid.encode() in path.read_bytes()]
    await store.aclose()
    assert found == []


@pytest.mark.parametrize("how", ["delete", "replace"])
@pytest.mark.parametrize("purposes", ["all", "none"])
async def test_choice_is_never_written_into_a_lost_file(store, tmp_path, how, purposes):
    """After somebody deleted or replaced the file, a choice that counts as kept is found by the next start."""
    await store.save_preference(KEY, choice("all" if purposes == "none" else "none"))
    if how == "delete":
        store.path.unlink()
    else:
        (await keep(tmp_path / "other", "none")).replace(store.path)
    try:
        await store.save_preference(KEY, choice(purposes))
    except ConsentStoreError:
        await store.save_preference(KEY, choice(purposes))
    assert (await look(store.path.parent)).purposes == purposes


# The thread


async def test_thread_ends_with_closing(store):
    """Closing ends the thread; the next call starts another one."""
    await store.save_preference(KEY, choice("all"))
    thread = store._database._thread
    await store.aclose()
    thread.join(10)
    assert not thread.is_alive()
    assert (await store.load_preference(KEY)).purposes == "all"


async def test_thread_ends_with_the_store(tmp_path):
    """A store that nobody closed and nobody holds takes its thread along."""
    store = SQLiteStore(tmp_path)
    await store.save_preference(KEY, choice("all"))
    thread = store._database._thread
    await settle()  # the turn of the loop that brought the answer holds it until the turn is over
    del store
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


async def test_thread_ends_with_a_store_that_failed(tmp_path):
    """A failed call does not keep a dropped store, and with it the thread, alive."""
    as_text(tmp_path)
    store = SQLiteStore(tmp_path)
    with pytest.raises(ConsentStoreError):
        await store.save_preference(KEY, choice("all"))
    thread = store._database._thread
    await settle()  # the turn of the loop that brought the answer holds it until the turn is over
    del store
    for _ in range(100):  # the error refers to the store until the thread, too, has let go of it
        gc.collect()
        thread.join(0.1)
        if not thread.is_alive():
            break
    assert not thread.is_alive()


async def test_thread_does_not_keep_the_interpreter(store):
    """The thread is a daemon: a disk that hangs does not hold the end of the process."""
    await store.save_preference(KEY, choice("all"))
    assert store._database._thread.daemon


async def test_calls_that_wait_are_done_before_closing(store):
    """Closing comes after the calls that were made before it."""
    await store.save_preference(KEY, choice("all"))
    with busy(store):
        saving = asyncio.create_task(store.save_preference(KEY, choice("none")))
        await settle()
        closing = asyncio.create_task(store.aclose())
        await settle()
        assert not closing.done()
    await asyncio.gather(saving, closing)
    assert (await look(store.path.parent)).purposes == "none"


async def test_call_during_closing_has_one_thread_to_itself(store):
    """A call that is made while closing waits for the old thread neither steals its end nor runs beside it."""
    await store.save_preference(KEY, choice("all"))
    old = store._database._thread
    with busy(store):
        closing = asyncio.create_task(store.aclose())
        await settle()
        saving = asyncio.create_task(store.save_preference(KEY, choice("none")))
        await settle()
        started = store._database._thread
        started.join(0.2)
        assert not closing.done(), "the file is said to be closed while the old thread still works on it"
    await asyncio.gather(saving, closing)
    old.join(10)
    assert not old.is_alive()
    assert (await store.load_preference(KEY)).purposes == "none"


async def test_cancelled_call_is_carried_out(store):
    """Cancelling whoever waits for a save does not stop it."""
    await store.save_preference(KEY, choice("all"))
    with busy(store):
        saving = asyncio.create_task(store.save_preference(KEY, choice("none")))
        await settle()
        saving.cancel()
        await asyncio.wait([saving])
    assert (await store.load_preference(KEY)).purposes == "none"


def test_store_outlives_its_loop(tmp_path):
    """A store works in one event loop after another, also when the first ended with a call under way."""
    store = SQLiteStore(tmp_path)
    asyncio.run(store.save_preference(KEY, choice("all")))
    gate = threading.Event()

    async def leave_something():
        asyncio.get_running_loop().create_task(store._database.run(lambda _: gate.wait(10)))
        await settle()

    asyncio.run(leave_something())
    gate.set()
    assert asyncio.run(store.load_preference(KEY)).purposes == "all"
    asyncio.run(store.aclose())


def test_store_is_shared_by_loops_in_several_threads(tmp_path):
    """Stores may be shared by loops in several threads: one thread of the store serves them all."""
    store = SQLiteStore(tmp_path)
    start = threading.Barrier(4)

    async def save(number):
        start.wait(10)
        for step in range(5):
            await store.save_preference(KEY._replace(visitor=f"{number}"), choice(("all", "none")[step % 2]))

    threads = [
        threading.Thread(target=lambda number=number: asyncio.run(save(number))) for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    kept = [asyncio.run(store.load_preference(KEY._replace(visitor=f"{number}"))) for number in range(4)]
    asyncio.run(store.aclose())
    assert [preference.purposes for preference in kept] == ["all"] * 4


async def test_thread_that_cannot_start(tmp_path, monkeypatch):
    """Where no thread can be started a call ends with ``ConsentStoreError``, and works once one can."""
    store = SQLiteStore(tmp_path)

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(ConsentStoreError, match=r"thread"):
            await store.save_preference(KEY, choice("all"))
    async with asyncio.timeout(10):
        await store.save_preference(KEY, choice("all"))
        await store.aclose()


async def test_error_of_the_work_is_not_the_end_of_the_thread(tmp_path):
    """Whatever a function raises reaches whoever waits for it, and the next function runs."""
    database = Database(tmp_path / "any.sqlite3", lambda connection: None, tables=frozenset())

    def fail(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await database.run(fail)
    assert await database.run(lambda connection: connection.execute("SELECT 1").fetchone()) == (1,)
    await database.aclose()


# What the tests above share


def edit(path, values, table="preference"):
    """Write values into the table's rows by hand."""
    assignments = ", ".join(f"{column} = ?" for column in values)
    change(path, f"UPDATE {table} SET {assignments}", *values.values())


def change(path, statement, *values):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement, values).fetchall()


@contextmanager
def busy(store):
    """Keep the store's thread busy for the time of the block."""
    gate = threading.Event()
    # Put in by hand: a task would have to be awaited by the loop that this block keeps for itself.
    store._database._jobs.put(_Job(lambda _: gate.wait(10), asyncio.Future(), create=True))
    try:
        yield
    finally:
        gate.set()


def described(path):
    """What a file is, without opening what is no file."""
    status = path.lstat()
    content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
    return stat.S_IFMT(status.st_mode), status.st_size, content


def in_folder(folder, edge, clock):
    return {**IDS, "state_dir": str(folder), "transport": edge, "clock": clock}


class configured:
    """An instance that waits for consent and keeps the choice in a folder."""

    def __init__(self, folder, edge, clock):
        self.alloy = Alloy()
        self.options = in_folder(folder, edge, clock)

    async def __aenter__(self):
        await self.alloy.configure(**self.options, opt_in_enabled=True)
        return self.alloy

    async def __aexit__(self, *_):
        await self.alloy.aclose()


def quietly(future):
    """Look at a future's failure, so that nobody hears of it."""
    future.add_done_callback(lambda future: future.cancelled() or future.exception())
    return future


async def until_idle(alloy):
    """Wait until the store's thread and the loop have nothing left to do."""
    for _ in range(5):
        with suppress(OSError):
            await alloy._engine._store._database.run(lambda _: None, create=False)
        await settle()


def warned(caplog):
    """What the library warned of."""
    return [
        record
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("alloy_async")
    ]


async def check_unknown(alloy, folder, caplog):
    """Nothing is known of the choice: one warning with the file's path, and an event waits."""
    warnings = warned(caplog)
    assert len(warnings) == 1
    assert str(folder / "alloy.sqlite3") in warnings[0].getMessage()
    event = quietly(alloy.event(type="a"))
    await settle()
    assert not event.done()
    assert alloy.statistics().parked == 1


async def check_refusal_holds(alloy):
    with pytest.raises(ConsentStoreError, match=r"alloy.sqlite3"):
        await alloy.opt_in(purposes="none")
    with pytest.raises(ConsentDeclined):
        await alloy.event(type="b")


async def check_consent_needs_the_store(alloy):
    event = quietly(alloy.event(type="c"))
    with pytest.raises(ConsentStoreError, match=r"alloy.sqlite3"):
        await alloy.opt_in(purposes="all")
    await settle()
    assert not event.done()
