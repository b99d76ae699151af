"""Fault switches: how they are written, which one acts, and what it does to an answer."""

import asyncio
import json
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from alloy_async.devserver import (
    ConnectionFault,
    DevelopmentEdge,
    EdgeAnswer,
    Fault,
    FaultError,
    Faults,
    create_app,
)
from alloy_async.devserver.delivery import deliver
from alloy_async.devserver.faults import read_faults
from alloy_async.devserver.identity import ecid_from_fpid

INTERACT, COLLECT = "/ee/v1/interact?configId=ds", "/ee/v1/collect?configId=ds"
FPID = "6f1c0f7e-3f0a-4a1c-9d58-0d6f6c1f2b3a"
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def client(edge):
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(edge)), base_url="http://127.0.0.1")


async def post(edge, url=INTERACT, body=None):
    async with client(edge) as browser:
        return await browser.post(url, json=one_event() if body is None else body)


def one_event(**xdm):
    return {"events": [{"xdm": xdm}]}


# How they are written


@pytest.mark.parametrize(
    ("text", "fault", "label"),
    [
        ("status=503", Fault(status=503), "status 503"),
        ("status=429, retry-after=2", Fault(status=429, retry_after=2), "status 429"),
        ("status=503,retryAfterDate=2", Fault(status=503, retry_after_date=2), "status 503"),
        ("latency=250,rate=0.3", Fault(latency=250, rate=0.3), "latency 250 ms"),
        ("reset=before,path=/interact", Fault(reset="before", path="/interact"), "reset before"),
        ("cut,times=2", Fault(cut=True, times=2), "cut"),
        ("cut=true", Fault(cut=True), "cut"),
        ("slow=2000,visitor=ECID 1", Fault(slow=2000, visitor="ECID 1"), "slow 2000 ms"),
        ("text=Bad gateway", Fault(text="Bad gateway"), "text 502"),
        ("text=503,status=500", Fault(text="503", status=500), "text 500"),
        ("errors,event-type=a.b", Fault(errors=True, event_type="a.b"), "errors"),
        ("content-type=text/html", Fault(content_type="text/html"), "contentType text/html"),
        ('{"text": "a, b", "rate": 1}', Fault(text="a, b"), "text 502"),
    ],
)
def test_a_fault_is_read_from_text_and_json_alike(text, fault, label):
    """What it writes it reads again."""
    assert Fault.from_text(text) == Fault.from_json(json.loads(json.dumps(fault.as_json()))) == fault
    assert fault.label == label


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("statsu=503", "statsu: is no field of a fault; did you mean status?"),
        ("status=200", "status: must be a whole number from 400 to 599, not 200"),
        ("status=true", "status: must be a whole number from 400 to 599, not true"),
        ("status=many", 'status: must be a whole number from 400 to 599, not "many"'),
        ("status", "status: needs a value: status=a whole number from 400 to 599"),
        ("rate=0.5", "says not what goes wrong; give one of status, latency, "),
        ("status=503,cut", "cut: cannot be combined with status; make two faults of them"),
        ("latency=5,slow=5", "slow: cannot be combined with latency"),
        ("latency=0", "latency: must be a whole number from 1 to 3600000 (milliseconds), not 0"),
        ("reset=during", 'reset: must be "before" or "after" (reading the body), not "during"'),
        ("cut=1", "cut: must be true, not 1"),
        ("cut,rate=1.5", "rate: must be a number from 0 to 1, not 1.5"),
        ("cut,rate=true", "rate: must be a number from 0 to 1, not true"),
        ("cut,retry-after=1", "retry-after: goes with status or text only"),
        (
            "status=503,retry-after=1,retry-after-date=1",
            "retry-after-date: cannot be combined with retryAfter",
        ),
        ("reset=before,event-type=a", "event-type: is not known before the body is read; use reset after"),
        ("reset=before,visitor=a", "visitor: is not known before the body is read; use reset after"),
        ("content-type=a\r\nb", "content-type: must be a content type"),
        ("cut,path=", "path: must be a text that is not empty"),
        ("cut,,", "is written as name=value,name=value"),
        ('{"cut": null}', "cut: must be true, not null"),
        ('{"cut":', "begins as JSON, and is none"),
    ],
)
def test_a_fault_that_cannot_be_used_is_an_error_that_says_the_field_and_the_fix(text, message):
    """In the spelling of the command line."""
    with pytest.raises(FaultError) as caught:
        Fault.from_text(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ([], ""),
        ({"fault": []}, "fault"),
        ({"faults": {}}, "faults"),
        ({}, "faults"),
        ({"faults": [{"cut": True}] * 101}, "faults"),
        ({"faults": [], "seed": "1"}, "seed"),
        ({"faults": [], "seed": True}, "seed"),
        ({"faults": [{"cut": True}, {"cut": True, "rate": 2}]}, "faults[1].rate"),
        ({"faults": [3]}, "faults[0]"),
        ({"faults": [{"reset": ["before"]}]}, "faults[0].reset"),
    ],
)
def test_a_list_that_cannot_be_used_names_the_whole_path(document, path):
    """From the outermost object on."""
    with pytest.raises(FaultError) as caught:
        read_faults(document)
    assert caught.value.path == path


# Which one acts


def test_all_that_is_matched_must_match():
    """Path by a part of it, visitor by id with or without its namespace, event type as a whole."""
    fault = Fault(cut=True, path="/interact", visitor="u-1", event_type="a.b")
    assert fault.matches("/ee/v1/interact", {"CRMID u-1", "ECID 2"}, {"a.b", "c"})
    assert not fault.matches("/ee/v1/collect", {"CRMID u-1"}, {"a.b"})
    assert not fault.matches("/ee/v1/interact", {"CRMID u-12"}, {"a.b"})
    assert not fault.matches("/ee/v1/interact", {"CRMID u-1"}, {"a.bc"})
    assert Fault(cut=True, visitor="CRMID u-1").matches("", {"CRMID u-1"})
    assert not Fault(cut=True, visitor="ECID u-1").matches("", {"CRMID u-1"})


def test_the_first_that_matches_acts_and_is_counted():
    """``times`` counts matches; those behind come when it is spent."""
    first, second = Fault(status=503, path="a", times=2), Fault(cut=True)
    faults = Faults([first, second])
    assert [faults.choose(path) for path in ("a", "b", "a", "a")] == [first, second, first, second]
    assert faults.as_json() == {
        "seed": 0,
        "faults": [
            {"status": 503, "path": "a", "times": 2, "acted": 2},
            {"cut": True, "acted": 2},
        ],
    }


def test_a_run_can_be_repeated():
    """The same seed, the same dice; another seed, others; a share of one half is about that."""

    def run(faults):
        return [faults.choose("/") is not None for _ in range(200)]

    half = Fault(cut=True, rate=0.5)
    faults = Faults([half], seed=7)
    once = run(faults)
    assert 60 < sum(once) < 140
    faults.replace([half])
    assert run(faults) == once
    assert run(Faults([half], seed=8)) != once
    assert not any(run(Faults([Fault(cut=True, rate=0)])))


def test_faults_before_the_body_is_read_are_chosen_apart():
    """Each choice passes over the faults of the other."""
    before, after = Fault(reset="before"), Fault(reset="after")
    faults = Faults([before, after])
    assert faults.choose("/") is after
    assert faults.choose_unread("/") is before


def test_changes_are_told_counts_included():
    """After they are made, until the listener has enough."""
    faults, told = Faults(), []
    stop = faults.listen(lambda: told.append(faults.as_json()["faults"]))
    faults.replace([Fault(cut=True, path="a")])
    faults.choose("b")
    faults.choose("a")
    faults.clear()
    stop()
    faults.clear()
    listed = [{"cut": True, "path": "a", "acted": count} for count in (0, 1)]
    assert told == [listed[:1], listed[1:], []]


# What it does to an answer


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "0105-400"), (401, "0503-401"), (403, "0400-403"), (408, "0109-408"), (409, "0302-409"),
        (413, "0112-413"), (415, "0111-415"), (422, "0104-422"), (500, "0001-500"), (502, "0202-502"),
        (503, "0201-503"), (504, "0200-504"), (429, None), (507, None), (599, None),
    ],
)  # fmt: skip
async def test_a_status_is_a_problem_of_the_edge_and_takes_no_events(status, code):
    """With the code that the edge has for it; the request is recorded with what the fault did."""
    edge = DevelopmentEdge(faults=[Fault(status=status)])
    answer = await post(edge, f"{INTERACT}&requestId=r")
    problem = answer.json()
    assert answer.status_code == problem["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["type"] == (f"https://ns.adobe.com/aep/errors/EXEG-{code}" if code else "about:blank")
    assert problem["report"]["requestId"].startswith("r-")
    assert problem["title"]
    assert "retry-after" not in answer.headers
    assert edge.events == []
    assert [(r["status"], r["fault"]) for r in edge.requests] == [(status, f"status {status}")]


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (Fault(status=503), "refused"),
        (Fault(text="bad gateway"), "refused"),
        (Fault(errors=True), "recorded"),
        (Fault(latency=1), "recorded"),
        (Fault(content_type="text/html"), "recorded"),
    ],
)
async def test_the_summary_of_an_exchange_says_what_the_fault_did_to_its_events(fault, outcome):
    """Refused where the edge has not taken the request, recorded where only the answer went wrong."""
    edge = DevelopmentEdge(faults=[fault])
    await post(edge, body={"events": [{"xdm": {"_id": "a"}}, {"xdm": {"_id": "b"}}]})
    ((exchange,), _) = edge.recorder.exchanges()
    entry = exchange.entry()
    assert entry["fault"] == fault.label
    assert [(event["id"], event["outcome"]) for event in entry["events"]] == [("a", outcome), ("b", outcome)]


async def test_retry_after_comes_in_both_of_its_forms():
    """Seconds, or a date in GMT that many seconds ahead."""
    faults = [Fault(status=503, retry_after=0, times=1), Fault(status=429, retry_after_date=90)]
    edge = DevelopmentEdge(faults=faults, clock=lambda: NOON)
    assert (await post(edge)).headers["retry-after"] == "0"
    date = (await post(edge)).headers["retry-after"]
    assert date.endswith("GMT")
    assert (parsedate_to_datetime(date) - NOON).total_seconds() == 90


async def test_a_text_is_no_problem_document():
    """As a gateway before the edge would answer; the status is 502, or the one that is given."""
    edge = DevelopmentEdge(faults=[Fault(text="żle", status=500, times=1), Fault(text="bad gateway")])
    first, second = await post(edge), await post(edge)
    assert (first.status_code, first.text) == (500, "żle")
    assert (second.status_code, second.text) == (502, "bad gateway")
    assert second.headers["content-type"].startswith("text/plain")
    assert edge.events == []


async def test_errors_stand_beside_the_usual_handles():
    """207, and the events are taken; collect's empty answer gets a body for it."""
    edge = DevelopmentEdge(faults=[Fault(errors=True)])
    for url in (INTERACT, COLLECT):
        answer = await post(edge, f"{url}&requestId=a%20b")
        content = answer.json()
        assert answer.status_code == 207
        assert content["requestId"].startswith("a b-")
        assert content["errors"][0]["type"].endswith("EXEG-0200-504")
        assert content["errors"][0]["report"] == {"requestId": content["requestId"], "eventIndex": 0}
        assert bool(content["handle"]) == (url == INTERACT)
    assert len(edge.events) == 2
    assert [request["status"] for request in edge.requests] == [207, 207]


async def test_a_refusal_stays_a_refusal():
    """There is nothing that an upstream could have failed with."""
    edge = DevelopmentEdge(faults=[Fault(errors=True)])
    assert (await post(edge, "/ee/v1/interact")).status_code == 400


async def test_a_wrong_content_type_changes_nothing_else():
    """The events are taken."""
    edge = DevelopmentEdge(faults=[Fault(content_type="text/html")])
    answer = await post(edge)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html")
    assert answer.json()["handle"]
    assert len(edge.events) == 1


@pytest.mark.parametrize(
    ("visitor", "body"),
    [
        ("CRMID u-1", one_event(identityMap={"CRMID": [{"id": "u-1"}]})),
        ("u-1", {"xdm": {"identityMap": {"CRMID": [{"id": "u-1"}]}}, "events": [{}]}),
        ("u-1", {"identityMap": {"CRMID": [{"id": "u-1"}]}, "events": [{}]}),
        ("u-1", {"event": {"xdm": {"identityMap": {"CRMID": [{"id": "u-1"}]}}}}),
        (f"FPID {FPID}", one_event(identityMap={"FPID": [{"id": FPID}]})),
        (f"ECID {ecid_from_fpid(FPID)}", one_event(identityMap={"FPID": [{"id": FPID}]})),
    ],
)
async def test_a_visitor_is_known_by_all_their_names(visitor, body):
    """Wherever in the request the identity map stands; other visitors are left alone."""
    edge = DevelopmentEdge(faults=[Fault(status=503, visitor=visitor)])
    assert (await post(edge, body=body)).status_code == 503
    assert (await post(edge, body=one_event(identityMap={"CRMID": [{"id": "u-2"}]}))).status_code == 200


async def test_a_visitor_is_known_by_the_identity_cookie_too():
    """As the first answer gave it."""
    edge = DevelopmentEdge()
    answer = await post(edge, body={**one_event(), "query": {"identity": {"fetch": ["ECID"]}}})
    found = {handle["type"]: handle["payload"] for handle in answer.json()["handle"]}
    edge.faults.replace([Fault(status=503, visitor=found["identity:result"][0]["id"])])
    state = {"entries": [{"key": e["key"], "value": e["value"]} for e in found["state:store"]]}
    assert (await post(edge, body={**one_event(), "meta": {"state": state}})).status_code == 503
    assert (await post(edge)).status_code == 200


async def test_an_event_type_is_looked_for_in_every_event():
    """Bodies that cannot be read match by their path only."""
    edge = DevelopmentEdge(faults=[Fault(status=503, event_type="a")])
    two = {"events": [{"xdm": {"eventType": "b"}}, {"xdm": {"eventType": "a"}}]}
    assert (await post(edge, body=two)).status_code == 503
    assert (await post(edge, body=one_event(eventType="b"))).status_code == 200
    for strange in ([1], {"events": 3}, {"events": [3], "xdm": 4}, {"events": [{"xdm": {"identityMap": 1}}]}):
        assert (await post(edge, body=strange)).status_code == 400


async def test_a_reset_with_nothing_to_reset_is_an_exception():
    """Without a server the application raises; whether the events are taken is as on a connection."""
    edge = DevelopmentEdge(faults=[Fault(reset="before", times=1), Fault(reset="after")])
    for count in (0, 1):
        with pytest.raises(ConnectionFault):
            await post(edge)
        assert len(edge.events) == count
    assert [(request["fault"], request["status"]) for request in edge.requests] == [
        ("reset before", 0),
        ("reset after", 200),
    ]


async def test_a_cut_with_nothing_to_cut_is_an_exception():
    """The events are taken."""
    edge = DevelopmentEdge(faults=[Fault(cut=True)])
    with pytest.raises(ConnectionFault):
        await post(edge)
    assert len(edge.events) == 1


# Waiting


@pytest.mark.parametrize("fault", [Fault(latency=3_600_000), Fault(slow=3_600_000)])
@pytest.mark.parametrize("body", [b"", b"12345"])
async def test_waiting_ends_when_the_client_leaves(fault, body):
    """No hour is waited for somebody who has gone, and what they left of the body is passed over."""
    sent, messages = [], iter(["http.request", "http.disconnect"])

    async def receive():
        return {"type": next(messages)}

    async def send(message):
        sent.append(message)

    answer = EdgeAnswer(200 if body else 204, {"x-request-id": "r"}, body, fault)
    await asyncio.wait_for(deliver(answer, {"type": "http", "method": "POST"}, receive, send), 60)
    expected = ["http.response.start", "http.response.body"] if fault.slow and body else []
    assert [message["type"] for message in sent] == expected
    assert all(message.get("more_body", True) for message in sent)
    assert next(messages, None) is None


@pytest.mark.parametrize("fault", [Fault(latency=1), Fault(slow=1)])
@pytest.mark.parametrize("url", [INTERACT, COLLECT])
async def test_who_waits_gets_the_whole_answer(fault, url):
    """Late or in pieces, and the events are taken."""
    edge = DevelopmentEdge(faults=[fault])
    answer = await post(edge, url)
    assert answer.status_code == (200 if url == INTERACT else 204)
    assert url == COLLECT or answer.json()["handle"]
    assert len(edge.events) == 1


# From the desk


async def test_faults_are_shown_and_changed_from_the_desk():
    """What GET answers can be posted back."""
    edge = DevelopmentEdge(faults=Faults([Fault(status=503, rate=0.5)], seed=3))
    async with client(edge) as desk:
        state = (await desk.get("/_dev/faults")).json()
        assert state == {"seed": 3, "faults": [{"status": 503, "rate": 0.5, "acted": 0}]}
        assert (await desk.post("/_dev/faults", json=state)).json() == state
        changed = await desk.post("/_dev/faults", json={"faults": [{"cut": True}]})
        assert (changed.status_code, changed.json()) == (
            200,
            {"seed": 3, "faults": [{"cut": True, "acted": 0}]},
        )
        assert list(edge.faults) == [Fault(cut=True)]
        assert (await desk.delete("/_dev/faults")).status_code == 204
        assert (await desk.get("/_dev/faults")).json() == {"seed": 3, "faults": []}


async def test_who_follows_hears_of_every_change():
    """Made at the desk or in code."""
    edge = DevelopmentEdge()
    app = create_app(edge)
    messages = app.state.feed.messages()
    assert "event: hello" in await anext(messages)
    assert "event: faults" in await anext(messages)
    for change in (lambda: edge.faults.replace([Fault(cut=True)]), edge.faults.clear):
        change()
        assert "event: faults" in await asyncio.wait_for(anext(messages), 60)
    await messages.aclose()


async def test_faults_that_cannot_be_used_change_nothing():
    """The answer names the path and the fix."""
    edge = DevelopmentEdge(faults=[Fault(cut=True)])
    async with client(edge) as desk:
        answer = await desk.post("/_dev/faults", json={"faults": [{"statsu": 503}]})
        assert answer.status_code == answer.json()["status"] == 400
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["path"] == "faults[0].statsu"
        assert "did you mean status?" in answer.json()["detail"]
        for content in (b"", b"{", b"[" * 100_000, b" " * 2_000_000):
            assert (await desk.post("/_dev/faults", content=content)).status_code == 400
    assert list(edge.faults) == [Fault(cut=True)]


@pytest.mark.parametrize("headers", [{"host": "rebound.example"}, {"origin": "http://rebound.example"}])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_no_page_from_elsewhere_switches_faults(headers, method):
    """Host and Origin are checked, as for everything at the desk."""
    edge = DevelopmentEdge(faults=[Fault(cut=True)])
    async with client(edge) as page:
        answer = await page.request(method, "/_dev/faults", json={"faults": []}, headers=headers)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    assert list(edge.faults) == [Fault(cut=True)]


async def test_the_desk_meets_no_faults():
    """Otherwise nobody could switch them off."""
    async with client(DevelopmentEdge(faults=[Fault(status=503), Fault(reset="before")])) as desk:
        assert (await desk.get("/_dev/events")).status_code == 200
        assert (await desk.delete("/_dev/faults")).status_code == 204
