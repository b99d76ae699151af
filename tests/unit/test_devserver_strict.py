"""What checks say about events: shown with the event, and in the way when the edge is strict."""

import json

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from alloy_async.devserver import Checks, DevelopmentEdge, EdgeRequest, Finding, edge as module

ERROR = Finding("error", "xdm-type", "xdm.n", "is text", "Send a number.")
WARNING = Finding("warning", "no-id", "xdm._id", "is missing", "Set one.")


class Told(Checks):
    """Says what the event tells it to say."""

    def events(self, event, text, version):
        assert json.loads(text) == event
        return {"e": [ERROR, WARNING], "w": [WARNING]}.get(event.get("data"), [])


def send(edge, *says):
    events = [{"xdm": {"_id": f"{index}"}, "data": say} for index, say in enumerate(says)]
    return edge.answer(
        EdgeRequest(
            "POST",
            "/ee/v1/collect",
            {"configId": "ds"},
            {"content-type": "application/json"},
            json.dumps({"events": events}).encode(),
        )
    )


@pytest.fixture(params=[False, True], ids=["warn", "refuse"])
def edge(request):
    return DevelopmentEdge(checks=Told(), strict=request.param)


def findings(edge):
    [exchange] = edge.recorder.exchanges()[0]
    return [(event.outcome, [found.code for found in event.findings]) for event in exchange.events]


def test_findings_stand_with_their_event(edge):
    """Warnings are never in the way."""
    assert send(edge, "-", "w").status == 204
    assert findings(edge) == [("recorded", []), ("recorded", ["no-id"])]


def test_an_error_is_shown_or_refused_with_a_report():
    """As the edge's own validation: a line for each, the first event named, and nothing is taken."""
    lenient = DevelopmentEdge(checks=Told())
    assert send(lenient, "e").status == 204
    assert findings(lenient) == [("recorded", ["xdm-type", "no-id"])]
    strict = DevelopmentEdge(checks=Told(), strict=True)
    answer = send(strict, "w", "e")
    problem = json.loads(answer.body)
    assert (answer.status, problem["type"][-8:]) == (422, "0104-422")
    assert problem["report"]["errors"] == ["event #1, xdm.n: is text"]
    assert problem["report"]["eventIndex"] == 1
    assert findings(strict) == [("refused", ["no-id"]), ("refused", ["xdm-type", "no-id"])]
    assert (
        strict.recorder.exchanges()[0][0].entry()["problem"]["advice"]
        == "Correct what 'report.errors' lists."
    )


def test_other_requests_have_no_events_to_check(edge):
    """A set-consent request may hold what it likes."""
    body = {"events": [{"data": "e"}], "query": {"identity": {"fetch": []}}}
    asked = EdgeRequest(
        "POST",
        "/ee/v1/identity/acquire",
        {"configId": "ds"},
        {"content-type": "application/json"},
        json.dumps(body).encode(),
    )
    assert edge.answer(asked).status == 200


@pytest.mark.parametrize(
    ("says", "checked"), [("----", 3), ("w-ww", 2), ("---", 3)], ids=["events", "findings", "just enough"]
)
def test_of_very_many_events_the_first_are_checked(says, checked, monkeypatch):
    """What comes after them is named, and refused by a strict edge: nobody knows whether it is right."""
    monkeypatch.setattr(module, "_MAX_EFFORT", 3)
    lenient = DevelopmentEdge(checks=Told())
    assert send(lenient, *says).status == 204
    [exchange] = lenient.recorder.exchanges()[0]
    unchecked = [event.index for event in exchange.events if "not-checked" in str(event.findings)]
    assert unchecked == [checked] * (len(says) > checked)
    strict = DevelopmentEdge(checks=Told(), strict=True)
    assert send(strict, *says).status == (422 if unchecked else 204)
