"""Access tokens: when one is fetched, how long it is kept, who gets it, and what never shows."""

import asyncio
import copy
import json
import pickle
import re
import traceback
from urllib.parse import parse_qsl

import pytest
from common import settle
from hypothesis import given, strategies as st

from alloy_async import AlloyClosed, AlloyError, EdgeError, NetworkError
from alloy_async.edge.client import EdgeClient
from alloy_async.edge.protocol import V2
from alloy_async.edge.token import (
    MARGIN,
    MAX_ANSWER,
    REFUSAL_PAUSE,
    REPLACEMENT_PAUSE,
    AccessRefused,
    Credentials,
    TokenSource,
)
from alloy_async.edge.transport import EdgeRequest, EdgeResponse, Withdrawn
from alloy_async.testing import CountingIds, ManualClock

SECRET = "p8e-hush-hush"
URL = "https://ims.example/ims/token/v3"
CREDENTIALS = Credentials("client-1", SECRET, ("openid", "AdobeID"), "ADB3@AdobeOrg")
EXEG = "https://ns.adobe.com/aep/errors/EXEG-"
NO_CONTENT = EdgeResponse(204, {}, b"")


def minted(token: object = "token-1", **more: object) -> EdgeResponse:
    document = {"access_token": token, "token_type": "bearer", "expires_in": 86_399} | more
    return EdgeResponse(200, {"content-type": "application/json"}, json.dumps(document).encode())


def refused(code: str = "", status: int = 401) -> EdgeResponse:
    """Make a refusal of the edge; without a code it is a gateway's plain text."""
    if not code:
        return EdgeResponse(status, {}, b"Oauth token is not valid")
    body = {"type": f"{EXEG}{code}-{status}", "status": status, "title": "no"}
    return EdgeResponse(status, {"content-type": "application/problem+json"}, json.dumps(body).encode())


class Wire:
    """A transport that takes anything, keeps it, and answers what it is told; after that with nothing wrong."""

    def __init__(self, *answers: EdgeResponse | Exception) -> None:
        self.requests: list[EdgeRequest] = []
        self.answers = list(answers)
        self.gate = asyncio.Event()
        self.gate.set()
        self.closed = False

    @property
    def mints(self) -> int:
        return sum(request.url == URL for request in self.requests)

    @property
    def bearers(self) -> list[str]:
        """The token of each request to the edge."""
        return [request.headers["authorization"] for request in self.requests if request.url != URL]

    async def send(self, request, may_start):
        if not may_start():
            raise Withdrawn
        self.requests.append(request)
        answer = self.answers.pop(0) if self.answers else self._usual(request)
        await self.gate.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _usual(self, request: EdgeRequest) -> EdgeResponse:
        return minted(f"token-{self.mints}") if request.url == URL else NO_CONTENT

    async def aclose(self):
        self.closed = True


def source_of(wire: Wire, clock: ManualClock | None = None) -> TokenSource:
    return TokenSource(wire, url=URL, credentials=CREDENTIALS, clock=clock or ManualClock())


def client_of(wire: Wire, clock: ManualClock | None = None, **more) -> EdgeClient:
    tokens = source_of(wire, clock)
    options = {"base": "https://server.example/ee", "config_id": "cfg", "ids": CountingIds(), "dialect": V2}
    return EdgeClient(wire, tokens=tokens, **options | more)


def always() -> bool:
    return True


async def collected(client: EdgeClient, may_start=always):
    return await client.collect([b'{"xdm":{}}'], hint=None, may_start=may_start)


async def failure(wire: Wire) -> AlloyError:
    with pytest.raises(AlloyError) as caught:
        await source_of(wire).access()
    return caught.value


# Asking


async def test_asks_as_the_identity_service_wants_it():
    """A form with the client's credentials, the scopes separated by commas; nothing of it is in the address."""
    wire = Wire()
    access = await source_of(wire).access()
    [request] = wire.requests
    assert request.url == URL
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert {"authorization", "x-api-key"}.isdisjoint(request.headers)
    assert parse_qsl(request.body.decode(), strict_parsing=True) == [
        ("grant_type", "client_credentials"),
        ("client_id", "client-1"),
        ("client_secret", SECRET),
        ("scope", "openid,AdobeID"),
    ]
    assert (access.token, access.client_id, access.ims_org_id) == ("token-1", "client-1", "ADB3@AdobeOrg")


async def test_what_is_special_in_a_form_is_escaped():
    """A secret with characters of the form's own syntax arrives as it is; without scopes there is no such field."""
    wire = Wire()
    odd = Credentials("client&id=x", "a&b=c%+ü;", (), "o@x")
    await TokenSource(wire, url=URL, credentials=odd, clock=ManualClock()).access()
    assert dict(parse_qsl(wire.requests[0].body.decode(), strict_parsing=True)) == {
        "grant_type": "client_credentials",
        "client_id": "client&id=x",
        "client_secret": "a&b=c%+ü;",
    }


async def test_asks_for_nothing_before_the_first_request():
    """Making a source, or a client, opens no connection."""
    wire = Wire()
    await client_of(wire).aclose()
    assert (wire.requests, wire.closed) == ([], True)


# Keeping


async def test_a_token_is_kept_until_shortly_before_its_end():
    """One token serves all requests of its life less the margin; then another is fetched."""
    wire, clock = Wire(minted("a", expires_in=3_600), minted("b")), ManualClock()
    source = source_of(wire, clock)
    assert (await source.access()).token == "a"
    clock.advance(3_600 - MARGIN - 1)
    assert (await source.access()).token == "a"
    clock.advance(1)
    assert (await source.access()).token == "b"


async def test_the_margin_of_a_short_life_is_short_too():
    """A token that lives for less than the margin is still of use."""
    wire, clock = Wire(minted("a", expires_in=100), minted("b")), ManualClock()
    source = source_of(wire, clock)
    await source.access()
    clock.advance(89)
    assert (await source.access()).token == "a"
    clock.advance(1)
    assert (await source.access()).token == "b"


async def test_no_token_is_kept_longer_than_a_day():
    """A life that is told in milliseconds, or for ever, is not believed."""
    wire, clock = Wire(minted("a", expires_in=10**12), minted("b")), ManualClock()
    source = source_of(wire, clock)
    await source.access()
    clock.advance(86_400)
    assert (await source.access()).token == "b"


async def test_the_life_of_a_token_begins_when_it_has_come():
    """The wall clock may be set as it likes, and the time of the fetch does not count twice."""
    wire, clock = Wire(minted("a", expires_in=100)), ManualClock()
    source = source_of(wire, clock)
    wire.gate.clear()
    waiting = asyncio.ensure_future(source.access())
    await settle()
    clock.advance(1_000)
    wire.gate.set()
    assert (await waiting).token == (await source.access()).token == "a"


# One fetch for everybody


async def test_many_requests_make_one_fetch():
    """Whoever comes while a token is on its way waits for that one."""
    wire = Wire()
    wire.gate.clear()
    source = source_of(wire)
    waiting = [asyncio.ensure_future(source.access()) for _ in range(100)]
    await settle()
    assert wire.mints == 1
    wire.gate.set()
    accesses = await asyncio.gather(*waiting)
    assert len({id(access) for access in accesses}) == 1
    assert wire.mints == 1


async def test_nobody_can_cancel_the_fetch_of_others():
    """The first, a middle and the last who wait go away; the token comes for those who stay, and is kept."""
    wire = Wire()
    wire.gate.clear()
    source = source_of(wire)
    waiting = [asyncio.ensure_future(source.access()) for _ in range(5)]
    await settle()
    for index in (0, 2, 4):
        waiting[index].cancel()
    await settle()
    wire.gate.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome).__name__ for outcome in outcomes] == [
        "CancelledError", "Access", "CancelledError", "Access", "CancelledError",
    ]  # fmt: skip
    assert wire.mints == 1


async def test_a_fetch_that_nobody_waits_for_any_more_still_counts():
    """When all have gone, the token that comes is the next one's."""
    wire = Wire()
    wire.gate.clear()
    source = source_of(wire)
    waiting = asyncio.ensure_future(source.access())
    await settle()
    waiting.cancel()
    await settle()
    wire.gate.set()
    await settle()
    assert (await source.access()).token == "token-1"
    assert wire.mints == 1


async def test_each_of_those_who_wait_gets_an_error_of_its_own():
    """A failed fetch fails everybody, with an error that shares no traceback, and the next request tries again."""
    wire = Wire(EdgeResponse(503, {"retry-after": "7"}, b"later"))
    wire.gate.clear()
    source = source_of(wire)
    waiting = [asyncio.ensure_future(source.access()) for _ in range(3)]
    await settle()
    wire.gate.set()
    errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert len({id(error) for error in errors}) == 3
    assert {(type(error), error.status, error.retry_after) for error in errors} == {(AccessRefused, 503, "7")}
    assert (await source.access()).token == "token-2"


async def test_closing_ends_a_fetch():
    """Whoever waits gets AlloyClosed, and nothing is fetched afterwards."""
    wire = Wire()
    wire.gate.clear()
    source = source_of(wire)
    waiting = asyncio.ensure_future(source.access())
    await settle()
    await source.aclose()
    for access in (waiting, source.access()):
        with pytest.raises(AlloyClosed):
            await access
    assert wire.mints == 1


# Failing


@pytest.mark.parametrize("status", [400, 401, 403, 404, 301, 100])
async def test_a_refusal_says_what_to_check(status):
    """Credentials that are refused, or a host that is no identity service, will not get better by themselves."""
    error = await failure(Wire(EdgeResponse(status, {}, b'{"error":"invalid_client"}')))
    assert isinstance(error, EdgeError)
    assert (error.status, error.retryable, error.code, error.report) == (status, False, "", {})
    assert str(error) == (
        f"no access token could be had: ims.example answered {status}, invalid_client; "
        "check client_id, client_secret, scopes and ims_host"
    )


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 599])
async def test_a_service_that_is_busy_may_be_asked_again(status):
    """Rate limits and outages pass; when is told, if the service told it."""
    error = await failure(Wire(EdgeResponse(status, {"retry-after": "30"}, b"<html>")))
    assert isinstance(error, AccessRefused)
    assert (error.status, error.retryable, error.retry_after, error.host) == (
        status,
        True,
        "30",
        "ims.example",
    )


@pytest.mark.parametrize(
    "raised", [NetworkError("https://ims.example", "refused"), OSError(SECRET), RuntimeError()]
)
async def test_a_service_that_cannot_be_reached_may_be_asked_again(raised):
    """Whatever a transport raises ends as NetworkError, without what it held."""
    error = await failure(Wire(raised))
    assert (type(error), error.retryable, error.endpoint) == (NetworkError, True, "https://ims.example")
    assert SECRET not in "".join(traceback.format_exception(error))


async def test_refused_credentials_are_not_asked_about_for_each_request():
    """A refusal stands for some seconds; afterwards credentials that were repaired are found."""
    wire, clock = Wire(EdgeResponse(401, {}, b"")), ManualClock()
    source = source_of(wire, clock)
    errors = []
    for _ in range(5):
        with pytest.raises(AccessRefused) as caught:
            await source.access()
        errors.append(caught.value)
    assert (wire.mints, len({id(error) for error in errors})) == (1, 5)
    clock.advance(REFUSAL_PAUSE)
    assert (await source.access()).token == "token-2"


USELESS = [
    b"",
    b"null",
    b"[]",
    b"{",
    b"\xff\xfe\x00",
    b"[" * 60_000,
    b'{"access_token":"' + b"a" * MAX_ANSWER + b'","token_type":"bearer","expires_in":5}',
    *(
        minted(**change).body
        for change in (
            {"token": None}, {"token": ""}, {"token": 5}, {"token": "a b"}, {"token": "a\r\nX: 1"}, {"token": "ä"},
            {"token": "a" * 20_000}, {"token": "a\n"},
            {"token_type": "mac"}, {"token_type": None}, {"token_type": ["bearer"]},
            {"expires_in": 0}, {"expires_in": -1}, {"expires_in": True}, {"expires_in": "86399"},
            {"expires_in": 1.5}, {"expires_in": None}, {"expires_in": float("inf")},
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("body", USELESS, ids=lambda body: repr(body)[:70])
async def test_an_answer_is_read_strictly(body):
    """What is no token, or could break a header, is refused and repeated nowhere; trying again would not help."""
    error = await failure(Wire(EdgeResponse(200, {}, body)))
    assert isinstance(error, AccessRefused)
    assert (error.status, error.retryable) == (200, False)
    assert "answered 200, and the answer has no usable" in str(error)
    assert (error.__cause__, error.__context__) == (None, None)


@given(
    st.integers(100, 599),
    st.binary(max_size=200) | st.text().map(lambda text: json.dumps({"error": text}).encode()),
)
def test_any_answer_is_a_token_or_an_error(status, body):
    """No status and no body makes it end in anything else, nor is any word of a refusal repeated."""
    error = asyncio.run(failure(Wire(EdgeResponse(status, {}, body))))
    assert isinstance(error, AccessRefused)
    assert re.fullmatch(
        rf"no access token could be had: ims\.example answered {status}, (\w+; )?"
        r"(which may pass|check client_id, client_secret, scopes and ims_host"
        r"|and the answer has no usable access_token; check ims_host)",
        str(error),
    )


def test_an_error_travels_whole():
    """Copies and pickles of it keep every fact."""
    error = AccessRefused(503, host="h", detail="d", retryable=True, retry_after="5")
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(other), str(other), other.__dict__) == (AccessRefused, str(error), error.__dict__)


# With requests


async def test_each_request_shows_the_token_the_client_and_the_organisation():
    """The three headers of a call from server to server, for interact and for collect; the others stay."""
    wire = Wire()
    client = client_of(wire)
    await client.interact(b'{"xdm":{}}', hint="or2", queue_time=5, may_start=always)
    await collected(client)
    _, interact, collect = wire.requests
    assert interact.url.startswith("https://server.example/ee/or2/v2/interact?datastreamId=cfg&requestId=")
    assert collect.url.startswith("https://server.example/ee/v2/collect?datastreamId=cfg&requestId=")
    for request in (interact, collect):
        assert request.headers["authorization"] == "Bearer token-1"
        assert request.headers["x-api-key"] == "client-1"
        assert request.headers["x-gw-ims-org-id"] == "ADB3@AdobeOrg"
        assert request.headers["content-type"] == "application/json"


async def test_asking_for_the_ecid_shows_no_token():
    """There is no v2 of it: v1, to a host of its own, without credentials, and no token is fetched for it."""
    wire = Wire()
    client = client_of(wire, acquire_base="https://edge.example/ee")
    await client.acquire(b"{}", hint=None, may_start=always)
    [request] = wire.requests
    assert request.url.startswith("https://edge.example/ee/v1/identity/acquire?configId=cfg&")
    assert {"authorization", "x-api-key", "x-gw-ims-org-id"}.isdisjoint(request.headers)


async def test_no_consent_no_token():
    """Without consent nothing is asked for, not even a token; gone while it came, nothing is sent."""
    wire = Wire()
    client = client_of(wire)
    with pytest.raises(Withdrawn):
        await collected(client, may_start=lambda: False)
    assert wire.requests == []
    wire.gate.clear()
    consents = [True]
    waiting = asyncio.ensure_future(collected(client, may_start=lambda: consents[-1]))
    await settle()
    consents.append(False)
    wire.gate.set()
    with pytest.raises(Withdrawn):
        await waiting
    assert (wire.mints, wire.bearers) == (1, [])


@pytest.mark.parametrize("code", ["0502", "0503", "0504", "0505", ""])
async def test_a_refused_token_is_replaced_once(code):
    """The request goes a second time, with another token and another id, and its answer counts."""
    wire = Wire(minted("old"), refused(code), minted("new"))
    await collected(client_of(wire))
    assert wire.bearers == ["Bearer old", "Bearer new"]
    sent = [request for request in wire.requests if request.url != URL]
    assert sent[0].body == sent[1].body
    assert sent[0].url != sent[1].url


@pytest.mark.parametrize(
    ("code", "status"),
    [("0500", 401), ("0501", 401), ("0506", 401), ("0503", 403), ("", 403), ("0503", 500), ("0306", 400)],
)
async def test_another_refusal_is_final(code, status):
    """Where another token says the same, or the token is not what is minded, none is minted."""
    wire = Wire(minted("old"), refused(code, status))
    with pytest.raises(EdgeError) as caught:
        await collected(client_of(wire))
    assert (caught.value.status, caught.value.code, wire.mints) == (status, code, 1)


async def test_a_refused_token_never_loops():
    """An edge that refuses every token gets two of them, and one more in each minute, whatever is sent to it."""
    clock = ManualClock()
    wire = Wire()
    wire._usual = lambda request: (  # type: ignore[method-assign]  # a test's own
        minted(f"token-{wire.mints}") if request.url == URL else refused("0503")
    )
    client = client_of(wire, clock)
    for _ in range(20):
        with pytest.raises(EdgeError) as caught:
            await collected(client)
        assert (caught.value.code, caught.value.__context__) == ("0503", None)
    assert (wire.mints, len(wire.bearers)) == (2, 21)
    clock.advance(REPLACEMENT_PAUSE)
    for _ in range(20):
        with pytest.raises(EdgeError):
            await collected(client)
    assert (wire.mints, len(wire.bearers)) == (3, 42)


async def test_one_new_token_serves_all_whose_token_was_refused():
    """Eight requests lose the same token: one fetch, and none gives up the new one."""
    wire = Wire(minted("old"))
    client = client_of(wire)
    await collected(client)
    wire.answers = [refused("0503")] * 8
    wire.gate.clear()
    waiting = [asyncio.ensure_future(collected(client)) for _ in range(8)]
    await settle()
    wire.gate.set()
    await asyncio.gather(*waiting)
    assert wire.mints == 2
    assert wire.bearers == ["Bearer old"] * 9 + ["Bearer token-2"] * 8


async def test_a_late_refusal_does_not_cost_the_newer_token():
    """Who hears late that an old token was refused takes the one that others use already."""
    wire = Wire()
    source = source_of(wire)
    old = await source.access()
    assert source.replace(old) is True
    new = await source.access()
    assert source.replace(old) is True
    assert await source.access() is new
    assert source.replace(new) is False  # twice in a minute
    assert await source.access() is new


async def test_consent_is_asked_again_before_the_second_time():
    """A visitor who refuses while the first answer comes is not sent a second time, nor is a token fetched."""
    wire = Wire(minted("old"), refused("0503"))
    client = client_of(wire)
    answers = iter([True, True, False])
    with pytest.raises(Withdrawn):
        await collected(client, may_start=lambda: next(answers))
    assert (wire.mints, wire.bearers) == (1, ["Bearer old"])


async def test_when_no_other_token_can_be_had_this_is_the_outcome():
    """A replacement that fails tells of the identity service, and of the edge no more."""
    wire = Wire(minted("old"), refused("0503"), EdgeResponse(400, {}, b'{"error":"invalid_scope"}'))
    with pytest.raises(AccessRefused, match="invalid_scope") as caught:
        await collected(client_of(wire))
    assert caught.value.__context__ is None
    assert wire.bearers == ["Bearer old"]


# What never shows


async def test_no_secret_shows(caplog):
    """Neither secret nor token is in any repr, log line or error, with its traceback and what its frames know."""
    caplog.set_level(0)
    wire = Wire(
        EdgeResponse(400, {}, json.dumps({"error": SECRET, "error_description": SECRET}).encode()),
        minted(SECRET, token_type=SECRET),
        OSError(SECRET),
    )
    clock = ManualClock()
    client = client_of(wire, clock)
    shown = [
        repr(CREDENTIALS),
        repr(client),
        str(vars(client)),
        repr(client._tokens),
        str(vars(client._tokens)),
    ]
    for _ in range(3):
        with pytest.raises(AlloyError) as caught:
            await collected(client)
        shown += told(caught.value)
        shown.append(str(vars(client._tokens)))
        clock.advance(REFUSAL_PAUSE)
    access = await client._tokens.access()
    wire.answers.append(refused("0500"))
    with pytest.raises(EdgeError) as caught:
        await collected(client)
    shown += [
        repr(access),
        str(vars(client._tokens)),
        *told(caught.value),
        *map(repr, wire.requests),
        caplog.text,
    ]
    everything = "\n".join(shown)
    assert wire.mints == 4
    assert SECRET not in everything
    assert access.token not in everything


def told(error: BaseException) -> list[str]:
    """Everything that an error tells, the variables of our own frames included, as a crash reporter shows them."""
    report = traceback.TracebackException.from_exception(error, capture_locals=True)
    ours = [frame for frame in report.stack if "alloy_async" in frame.filename]
    return [
        str(error),
        repr(error),
        repr(error.__dict__),
        repr(error.args),
        *(repr(frame.locals) for frame in ours),
    ]
