"""From server to server, over real sockets: the token, the events, and what is never shown of either."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback

import pytest
from common import IDS

from alloy_async import Alloy, EdgeError, InvalidCommand
from alloy_async.edge import EdgeResponse
from alloy_async.stores import MemoryStore
from alloy_async.testing import CountingIds, LoopbackEdge

pytestmark = pytest.mark.integration

SECRET = "p8e-hush-hush"
TOKEN = "eyJ0.t0k3n.sig"
ECID = "67594994716601132186131966109572451528"
JSON = {"content-type": "application/json"}
EXPIRED = EdgeResponse(
    401,
    {"content-type": "application/problem+json"},
    b'{"type":"https://ns.adobe.com/aep/errors/EXEG-0503-401","status":401,"title":"expired"}',
)
ACCEPTED = EdgeResponse(202, JSON, b'{"requestId":"theirs"}')
ANSWERED = EdgeResponse(
    200,
    JSON,
    json.dumps(
        {
            "requestId": "theirs",
            "handle": [{"type": "identity:result", "payload": [{"id": ECID, "namespace": {"code": "ECID"}}]}],
        }
    ).encode(),
)


def minted(token: str = TOKEN) -> EdgeResponse:
    body = {"access_token": token, "token_type": "bearer", "expires_in": 86_399}
    return EdgeResponse(200, JSON, json.dumps(body).encode())


@pytest.fixture
async def loopback():
    async with asyncio.timeout(60), LoopbackEdge() as edge:
        yield edge


@pytest.fixture
async def alloy(loopback):
    """An instance with credentials whose identity service and edge are the same loopback server."""
    async with Alloy() as alloy:
        await alloy.configure(
            **IDS,
            opt_in_enabled=True,
            endpoint=loopback.url,
            ims_host=loopback.url.removeprefix("http://"),
            client_id="client-1",
            client_secret=SECRET,
            scopes="openid,AdobeID",
            store=MemoryStore(),
            ids=CountingIds(),
        )
        yield alloy


async def test_nothing_is_asked_for_before_consent(alloy, loopback):
    """Not even a token: the first connection comes after the choice."""
    order = alloy.event(type="commerce.purchases")
    await asyncio.sleep(0)
    assert loopback.connections == 0
    loopback.answers += [minted(), ACCEPTED]
    await alloy.opt_in(purposes="all")
    assert (await order).request_id == "theirs"


async def test_events_bring_the_token_and_one_primary_identity(alloy, loopback):
    """Collect takes events as they are, interact takes one, with the query beside it; both say who sends them."""
    await alloy.opt_in(purposes="all")
    loopback.answers += [minted(), ACCEPTED, ANSWERED]
    await alloy.event(type="a")
    result = await alloy.event(type="b", decision_scopes=["hero"])
    assert result.handles[0].payload[0]["id"] == ECID
    collect, interact = loopback.arrivals[-2:]
    assert collect.request.url.startswith(f"{loopback.url}/ee/v2/collect?datastreamId={IDS['config_id']}&")
    assert interact.request.url.startswith(f"{loopback.url}/ee/v2/interact?datastreamId={IDS['config_id']}&")
    for arrival in (collect, interact):
        assert arrival.headers["authorization"] == f"Bearer {TOKEN}"
        assert arrival.headers["x-api-key"] == "client-1"
        assert arrival.headers["x-gw-ims-org-id"] == IDS["ims_org_id"]
    body = interact.request.body
    assert body.keys() == {"event", "query"}
    assert body["query"]["identity"] == {"fetch": ["ECID"]}
    assert body["query"]["personalization"]["decisionScopes"] == ["hero"]
    for event in (collect.request.body["events"][0], body["event"]):
        assert [entry["primary"] for entry in event["xdm"]["identityMap"]["FPID"]] == [True]
        assert "query" not in event


async def test_the_ecid_is_asked_for_without_the_token(alloy, loopback):
    """There is no v2 of it: v1, without any header that lets in, and no token is fetched."""
    await alloy.opt_in(purposes="all")
    assert await alloy.get_ecid()
    [arrival] = loopback.arrivals
    assert arrival.request.url.startswith(
        f"{loopback.url}/ee/v1/identity/acquire?configId={IDS['config_id']}&"
    )
    assert {"authorization", "x-api-key", "x-gw-ims-org-id"}.isdisjoint(arrival.headers)
    assert loopback.started == 1


async def test_an_event_with_a_map_of_its_own_needs_one_primary(alloy, loopback):
    """It is refused at the call, before anything is sent."""
    for identities in ([{"id": "u"}], [{"id": "u", "primary": True}, {"id": "v", "primary": True}]):
        with pytest.raises(InvalidCommand) as caught:
            await alloy.event(xdm={"identityMap": {"CRMID": identities}})
        assert caught.value.path == "xdm.identityMap"
    await alloy.opt_in(purposes="all")
    loopback.answers += [minted(), ACCEPTED]
    await alloy.event(xdm={"identityMap": {"CRMID": [{"id": "u", "primary": True}]}})
    assert loopback.events[0]["xdm"]["identityMap"] == {"CRMID": [{"id": "u", "primary": True}]}


async def test_an_expired_token_is_replaced(alloy, loopback):
    """The same events go again with another token, under another request id, and are delivered once."""
    await alloy.opt_in(purposes="all")
    loopback.answers += [minted("old"), EXPIRED, minted("new"), ACCEPTED]
    assert (await alloy.event(type="a")).request_id == "theirs"
    first, second = loopback.arrivals
    assert [arrival.headers["authorization"] for arrival in (first, second)] == ["Bearer old", "Bearer new"]
    assert first.request.body == second.request.body
    assert first.request.query["requestId"] != second.request.query["requestId"]
    assert alloy.statistics().delivered == 1


async def test_a_second_expiry_is_the_outcome(alloy, loopback):
    """Two tokens are enough to know."""
    await alloy.opt_in(purposes="all")
    loopback.answers += [minted("old"), EXPIRED, minted("new"), EXPIRED]
    with pytest.raises(EdgeError) as caught:
        await alloy.event(type="a")
    assert (caught.value.code, loopback.started) == ("0503", 4)


async def test_refused_credentials_say_what_to_check(alloy, loopback):
    """The event ends with one sentence that names the identity service and the options."""
    await alloy.opt_in(purposes="all")
    loopback.answers.append(EdgeResponse(401, JSON, b'{"error":"invalid_client"}'))
    with pytest.raises(EdgeError, match="check client_id, client_secret, scopes and ims_host") as caught:
        await alloy.event(type="a")
    assert (caught.value.status, caught.value.retryable) == (401, False)
    assert loopback.requests == []


async def test_neither_secret_nor_token_shows(alloy, loopback, caplog):
    """Everything is logged, everything fails: no log line, error, or description shows either."""
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "asyncio", "alloy_async"):
        caplog.set_level(logging.DEBUG, logger=name)
    await alloy.debug(enabled=True)
    await alloy.opt_in(purposes="all")
    echoing = json.dumps({"error": SECRET, "error_description": f"{SECRET} {TOKEN}"}).encode()
    loopback.answers += [
        minted(),
        EXPIRED,
        EdgeResponse(400, JSON, echoing),
    ]
    shown = [repr(alloy), repr(await alloy.get_library_info())]
    for _ in range(2):
        with pytest.raises(EdgeError) as caught:
            await alloy.event(type="a")
        shown += ["".join(traceback.format_exception(caught.value)), repr(caught.value.__dict__)]
    alloy.event(type="nobody awaits this")
    await alloy.flush()
    await alloy.aclose()
    everything = "\n".join([*shown, caplog.text])
    assert "client-1" in shown[1]
    assert "no access token could be had" in everything
    assert SECRET not in everything
    assert TOKEN not in everything
