"""What other clients than this library need of the development edge: pages, media, records."""

import json

import httpx
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from alloy_async.devserver import DevelopmentEdge, Fault, create_app

INTERACT, COLLECT = "/ee/v1/interact?configId=ds", "/ee/v1/collect?configId=ds"
COLLECT_2 = "/ee/v2/collect?datastreamId=ds"
MEDIA = "/ee/va/v1/{}?configId=ds"
PAGE = {"origin": "https://shop.example"}
ECID = "41861666193140161934276845651148876988"


@pytest.fixture
def edge():
    return DevelopmentEdge()


@pytest.fixture
async def browser(edge):
    transport = httpx.ASGITransport(create_app(edge))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as opened:
        yield opened


def one_event(**xdm):
    return {"events": [{"xdm": xdm}]}


def types(answer):
    return [handle["type"] for handle in answer.json()["handle"]]


# Pages


@pytest.mark.parametrize(
    ("url", "body", "status"),
    [
        (INTERACT, one_event(), 200),
        (COLLECT, one_event(), 204),
        (INTERACT, {}, 400),
        ("/ee/v1/nothing", {}, 404),
    ],
)
async def test_a_page_may_read_its_answer_refusals_too(browser, url, body, status):
    """Its own origin is named, since a star does not do where cookies are sent along."""
    answer = await browser.post(url, json=body, headers=PAGE)
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"
    assert answer.headers["access-control-allow-credentials"] == "true"
    exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
    assert set(exposed) == {"retry-after", "x-adobe-edge", "x-request-id"}
    assert answer.headers["vary"] == "Origin"


async def test_a_fault_is_readable_for_a_page(browser, edge):
    """A page that could not read it would take it for a network error."""
    edge.faults.replace([Fault(text="bad gateway")])
    answer = await browser.post(INTERACT, json=one_event(), headers=PAGE)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (
        502,
        "https://shop.example",
    )


async def test_without_an_origin_nothing_is_said_about_origins(browser):
    """A server is no page."""
    answer = await browser.post(INTERACT, json=one_event())
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_preflight_is_allowed_and_meets_no_fault(browser, edge):
    """The method, the headers that were asked for, and a time for which it holds."""
    edge.faults.replace([Fault(reset="before"), Fault(status=503)])
    asked = {
        **PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,x-b",
    }
    answer = await browser.options("/ee/or2/v1/interact", headers=asked)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert answer.headers["access-control-allow-methods"] == "POST"
    assert answer.headers["access-control-allow-headers"] == "content-type,x-b"
    assert answer.headers["access-control-max-age"] == "86400"
    assert (await browser.options("/ee/v1/nothing", headers=asked)).status_code == 404
    assert (await browser.options(INTERACT, headers=PAGE)).status_code == 405


async def test_what_a_browser_asks_by_itself_uses_up_no_fault(browser, edge):
    """Its look for an icon comes before the client's request."""
    edge.faults.replace([Fault(status=503, times=1)])
    assert (await browser.get("/favicon.ico")).status_code == 404
    assert (await browser.post(COLLECT, json=one_event())).status_code == 503


async def test_a_page_may_not_ask_the_desk(browser):
    """What was received is nobody's but the desk's: no preflight is allowed there."""
    asked = {**PAGE, "access-control-request-method": "POST"}
    for path in ("/_dev/faults", "/_dev/events"):
        answer = await browser.options(path, headers=asked)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("media_type", ["text/plain; charset=UTF-8", "text/plain", "text/javascript"])
async def test_a_page_sends_json_as_text(browser, edge, media_type):
    """By fetch or by beacon, so that no preflight is needed."""
    content = json.dumps(one_event(_id="e"))
    for url, status in ((INTERACT, 200), (COLLECT, 204)):
        answer = await browser.post(url, content=content, headers={"content-type": media_type})
        assert answer.status_code == status
    assert len(edge.events) == 2


async def test_every_answer_with_content_has_a_list_of_handles(browser):
    """A browser's client rejects what has none; only 204 needs no content."""
    consent = {"consent": [{"standard": "Adobe", "version": "1.0", "value": {"general": "in"}}]}
    identities = {"identityMap": {"CRMID": [{"id": "u", "primary": True}]}}
    denied = {"consentStrings": [{"consentStandard": "IAB TCF", "consentStringValue": DENYING_TC_STRING}]}
    answers = [
        await browser.post(INTERACT, json=one_event()),
        await browser.post("/ee/v1/privacy/set-consent?configId=ds", json=consent),
        await browser.post(
            "/ee/v1/identity/acquire?configId=ds", json={"query": {"identity": {"fetch": ["ECID"]}}}
        ),
        await browser.post(COLLECT_2, json=one_event(**identities)),
        await browser.post(COLLECT, json=one_event(**denied)),
        await browser.post(MEDIA.format("sessionStart"), json=one_event()),
        await browser.post(
            MEDIA.format("play"), json=one_event(mediaCollection={"sessionID": "s"}, **denied)
        ),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 202, 200, 200, 200]
    assert all(isinstance(answer.json()["handle"], list) for answer in answers)


DENYING_TC_STRING = "CO052l-O052l-DGAMBFRACBgAAAAAAAAAAYgAAAAAAAA"


# Media


async def test_a_media_session_begins_with_an_id(browser, edge):
    """By its own path or by interact; no session's id is another's."""
    answers = [
        await browser.post(MEDIA.format("sessionStart"), json=one_event()),
        await browser.post(INTERACT, json=one_event(eventType="media.sessionStart")),
    ]
    sessions = []
    for answer in answers:
        assert answer.status_code == 200
        assert "state:store" in types(answer)
        handles = [h for h in answer.json()["handle"] if h["type"] == "media-analytics:new-session"]
        sessions += [item["sessionId"] for handle in handles for item in handle["payload"]]
    assert len(set(sessions)) == 2
    assert all(len(session) == 64 for session in sessions)
    assert len(edge.events) == 2


async def test_what_happens_in_a_media_session_is_taken_without_content(browser, edge):
    """204, under the id of the session."""
    for action in ("ping", "play", "sessionEnd", "statesUpdate"):
        answer = await browser.post(
            MEDIA.format(action), json=one_event(mediaCollection={"sessionID": "s", "playhead": 1})
        )
        assert (answer.status_code, answer.content) == (204, b"")
    assert len(edge.events) == 4


@pytest.mark.parametrize("collection", [None, {}, {"sessionID": 1}, {"sessionId": "s"}, []])
async def test_a_media_event_needs_its_session(browser, edge, collection):
    """Spelled with a capital ID; the event is named."""
    answer = await browser.post(MEDIA.format("ping"), json=one_event(mediaCollection=collection))
    assert answer.status_code == 400
    assert answer.json()["type"].endswith("EXEG-0103-400")
    assert answer.json()["report"]["eventIndex"] == 0
    assert edge.events == []


async def test_no_session_begins_for_a_visitor_who_is_out(browser, edge):
    """The warning comes instead."""
    denied = {"consentStrings": [{"consentStandard": "IAB TCF", "consentStringValue": DENYING_TC_STRING}]}
    answer = await browser.post(MEDIA.format("sessionStart"), json=one_event(**denied))
    assert "media-analytics:new-session" not in types(answer)
    assert answer.json()["warnings"]
    assert edge.events == []


# Records


def streaming(**config):
    return {"meta": {"konductorConfig": {"streaming": {"enabled": True, **config}}}}


def records(answer, before="\0", after="\n"):
    pieces = answer.text.split(after)
    assert pieces.pop() == ""
    assert all(piece.startswith(before) for piece in pieces)
    return [json.loads(piece.removeprefix(before)) for piece in pieces]


async def test_an_answer_comes_in_records_where_they_are_asked_for(browser):
    """Each is a whole envelope with one of the handles, in the same order as in one document."""
    fetch = {"query": {"identity": {"fetch": ["ECID"]}}}
    whole = await browser.post(INTERACT, json={**one_event(), **fetch})
    answer = await browser.post(f"{INTERACT}&requestId=r", json={**one_event(), **fetch, **streaming()})
    found = records(answer)
    assert [handle["type"] for record in found for handle in record["handle"]] == types(whole)
    assert {len(record["handle"]) for record in found} == {1}
    assert all(record["requestId"].startswith("r-") for record in found)


async def test_the_separators_are_the_clients_own(browser):
    """As the request names them."""
    body = {**one_event(), **streaming(recordSeparator="<", lineFeed=">")}
    assert records(await browser.post(INTERACT, json=body), "<", ">")


async def test_what_went_wrong_is_a_record_of_its_own(browser, edge):
    """Errors and warnings come last; an answer without handles is one record."""
    edge.faults.replace([Fault(errors=True)])
    found = records(await browser.post(INTERACT, json={**one_event(), **streaming()}))
    assert found[-1]["handle"] == []
    assert found[-1]["errors"]
    assert not any("errors" in record for record in found[:-1])
    (only,) = records(await browser.post(COLLECT, json={**one_event(), **streaming()}))
    assert only["errors"]
    edge.faults.clear()
    primary = {"identityMap": {"CRMID": [{"id": "u", "primary": True}]}}
    (only,) = records(await browser.post(COLLECT_2, json={**one_event(**primary), **streaming()}))
    assert only.keys() == {"requestId", "handle"}


async def test_refusals_and_empty_answers_are_no_records(browser):
    """A problem is one document, whatever was asked for."""
    assert (await browser.post(INTERACT, json=streaming())).json()["status"] == 400
    assert (await browser.post(COLLECT, json={**one_event(), **streaming()})).content == b""
    for config in ({"enabled": False}, {"enabled": "yes"}):
        answer = await browser.post(INTERACT, json={**one_event(), **streaming(**config)})
        assert answer.json()["handle"]


@pytest.mark.parametrize("config", [{"recordSeparator": 1}, {"lineFeed": None}, {"lineFeed": "x" * 17}])
async def test_a_separator_that_is_none_is_refused(browser, edge, config):
    """Before any event is taken."""
    answer = await browser.post(INTERACT, json={**one_event(), **streaming(**config)})
    assert answer.status_code == 400
    assert answer.json()["type"].endswith("EXEG-0102-400")
    assert edge.events == []
