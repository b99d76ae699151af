"""The edge's endpoints: what each takes, refuses and answers."""

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import httpx
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from alloy_async.devserver import DEMO_ORG, DevelopmentEdge, JSONLinesFile, SQLiteFile, create_app
from alloy_async.devserver.handles import StateEntries
from alloy_async.devserver.identity import ecid_from_fpid, pack_identity_cookie, unpack_identity_cookie
from alloy_async.samples import sample_events

KEYS = StateEntries(DEMO_ORG)
FPID = "6f1c0f7e-3f0a-4a1c-9d58-0d6f6c1f2b3a"
ECID = "41861666193140161934276845651148876988"
FETCH = {"identity": {"fetch": ["ECID"]}}
INTERACT, COLLECT = "/ee/v1/interact?configId=ds", "/ee/v1/collect?configId=ds"
INTERACT_2, COLLECT_2 = "/ee/v2/interact?datastreamId=ds", "/ee/v2/collect?datastreamId=ds"
SET_CONSENT, ACQUIRE = "/ee/v1/privacy/set-consent?configId=ds", "/ee/v1/identity/acquire?configId=ds"
PRIMARY = {"CRMID": [{"id": "u-1", "primary": True}]}
DENYING_TC_STRING = "CO052l-O052l-DGAMBFRACBgAAAAAAAAAAYgAAAAAAAA"


@pytest.fixture
def development_edge():
    return DevelopmentEdge()


@pytest.fixture
async def browser(development_edge):
    async with client(development_edge) as opened:
        yield opened


def client(development_edge):
    transport = httpx.ASGITransport(create_app(development_edge))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


def one_event(**xdm):
    return {"events": [{"xdm": xdm}]}


def as_fpid(**more):
    return {"identityMap": {"FPID": [{"id": FPID}]}, **more}


def with_state(*entries, **state):
    listed = [{"key": key, "value": value} for key, value in entries]
    return {"meta": {"state": {**state, "entries": listed}}}


def handles(answer):
    """Handles by type; a type that stands twice would be a surprise."""
    found = {handle["type"]: handle["payload"] for handle in answer.json()["handle"]}
    assert len(found) == len(answer.json()["handle"])
    return found


def stored(answer):
    return {entry["key"]: entry for entry in handles(answer).get("state:store", [])}


def ecid_of(answer):
    return handles(answer)["identity:result"][0]["id"]


def assert_problem(answer, code, *, event_index=None):
    problem = answer.json()
    assert problem["type"] == f"https://ns.adobe.com/aep/errors/EXEG-{code}"
    assert answer.status_code == problem["status"] == int(code[-3:])
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == problem["report"]["requestId"]
    assert problem["report"].get("eventIndex") == event_index
    assert problem["title"]
    assert problem["detail"]


# Paths and parameters


@pytest.mark.parametrize(
    ("base_path", "path", "status"),
    [
        ("ee", "/ee/v1/interact", 200),
        ("ee", "/ee/or2/v1/interact", 200),
        ("ee", "/ee/t35/v1/interact", 200),
        ("/my/edge/", "/my/edge/va6/v1/interact", 200),
        ("", "/v1/interact", 200),
        ("a.b", "/a.b/v1/interact", 200),
        ("a.b", "/aXb/v1/interact", 404),
        ("my", "/ee/v1/interact", 404),
        ("ee", "/", 404),
        ("ee", "/ee/v3/interact", 404),
        ("ee", "/ee/v1/interact/", 404),
        ("ee", "/ee/v1/interact%0A", 404),
        ("ee", "/ee/or2/or2/v1/interact", 404),
        ("ee", "/ee/va/v1/sessionStart", 200),
        ("ee", "/ee/or2/va/v1/sessionStart", 200),
        ("ee", "/ee/va/or2/v1/sessionStart", 404),
        ("ee", "/ee/v1/sessionStart", 404),
        ("ee", "/ee/va/v2/sessionStart", 404),
        ("ee", "/ee/va/v1/interact", 404),
        ("ee", "/ee/va/v1/sessionstart", 404),
        ("ee", "/ee/v2/privacy/set-consent", 404),
        ("ee", "/ee/v2/identity/acquire", 404),
        ("ee", "/_dev", 404),
    ],
)
async def test_endpoints_are_found_under_the_base_path(base_path, path, status):
    """With or without a location hint; every other path is unknown."""
    async with client(DevelopmentEdge(base_path=base_path)) as browser:
        assert (await browser.post(f"{path}?configId=ds", json=one_event())).status_code == status


def test_the_read_backs_own_path_is_no_base_path():
    """Requests would never reach the edge."""
    with pytest.raises(ValueError, match="_dev"):
        DevelopmentEdge(base_path="/_dev/ee")


async def test_an_unknown_path_and_another_method_are_problems_too(browser):
    """The edge has no code for them, so they are plain HTTP problems."""
    for answer, status in ((await browser.post("/x"), 404), (await browser.put(INTERACT), 405)):
        assert answer.status_code == answer.json()["status"] == status
        assert answer.json()["type"] == "about:blank"
        assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "url",
    [
        "/ee/v1/interact",
        "/ee/v1/interact?configId=",
        "/ee/v1/interact?datastreamId=ds",
        "/ee/v1/privacy/set-consent",
        "/ee/v1/identity/acquire",
        "/ee/v2/interact?configId=ds",
        "/ee/v2/collect",
    ],
)
async def test_a_datastream_id_is_required(browser, url):
    """Under the version's own name."""
    assert_problem(await browser.post(url, json=one_event()), "0002-400")


async def test_only_known_datastreams_are_taken_when_they_are_listed():
    """Without a list any id is taken; v2 is taken in both spellings of its parameter."""
    async with client(DevelopmentEdge(datastreams=["ds"])) as browser:
        assert (await browser.post(COLLECT, json=one_event())).status_code == 204
        assert_problem(await browser.post("/ee/v1/collect?configId=other", json=one_event()), "0003-400")
        body = {"events": [{"xdm": {"identityMap": PRIMARY}}]}
        assert (await browser.post("/ee/v2/collect?dataStreamId=ds", json=body)).status_code == 202


@pytest.mark.parametrize(
    ("query", "headers", "sent"),
    [
        ("&requestId=abc", {}, "abc"),
        ("&requestId=abc", {"x-request-id": "other"}, "abc"),
        ("", {"x-request-id": "from-header"}, "from-header"),
        ("&requestId=", {}, "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    ],
)
async def test_the_request_id_is_answered_with_sixteen_digits_more(
    browser, development_edge, query, headers, sent
):
    """The parameter goes before the header; one is minted where none was sent; problems carry it too."""
    answer = await browser.post(INTERACT + query, json=one_event(), headers=headers)
    assert re.fullmatch(f"{sent}-[0-9a-f]{{16}}", answer.json()["requestId"])
    assert answer.headers["x-request-id"] == answer.json()["requestId"]
    assert development_edge.events[0]["requestId"] == answer.json()["requestId"]
    assert development_edge.requests[0]["requestId"] == answer.json()["requestId"]
    refused = await browser.post(INTERACT + query, json={}, headers=headers)
    assert re.fullmatch(f"{sent}-[0-9a-f]{{16}}", refused.json()["report"]["requestId"])


async def test_a_request_id_cannot_break_the_headers(browser):
    """Line breaks and foreign letters are percent-encoded there, and stand unchanged in the body."""
    answer = await browser.post(f"{INTERACT}&requestId=a%0D%0AX-Evil:%201%F0%9F%8C%B2", json=one_event())
    assert answer.status_code == 200
    assert "x-evil" not in answer.headers
    assert answer.headers["x-request-id"].startswith("a%0D%0AX-Evil%3A%201%F0%9F%8C%B2-")
    assert answer.json()["requestId"].startswith("a\r\nX-Evil: 1🌲-")


# Bodies


async def test_a_body_is_taken_up_to_64_kb(browser, development_edge):
    """The bound is exact, and what is larger is refused whole."""
    overhead = len(json.dumps(one_event(pad="")))
    fits, over = (json.dumps(one_event(pad="x" * (65_536 - overhead + more))) for more in (0, 1))
    assert len(fits) == 65_536
    headers = {"content-type": "application/json"}
    assert (await browser.post(COLLECT, content=fits, headers=headers)).status_code == 204
    assert_problem(await browser.post(COLLECT, content=over, headers=headers), "0112-413")
    assert len(development_edge.events) == 1
    assert [request["status"] for request in development_edge.requests] == [204, 413]


@pytest.mark.parametrize("announced", [True, False])
async def test_an_endless_body_is_not_read_to_its_end(announced):
    """Whether its length is announced or not; a body a little over is read, so that its sender hears why."""
    sent = 0

    async def pieces(count):
        nonlocal sent
        for _ in range(count):
            sent += 1
            yield b"x" * 65_536

    async def drive(count, headers):
        """Speak ASGI: the in-memory transport of the client would join the pieces first."""
        nonlocal sent
        sent, source, status = 0, pieces(count), []

        async def receive():
            piece = await anext(source, None)
            return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

        async def send(message):
            status.append(message.get("status"))

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/ee/v1/collect",
            "query_string": b"configId=ds",
            "headers": [(b"content-type", b"application/json"), *headers],
        }
        await create_app()(scope, receive, send)
        await source.aclose()
        return status[0]

    length = [(b"content-length", b"1073741824")] if announced else []
    assert await drive(16_384, length) == 413
    assert sent == (0 if announced else 18)
    assert await drive(4, []) == 413
    assert sent == 4


async def test_a_content_length_that_is_no_number_does_no_harm(browser):
    """Servers refuse it before; a digit bomb must not get through either."""
    for length in ("x", "9" * 5_000, "²".encode()):
        headers = {"content-type": "application/json", "content-length": length}
        answer = await browser.post(COLLECT, content=json.dumps(one_event()), headers=headers)
        assert answer.status_code in {204, 413}


@pytest.mark.parametrize("media_type", ["application/json", "text/plain; charset=UTF-8", "text/javascript"])
async def test_json_is_read_under_its_three_names(browser, development_edge, media_type):
    """Browsers send text/plain."""
    answer = await browser.post(
        COLLECT, content=json.dumps(one_event(_id="a")), headers={"content-type": media_type}
    )
    assert answer.status_code == 204
    assert development_edge.events[0]["event"] == {"xdm": {"_id": "a"}}


async def test_other_media_types_are_refused(browser):
    """Named or not."""
    for headers in ({"content-type": "application/xml"}, {}):
        assert_problem(await browser.post(COLLECT, content=b"{}", headers=headers), "0111-415")


@pytest.mark.parametrize(
    ("body", "code", "event_index"),
    [
        ({}, "0103-400", None),
        ({"events": []}, "0103-400", None),
        ({"events": None}, "0103-400", None),
        ({"event": {"xdm": {}}}, "0103-400", None),
        ({"events": {"xdm": {}}}, "0102-400", None),
        ({"events": "x"}, "0102-400", None),
        ({"events": [{"xdm": {}}, None]}, "0102-400", 1),
        ({"events": [{"xdm": {}}, [], 3]}, "0102-400", 1),
        ({"events": [{"xdm": []}]}, "0102-400", 0),
        ({"events": [{"xdm": None}]}, "0102-400", 0),
        ({"events": [{"xdm": {"identityMap": []}}]}, "0102-400", 0),
        ({"events": [{"xdm": {}}, {"xdm": {"identityMap": {"A": [{"id": ""}]}}}]}, "0305-400", 1),
        ({"events": [{"xdm": {"identityMap": {"FPID": [{"id": "abc"}]}}}]}, "0308-400", 0),
        ({"events": [{"xdm": {}}], "xdm": {"identityMap": {"FPID": [{"id": "abc"}]}}}, "0308-400", None),
        ({"events": [{"xdm": {}}], "meta": {"state": {"cookiesEnabled": True}}}, "0110-400", None),
    ],
)
@pytest.mark.parametrize("url", [INTERACT, COLLECT])
async def test_malformed_events_refuse_the_whole_request(
    browser, development_edge, url, body, code, event_index
):
    """With the code for their fault and the index of the event; none of the others is recorded."""
    assert_problem(await browser.post(url, json=body), code, event_index=event_index)
    assert development_edge.events == []


@pytest.mark.parametrize(
    "body",
    [
        {"events": [{}]},
        {"events": [{"data": [1]}]},
        {"events": [{"xdm": {"_id": 7}}, {"xdm": {"_id": None}}, {"xdm": {"_id": ["a"]}}]},
        {"events": [{"xdm": {}}], "xdm": 3, "query": [], "meta": "x"},
        {"events": [{"xdm": {}}], "meta": {"state": {"entries": "x"}}},
        {"events": [{"xdm": {}}], "meta": {"state": {"entries": [None, {}, {"key": [], "value": {}}]}}},
        {"events": [{"xdm": {}}], **with_state((KEYS.identity_key, "%%%"), (KEYS.consent_key, "%%%"))},
    ],
)
async def test_oddities_that_harm_nobody_are_taken(browser, development_edge, body):
    """What the edge does not look at, or cannot read in a client's state."""
    assert (await browser.post(INTERACT, json=body)).status_code == 200
    assert (await browser.post(COLLECT, json=body)).status_code == 204
    assert [item["event"] for item in development_edge.events] == body["events"] * 2
    assert not any(item["duplicate"] for item in development_edge.events)


# interact, collect, acquire


async def test_interact_answers_a_new_visitor_with_everything(browser):
    """Identity, the cookies to keep, and the region to ask next time."""
    answer = await browser.post(INTERACT, json={**one_event(), "query": FETCH})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json;charset=utf-8"
    assert answer.headers["x-adobe-edge"] == "OR2;9"
    ecid = ecid_of(answer)
    assert re.fullmatch("[0-9]{38}", ecid)
    prefix = "kndctr_0123456789ABCDEF01234567_AdobeOrg_"
    assert handles(answer) == {
        "identity:result": [{"id": ecid, "namespace": {"code": "ECID"}}],
        "state:store": [
            {
                "key": f"{prefix}identity",
                "value": pack_identity_cookie(ecid),
                "maxAge": 34_128_000,
                "attrs": {"SameSite": "None"},
            },
            {"key": f"{prefix}cluster", "value": "or2", "maxAge": 1_800},
        ],
        "locationHint:result": [
            {"scope": "Target", "hint": "35", "ttlSeconds": 1_800},
            {"scope": "AAM", "hint": "9", "ttlSeconds": 1_800},
            {"scope": "EdgeNetwork", "hint": "or2", "ttlSeconds": 1_800},
        ],
    }
    assert "warnings" not in answer.json()


async def test_the_identity_is_returned_only_when_it_is_fetched(browser):
    """Its cookie is sent all the same."""
    for query in (None, {"identity": {"fetch": ["CORE"]}}, {"identity": {"fetch": "ECID"}}):
        answer = await browser.post(INTERACT, json={**one_event(), "query": query})
        assert "identity:result" not in handles(answer)
        assert KEYS.identity_key in stored(answer)


async def test_a_visitor_who_brings_the_identity_cookie_keeps_it(browser):
    """No second identity is minted, and the cookie is not sent again."""
    state = with_state(
        (KEYS.identity_key, pack_identity_cookie(ECID)), cookiesEnabled=True, domain="example.com"
    )
    for url, body in ((INTERACT, one_event()), (ACQUIRE, {})):
        answer = await browser.post(url, json={**body, **state, "query": FETCH})
        assert ecid_of(answer) == ECID
        assert KEYS.identity_key not in stored(answer)


async def test_entries_of_another_organisation_are_not_read(browser):
    """The organisation is part of the name."""
    key = StateEntries("OTHER@AdobeOrg").identity_key
    body = {**one_event(), **with_state((key, pack_identity_cookie(ECID))), "query": FETCH}
    assert ecid_of(await browser.post(INTERACT, json=body)) != ECID
    async with client(DevelopmentEdge(org_id="OTHER@AdobeOrg")) as other:
        assert ecid_of(await other.post(INTERACT, json=body)) == ECID


@pytest.mark.parametrize("shared", [False, True])
async def test_an_fpid_gives_the_same_ecid_on_every_endpoint(browser, shared):
    """On the event, beside the events, and at the top of set-consent."""
    event = {"xdm": {} if shared else as_fpid()}
    body = {"events": [event], "query": FETCH, **({"xdm": as_fpid()} if shared else {})}
    consent = [{"standard": "Adobe", "version": "1.0", "value": {"general": "in"}}]
    answers = [
        await browser.post(INTERACT, json=body),
        await browser.post(ACQUIRE, json={"query": FETCH, "xdm": as_fpid()}),
        await browser.post(SET_CONSENT, json={"query": FETCH, "consent": consent, **as_fpid()}),
    ]
    assert [ecid_of(answer) for answer in answers] == [ecid_from_fpid(FPID)] * 3


async def test_acquire_must_say_what_it_fetches(browser):
    """Otherwise there is nothing to answer."""
    answer = await browser.post(ACQUIRE, json={"query": FETCH})
    assert stored(answer)[KEYS.identity_key]["value"] == pack_identity_cookie(ecid_of(answer))
    assert {"state:store", "locationHint:result"} <= handles(answer).keys()
    for body in ({}, {"query": {"identity": {}}}, {"query": {"identity": {"fetch": "ECID"}}}):
        assert_problem(await browser.post(ACQUIRE, json=body), "0103-400")


async def test_collect_answers_nothing_and_records_all(browser, development_edge):
    """In one request, mixed visitors; nothing is minted for nobody."""
    body = {"events": [{"xdm": {"_id": "a", **as_fpid()}}, {"xdm": {"_id": "b"}}, {"xdm": {"_id": "a"}}]}
    answer = await browser.post("/ee/irl1/v1/collect?configId=ds", json=body)
    assert (answer.status_code, answer.content) == (204, b"")
    assert [item["event"] for item in development_edge.events] == body["events"]
    assert [item["duplicate"] for item in development_edge.events] == [False, False, True]


async def test_events_are_stamped_with_the_time_of_arrival():
    """In UTC with milliseconds, whatever zone the clock speaks."""
    moment = datetime(2026, 11, 23, 17, 20, 48, 830_999, tzinfo=timezone(timedelta(hours=2)))
    edge = DevelopmentEdge(clock=lambda: moment)
    async with client(edge) as browser:
        await browser.post(COLLECT, json=one_event())
    assert [item["receivedAt"] for item in edge.events + edge.requests] == ["2026-11-23T15:20:48.830Z"] * 2


async def test_the_default_clock_tells_the_time(browser, development_edge):
    """Between the moments before and after."""
    before = datetime.now(UTC).isoformat(timespec="milliseconds")
    await browser.post(COLLECT, json=one_event())
    after = datetime.now(UTC).isoformat(timespec="milliseconds")
    assert before <= development_edge.events[0]["receivedAt"].replace("Z", "+00:00") <= after


# Version 2


async def test_v2_interact_takes_one_event(browser, development_edge):
    """Under "event"; batches are refused."""
    event = {"xdm": {"_id": "a", "identityMap": PRIMARY}}
    answer = await browser.post(INTERACT_2, json={"event": event, "query": FETCH})
    assert re.fullmatch("[0-9]{38}", ecid_of(answer))
    assert [item["event"] for item in development_edge.events] == [event]
    assert_problem(await browser.post(INTERACT_2, json={"events": [event]}), "0103-400")
    assert_problem(await browser.post(INTERACT_2, json={"event": [event]}), "0102-400", event_index=0)
    assert len(development_edge.events) == 1


async def test_v2_collect_says_accepted_or_nothing(browser, development_edge):
    """202 with the request id, 204 when it shall be silent; both record."""
    body = {"events": [{"xdm": {"identityMap": PRIMARY}}]}
    answer = await browser.post(f"{COLLECT_2}&requestId=r", json=body)
    assert answer.status_code == 202
    assert answer.json().keys() == {"requestId", "handle"}
    assert answer.json()["handle"] == []
    assert answer.json()["requestId"].startswith("r-")
    assert (await browser.post(f"{COLLECT_2}&silent=true", json=body)).status_code == 204
    assert (await browser.post(f"{COLLECT_2}&silent=false", json=body)).status_code == 202
    assert len(development_edge.events) == 3
    assert_problem(await browser.post(f"{COLLECT_2}&silent=true", json={"event": {}}), "0103-400")


async def test_v2_wants_one_primary_identity_on_each_event(browser, development_edge):
    """Beside the events it does not count; the index is named, and nothing is recorded."""
    good, bad = {"xdm": {"identityMap": PRIMARY}}, {"xdm": {"identityMap": {"CRMID": [{"id": "u"}]}}}
    answer = await browser.post(COLLECT_2, json={"events": [good, bad], "xdm": {"identityMap": PRIMARY}})
    assert_problem(answer, "0306-400", event_index=1)
    assert "#1" in answer.json()["detail"]
    assert_problem(await browser.post(INTERACT_2, json={"event": {"xdm": {}}}), "0306-400", event_index=0)
    assert development_edge.events == []
    assert (await browser.post(COLLECT, json={"events": [bad]})).status_code == 204


GOOD_CREDENTIALS = {"authorization": "Bearer t-1", "x-api-key": "client", "x-gw-ims-org-id": "ORG@AdobeOrg"}


@pytest.mark.parametrize(
    "changes",
    [
        {"authorization": None},
        {"authorization": "t-1"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer  "},
        {"authorization": "Basic t-1"},
        {"x-api-key": None},
        {"x-gw-ims-org-id": None},
    ],
)
async def test_credentials_are_checked_when_told_to(changes):
    """All three headers, on v2 only."""
    edge = DevelopmentEdge(authenticated=True)
    headers = {name: value for name, value in {**GOOD_CREDENTIALS, **changes}.items() if value is not None}
    body = {"event": {"xdm": {"identityMap": PRIMARY}}}
    async with client(edge) as browser:
        assert_problem(await browser.post(INTERACT_2, json=body, headers=headers), "0500-401")
        assert (await browser.post(INTERACT_2, json=body, headers=GOOD_CREDENTIALS)).status_code == 200
        assert (await browser.post(INTERACT, json=one_event())).status_code == 200
    async with client(DevelopmentEdge()) as browser:
        assert (await browser.post(INTERACT_2, json=body)).status_code == 200


async def test_an_access_token_may_expire_while_the_edge_runs():
    """So that a test can ask whether a client fetches another one."""
    edge = DevelopmentEdge(authenticated=True, expired_tokens=["t-0"])
    body = {"event": {"xdm": {"identityMap": PRIMARY}}}
    async with client(edge) as browser:
        old = {**GOOD_CREDENTIALS, "authorization": "bearer t-0"}
        assert_problem(await browser.post(INTERACT_2, json=body, headers=old), "0503-401")
        assert (await browser.post(INTERACT_2, json=body, headers=GOOD_CREDENTIALS)).status_code == 200
        edge.expired_tokens.add("t-1")
        assert_problem(await browser.post(INTERACT_2, json=body, headers=GOOD_CREDENTIALS), "0503-401")


# Consent


def choice(val, **more):
    return {"consent": [{"standard": "Adobe", "version": "2.0", "value": {"collect": {"val": val}}}], **more}


@pytest.mark.parametrize(("val", "general"), [("y", "in"), ("n", "out")])
async def test_set_consent_answers_with_identity_and_choice(browser, val, general):
    """An identity is minted even for a refusal, since consent is tied to it."""
    answer = await browser.post(SET_CONSENT, json=choice(val, query=FETCH))
    assert answer.status_code == 200
    assert handles(answer) == {
        "identity:result": [{"id": ecid_of(answer), "namespace": {"code": "ECID"}}],
        "state:store": [
            {
                "key": KEYS.identity_key,
                "value": pack_identity_cookie(ecid_of(answer)),
                "maxAge": 34_128_000,
                "attrs": {"SameSite": "None"},
            },
            {"key": KEYS.consent_key, "value": f"general={general}", "maxAge": 15_552_000},
        ],
    }


async def test_set_consent_keeps_the_identity_that_it_was_given(browser):
    """From the cookie, or from the map at the top."""
    state = with_state((KEYS.identity_key, pack_identity_cookie(ECID)))
    for given in (state, {"identityMap": {"ECID": [{"id": ECID}]}}):
        answer = await browser.post(SET_CONSENT, json=choice("y", **given))
        assert unpack_identity_cookie(stored(answer)[KEYS.identity_key]["value"]) == ECID


async def test_a_malformed_choice_changes_nothing(browser, development_edge):
    """It is refused, and what was chosen before holds."""
    await browser.post(SET_CONSENT, json=choice("n", **as_fpid()))
    assert_problem(await browser.post(SET_CONSENT, json=choice("yes", **as_fpid())), "0102-400")
    assert_problem(await browser.post(SET_CONSENT, json={"consent": [], **as_fpid()}), "0103-400")
    empty = {"consent": [{"standard": "IAB TCF", "version": "2.0", "value": ""}]}
    answer = await browser.post(SET_CONSENT, json=empty)
    assert_problem(answer, "0104-422")
    assert answer.json()["report"]["errors"]
    await browser.post(COLLECT, json=one_event(**as_fpid()))
    assert development_edge.events == []


def assert_withheld(answer, *indexes):
    assert answer.status_code == 200
    assert [
        (warning["type"], warning["status"], warning["report"]) for warning in answer.json()["warnings"]
    ] == [("https://ns.adobe.com/aep/errors/EXEG-0301-200", 200, {"eventIndex": index}) for index in indexes]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (INTERACT, "events"),
        (COLLECT, "events"),
        (INTERACT_2, "event"),
        (COLLECT_2, "events"),
        (f"{COLLECT_2}&silent=true", "events"),
    ],
)
async def test_events_of_a_visitor_who_refused_are_answered_but_not_recorded(
    browser, development_edge, url, name
):
    """With a warning on every endpoint, until the visitor agrees."""
    event = {"xdm": {"identityMap": {"FPID": [{"id": FPID, "primary": True}]}}}
    body = {name: event if name == "event" else [event]}
    await browser.post(SET_CONSENT, json=choice("n", **as_fpid()))
    answer = await browser.post(url, json=body)
    assert_withheld(answer, 0)
    assert isinstance(answer.json()["handle"], list)
    assert development_edge.events == []
    await browser.post(SET_CONSENT, json=choice("y", **as_fpid()))
    assert "warnings" not in (await browser.post(url, json=body)).text
    assert len(development_edge.events) == 1


async def test_one_visitor_is_never_another(browser, development_edge):
    """In a batch of three only the refusing visitor's event is withheld, and named."""
    await browser.post(SET_CONSENT, json=choice("n", **as_fpid()))
    events = [
        {"xdm": {"_id": "a"}},
        {"xdm": {"_id": "b", **as_fpid()}},
        {"xdm": {"_id": "c", "identityMap": PRIMARY}},
    ]
    assert_withheld(await browser.post(COLLECT, json={"events": events}), 1)
    assert [item["event"]["xdm"]["_id"] for item in development_edge.events] == ["a", "c"]


async def test_a_refusal_in_the_cookie_is_enough(browser, development_edge):
    """The edge need not have heard of the visitor; a cookie that cannot be read says nothing."""
    for value in ("general=out", "general=in", "nonsense"):
        event = one_event(_id=value)
        await browser.post(INTERACT, json={**event, **with_state((KEYS.consent_key, value))})
    assert [item["event"]["xdm"]["_id"] for item in development_edge.events] == ["general=in", "nonsense"]


async def test_a_stored_refusal_outweighs_a_stale_cookie(browser, development_edge):
    """Of two sources one refusal is enough."""
    await browser.post(SET_CONSENT, json=choice("n", **as_fpid()))
    state = with_state((KEYS.consent_key, "general=in"))
    assert_withheld(await browser.post(INTERACT, json={**one_event(**as_fpid()), **state}), 0)
    assert development_edge.events == []


@pytest.mark.parametrize("url", [INTERACT, COLLECT])
async def test_a_denying_consent_string_on_an_event_withholds_it(browser, development_edge, url):
    """The client is asked to keep the refusal; other events of the request are taken."""
    string = {
        "consentStandard": "IAB TCF",
        "consentStandardVersion": "2.0",
        "consentStringValue": DENYING_TC_STRING,
    }
    events = [{"xdm": {"_id": "a"}}, {"xdm": {"_id": "b", "consentStrings": [string]}}]
    answer = await browser.post(url, json={"events": events})
    assert_withheld(answer, 1)
    entries = [
        e for handle in answer.json()["handle"] if handle["type"] == "state:store" for e in handle["payload"]
    ]
    assert {"key": KEYS.consent_key, "value": "general=out", "maxAge": 15_552_000} in entries
    assert [item["event"]["xdm"]["_id"] for item in development_edge.events] == ["a"]


@pytest.mark.parametrize(("operation", "general"), [("update", "out"), (None, "in")])
async def test_a_choice_about_other_things_updates_or_replaces(browser, operation, general):
    """An update leaves collection as it was; without it everything said before is replaced."""
    await browser.post(SET_CONSENT, json=choice("n", **as_fpid()))
    other = {"standard": "Adobe", "version": "2.0", "value": {"marketing": {"preferred": "email"}}}
    body = {"consent": [other], "query": {"consent": {"operation": operation}}, **as_fpid()}
    answer = await browser.post(SET_CONSENT, json=body)
    assert stored(answer)[KEYS.consent_key]["value"] == f"general={general}"


# Hostile input, as a whole


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b'{"events":[' + b"[" * 60_000, "0101-400"),
        (b'{"events":[{"xdm":' + b'{"a":' * 600 + b"1" + b"}" * 602 + b"]}", "0101-400"),
        (b'{"events":[{"xdm":{"n":' + b"9" * 5_000 + b"}}]}", "0101-400"),
        (b'{"events":[{"xdm":{"n":NaN}}]}', "0101-400"),
        (b'{"events":[{"xdm":{"n":"\xed\xa0\x80"}}]}', "0101-400"),
        (b"x" * 200_000, "0112-413"),
        (b"", "0109-408"),
        (b"[]", "0102-400"),
        (b'"\\ud800"', "0102-400"),
    ],
)
async def test_hostile_json_is_a_problem_and_the_desk_still_answers(browser, content, code):
    """Never a 500; and what came is shown, as text."""
    answer = await browser.post(COLLECT, content=content, headers={"content-type": "application/json"})
    assert_problem(answer, code)
    assert (await browser.get("/_dev/events")).json() == {"events": [], "dropped": 0}
    assert [request["status"] for request in (await browser.get("/_dev/requests")).json()["requests"]] == [
        int(code[-3:])
    ]


async def test_lone_surrogates_and_long_numbers_come_back_as_they_were(browser):
    """In values, keys and ids; the read-back stays text that UTF-8 can hold."""
    event = '{"xdm":{"_id":"\\ud800","\\udfff":"\\ud83c","n":' + "9" * 4_300 + ',"f":1e400,"a":1,"a":2}}'
    content = f'{{"events":[{event},{event}]}}'
    for _ in range(2):
        answer = await browser.post(COLLECT, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 204
    listing = await browser.get("/_dev/events")
    assert listing.content.decode().count(event) == 4
    assert [item["duplicate"] for item in listing.json()["events"]] == [False, True, True, True]
    assert (await browser.get("/_dev/requests")).json()["requests"][0]["body"]["events"][0]["xdm"][
        "_id"
    ] == "\ud800"


async def test_an_event_as_deep_as_the_edge_reads_can_be_read_back(browser):
    """By any JSON reader with Python's default recursion limit."""
    depth = 500
    event = '{"xdm":' + '{"a":' * depth + "1" + "}" * depth + "}"
    await browser.post(
        COLLECT, content=f'{{"events":[{event}]}}', headers={"content-type": "application/json"}
    )
    assert (await browser.get("/_dev/events")).json()["events"][0]["event"] == json.loads(event)


async def test_a_client_that_leaves_while_sending_does_no_harm(development_edge, caplog):
    """Nothing is recorded, nothing is answered, nothing is logged."""
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    sent = []

    async def receive():
        return next(messages)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/ee/v1/collect", "query_string": b"", "headers": []}
    await create_app(development_edge)(scope, receive, send)
    assert (sent, development_edge.requests, caplog.records) == ([], [], [])


async def test_events_in_a_database_survive_a_restart(tmp_path):
    """The second edge lists them and flags a repeated one."""
    for expected in ([False], [False, True]):
        with DevelopmentEdge(sink=SQLiteFile(tmp_path / "edge.db")) as edge:
            async with client(edge) as browser:
                await browser.post(COLLECT, json=one_event(_id="a"))
            assert [item["duplicate"] for item in edge.events] == expected


def real_events():
    """XDM objects as JSON texts."""
    shared = Path(__file__).parents[3] / "shared" / "data" / "xdm-events.jsonl"
    if shared.exists():
        return shared.read_text(encoding="utf-8").splitlines()
    return [json.dumps(event) for event in sample_events()]


@pytest.mark.parametrize("kind", [SQLiteFile, JSONLinesFile])
async def test_real_events_come_back_value_for_value(tmp_path, kind):
    """Over HTTP, and out of the file on the next start; numbers are compared as they were written."""
    events = [f'{{"xdm":{line}}}' for line in real_events()]
    with DevelopmentEdge(sink=kind(tmp_path / "edge")) as edge:
        async with client(edge) as sending:
            for event in events:
                content, headers = f'{{"events":[{event}]}}', {"content-type": "application/json"}
                assert (await sending.post(COLLECT, content=content, headers=headers)).status_code == 204
            listing = (await sending.get("/_dev/events")).text
    with DevelopmentEdge(sink=kind(tmp_path / "edge")) as again:
        kept = [exchange.event_text(event) for exchange, event in again.recorder.events()[0]]
    sent = [json.loads(event, parse_float=str) for event in events]
    assert [entry["event"] for entry in json.loads(listing, parse_float=str)["events"]] == sent
    assert [json.loads(event, parse_float=str) for event in kept] == sent
