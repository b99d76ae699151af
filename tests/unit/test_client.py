"""``Alloy``: commands, their order, and how they end."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest
from common import IDS, settle

from alloy_async import (
    Alloy,
    AlloyClosed,
    AlloyError,
    ConfigurationError,
    ConsentDeclined,
    ConsentStoreError,
    EventTooLarge,
    InvalidCommand,
    NotConfigured,
)
from alloy_async.stores import MemoryStore


class SlowStore(MemoryStore):
    """Answers when it is told to."""

    def __init__(self):
        super().__init__()
        self.goes_on = asyncio.Event()

    async def load_preference(self, key):
        await self.goes_on.wait()
        return await super().load_preference(key)


class BrokenStore(MemoryStore):
    """Fails in the way that its ``failing`` names."""

    failing: type[Exception] | None = ConsentStoreError

    async def save_preference(self, key, preference, *, by=""):
        if self.failing is ConsentStoreError:
            raise ConsentStoreError("save", "a broken store", "it is broken.")
        if self.failing is not None:
            raise self.failing("secret detail")
        await super().save_preference(key, preference, by=by)


async def test_every_command_returns_a_future_at_once(alloy):
    """No command is a coroutine, and none blocks."""
    commands = [
        alloy.event(),
        alloy.get_ecid(),
        alloy.set_customer_ids({"CRMID": {"id": "u-1"}}),
        alloy.create_event_merge_id(),
        alloy.get_library_info(),
        alloy.debug(enabled=False),
        alloy.flush(),
        alloy.opt_in(purposes="all"),
        alloy.forget(),
    ]
    assert all(isinstance(future, asyncio.Future) for future in commands)
    await asyncio.wait(commands)


async def test_browser_spelling_word_for_word(options, edge):
    """The seed's calls work as they are written there."""
    async with Alloy() as alloy:
        await alloy(
            "configure",
            {
                "configId": "ebebf826-a01f-4458-8cec-ef61de241c93",
                "imsOrgId": "ADB3LETTERSANDNUMBERS@AdobeOrg",
                "optInEnabled": True,
                "transport": edge,
                "store": options["store"],
            },
        )
        event = alloy(
            "event", {"xdm": {"eventType": "page.view"}, "data": {"k": 1}, "mergeId": "m", "viewStart": True}
        )
        await alloy("optIn", {"purposes": "all"})
        await event
    assert edge.event_types == ["page.view"]
    assert edge.events[0]["xdm"]["eventMergeId"] == "m"


@pytest.mark.parametrize(
    ("name", "given", "hint"),
    [
        ("evnt", {}, "Did you mean event"),
        ("optin", {}, "Did you mean opt"),
        ("", {}, "does not exist"),
        (None, {}, "does not exist"),
        ("event", {"xdmm": {}}, "Did you mean xdm"),
        ("event", {"viewstart": True}, "Did you mean viewStart"),
        ("optIn", {"purposes": "all", "extra": 1}, "unknown option"),
        ("event", ["xdm"], "must be an object"),
    ],
)
async def test_wrong_spellings_travel_in_the_future(alloy, edge, name, given, hint):
    """An unknown command or option is refused with the nearest match, and the instance stays usable."""
    error = alloy(name, given).exception()
    assert isinstance(error, InvalidCommand)
    assert hint in str(error)
    await alloy.opt_in(purposes="all")
    await alloy.event()


async def test_commands_before_configure_are_refused(edge):
    """Every command but configure needs it first."""
    alloy = Alloy()
    for future in [
        alloy.event(),
        alloy.opt_in(purposes="all"),
        alloy.get_library_info(),
        alloy.flush(),
        alloy.forget(),
    ]:
        assert isinstance(future.exception(), NotConfigured)


async def test_commands_wait_for_configure_in_order(options, edge):
    """What is called while configure is under way waits for it, and goes in order."""
    store = SlowStore()
    alloy = Alloy()
    configured = alloy.configure(**options | {"store": store, "opt_in_enabled": False})
    events = [alloy.event(type=str(number)) for number in range(3)]
    info = alloy.get_library_info()
    await settle()
    assert not any(future.done() for future in [configured, *events, info])
    store.goes_on.set()
    await asyncio.gather(configured, *events, info)
    assert edge.event_types == ["0", "1", "2"]
    await alloy.aclose()


async def test_a_choice_made_while_configure_is_under_way_wins(options, edge):
    """The kept choice of an earlier start does not undo what was said meanwhile."""
    store = SlowStore()
    store.goes_on.set()
    async with Alloy() as first:
        await first.configure(**options | {"store": store})
        await first.opt_in(purposes="all")
    store.goes_on.clear()
    async with Alloy() as second:
        configured = second.configure(**options | {"store": store})
        refused = second.opt_in(purposes="none")
        event = second.event()
        store.goes_on.set()
        await configured
        assert await refused == "none"
        assert isinstance(event.exception(), ConsentDeclined)
    assert edge.requests == []


async def test_commands_end_when_configure_fails(options, store, edge):
    """If configure fails, what waited for it ends with NotConfigured, and configure may be called again."""
    async with Alloy() as first:
        await first.configure(**options)
        await first.opt_in(purposes="none")
    alloy = Alloy()
    configured = alloy.configure(**options | {"opt_in_enabled": False})
    event, info = alloy.event(), alloy.get_library_info()
    with pytest.raises(ConfigurationError, match="declined"):
        await configured
    assert isinstance(event.exception(), NotConfigured)
    assert isinstance(info.exception(), NotConfigured)
    await alloy.configure(**options)
    assert isinstance(alloy.event().exception(), ConsentDeclined)
    await alloy.aclose()
    assert edge.requests == []


async def test_a_second_configure_is_refused(alloy, options, edge):
    """An instance is configured once; the first configuration stays."""
    error = alloy.configure(**options | {"opt_in_enabled": False}).exception()
    assert isinstance(error, ConfigurationError)
    assert "already" in str(error)
    assert not alloy.event().done()


async def test_a_choice_is_refused_while_consent_is_switched_off(options):
    """A choice that would change nothing is never swallowed."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"opt_in_enabled": False})
        error = alloy.opt_in(purposes="none").exception()
        assert isinstance(error, ConfigurationError)
        assert "opt_in_enabled" in str(error)


@pytest.mark.parametrize("value", ["off", "yes", 1, 0, None, "true"])
async def test_only_booleans_switch_consent(options, value):
    """Whether consent is asked for is never guessed."""
    error = Alloy().configure(**options | {"opt_in_enabled": value}).exception()
    assert isinstance(error, ConfigurationError)
    assert "opt_in_enabled" in str(error)


async def test_none_holds_at_once_everywhere(alloy, edge):
    """A refusal ends what is parked, queued and later called, before any await."""
    await alloy.opt_in(purposes="all")
    edge.hold()
    on_the_wire = alloy.event(type="wire", view_start=True)
    await settle()
    queued = [alloy.event(type="queued") for _ in range(5)]
    refusing = alloy.opt_in(purposes="none")
    assert all(isinstance(future.exception(), ConsentDeclined) for future in [*queued, alloy.event()])
    edge.release()
    await refusing
    assert (await on_the_wire).event_id, "what is on the wire settles with the truth"
    assert edge.event_types == ["wire"]


async def test_nothing_of_an_answer_is_kept_after_a_refusal(alloy, edge, store):
    """An answer that comes after the refusal teaches nothing, also after a new yes."""
    await alloy.opt_in(purposes="all")
    edge.hold()
    alloy.event(view_start=True)
    await settle()
    await alloy.opt_in(purposes="none")
    await alloy.opt_in(purposes="all")
    edge.release()
    await settle()
    event = alloy.event(type="later")
    await event
    assert list(edge.events[-1]["xdm"]["identityMap"]) == ["FPID"], "no ECID of the identity that was erased"
    assert edge.events[0]["xdm"]["identityMap"] != edge.events[-1]["xdm"]["identityMap"]


async def test_all_releases_only_once_written(options, edge):
    """A yes that cannot be written is heard, and releases nothing."""
    store = BrokenStore()
    async with Alloy() as alloy:
        await alloy.configure(**options | {"store": store})
        event = alloy.event()
        with pytest.raises(ConsentStoreError, match="broken"):
            await alloy.opt_in(purposes="all")
        await settle()
        assert not event.done()
        assert edge.requests == []
        store.failing = None
        assert await alloy.opt_in(purposes="all") == "all"
        await event


async def test_none_holds_although_it_cannot_be_written(options, edge, clock, caplog):
    """A refusal holds in memory, its failure is heard, and writing it is tried again until close."""
    store = BrokenStore()
    async with Alloy() as alloy:
        await alloy.configure(**options | {"store": store})
        event = alloy.event()
        with pytest.raises(ConsentStoreError):
            await alloy.opt_in(purposes="none")
        assert isinstance(event.exception(), ConsentDeclined)
        clock.advance(1)
        await settle()
        assert not store._preferences
        store.failing = None
        clock.advance(2)
        await settle()
        assert [preference.purposes for preference in store._preferences.values()] == ["none"]


async def test_a_refusal_is_written_at_close_at_the_latest(options):
    """Closing tries once more."""
    store = BrokenStore()
    async with Alloy() as alloy:
        await alloy.configure(**options | {"store": store})
        with pytest.raises(ConsentStoreError):
            await alloy.opt_in(purposes="none")
        store.failing = None
    assert [preference.purposes for preference in store._preferences.values()] == ["none"]


async def test_a_refusal_stands_when_lifting_it_fails(options, edge):
    """none, then an "all" that cannot be written: what came in between is refused."""
    store = BrokenStore()
    store.failing = None
    async with Alloy() as alloy:
        await alloy.configure(**options | {"store": store})
        await alloy.opt_in(purposes="none")
        store.failing = ConsentStoreError
        lifting = alloy.opt_in(purposes="all")
        between = alloy.event()
        assert not between.done(), "waits while it is being written"
        with pytest.raises(ConsentStoreError):
            await lifting
        assert isinstance(between.exception(), ConsentDeclined)
        assert isinstance(alloy.event().exception(), ConsentDeclined)
    assert edge.requests == []


async def test_a_store_that_raises_something_else_is_documented_too(options):
    """A foreign exception of a store never reaches the caller, nor its text."""
    store = BrokenStore()
    store.failing = ZeroDivisionError
    async with Alloy() as alloy:
        await alloy.configure(**options | {"store": store})
        error = await _error(alloy.opt_in(purposes="all"))
        assert isinstance(error, ConsentStoreError)
        assert "ZeroDivisionError" in str(error)
        assert "secret" not in str(error)
        store.failing = None


async def _error(future):
    await asyncio.wait([future])
    return future.exception()


async def test_the_later_of_two_choices_wins(alloy, edge):
    """Both futures of overlapping choices end with the one that holds."""
    event = alloy.event()
    first, second = alloy.opt_in(purposes="all"), alloy.opt_in(purposes="none")
    assert [await first, await second] == ["none", "none"]
    assert isinstance(event.exception(), ConsentDeclined)
    first, second = alloy.opt_in(purposes="none"), alloy.opt_in(purposes="all")
    later = alloy.event(type="later")
    assert [await first, await second] == ["all", "all"]
    await later
    assert edge.event_types == ["later"]


async def test_cancelling_a_choice_never_withdraws_it(alloy, edge):
    """The choice is the person's, not the future's."""
    event = alloy.event()
    alloy.opt_in(purposes="all").cancel()
    await event
    assert len(edge.events) == 1


async def test_forget_asks_again_and_erases(alloy, edge, store):
    """Forgetting erases choice and identity, ends what waits, and parks what comes."""
    await alloy.opt_in(purposes="all")
    await alloy.event()
    assert store._identities
    await alloy.forget()
    assert not store._preferences
    assert not store._identities
    parked = alloy.event()
    await settle()
    assert not parked.done()


async def test_a_choice_that_expires_while_running_is_asked_for_again(alloy, options, edge, clock):
    """An expired yes is no yes: events wait again, also those that were queued."""
    await alloy.opt_in(purposes="all")
    await alloy.event(type="in time")
    clock.advance(15_552_000)
    late = alloy.event(type="late")
    await settle()
    assert not late.done()
    await alloy.opt_in(purposes="all")
    await late
    assert edge.event_types == ["in time", "late"]


async def test_cancelling_withdraws_what_is_parked_or_queued(alloy, edge):
    """A withdrawn event is not sent, and the books say so."""
    parked, kept = alloy.event(type="parked"), alloy.event(type="kept")
    parked.cancel()
    await alloy.opt_in(purposes="all")
    await kept
    queued = alloy.event(type="queued")
    queued.cancel()
    await settle()
    assert edge.event_types == ["kept"]
    assert alloy.statistics().cancelled == 2


async def test_cancelling_on_the_wire_only_stops_the_waiting(alloy, edge):
    """The exchange goes on, and the books tell the truth."""
    await alloy.opt_in(purposes="all")
    edge.hold()
    event = alloy.event(view_start=True)
    await settle()
    event.cancel()
    edge.release()
    await alloy.flush()
    assert alloy.statistics().delivered == 1


async def test_a_cancelled_task_does_not_disturb_the_exchange(alloy, edge):
    """Cancelling the awaiting task leaves the request, and everybody else's, alone."""
    await alloy.opt_in(purposes="all")
    edge.hold()
    first, second = alloy.event(type="a"), alloy.event(type="b")
    task = asyncio.create_task(asyncio.wait_for(first, 10))
    await settle()
    task.cancel()
    await asyncio.wait([task])
    edge.release()
    await second
    assert alloy.statistics().delivered == 2


async def test_snapshot_is_taken_at_the_call(alloy, edge, clock):
    """Later changes to the caller's objects, and later time, change nothing."""
    xdm, data = {"items": [{"n": 1}]}, {"k": [1]}
    event = alloy.event(xdm=xdm, data=data)
    xdm["items"][0]["n"] = 2
    data["k"].append(2)
    clock.advance(3_600)
    await alloy.opt_in(purposes="all")
    await event
    sent = edge.events[0]
    assert sent["xdm"]["items"] == [{"n": 1}]
    assert sent["data"] == {"k": [1]}
    assert sent["xdm"]["timestamp"] == "2026-01-01T00:00:00.000Z"


async def test_an_event_that_can_never_fit_is_refused_at_the_call(alloy):
    """Too large is told at once, with the numbers."""
    error = alloy.event(data="x" * 70_000).exception()
    assert isinstance(error, EventTooLarge)
    assert error.size > error.limit
    assert alloy.statistics().accepted == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"type": 5},
        {"type": ""},
        {"merge_id": {}},
        {"view_start": "yes"},
        {"decision_scopes": "hero"},
        {"decision_scopes": [1]},
        {"decision_scopes": ["s"] * 31},
        {"xdm": "text"},
        {"xdm": {"_id": 5}},
        {"xdm": {"identityMap": {"CRMID": [{"id": ""}]}}},
        {"xdm": {"identityMap": {"CRMID": {"id": "x"}}}},
        {"data": {1: 2}},
    ],
)
async def test_wrong_values_travel_in_the_future(alloy, arguments):
    """A wrong value never throws into the caller; the error names where it is."""
    error = alloy.event(**arguments).exception()
    assert isinstance(error, InvalidCommand)
    assert next(iter(arguments)) in str(error)


async def test_unknown_keywords_raise_as_python_does(alloy):
    """What Python itself rejects raises at the call."""
    with pytest.raises(TypeError):
        alloy.event(xdmm={})


def test_needs_a_running_loop():
    """Where no loop runs, a command raises Python's own error; making an instance does not need one."""
    alloy = Alloy()
    with pytest.raises(RuntimeError, match="no running event loop"):
        alloy.event()


async def test_another_loop_is_told_plainly(alloy):
    """A call from another thread's loop ends with a clear error there, and changes nothing here."""
    seen = []

    async def elsewhere():
        seen.extend([alloy.event().exception(), alloy.opt_in(purposes="none").exception()])

    thread = threading.Thread(target=asyncio.run, args=(elsewhere(),))
    thread.start()
    thread.join()
    assert [type(error) for error in seen] == [InvalidCommand, InvalidCommand]
    assert not alloy.event().done()


@pytest.mark.parametrize("name", ["a/b", "", "x" * 65, "..", "a b", "ü", None, 5])
def test_names_are_checked(name):
    """An instance's name is fit for a log line and a file name."""
    with pytest.raises(ConfigurationError, match="name"):
        Alloy(name)


async def test_instances_do_not_share_consent(options, edge):
    """Two organisations: each instance follows its own visitor's choice."""
    one, two = Alloy(), Alloy("second")
    await one.configure(**options)
    await two.configure(**options | {"config_id": "cfg-2", "ims_org_id": "TWO@AdobeOrg"})
    first, second = one.event(type="a"), two.event(type="b")
    await one.opt_in(purposes="all")
    await two.opt_in(purposes="none")
    await first
    assert isinstance(second.exception(), ConsentDeclined)
    assert edge.event_types == ["a"]
    await one.aclose()
    await two.aclose()


async def test_the_preference_belongs_to_organisation_and_datastream(options, edge):
    """Another instance of another name, for the same two, uses the same choice."""
    async with Alloy("first") as first:
        await first.configure(**options)
        await first.opt_in(purposes="all")
    async with Alloy("second") as second:
        await second.configure(**options)
        await second.event()
    async with Alloy("third") as third:
        await third.configure(**options | {"config_id": "another"})
        event = third.event()
        await settle()
        assert not event.done()


async def test_closing_ends_everything(options, edge, clock):
    """What is parked ends at once, what is under way after the grace time; the summary adds up."""
    alloy = Alloy()
    await alloy.configure(**options)
    parked = alloy.event()
    gated = alloy.get_ecid()
    closing = asyncio.ensure_future(alloy.aclose(grace=3))
    await settle()
    assert isinstance(parked.exception(), AlloyClosed)
    assert isinstance(gated.exception(), AlloyClosed)
    summary = await closing
    assert summary.accepted == summary.failed == 1
    assert summary.open == 0
    assert edge.closed


async def test_closing_waits_for_what_is_under_way_no_longer_than_grace(options, edge, clock):
    """An edge that never answers costs the grace time and no more."""
    alloy = Alloy()
    await alloy.configure(**options)
    await alloy.opt_in(purposes="all")
    edge.hold()
    events = [alloy.event(view_start=True) for _ in range(20)]
    await settle()
    closing = asyncio.ensure_future(alloy.aclose(grace=3))
    await settle()
    assert not closing.done()
    clock.advance(3)
    summary = await closing
    assert {type(event.exception()) for event in events} == {AlloyClosed}
    assert (summary.failed, summary.open) == (20, 0)


@pytest.mark.parametrize("grace", [float("nan"), None, "5", True])
async def test_a_grace_that_is_no_number_closes_nothing(options, grace):
    """It is refused at the call, by its name; the instance goes on, and can still be closed."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"opt_in_enabled": False})
        with pytest.raises(InvalidCommand, match=r"^aclose: grace: must be a number of seconds\.$"):
            await alloy.aclose(grace)
        await alloy.event()
    assert alloy.statistics().delivered == 1


async def test_closing_delivers_what_was_released(options, edge):
    """Leaving the block delivers what was called in it, without an await."""
    async with Alloy() as alloy:
        await alloy.configure(**options)
        await alloy.opt_in(purposes="all")
        for number in range(2_000):
            alloy.event(type=str(number))
    assert edge.event_types == [str(number) for number in range(2_000)]
    assert alloy.statistics().delivered == 2_000


async def test_commands_after_close_are_refused(options):
    """A closed instance says so, and closing twice is harmless."""
    alloy = Alloy()
    await alloy.configure(**options)
    assert await alloy.aclose() == await alloy.aclose()
    for future in [alloy.event(), alloy.configure(**IDS), alloy.opt_in(purposes="all")]:
        assert isinstance(future.exception(), AlloyClosed)


async def test_a_cancelled_close_goes_on(options, edge):
    """Cancelling the caller of aclose does not leave anything open."""
    alloy = Alloy()
    await alloy.configure(**options)
    event = alloy.event()
    task = asyncio.create_task(alloy.aclose())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert isinstance(await _error(event), AlloyClosed)
    await alloy.aclose()
    assert edge.closed


async def test_closing_does_not_wait_for_a_store_for_ever(options, clock):
    """A store that never answers costs the grace time and no more."""
    alloy = Alloy()
    configured = alloy.configure(**options | {"store": SlowStore()})
    event = alloy.event()
    closing = asyncio.ensure_future(alloy.aclose(grace=3))
    await settle()
    assert not closing.done()
    clock.advance(3)
    assert (await closing).failed == 1
    assert isinstance(event.exception(), AlloyError)
    assert isinstance(configured.exception(), AlloyClosed)


async def test_closing_waits_for_configure_and_choices(options, edge, tmp_path):
    """A block that awaits nothing still delivers what was called in it."""
    async with Alloy() as alloy:
        alloy.configure(**options | {"store": "sqlite", "state_dir": tmp_path})
        alloy.event(type="early")
        alloy.opt_in(purposes="all")
    assert edge.event_types == ["early"]


async def test_flush_waits_for_the_released_not_for_the_parked(alloy, edge):
    """A flush ends once what was released has an outcome."""
    parked = alloy.event()
    await alloy.flush()
    assert not parked.done()
    await alloy.opt_in(purposes="all")
    edge.hold()
    events = [alloy.event(view_start=number % 2 == 0) for number in range(20)]
    flushed = alloy.flush()
    await settle()
    assert not flushed.done()
    edge.release()
    await flushed
    assert all(event.done() for event in events)


async def test_errors_may_be_switched_off(options, caplog):
    """With errors switched off a refused command ends with None, and one log line counts them."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"errors_enabled": False})
        events = [alloy.event() for _ in range(5)]
        await alloy.opt_in(purposes="none")
        assert [await event for event in [*events, alloy.event(), alloy.get_ecid()]] == [None] * 7
        assert await alloy.opt_in(purposes="maybe") is None
    lines = [record.getMessage() for record in caplog.records if "ConsentDeclined" in record.getMessage()]
    assert lines == ["7 ConsentDeclined that nobody awaited; the first: " + str(ConsentDeclined("event"))]


async def test_browser_options_are_ignored_and_said_so_once(options, caplog):
    """Options that mean something in a browser only are taken, ignored, and named in one line."""
    async with Alloy() as alloy:
        await alloy("configure", options | {"prehidingStyle": "x", "clickCollectionEnabled": True})
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert lines == ["ignored, they mean something in a browser only: clickCollectionEnabled, prehidingStyle"]


async def test_merge_ids_are_uuids(alloy):
    """A merge id is a text that ``merge_id`` takes."""
    merge_id = await alloy.create_event_merge_id()
    assert len(merge_id) == 36
    assert merge_id != await alloy("createEventMergeId")


async def test_library_info_holds_no_secrets(options):
    """What describes the instance shows settings, and no password."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"proxy": "http://user:hunter2@proxy.example:3128"})
        info = await alloy.get_library_info()
    assert info["settings"]["opt_in_enabled"] is True
    assert "hunter2" not in str(info)


async def test_errors_hold_no_event(alloy, edge):
    """No error, cause or context of a failed command holds what the caller gave."""
    error = alloy.event(data={"secret": float("nan"), "card": "4111"}).exception()
    seen: BaseException | None = error
    while seen is not None:
        assert "4111" not in repr(seen) + repr(seen.__dict__)
        seen = seen.__cause__ or seen.__context__
    assert isinstance(error, AlloyError)
    assert error.__traceback__ is None
