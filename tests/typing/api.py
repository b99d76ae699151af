"""The public API as a type checker sees it. Never run: ``mypy`` and ``pyright`` read it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal, assert_type

import alloy_async
from alloy_async import (
    Alloy,
    AlloyError,
    ConsentDeclined,
    EdgeError,
    EventResult,
    Handle,
    InvalidCommand,
    NetworkError,
    OptInState,
    OptInStatistics,
    ParkingFull,
    Settings,
    Statistics,
    Visitor,
)
from alloy_async.blocking import BlockingAlloy, Outcome
from alloy_async.edge import EdgeRequest, EdgeResponse, Transport
from alloy_async.hooks import Delivered, Failed, Hook, Lost, Parked, Record, Refused, Released, Sending
from alloy_async.identity import StoredIdentity
from alloy_async.samples import sample_events
from alloy_async.stores import MemoryStore, Preference, SQLiteStore, Store, VisitorKey
from alloy_async.testing import (
    CountingIds,
    ManualClock,
    ObservedEdge,
    RecordedRequest,
    RecordingEdge,
    SentEvent,
    serve,
)

Purposes = Literal["all", "none", "pending"]


async def commands(alloy: Alloy) -> None:
    """Each command returns a future of its own kind."""
    assert_type(alloy.configure(config_id="a", ims_org_id="b", opt_in_enabled=True), asyncio.Future[None])
    assert_type(alloy.event(type="a", xdm={"b": 1}, data=[1], merge_id="c"), asyncio.Future[EventResult])
    assert_type(alloy.event(view_start=True, decision_scopes=["a"]), asyncio.Future[EventResult])
    assert_type(alloy.opt_in(purposes="all"), asyncio.Future[Purposes])
    assert_type(alloy.forget(), asyncio.Future[Purposes])
    assert_type(alloy.flush(), asyncio.Future[None])
    assert_type(alloy.get_ecid(), asyncio.Future[str])
    assert_type(alloy.set_customer_ids({"CRMID": {"id": "a", "primary": True}}), asyncio.Future[None])
    assert_type(alloy.create_event_merge_id(), asyncio.Future[str])
    assert_type(alloy.get_library_info(), asyncio.Future[dict[str, Any]])
    assert_type(alloy.debug(enabled=True), asyncio.Future[None])
    assert_type(alloy("optIn", {"purposes": "all"}), asyncio.Future[Any])
    assert_type(alloy.statistics(), Statistics)
    assert_type(await alloy.aclose(grace=1.0), Statistics)
    async with Alloy("second") as second:
        assert_type(second, Alloy)


async def results(alloy: Alloy) -> None:
    """Awaiting gives the result; its fields have types."""
    result = await alloy.event()
    assert_type(result, EventResult)
    assert_type(result.event_id, str)
    assert_type(result.request_id, str | None)
    assert_type(result.handles, tuple[Handle, ...])
    assert_type(result.handles[0].event_index, int | None)
    assert_type(result.warnings, tuple[Mapping[str, Any], ...])
    assert_type(result.propositions, list[Any])
    assert_type(result.destinations, list[Any])
    assert_type(result.withheld, bool)
    assert_type(alloy.statistics().open, int)


def wrong_keywords(alloy: Alloy) -> None:
    """What Python would refuse at the call, the checkers refuse before."""
    alloy.event(xmd={})  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # misspelled
    alloy.opt_in("all")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # by name only
    alloy.configure(opt_in_enable=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # misspelled
    alloy.configure(when_outbox_fails="disk")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # no such
    alloy.configure(opt_in_enabled="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # no bool


async def consent(state: OptInState) -> None:
    """The gate by itself."""
    assert_type(state.purposes, Purposes)
    assert_type(state.is_opted_in, bool)
    assert_type(state.when_opted_in(), asyncio.Future[None])
    assert_type(state.wait(), asyncio.Future[Purposes])
    assert_type(state.statistics(), OptInStatistics)
    state.choose("none", until=1.0)


def errors(error: AlloyError) -> None:
    """Errors carry their facts."""
    if isinstance(error, EdgeError):
        assert_type(error.status, int)
        assert_type(error.code, str)
        assert_type(error.retryable, bool)
    if isinstance(error, ConsentDeclined):
        assert_type(error.by, Literal["visitor", "edge"])
    if isinstance(error, ParkingFull):
        assert_type(error.limit, int)
    if isinstance(error, InvalidCommand):
        assert_type(error.path, str)
    if isinstance(error, NetworkError):
        assert_type(error.endpoint, str)


def count(record: Record) -> None:
    """A hook tells the records apart; none is forgotten."""
    match record:
        case Parked():
            assert_type(record.size, int)
        case Released():
            assert_type(record.waited, float)
        case Refused():
            assert_type(record.by, Literal["visitor", "edge"])
        case Sending():
            assert_type(record.events, int)
        case Delivered():
            assert_type(record.request_id, str | None)
        case Failed():
            assert_type(record.error, AlloyError)
        case Lost():
            assert_type(record.event_id, str)


hook: Hook = count


def shorten(event: dict[str, Any]) -> bool | None:
    """A filter that is a plain function."""
    return "debug" not in event["xdm"]


async def shorten_later(event: dict[str, Any]) -> bool | None:
    """A filter that is a coroutine."""
    return shorten(event)


class MyTransport:
    """A transport of a user's, without any base class."""

    async def send(self, request: EdgeRequest, may_start: Any) -> EdgeResponse:
        """Answer."""
        return EdgeResponse(204, {}, b"")

    async def aclose(self) -> None:
        """Do nothing."""


def borders() -> None:
    """What is shipped and what users write fits the protocols."""
    transports: list[Transport] = [RecordingEdge(), MyTransport()]
    stores: list[Store] = [MemoryStore(), SQLiteStore("folder")]
    clock, ids = ManualClock(), CountingIds()
    assert_type(ids(), str)
    assert_type(clock.time(), float)
    Alloy().configure(
        config_id="a",
        ims_org_id="b",
        hooks=[hook, count],
        on_before_event_send=shorten,
        transport=transports[0],
        store=stores[0],
        clock=clock,
        ids=ids,
    )
    Alloy().configure(config_id="a", ims_org_id="b", on_before_event_send=shorten_later)
    Alloy().configure(config_id="a", ims_org_id="b", outbox="redis", when_outbox_fails="local", relay=True)


async def kept(store: Store) -> None:
    """What crosses the border to a store."""
    key = VisitorKey("organisation", "datastream")
    assert_type(key.visitor, str)
    assert_type(await store.load_preference(key), Preference | None)
    assert_type(await store.load_identity(key), StoredIdentity | None)
    await store.save_preference(key, Preference("all", 1.0, 2.0))


def tools(edge: RecordingEdge) -> None:
    """What tests look at."""
    assert_type(edge.requests, list[RecordedRequest])
    assert_type(edge.events, list[dict[str, Any]])
    assert_type(edge.event_types, list[str | None])
    assert_type(sample_events(), list[dict[str, Any]])
    with serve(consent="all", datastreams={"a"}) as served:
        assert_type(served, ObservedEdge)
        assert_type(served.url, str)
        assert_type(served.parked, int)
        assert_type(served.wait_for_blocking("view", count=2), list[SentEvent])
        assert_type(served.events[0].type, str | None)
        assert_type(served.events[0].xdm, dict[str, Any])
    assert_type(Settings.resolve({}), Settings)
    assert_type(Settings.resolve({}).base_url(), str)
    assert_type(alloy_async.__version__, str)


async def many_visitors(alloy: Alloy) -> None:
    """A view has the commands of a person, with the same types."""
    visitor = alloy.visitor("key", purposes="all", context={"web": {}})
    assert_type(visitor, Visitor)
    assert_type(visitor.event(type="a"), asyncio.Future[EventResult])
    assert_type(visitor.get_purposes(), asyncio.Future[Purposes])
    assert_type(visitor.purposes, Purposes)
    assert_type(visitor.browser_payload(), dict[str, Any])


def without_a_loop(alloy: BlockingAlloy) -> None:
    """Results, or outcomes to be asked later."""
    assert_type(alloy.event(type="a"), Outcome[EventResult])
    assert_type(alloy.opt_in(purposes="all"), Purposes)
