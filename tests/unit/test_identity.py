"""Who the visitor is: FPID, ECID, customer ids, region."""

from __future__ import annotations

import asyncio
import hashlib
import json

import pytest
from common import settle
from hypothesis import given, strategies as st

from alloy_async import Alloy, ConsentDeclined, EdgeError, InvalidCommand
from alloy_async._json import Unfit
from alloy_async.edge import EdgeResponse
from alloy_async.identity import Identity, StoredIdentity, parse_customer_ids, read_stored
from alloy_async.testing import RecordingEdge

ECID = "41861666193140161934276845651148876988"
FPID = "00000000-0000-4000-8000-000000000001"

names = st.sampled_from(["CRMID", "Email", "Loyalty"])
entries = st.fixed_dictionaries({"id": st.just("u-1")}, optional={"primary": st.booleans()})


def identity_map(identity):
    return json.loads(identity.identity_map())


@given(st.lists(st.dictionaries(names, entries, max_size=3)), st.booleans())
def test_there_is_exactly_one_primary_identity(calls, knows_ecid):
    """Whatever was set and learned, an event has one primary identity: the last one that was said to be."""
    identity = Identity()
    identity.adopt(StoredIdentity(FPID, ECID if knows_ecid else None, {}))
    for customer_ids in calls:
        try:
            identity.set_customer_ids(parse_customer_ids(customer_ids))
        except Unfit:
            continue
    flat = [entry["primary"] for entries in identity_map(identity).values() for entry in entries]
    assert flat.count(True) == 1


def test_an_ecid_takes_the_place_of_the_fpid():
    """Once the edge has told its id, that one is sent."""
    identity = Identity()
    identity.adopt(StoredIdentity(FPID, None, {}))
    assert list(identity_map(identity)) == ["FPID"]
    assert identity.learn_ecid(ECID)
    assert not identity.learn_ecid(ECID), "no news the second time"
    assert identity_map(identity) == {
        "ECID": [{"id": ECID, "authenticatedState": "ambiguous", "primary": True}]
    }


@pytest.mark.parametrize("ecid", [None, 5, "", "123", ECID + "0", "x" * 38, "٣" * 38 + "x"])
def test_what_is_no_ecid_teaches_nothing(ecid):
    """An answer may hold anything; only 38 digits are an ECID."""
    assert not Identity().learn_ecid(ecid)


def test_erasing_leaves_nothing():
    """After a refusal nothing of the identity is left in memory."""
    identity = Identity()
    identity.adopt(
        StoredIdentity(FPID, ECID, {"CRMID": {"id": "u", "authenticatedState": "ambiguous", "primary": True}})
    )
    identity.learn_hint("or2", 60, 0.0)
    identity.identity_map()
    identity.erase()
    fresh = Identity()
    assert all(getattr(identity, name) == getattr(fresh, name) for name in Identity.__slots__)


@pytest.mark.parametrize(
    ("given_ids", "path"),
    [
        (None, "customer_ids"),
        ({}, "customer_ids"),
        ({"": {"id": "x"}}, "customer_ids"),
        ({5: {"id": "x"}}, "customer_ids"),
        ({"ECID": {"id": "x"}}, "customer_ids.ECID"),
        ({"CRMID": "x"}, "customer_ids.CRMID"),
        ({"CRMID": {}}, "customer_ids.CRMID.id"),
        ({"CRMID": {"id": 5}}, "customer_ids.CRMID.id"),
        ({"CRMID": {"id": "\ud800"}}, "customer_ids.CRMID.id"),
        ({"CRMID": {"id": "x" * 1_025}}, "customer_ids.CRMID.id"),
        ({"CRMID": {"id": "x", "ids": 1}}, "customer_ids.CRMID.ids"),
        ({"CRMID": {"id": "x", "primary": "yes"}}, "customer_ids.CRMID.primary"),
        ({"CRMID": {"id": "x", "hash": 1}}, "customer_ids.CRMID.hash"),
        ({"CRMID": {"id": "x", "authenticatedState": "maybe"}}, "customer_ids.CRMID.authenticatedState"),
        ({"A": {"id": "x", "primary": True}, "B": {"id": "y", "primary": True}}, "customer_ids"),
    ],
)
async def test_wrong_customer_ids_are_refused_by_name(alloy, given_ids, path):
    """What cannot be sent is named, and nothing of it is kept."""
    error = alloy.set_customer_ids(given_ids).exception()
    assert isinstance(error, InvalidCommand)
    assert error.path == path


async def test_customer_ids_wait_for_consent_and_are_hashed(alloy, edge):
    """They travel with later events: hashed as asked, kept under their namespace."""
    waiting = alloy.set_customer_ids(
        {
            "CRMID": {
                "id": "User@Example.com ",
                "hash": True,
                "primary": True,
                "authenticatedState": "authenticated",
            },
            "Email_LC_SHA256": {"id": " User@Example.com ", "hash": True},
        }
    )
    await settle()
    assert not waiting.done()
    await alloy.opt_in(purposes="all")
    await waiting
    await alloy.event()
    sent = edge.events[0]["xdm"]["identityMap"]
    assert sent["CRMID"] == [
        {
            "id": hashlib.sha256(b"User@Example.com ").hexdigest(),
            "authenticatedState": "authenticated",
            "primary": True,
        }
    ]
    assert sent["Email_LC_SHA256"][0]["id"] == hashlib.sha256(b"user@example.com").hexdigest()
    assert not sent["FPID"][0]["primary"]


async def test_customer_ids_are_refused_without_consent(alloy):
    """After a no they are refused like events."""
    waiting = alloy.set_customer_ids({"CRMID": {"id": "x"}})
    await alloy.opt_in(purposes="none")
    assert isinstance(waiting.exception(), ConsentDeclined)


async def test_an_event_that_names_its_person_gets_no_identity_of_ours(alloy, edge):
    """Replaying other people's events does not stitch them to this visitor, nor teach us their ids."""
    theirs = {"CRMID": [{"id": "somebody", "primary": True}]}
    await alloy.opt_in(purposes="all")
    await alloy.event(xdm={"identityMap": theirs}, view_start=True)
    await alloy.event()
    assert edge.events[0]["xdm"]["identityMap"] == theirs
    assert list(edge.events[1]["xdm"]["identityMap"]) == ["FPID"], "the answer to their event taught nothing"


async def test_the_identity_is_the_same_after_a_restart(options, edge):
    """The FPID is kept before it is first used, the ECID once it is known."""
    async with Alloy() as first:
        await first.configure(**options)
        await first.opt_in(purposes="all")
        await first.event()
        ecid = await first.get_ecid()
    async with Alloy() as second:
        await second.configure(**options | {"transport": (later := RecordingEdge())})
        await second.event()
        assert await second.get_ecid() == ecid
    assert [request.action for request in later.requests] == ["collect"], "the ECID is known without asking"
    assert list(later.events[0]["xdm"]["identityMap"]) == ["ECID"]


async def test_get_ecid_asks_once_for_everybody(alloy, edge):
    """However many wait, one request asks, and it carries the FPID."""
    waiting = [alloy.get_ecid() for _ in range(5)]
    await alloy.opt_in(purposes="all")
    assert {await future for future in waiting} == {ECID}
    assert [request.action for request in edge.requests] == ["acquire"]
    body = edge.requests[0].body
    assert body["query"] == {"identity": {"fetch": ["ECID"]}}
    assert list(body["xdm"]["identityMap"]) == ["FPID"]


async def test_who_asks_for_the_ecid_while_the_edge_is_asked_is_told_too(alloy, edge):
    """The answer is for everybody who waits when it comes."""
    edge.hold()
    await alloy.opt_in(purposes="all")
    waiting = [alloy.get_ecid()]
    await settle()
    waiting.append(alloy.get_ecid())
    await settle()
    edge.release()
    await settle()
    assert [future.done() and future.result() for future in waiting] == [ECID, ECID]
    assert len(edge.requests) == 1


async def test_get_ecid_is_refused_with_the_visitor(alloy, edge):
    """A no ends those that wait, also while the question is on the wire; nothing of the answer is learned."""
    await alloy.opt_in(purposes="all")
    edge.hold()
    waiting = alloy.get_ecid()
    await settle()
    await alloy.opt_in(purposes="none")
    assert isinstance(waiting.exception(), ConsentDeclined)
    edge.release()
    await settle()
    assert isinstance(alloy.get_ecid().exception(), ConsentDeclined)


BUSY = EdgeResponse(503, {"retry-after": "7"}, b"busy")


async def test_get_ecid_is_tried_again_as_events_are(alloy, edge, clock):
    """After the time that the edge asks for; a second one who asks meanwhile waits along."""
    edge.answers += [BUSY, BUSY]
    await alloy.opt_in(purposes="all")
    first = alloy.get_ecid()
    await settle()
    second = alloy.get_ecid()
    for requests in (1, 2, 3):
        clock.advance(6.9)
        await settle()
        assert len(edge.requests) == requests
        clock.advance(0.1)
        await settle()
    assert [first.result(), second.result()] == [ECID, ECID]


async def test_get_ecid_is_not_tried_for_ever(alloy, edge, clock):
    """After five attempts it ends with what the last one met; what cannot succeed is not tried again."""
    await alloy.opt_in(purposes="all")
    edge.answers += [BUSY] * 5
    busy = alloy.get_ecid()
    for _ in range(5):
        await settle()
        clock.advance(7)
    await settle()
    assert (busy.exception().status, len(edge.requests)) == (503, 5)
    edge.answers.append(EdgeResponse(400, {}, b""))
    with pytest.raises(EdgeError):
        await alloy.get_ecid()
    assert len(edge.requests) == 6


@pytest.mark.parametrize("end", ["cancel", "refuse", "close"])
async def test_get_ecid_is_not_tried_again_for_nobody(alloy, edge, clock, end):
    """When nobody waits any more, because all have left, were refused or closed."""
    edge.answers.append(BUSY)
    await alloy.opt_in(purposes="all")
    waiting = alloy.get_ecid()
    await settle()
    if end == "cancel":
        waiting.cancel()
    elif end == "refuse":
        await alloy.opt_in(purposes="none")
    else:
        closing = asyncio.create_task(alloy.aclose(grace=1.0))
        await settle()
        clock.advance(1)
        await closing
    await settle()
    assert waiting.done()
    assert alloy._engine.visitor.is_settled
    clock.advance(60)
    await settle()
    assert len(edge.requests) == 1


async def test_get_ecid_waits_for_consent_again_where_it_expired_between_two_attempts(options, edge, clock):
    """And is asked for once it is given."""
    edge.answers.append(BUSY)
    async with Alloy() as alloy:
        await alloy.configure(**options, preference_max_age=5.0)
        await alloy.opt_in(purposes="all")
        waiting = alloy.get_ecid()
        await settle()
        clock.advance(7)
        await settle()
        assert (waiting.done(), len(edge.requests)) == (False, 1)
        await alloy.opt_in(purposes="all")
        assert await waiting == ECID


async def test_get_ecid_waits_for_consent_at_once_where_it_expired_while_the_edge_was_asked(
    options, edge, clock
):
    """It is asked for as soon as consent is given, not when the edge would have wanted it."""
    edge.answers.append(BUSY)
    async with Alloy() as alloy:
        await alloy.configure(**options, preference_max_age=5.0)
        await alloy.opt_in(purposes="all")
        edge.hold()
        waiting = alloy.get_ecid()
        await settle()
        clock.advance(6)
        edge.release()
        await settle()
        await alloy.opt_in(purposes="all")
        assert await waiting == ECID


async def test_get_ecid_keeps_to_delivery_timeout(options, edge, clock):
    """What would come later is not waited for."""
    edge.answers += [BUSY] * 2
    async with Alloy() as alloy:
        await alloy.configure(**options, delivery_timeout=10.0)
        await alloy.opt_in(purposes="all")
        waiting = alloy.get_ecid()
        await settle()
        clock.advance(7)
        await settle()
        assert waiting.exception().status == 503


async def test_an_answer_without_an_ecid_is_an_error(alloy, edge):
    """Asking ends with an error, never without an end, and may be tried again."""
    edge.answers.append(EdgeResponse(200, {}, b'{"handle": []}'))
    await alloy.opt_in(purposes="all")
    with pytest.raises(EdgeError, match="names no ECID"):
        await alloy.get_ecid()
    assert await alloy.get_ecid() == ECID


@pytest.mark.parametrize(
    "row", [(None, None, "{}"), (FPID, 5, "{}"), (FPID, None, None), (FPID, None, "{"), (FPID, None, "[1]")]
)
def test_a_damaged_row_is_no_identity(row):
    """What a store hands back is checked like anything else."""
    assert read_stored(*row) is None
