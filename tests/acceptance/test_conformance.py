"""Behaviour recorded from the JavaScript SDK of 2019 in a browser, replayed through ``alloy("…", {...})``.

What is compared: how each command ended, why, and which events were sent, in order. Where we do better on purpose,
``OURS`` is the expectation. What a recording calls ``not_compared`` is not compared.
"""

import asyncio
import collections
import dataclasses
import hashlib
import json
import logging
import pathlib
import sqlite3
from typing import Any

import pytest
from common import settle

from alloy_async import (
    Alloy,
    AlloyClosed,
    AlloyError,
    ConfigurationError,
    ConsentDeclined,
    EdgeError,
    InvalidCommand,
    NotConfigured,
)
from alloy_async.edge.transport import EdgeResponse
from alloy_async.identity import StoredIdentity
from alloy_async.stores import MemoryStore
from alloy_async.stores.base import VisitorKey
from alloy_async.stores.sqlite import SQLiteStore
from alloy_async.testing import CountingIds, ManualClock, RecordingEdge

RECORDING = pathlib.Path(__file__).parents[2].parent / "shared" / "conformance" / "optin.json"

ORGANISATION, DATASTREAM = "ORG@AdobeOrg", "cfg-1"

GONE = "pending (page gone)"
"""How the recording calls a command that nobody answered before its page went away; with us: AlloyClosed."""


@dataclasses.dataclass
class Ours:
    """What we do where the recording says that we do it otherwise.

    Attributes:
        text: what the recording says about us; when it changes, this table must be looked at again.
        ends: place of a command to how it ends: a status, or the kind of its error.
        sent: event types, in order; None: as recorded.
        in_order: whether the order of what was sent is compared.
    """

    text: str
    ends: dict[int, str | type[AlloyError]] = dataclasses.field(default_factory=dict)
    sent: list[str | None] | None = None
    in_order: bool = True


OURS = {
    "all-none-same-tick": Ours(
        "same: the queued events are refused, nothing is sent (consent is asked again right before the wire)"
    ),
    "toggle-many": Ours("same per event"),
    "optout-while-first-in-flight": Ours(
        "better: what is already on the wire settles with the truth (delivered or failed); nothing of its answer is "
        "stored after the refusal",
        {2: "resolved"},
    ),
    "purposes-uppercase-ALL": Ours(
        "better: any letter case is taken and normalised, so ALL releases",
        {1: "resolved", 3: "resolved", 5: "resolved"},
        ["a", "b", "c"],
    ),
    "persist-all-restart": Ours(
        "better: the preference survives a restart of the process or browser (180 days or as configured)",
        {4: "resolved", 5: "resolved"},
        ["a", "b"],
    ),
    "persist-garbage-cookie": Ours("same: an unknown word is never consent; the gate waits"),
    "disabled-optin-none": Ours(
        "better: opt_in while the gate is disabled is refused with ConfigurationError; a choice is never swallowed",
        {1: ConfigurationError},
    ),
    "setCustomerIds-hash": Ours("same digest: SHA-256 hex"),
    "user-overrides": Ours(
        "type sets eventType, mergeId sets eventMergeId; unknown options are refused with the nearest match",
        sent=["ignored", None, None, None],
    ),
    "gate-two-events": Ours(
        "free: we mint a first-party id (FPID) after consent, so no event has to wait for the first answer; one visitor "
        "never gets two identities"
    ),
    "gate-first-fails": Ours(
        "better: a failed first request never blocks later events", {2: "resolved"}, ["a", "b", "c"]
    ),
    "server-404": Ours("better: a 4xx is not retried (408 and 429 are)", sent=["a", "b", "c"]),
    "server-retry-then-ok": Ours(
        "retried with delay and jitter, not at once", sent=["a", "a", "a", "b"], in_order=False
    ),
    "configure-twice": Ours("same: refused"),
    "quiet-none": Ours("same: with errorsEnabled false a refused command resolves with None and is logged"),
    "retry-after-optout": Ours(
        "better: no transmission starts after the refusal, retries included. A 500 is not retried: the event on the "
        "wire ends with EdgeError; with 503 it would end as ConsentDeclined",
        {3: EdgeError},
        ["a", "b"],
    ),
}

CAUSES: dict[str, type[AlloyError]] = {
    "User opted into no purposes.": ConsentDeclined,
    "must be configured first": NotConfigured,
    "already been configured": ConfigurationError,
    "For configuration documentation": ConfigurationError,
    "Opt-in purposes must be": InvalidCommand,
    "does not exist": InvalidCommand,
    "Bad response code": EdgeError,
}

ENDING_REFUSED = {"optout-while-first-in-flight", "all-then-none", "toggle-many", "retry-after-optout"}
"""Scenarios that end with a refusal after consent: nothing of an answer, and no identity, may be stored."""


class Server(RecordingEdge):
    """The recording's server: it answers well, or with one status, always or a number of times."""

    def __init__(self) -> None:
        super().__init__()
        self.mode(mode="ok")

    def mode(self, *, mode: str, failTimes: int | None = None) -> None:
        """Answer the next requests with a status."""
        self._status = None if mode == "ok" else int(mode)
        self._remaining = failTimes

    async def send(self, request, may_start):
        """Answer as the mode says."""
        if may_start() and self._status is not None and self._remaining != 0:
            self._remaining = None if self._remaining is None else self._remaining - 1
            self.answers.append(EdgeResponse(self._status, {}, b""))
        return await super().send(request, may_start)


@dataclasses.dataclass
class Called:
    """A command of the replay."""

    name: str
    instance: str
    future: asyncio.Future[Any]
    gone: bool = False


class Browser:
    """Carries out a recording's steps: one profile, one page after the other."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.edge = Server()
        self.clock = ManualClock()
        self.called: list[Called] = []
        self._page: dict[str, Alloy] = {}
        self._ids = CountingIds()

    async def take(self, step: dict[str, Any]) -> None:
        """Carry out one step, and let everything go on that can go on."""
        instance = step.get("instance", "alloy")
        for word, given in step.items():
            if word == "batch":
                for inner in given:
                    self._call(*next(iter(inner.items())), instance)
            elif word in {"reload", "restart"}:
                await self._leave_page(restart=word == "restart")
            elif word != "instance" and not self._happen(word, given):
                self._call(word, given, instance)
        await self.come_to_rest()
        while not self.edge.holding and any(alloy.statistics().queued for alloy in self._page.values()):
            self.clock.advance(1.0)  # what is to be tried again comes to its next attempt
            await self.come_to_rest()

    async def come_to_rest(self) -> None:
        """Let the loop turn; the store's own thread counts as part of it."""
        for _ in range(4):
            await settle()
            await self.store.load_preference(VisitorKey("nobody", "none"))
        await settle()

    async def close(self) -> None:
        """Leave the page; whatever was pending ends with AlloyClosed."""
        pending = [called.future for called in self.called if not called.future.done()]
        for alloy in self._page.values():
            assert (await alloy.aclose()).open == 0
        self._page = {}
        assert all(isinstance(future.exception(), AlloyClosed) for future in pending)

    async def stored_identity(self) -> StoredIdentity | None:
        """Return what the store holds of the visitor."""
        return await self.store.load_identity(VisitorKey(ORGANISATION, DATASTREAM))

    def _happen(self, word: str, given: Any) -> bool:
        """Let something happen that is no command; return whether the word means such a thing."""
        if word == "advance":
            self.clock.advance(given / 1000)
        elif word == "hold":
            self.edge.hold() if given else self.edge.release()
        elif word == "release":
            self.edge.release(None if given == "all" else given)
        elif word == "server":
            self.edge.mode(**given)
        elif word == "setCookie":
            write_word(self.store, given["value"])
        else:
            return word == "flush" and given is True
        return True

    def _call(self, name: str, options: Any, instance: str) -> None:
        alloy = self._page.setdefault(instance, Alloy(instance))
        if name == "configure":
            world = {"transport": self.edge, "store": self.store, "clock": self.clock, "ids": self._ids}
            options = options | world
        self.called.append(Called(name, instance, alloy(name, options)))

    async def _leave_page(self, *, restart: bool) -> None:
        for called in self.called:
            called.gone = called.gone or not called.future.done()
        await self.close()
        if restart and isinstance(self.store, SQLiteStore):
            await self.store.aclose()
            self.store = SQLiteStore(self.store.path.parent)


def write_word(store: SQLiteStore, word: str) -> None:
    """Write a word into the file, where a choice would stand, as somebody else might."""
    with sqlite3.connect(store.path) as connection:
        connection.execute(
            "INSERT INTO preference VALUES (?, ?, '', ?, 0.0, 1e12, 'opt_in', 0, 0.0)",
            (ORGANISATION, DATASTREAM, word),
        )
    connection.close()


def ended(called: Called) -> str | type[AlloyError]:
    """Say how a command ended, in the words of the table."""
    if called.gone:
        assert isinstance(called.future.exception(), AlloyClosed)
        return GONE
    if not called.future.done():
        return "pending"
    error = called.future.exception()
    return "resolved" if error is None else type(error)


def expected_end(command: dict[str, Any]) -> str | type[AlloyError]:
    """Translate a recorded end."""
    if command["status"] != "rejected":
        return command["status"]
    return next(kind for text, kind in CAUSES.items() if text in command["cause"])


def check_cause(command: dict[str, Any], error: BaseException | None) -> None:
    """Compare what a cause says besides its kind."""
    if isinstance(error, EdgeError):
        assert str(error.status) in command.get("cause", "500")
    if isinstance(error, ConsentDeclined):
        assert error.by == "visitor"
    if isinstance(error, InvalidCommand) and error.command == "opt_in":
        assert error.path == "purposes"


def event_types(scenario: dict[str, Any]) -> list[str | None]:
    """Return the event types that a browser sent; an extra request for customer ids is none of ours."""
    sent = [name for request in scenario["requests"] for name in request["eventTypes"]]
    extra = any("setCustomerIds" in step for step in scenario["steps"])
    return [name for name in sent if name is not None] if extra else sent


# More that a recording says in words: each looks at the replay when it has ended


def customer_id_is_hashed(browser: Browser) -> None:
    """The hash is SHA-256 of the id as given; primary and state are kept."""
    (entry,) = browser.edge.events[0]["xdm"]["identityMap"]["crm"]
    digest = hashlib.sha256(b"User@Example.com ").hexdigest()
    assert entry == {"id": digest, "authenticatedState": "authenticated", "primary": True}


def timestamps_are_of_the_call(browser: Browser) -> None:
    """Both events carry the moment and the place of their call, an hour apart, not of their release."""
    first, second = (event["xdm"] for event in browser.edge.events)
    assert (first["timestamp"], second["timestamp"]) == (
        "2026-01-01T00:00:00.000Z",
        "2026-01-01T01:00:01.000Z",
    )
    assert first["placeContext"]["localTime"] < second["placeContext"]["localTime"]


def callers_values_win(browser: Browser) -> None:
    """What the caller's xdm says stands; data is sent as given."""
    first, text, *_ = browser.edge.events
    assert first["xdm"]["timestamp"] == "2000-01-01T00:00:00.000Z"
    assert first["xdm"]["implementationDetails"]["name"] == "mine"
    assert first["xdm"]["eventMergeId"] == "m"
    assert (first["data"], text["data"]) == ({"k": [1, 2]}, "text")


def one_identity(browser: Browser) -> None:
    """All events carry the same first-party id."""
    ids = {json.dumps(event["xdm"]["identityMap"]) for event in browser.edge.events}
    assert len(ids) == 1


def everything_is_quiet(browser: Browser) -> None:
    """Refused commands end with None."""
    refused = [called.future.result() for called in browser.called if called.name in {"event", "getEcid"}]
    assert refused == [None, None, None]


def answer_was_asked_for(browser: Browser) -> None:
    """viewStart goes to interact, the other event to collect."""
    assert [request.action for request in browser.edge.requests] == ["collect", "interact"]


def both_copies_are_whole(browser: Browser) -> None:
    """Two equal events are two events: data each, an id each."""
    assert [event["data"] for event in browser.edge.events] == [{"n": 1}, {"n": 1}]
    assert len({event["xdm"]["_id"] for event in browser.edge.events}) == 2


def merge_id_and_library_are_told(browser: Browser) -> None:
    """The commands that do not wait give their answers."""
    results = {called.name: called.future.result() for called in browser.called if called.future.done()}
    assert len(results["createEventMergeId"]) == 36
    assert results["getLibraryInfo"]["version"]


AFTERWARDS = {
    "setCustomerIds-hash": customer_id_is_hashed,
    "capture-time": timestamps_are_of_the_call,
    "user-overrides": callers_values_win,
    "gate-two-events": one_identity,
    "quiet-none": everything_is_quiet,
    "viewstart": answer_was_asked_for,
    "same-payload-twice": both_copies_are_whole,
    "ungated-commands": merge_id_and_library_are_told,
    "ungated-after-none": merge_id_and_library_are_told,
}


def recorded_scenarios() -> dict[str, dict[str, Any]]:
    if not RECORDING.exists():
        return {}
    return {scenario["name"]: scenario for scenario in json.loads(RECORDING.read_text())["scenarios"]}


SCENARIOS = recorded_scenarios()
needs_recording = pytest.mark.skipif(not SCENARIOS, reason=f"the recording is not here ({RECORDING})")


def cases() -> list[Any]:
    """Return each scenario with each store that can tell it; a word in a file needs a file."""
    result = []
    for name, scenario in SCENARIOS.items():
        kinds = ["sqlite"] if any("setCookie" in step for step in scenario["steps"]) else ["memory", "sqlite"]
        result += [pytest.param(name, kind, id=f"{name}-{kind}") for kind in kinds]
    return result


@pytest.fixture(autouse=True)
def _log_levels_come_back():
    """The log command of a scenario changes no other test."""
    yield
    for name in ("alloy", "second"):
        logging.getLogger(f"alloy_async.{name}").setLevel(logging.NOTSET)


async def make_store(kind: str, folder: pathlib.Path) -> Any:
    """Make a store; its file exists already, with somebody else in it."""
    if kind == "memory":
        return MemoryStore()
    store = SQLiteStore(folder)
    await store.save_identity(VisitorKey("nobody", "none"), StoredIdentity("fpid", None, {}))
    return store


@needs_recording
@pytest.mark.parametrize(("name", "kind"), cases())
async def test_a_recorded_scenario_goes_as_recorded_or_better(name, kind, tmp_path):
    """Each command ends as recorded, or as we say instead, for the same reason, and the same events are sent."""
    scenario, ours = SCENARIOS[name], OURS.get(name, Ours(""))
    browser = Browser(await make_store(kind, tmp_path / "state"))
    async with asyncio.timeout(30):
        for step in scenario["steps"]:
            await browser.take(step)
        check(scenario, ours, browser)
        AFTERWARDS.get(name, lambda _: None)(browser)
        if name in ENDING_REFUSED:
            assert await browser.stored_identity() is None
        await browser.close()
        await browser.store.aclose()


def check(scenario: dict[str, Any], ours: Ours, browser: Browser) -> None:
    """Compare a replay with its scenario."""
    commands = scenario["commands"]
    assert [(called.name, called.instance) for called in browser.called] == [
        (command["command"], command.get("instance", "alloy")) for command in commands
    ]
    expected = [ours.ends.get(place, expected_end(command)) for place, command in enumerate(commands)]
    assert [ended(called) for called in browser.called] == expected
    for called, command in zip(browser.called, commands, strict=True):
        check_cause(command, called.future.exception() if called.future.done() else None)
    sent = event_types(scenario) if ours.sent is None else ours.sent
    if ours.in_order:
        assert browser.edge.event_types == sent
    else:
        assert collections.Counter(browser.edge.event_types) == collections.Counter(sent)


@needs_recording
def test_our_table_says_what_the_recording_says_about_us():
    """Every scenario with words about us stands in our table, with these words, and no other does."""
    assert {name: entry.text for name, entry in OURS.items()} == {
        name: scenario["ours"] for name, scenario in SCENARIOS.items() if scenario.get("ours")
    }


@needs_recording
def test_the_recording_is_whole():
    """All 48 scenarios are here, and they hold nothing that this replay does not know."""
    assert len(SCENARIOS) == 48
    fields = {
        field for scenario in SCENARIOS.values() for command in scenario["commands"] for field in command
    }
    assert fields <= {"command", "options", "page", "status", "cause", "instance"}
