"""Decisions out of a file: the shape of the answer, who gets it, and what becomes of a file that changes."""

import json
import logging
import os
import uuid

import httpx
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from alloy_async.devserver import DecisionsError, DevelopmentEdge, create_app
from alloy_async.devserver.personalization import read_decisions

INTERACT, INTERACT_2 = "/ee/v1/interact?configId=ds", "/ee/v2/interact?datastreamId=ds"
SET_CONSENT = "/ee/v1/privacy/set-consent?configId=ds"
ECID = "41861666193140161934276845651148876988"
SCHEMAS = "https://ns.adobe.com/personalization/"
HTML, JSON, DEFAULT = (f"{SCHEMAS}{kind}-content-item" for kind in ("html", "json", "default"))
SURFACE = "web://www.example.com/shop"
PRIMARY = {"CRMID": [{"id": "u-1", "primary": True}]}
FILE = {
    "scopes": {
        "hero": [{"schema": JSON, "content": {"title": "Sale"}}, {"schema": HTML, "content": "<p>Sale</p>"}],
        "control": [{"schema": DEFAULT}],
    },
    "surfaces": {
        SURFACE: [
            {
                "schema": f"{SCHEMAS}dom-action",
                "content": "<b>",
                "format": "text/plain",
                "type": "setHtml",
                "selector": "#a",
                "meta": {"offer.name": "b"},
            }
        ]
    },
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "decisions.json"
    path.write_text(json.dumps(FILE))
    return path


async def post(edge, url, body):
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(edge)), base_url="http://127.0.0.1"
    ) as browser:
        return await browser.post(url, json=body)


def asking(**personalization):
    return {"query": {"personalization": personalization}}


def hero(**xdm):
    return {"events": [{"xdm": xdm, **asking(decisionScopes=["hero"])}]}


def decisions(answer):
    return [handle for handle in answer.json()["handle"] if handle["type"] == "personalization:decisions"]


def contents(answer):
    (handle,) = decisions(answer)
    return [item["data"]["content"] for one in handle["payload"] for item in one["items"]]


# What is answered


async def test_each_event_of_v1_is_answered_in_the_edges_shape(file):
    """Scopes and surfaces that the file knows, in the order asked; every id is the same the next time."""
    edge = DevelopmentEdge(decisions=file)
    body = {
        "events": [
            {"xdm": {}},
            {"xdm": {}, **asking(decisionScopes=["control", "unknown", "hero"], surfaces=[SURFACE])},
        ]
    }
    (handle,) = decisions(await post(edge, INTERACT, body))
    assert handle["eventIndex"] == 1
    control, shown, surface = handle["payload"]
    assert [one["scope"] for one in handle["payload"]] == ["control", "hero", SURFACE]
    assert control["items"] == [{"id": control["items"][0]["id"], "schema": DEFAULT, "meta": {}}]
    assert shown.keys() == {"id", "scope", "scopeDetails", "items"}
    assert shown["id"].startswith("AT:")
    details = shown["scopeDetails"]
    assert details.keys() == {
        "decisionProvider",
        "correlationID",
        "activity",
        "experience",
        "characteristics",
    }
    assert (details["decisionProvider"], details["experience"]) == ("TGT", {"id": "0"})
    assert details["activity"]["id"] in details["correlationID"]
    assert details["characteristics"]["eventToken"]
    first, second = shown["items"]
    assert first == {
        "id": first["id"],
        "schema": JSON,
        "meta": {},
        "data": {"id": first["id"], "content": {"title": "Sale"}, "format": "application/json"},
    }
    assert (second["data"]["content"], second["data"]["format"]) == ("<p>Sale</p>", "text/html")
    assert first["id"] != second["id"]
    assert uuid.UUID(surface["id"])
    assert surface["scopeDetails"]["decisionProvider"] == "AJO"
    assert "experience" not in surface["scopeDetails"]
    (item,) = surface["items"]
    assert item["meta"] == {"offer.name": "b"}
    assert item["data"] == {
        "id": item["id"],
        "content": "<b>",
        "format": "text/plain",
        "type": "setHtml",
        "selector": "#a",
    }
    assert decisions(await post(DevelopmentEdge(decisions=file), INTERACT, body)) == [handle]


async def test_v2_asks_beside_its_event(file):
    """A query inside the event is not v2's."""
    edge = DevelopmentEdge(decisions=file)
    event = {"xdm": {"identityMap": PRIMARY}}
    answer = await post(edge, INTERACT_2, {"event": event, **asking(decisionScopes=["hero"])})
    assert contents(answer) == [{"title": "Sale"}, "<p>Sale</p>"]
    assert decisions(await post(edge, INTERACT_2, {"event": event | asking(decisionScopes=["hero"])})) == []


async def test_schemas_that_the_client_does_not_know_are_left_out(file):
    """A list of schemas is what it can show; without one it gets all."""
    edge = DevelopmentEdge(decisions=file)
    event = {"xdm": {}, **asking(decisionScopes=["hero", "control"], schemas=[HTML])}
    assert contents(await post(edge, INTERACT, {"events": [event]})) == ["<p>Sale</p>"]


async def test_nothing_that_qualifies_is_an_empty_answer():
    """With or without a file; who asks for nothing hears nothing."""
    edge = DevelopmentEdge()
    assert [handle["payload"] for handle in decisions(await post(edge, INTERACT, hero()))] == [[]]
    for query in ({}, asking(), asking(decisionScopes=[]), {"query": 3}):
        assert decisions(await post(edge, INTERACT, {"events": [{"xdm": {}, **query}]})) == []


async def test_a_visitor_who_is_out_gets_no_decisions(file):
    """Neither after set-consent nor with a consent string that denies."""
    edge = DevelopmentEdge(decisions=file)
    person = {"identityMap": {"ECID": [{"id": ECID}]}}
    assert contents(await post(edge, INTERACT, hero(**person)))
    consent = [{"standard": "Adobe", "version": "1.0", "value": {"general": "out"}}]
    await post(edge, SET_CONSENT, {"consent": consent, **person})
    answer = await post(edge, INTERACT, hero(**person))
    assert answer.json()["warnings"]
    assert decisions(answer) == []
    assert contents(await post(edge, INTERACT, hero()))


@pytest.mark.parametrize(
    "personalization",
    [
        {"decisionScopes": "hero"},
        {"decisionScopes": [1]},
        {"surfaces": {}},
        {"schemas": [None]},
        {"decisionScopes": [f"s{n}" for n in range(31)]},
    ],
)
async def test_a_question_that_cannot_be_read_is_refused(personalization):
    """The event is named, and nothing is recorded."""
    edge = DevelopmentEdge()
    answer = await post(edge, INTERACT, {"events": [{"xdm": {}, **asking(**personalization)}]})
    assert answer.status_code == 400
    assert answer.json()["type"].endswith("EXEG-0102-400")
    assert answer.json()["report"]["eventIndex"] == 0
    assert edge.events == []


# The file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "it is not JSON"),
        ("[]", "the file must be an object"),
        ({"scope": {}}, "scope is unknown; did you mean scopes?"),
        ({"scopes": []}, "scopes must be an object of lists"),
        ({"scopes": {"hero": {}}}, "scopes.hero must be a list of items"),
        ({"scopes": {"hero": [1]}}, "scopes.hero[0] must be an object"),
        ({"surfaces": {"web://a": [{}]}}, 'surfaces["web://a"][0].schema must be a text such as'),
        ({"scopes": {"hero": [{"schema": JSON}]}}, "scopes.hero[0].content is missing"),
        ({"scopes": {"hero": [{"schema": JSON, "contents": 1}]}}, "scopes.hero[0].contents is unknown; did you mean"),
        ({"scopes": {"hero": [{"schema": JSON, "content": 1, "format": 1}]}}, "scopes.hero[0].format must be a text"),
        ({"scopes": {"hero": [{"schema": JSON, "content": 1, "meta": 1}]}}, "scopes.hero[0].meta must be an object"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_an_error_that_names_the_place(tmp_path, content, message):
    """And the file."""
    text = content if isinstance(content, str) else json.dumps(content)
    with pytest.raises(DecisionsError) as caught:
        read_decisions(text.encode())
    assert str(caught.value).startswith(message)
    path = tmp_path / "d.json"
    path.write_text(text)
    with pytest.raises(DecisionsError) as caught:
        DevelopmentEdge(decisions=path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_file_that_is_missing_is_an_error_at_the_start(tmp_path):
    """One exception for all that is wrong with the file."""
    with pytest.raises(DecisionsError, match="cannot be read: No such file"):
        DevelopmentEdge(decisions=tmp_path / "none.json")


async def test_a_file_that_changes_is_read_again(file):
    """Without a restart."""
    edge = DevelopmentEdge(decisions=file)
    file.write_text(json.dumps({"scopes": {"hero": [{"schema": JSON, "content": "new"}]}}))
    assert contents(await post(edge, INTERACT, hero())) == ["new"]


async def test_a_file_that_breaks_is_said_once_and_the_last_good_one_goes_on(file, caplog):
    """Also one that disappears; when it is good again it counts again."""
    edge = DevelopmentEdge(decisions=file)
    before = await post(edge, INTERACT, hero())

    async def still_answers():
        for _ in range(2):
            assert contents(await post(edge, INTERACT, hero())) == contents(before)

    file.write_text('{"scopes": 1}')
    await still_answers()
    file.unlink()
    await still_answers()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "scopes must be an object" in warnings[0]
    assert "cannot be read" in warnings[1]
    assert all(str(file) in warning and "read before" in warning for warning in warnings)
    file.write_text(json.dumps({"scopes": {"hero": [{"schema": JSON, "content": "again"}]}}))
    assert contents(await post(edge, INTERACT, hero())) == ["again"]


async def test_a_file_that_did_not_change_is_not_read_again(file, monkeypatch):
    """A look at its time of change is enough."""
    edge = DevelopmentEdge(decisions=file)
    for seen in ("Sale", "Sold"):
        text = json.dumps(FILE).replace("Sale", seen)
        file.write_text(text)
        assert contents(await post(edge, INTERACT, hero()))[1] == f"<p>{seen}</p>"
        before = file.stat()
        file.write_text(text.replace(seen, "Free"))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert contents(await post(edge, INTERACT, hero()))[1] == f"<p>{seen}</p>"
