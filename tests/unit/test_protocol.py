"""The wire, without a wire: what is built, how batches are cut, and what any answer is read as."""

import base64
import dataclasses
import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from common import settle
from hypothesis import example, given, strategies as st

from alloy_async import Alloy, AlloyError, ConsentDeclined, EdgeError, EventResult, EventTooLarge
from alloy_async._event import build_event, rebuild_event, with_identity
from alloy_async._json import Unfit, decode, encode
from alloy_async.edge.protocol import (
    MAX_QUEUE_TIME,
    RETRYABLE,
    V1,
    V2,
    Access,
    Dialect,
    Handle,
    Reply,
    authorised,
    build_acquire,
    build_collect,
    build_interact,
    cut,
    event_room,
    failing_event,
    may_need_new_token,
    read_reply,
    result_for,
    was_ignored,
)
from alloy_async.edge.transport import EdgeResponse

ANSWERS = Path(__file__).parents[2].parent / "shared" / "data" / "edge-responses"
BASE = "https://edge.example/ee"
ECID = "67594994716601132186131966109572451528"
IDENTITY = {"type": "identity:result", "payload": [{"id": ECID, "namespace": {"code": "ECID"}}]}
JSON = {"content-type": "application/json;charset=utf-8", "x-request-id": "header-id"}
EXEG = "https://ns.adobe.com/aep/errors/EXEG-"


def answer(body: object = b"", status: int = 200, **headers: str) -> EdgeResponse:
    """Make an answer; a body that is neither bytes nor text is written as JSON."""
    raw = (
        body
        if isinstance(body, bytes)
        else body.encode()
        if isinstance(body, str)
        else json.dumps(body).encode()
    )
    return EdgeResponse(
        status, JSON | {name.replace("_", "-"): value for name, value in headers.items()}, raw
    )


def refusal(response: EdgeResponse) -> EdgeError:
    with pytest.raises(EdgeError) as caught:
        read_reply(response)
    return caught.value


def streamed(*records: object) -> str:
    return "".join(f"\0{json.dumps(record)}\n" for record in records)


# Answers that deliver


def test_reads_handles_warnings_errors_and_the_id():
    """An answer keeps its order, its own request id, and problems as they came."""
    problem = {"type": f"{EXEG}0201-504", "status": 504, "title": "late", "report": {"eventIndex": 0}}
    reply = read_reply(
        answer(
            {"requestId": "body-id", "handle": [IDENTITY], "errors": [problem], "warnings": [problem]}, 207
        )
    )
    assert reply == Reply(
        "body-id", (Handle(IDENTITY["type"], tuple(IDENTITY["payload"])),), (problem,), (problem,)
    )


def test_an_answer_without_a_body_delivers():
    """204, as collect gives it, or a body of blanks: nothing to read, the header names the request."""
    for body in (b"", b" \r\n"):
        assert read_reply(answer(body, 204)) == Reply(request_id="header-id")
    assert read_reply(EdgeResponse(204, {}, b"")) == Reply()


@pytest.mark.parametrize("status", [200, 201, 202, 206, 207, 299])
def test_every_2xx_delivers(status):
    """Any status from 200 to 299 is an answer, not a refusal."""
    assert read_reply(answer({"requestId": "r"}, status)).request_id == "r"


def test_several_handles_of_one_type_are_one_list():
    """Payloads of equal type are concatenated in order; unknown types and empty ones are kept."""
    handles = [{"type": "activation:pull", "payload": [n]} for n in (1, 2)]
    reply = read_reply(
        answer({"handle": [handles[0], {"type": "quantum:result", "payload": [{"v": 1}]}, handles[1]]})
    )
    assert reply.payload("activation:pull") == [1, 2]
    assert reply.payload("quantum:result") == [{"v": 1}]
    assert reply.payload("nothing") == []
    assert [handle.type for handle in reply.handles] == [
        "activation:pull",
        "quantum:result",
        "activation:pull",
    ]


def test_the_header_names_the_request_when_the_body_does_not():
    """The body's request id wins over the header's; a number is none."""
    assert read_reply(answer({"requestId": 5})).request_id == "header-id"
    assert read_reply(answer({})).request_id == "header-id"
    assert read_reply(EdgeResponse(200, {}, b"{}")).request_id is None


@pytest.mark.parametrize(
    ("document", "types"),
    [
        ({"handle": None}, []),
        ({"handle": {"type": "a"}}, []),
        ({"handle": "text"}, []),
        ({"handle": [None, 1, "a", [], {}, {"type": 1}, {"type": "a", "payload": None}]}, ["a"]),
        ({"handle": [{"type": "a", "payload": {"0": 1}}, {"type": "b", "payload": "text"}]}, ["a", "b"]),
        ({"handle": [{"type": "a"}], "warnings": "odd", "errors": {"a": 1}}, ["a"]),
        ({"warnings": [None, 1], "errors": [[]]}, []),
    ],
)
def test_odd_parts_are_left_out_and_the_rest_is_used(document, types):
    """A part of another kind than it should be has no items; whatever stands beside it is kept."""
    reply = read_reply(answer(document))
    assert [handle.type for handle in reply.handles] == types
    assert all(handle.payload == () for handle in reply.handles)
    assert (reply.warnings, reply.errors) == ((), ())


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", "utf-16", "iso-8859-1", '"utf-8"', "utf-8; version=1"])
def test_reads_the_character_set_that_the_answer_names(charset):
    """The text is read as its header says, quotes and further parameters included."""
    plain = charset.split(";")[0].strip('"')
    body = json.dumps({"requestId": "é"}, ensure_ascii=False).encode(plain)
    response = answer(body, content_type=f"application/json; charset={charset}")
    assert read_reply(response).request_id == "é"


# Streaming


def test_reads_a_streaming_answer_record_by_record():
    """The parts of all records come together; the first record names the request."""
    decisions = {"type": "personalization:decisions", "eventIndex": 0, "payload": [{"scope": "hero"}]}
    problem = {"title": "late"}
    text = streamed(
        {"requestId": "first", "handle": [IDENTITY]}, {"handle": [decisions], "errors": [problem]}
    )
    reply = read_reply(answer(text))
    assert reply.request_id == "first"
    assert [handle.type for handle in reply.handles] == [IDENTITY["type"], "personalization:decisions"]
    assert reply.errors == (problem,)


def test_a_streaming_answer_that_was_cut_keeps_its_whole_records():
    """A connection that ended inside a record costs that record alone."""
    text = streamed({"requestId": "first", "handle": [IDENTITY]}) + '\0{"requestId":"sec'
    assert read_reply(answer(text)).payload("identity:result") == IDENTITY["payload"]


@pytest.mark.parametrize(
    "text", ['\0{"requestId":"f', "\0", "\0\n", "\0\n\0\n", "\0null\n", "\0[]\n"], ids=repr
)
def test_a_streaming_answer_without_a_whole_record_cannot_be_read(text):
    """When nothing of it is whole, the error says so."""
    assert refusal(answer(text)).title == "the answer cannot be read"


def test_a_streaming_answer_may_lack_the_last_line_feed():
    """One complete record without its line feed is read."""
    assert read_reply(answer('\0{"requestId":"r"}')).request_id == "r"


# Answers that cannot be read, and refusals


@pytest.mark.parametrize(
    "body",
    [
        b"null",
        b"[]",
        b"5",
        b'"text"',
        b"{",
        b'{"a":1}{"b":2}',
        b"<html></html>",
        b"\xff\xfe\x00",
        b'{"n":' + b"9" * 5_000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 50_000,
    ],
    ids=lambda body: repr(body[:12]),
)
def test_a_2xx_that_is_no_object_cannot_be_read(body):
    """The error names the request and says that the edge may have taken the events; it is not tried again."""
    error = refusal(answer(body))
    assert (error.status, error.title) == (200, "the answer cannot be read")
    assert "may have taken" in error.detail
    assert (error.type, error.request_id, error.retryable) == ("about:blank", "header-id", False)
    assert error.__context__ is None  # a decoding error holds the whole body


@pytest.mark.parametrize(
    "charset", ["utf-16", "utf-32", "ascii", "no-such", "rot13", "hex", "undefined", "a\0b", "é"]
)
def test_a_character_set_that_does_not_fit_cannot_be_read(charset):
    """Text in another character set than named, or in one that does not exist, ends in the same error."""
    response = answer('{"a":"é"}', content_type=f"application/json; charset={charset}")
    assert refusal(response).title == "the answer cannot be read"


@pytest.mark.parametrize("charset", ["punycode", "idna", "unicode_escape", "raw_unicode_escape", "utf-7"])
def test_only_plain_character_sets_are_decoded(charset):
    """Python's codecs that no JSON is written in are refused: some take minutes for a megabyte."""
    response = answer('{"a":1}', content_type=f"application/json; charset={charset}")
    assert refusal(response).title == "the answer cannot be read"


def test_reads_problem_details():
    """Every field of a problem is in the error."""
    report = {
        "requestId": "their-id",
        "eventIndex": 2,
        "errors": ["/events/2/xdm/timestamp: not a date-time"],
    }
    error = refusal(
        answer(
            {"type": f"{EXEG}0104-422", "title": "Bad", "detail": "More", "status": 422, "report": report},
            422,
        )
    )
    assert (error.status, error.type, error.title, error.detail) == (422, f"{EXEG}0104-422", "Bad", "More")
    assert (error.report, error.request_id, error.retryable, error.code) == (
        report,
        "their-id",
        False,
        "0104",
    )
    assert failing_event(error) == 2
    assert "their-id" in str(error)


@pytest.mark.parametrize(
    ("status", "body", "title"),
    [
        (502, "<html>\n<b>Bad Gateway</b>", "<html>"),
        (413, "Request Entity Too Large", "Request Entity Too Large"),
        (500, "", "no reason given"),
        (500, " \n ", "no reason given"),
        (500, b"\xff\xfe", "\ufffd\ufffd"),
        (503, "null", "null"),
        (400, '["a"]', '["a"]'),
        (404, '{"type":5,"title":null,"detail":[],"report":"x"}', "no reason given"),
        (400, "x" * 5_000, "x" * 200),
        (301, "", "no reason given"),
        (199, "", "no reason given"),
        (300, "", "no reason given"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_wraps_what_is_no_problem_document(status, body, title):
    """Plain text, as a gateway writes it, becomes the title: one line, cut; the rest has its default."""
    error = refusal(answer(body, status))
    assert (error.status, error.title, error.type, error.detail) == (status, title, "about:blank", "")
    assert (error.report, error.request_id) == ({}, "header-id")


@pytest.mark.parametrize("status", range(300, 600))
def test_says_which_statuses_may_succeed_later(status):
    """Time-outs, rate limits and gateways may succeed later; other refusals may not."""
    assert refusal(answer("", status)).retryable is (status in {408, 429, 502, 503, 504, 507})
    assert {408, 429, 502, 503, 504, 507} == RETRYABLE


@pytest.mark.parametrize("index", [-1, True, None, "0", 1.0, [0]])
def test_names_no_event_for_an_odd_index(index):
    """Only a whole number from 0 names an event."""
    assert failing_event(refusal(answer({"report": {"eventIndex": index}}, 400))) is None
    assert failing_event(refusal(answer({"report": {"eventIndex": 0}}, 400))) == 0


def test_a_huge_text_is_cut():
    """A refusal cannot fill the log: texts are cut."""
    error = refusal(answer({"title": "t" * 10_000, "detail": "d" * 10_000, "type": "x" * 10_000}, 400))
    assert len(str(error)) < 2_000


# Each event's own part


def test_routes_handles_and_problems_by_event():
    """What names an event belongs to it; what names none belongs to everyone."""

    def handle(name: str, **more: object) -> dict[str, object]:
        return {"type": name, "payload": [name], **more}

    def problem(title: str, **report: object) -> dict[str, object]:
        return {"title": title, "report": report}

    reply = read_reply(
        answer(
            {
                "requestId": "r",
                "handle": [
                    handle("all"),
                    handle("zero", eventIndex=0),
                    handle("one", eventIndex=1),
                    handle("odd", eventIndex="1"),
                    handle("far", eventIndex=10**30),
                ],
                "warnings": [problem("w"), problem("w1", eventIndex=1), {"title": "bare"}],
                "errors": [problem("e0", eventIndex=0), {"title": "text", "report": "x"}],
            }
        )
    )
    zero, one = (result_for(reply, index, f"id-{index}") for index in (0, 1))
    assert [[handle.type for handle in result.handles] for result in (zero, one)] == [
        ["all", "zero", "odd"],
        ["all", "one", "odd"],
    ]
    assert [[entry["title"] for entry in result.warnings] for result in (zero, one)] == [
        ["w", "bare"],
        ["w", "w1", "bare"],
    ]
    assert [[entry["title"] for entry in result.errors] for result in (zero, one)] == [
        ["e0", "text"],
        ["text"],
    ]
    assert (zero.event_id, zero.request_id, zero.withheld) == ("id-0", "r", False)


def test_a_result_shows_propositions_and_destinations():
    """The two usual kinds have names of their own; handles of one kind are concatenated."""
    kinds = ["personalization:decisions", "activation:pull", "personalization:decisions"]
    result = EventResult("id", handles=tuple(Handle(kind, (n,)) for n, kind in enumerate(kinds)))
    assert (result.propositions, result.destinations) == ([0, 2], [1])
    assert (EventResult("id").propositions, EventResult("id").destinations) == ([], [])


@pytest.mark.parametrize(
    ("problem", "ignored"),
    [
        ({"type": f"{EXEG}0301-200"}, True),
        ({"type": "EXEG-0301-200"}, True),
        ({"type": f"{EXEG}0302-200"}, False),
        ({"type": "0301"}, False),
        ({"type": 301}, False),
        ({}, False),
    ],
)
def test_knows_when_the_edge_ignored_an_event(problem, ignored):
    """Code 0301 means that the event was taken and dropped for lack of consent."""
    assert was_ignored(EventResult("id", warnings=(problem,))) is ignored
    assert was_ignored(EventResult("id", errors=(problem,))) is ignored


# Fuzz: whatever comes, there is a reply or one documented error

loose_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
envelope = st.fixed_dictionaries(
    {},
    optional={
        name: loose_json
        | st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "type": st.text() | loose_json,
                    "payload": loose_json,
                    "eventIndex": loose_json,
                    "report": st.dictionaries(st.sampled_from(["eventIndex", "requestId"]), loose_json),
                },
            ),
            max_size=3,
        )
        for name in (
            "requestId",
            "handle",
            "warnings",
            "errors",
            "type",
            "title",
            "detail",
            "report",
            "status",
        )
    },
)
bodies = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
    loose_json.map(lambda value: json.dumps(value).encode()),
    envelope.map(lambda value: json.dumps(value).encode()),
    st.lists(envelope | loose_json, min_size=1, max_size=3).map(lambda records: streamed(*records).encode()),
    st.tuples(envelope, st.integers(0, 200)).map(lambda pair: streamed(pair[0]).encode()[: pair[1]]),
)
content_types = st.one_of(
    st.sampled_from(
        ["application/json", "text/html", "", "a; charset=utf-16", "a; charset=", "a; charset=;x"]
    ),
    st.text(max_size=20).map(lambda text: f"a; charset={text}"),
)


@given(st.integers(100, 599), content_types, bodies)
@example(200, "a; charset=a\0b", b"{}")
@example(200, "application/json", b'{"handle":[{"type":"a","payload":[NaN]}]}')
def test_any_answer_is_read_or_refused(status, content_type, body):
    """No status, header or body makes reading end in anything but a reply or an EdgeError."""
    try:
        reply = read_reply(EdgeResponse(status, {"content-type": content_type}, body))
    except EdgeError as error:
        problem = error
    else:
        problem = None
    if problem is not None:
        assert str(problem)
        assert failing_event(problem) is None or failing_event(problem) >= 0
        return
    assert 200 <= status < 300
    for index in (0, 1):
        result = result_for(reply, index, "id")
        was_ignored(result)
        assert isinstance(result.propositions, list)
        assert isinstance(result.destinations, list)
    assert reply.request_id is None or isinstance(reply.request_id, str)


# Requests


def test_builds_the_address_of_each_request():
    """Base, region, version, action, and the two parameters that every request has."""
    built = [
        build_interact(BASE, "cfg", None, "rid", b"{}", 0),
        build_interact(BASE, "cfg", "or2", "rid", b"{}", 0),
        build_collect(BASE, "cfg", "or2", "rid", [b"{}"]),
        build_acquire(BASE, "cfg", None, "rid", b"{}"),
    ]
    assert [request.url for request in built] == [
        f"{BASE}/v1/interact?configId=cfg&requestId=rid",
        f"{BASE}/or2/v1/interact?configId=cfg&requestId=rid",
        f"{BASE}/or2/v1/collect?configId=cfg&requestId=rid",
        f"{BASE}/v1/identity/acquire?configId=cfg&requestId=rid",
    ]
    for request in built:
        assert request.headers["content-type"] == "application/json"
        assert request.headers["accept-encoding"] == "identity"
        assert {"cookie", "authorization"}.isdisjoint(request.headers)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_no_id_can_change_an_address(config_id):
    """Whatever a datastream is called, it stays one parameter."""
    url = build_collect(BASE, config_id, None, "rid", [b"{}"]).url
    parts = urlsplit(url)
    assert parse_qs(parts.query, strict_parsing=True) == {"configId": [config_id], "requestId": ["rid"]}
    assert (parts.netloc, parts.path, parts.fragment) == ("edge.example", "/ee/v1/collect", "")


@pytest.mark.parametrize(
    ("waited", "told"), [(-5, 0), (0, 0), (34, 34), (300_000, 300_000), (10**12, 300_000)]
)
def test_interact_carries_one_event_and_how_long_it_waited(waited, told):
    """The body asks for the ECID and tells the waiting time, at most five minutes."""
    body = json.loads(build_interact(BASE, "c", None, "r", b'{"xdm":{"a":1}}', waited).body)
    assert body == {
        "events": [{"xdm": {"a": 1}}],
        "query": {"identity": {"fetch": ["ECID"]}},
        "meta": {"queueTimeMillis": told},
    }


def test_collect_carries_events_in_order():
    """The body is the events and nothing else."""
    body = build_collect(BASE, "c", None, "r", [b'{"n":1}', b'{"n":2}']).body
    assert json.loads(body) == {"events": [{"n": 1}, {"n": 2}]}


def test_acquire_asks_for_the_ecid_with_the_visitors_own_id():
    """The identity map stands at payload level."""
    body = build_acquire(BASE, "c", None, "r", b'{"FPID":[{"id":"x"}]}').body
    assert json.loads(body) == {
        "xdm": {"identityMap": {"FPID": [{"id": "x"}]}},
        "query": {"identity": {"fetch": ["ECID"]}},
    }


# From server to server


def v2_interact(event: bytes, queue_time: int = 0) -> dict[str, object]:
    return json.loads(build_interact(BASE, "c", None, "r", event, queue_time, dialect=V2).body)


def test_v2_has_its_own_path_and_its_own_name_for_the_datastream():
    """The version and the parameter differ, base and region do not."""
    interact = build_interact(BASE, "c&d", "or2", "rid", b"{}", 0, dialect=V2)
    collect = build_collect(BASE, "cfg", None, "rid", [b"{}"], dialect=V2)
    assert interact.url == f"{BASE}/or2/v2/interact?datastreamId=c%26d&requestId=rid"
    assert collect.url == f"{BASE}/v2/collect?datastreamId=cfg&requestId=rid"


def test_v2_interact_carries_one_event_and_the_query_beside_it():
    """One event and what is asked of the whole request; nothing tells how long it waited."""
    assert v2_interact(b'{"xdm":{"a":1},"data":5}', 77) == {
        "event": {"xdm": {"a": 1}, "data": 5},
        "query": {"identity": {"fetch": ["ECID"]}},
    }


def test_v2_interact_takes_the_query_out_of_the_event():
    """Decisions are asked for at the top, beside the ECID; what is called query inside of the event stays there."""
    event = {
        "xdm": {"query": {"x": 1}, "text": '"query":'},
        "data": {"query": [1.5, 10**30]},
        "query": {"personalization": {"schemas": ["s"], "decisionScopes": ["hero"]}},
    }
    assert v2_interact(encode(event)) == {
        "event": {"xdm": event["xdm"], "data": event["data"]},
        "query": {"identity": {"fetch": ["ECID"]}, **event["query"]},
    }


def test_v2_collect_carries_events_as_v1_does():
    """The body is the events and nothing else."""
    bodies = [build_collect(BASE, "c", None, "r", [b"{}", b"[]"], dialect=one).body for one in (V1, V2)]
    assert bodies[0] == bodies[1]


def test_v2_takes_its_own_answers():
    """Accepted with an id alone, or with nothing: both deliver."""
    assert read_reply(answer({"requestId": "their-id"}, 202)) == Reply(request_id="their-id")
    assert read_reply(answer(b"", 204)) == Reply(request_id="header-id")


def test_a_request_is_let_in_by_three_headers():
    """They are added to those that are there; the request that was given stays as it was, and neither shows them."""
    plain = build_collect(BASE, "c", None, "r", [b"{}"], dialect=V2)
    let_in = authorised(plain, Access("t0k3n", "client", "ORG@AdobeOrg"))
    assert (let_in.url, let_in.body) == (plain.url, plain.body)
    assert dict(let_in.headers) == dict(plain.headers) | {
        "authorization": "Bearer t0k3n",
        "x-api-key": "client",
        "x-gw-ims-org-id": "ORG@AdobeOrg",
    }
    assert "authorization" not in plain.headers
    assert "t0k3n" not in repr(let_in) + repr(Access("t0k3n", "client", "ORG@AdobeOrg"))


@pytest.mark.parametrize(
    ("status", "code", "wanted"),
    [
        *((401, code, True) for code in ("0502", "0503", "0504", "0505", "")),
        *((401, code, False) for code in ("0500", "0501", "0506", "0003", "0400")),
        *((status, "0503", False) for status in (200, 400, 403, 500, 503)),
    ],
)
def test_knows_when_another_token_may_help(status, code, wanted):
    """Only a 401 is about the token, and of those the ones that another token may answer."""
    kind = f"{EXEG}{code}-401" if code else "about:blank"
    assert may_need_new_token(EdgeError(status, title="no", type=kind)) is wanted


IDENTITY_MAPS = [
    ({}, 0),
    ({"A": []}, 0),
    ({"A": [{"id": "1"}]}, 0),
    (
        {
            "A": [{"id": "1", "primary": False}],
            "B": [{"id": "2", "primary": "true"}, {"id": "3", "primary": 1}],
        },
        0,
    ),
    ({"A": [{"id": "1", "primary": True}], "B": [{"id": "2"}]}, 1),
    ({"A": [{"id": "1", "primary": True}, {"id": "2", "primary": True}]}, 2),
    ({"A": [{"id": "1", "primary": True}], "B": [{"id": "2", "primary": True}]}, 2),
]
ARGUMENTS = {
    "data": None,
    "event_type": None,
    "merge_id": None,
    "decision_scopes": (),
    "now": 0.0,
    "new_id": "id",
}


@pytest.mark.parametrize(("identity_map", "primaries"), IDENTITY_MAPS, ids=repr)
def test_v2_wants_one_primary_identity(identity_map, primaries):
    """A caller's map without exactly one is refused, naming the map, at the call and after the hook; v1 takes it."""
    xdm = {"identityMap": identity_map}
    builders = [
        lambda **more: build_event(xdm=xdm, **ARGUMENTS, **more),
        lambda **more: rebuild_event({"xdm": xdm}, "id", None, **more),
    ]
    for build in builders:
        assert build().has_identity
        if primaries == 1:
            assert build(one_primary=True) == build()
            continue
        with pytest.raises(Unfit, match=f"has {primaries} primary identities") as caught:
            build(one_primary=True)
        assert caught.value.where() == "xdm.identityMap"


def test_v2_takes_events_that_name_nobody():
    """They get an identity of ours later, which has one primary."""
    assert not build_event(xdm=None, **ARGUMENTS, one_primary=True).has_identity


# Cutting


@dataclasses.dataclass(frozen=True)
class Carried:
    body: bytes
    order: int = 0


def body_length(batch: list[Carried]) -> int:
    return len(build_collect(BASE, "c", None, "r", [event.body for event in batch]).body)


event_sizes = st.lists(st.integers(2, 400), min_size=1, max_size=40)


@given(event_sizes, st.integers(1, 40), st.sampled_from([-1, 0, 1]))
def test_a_batch_is_as_long_as_fits_and_no_longer(sizes, count, more):
    """The first events, in order, at least one; to the byte: a body that fits exactly is taken, one more is not."""
    events = [Carried(b"x" * size, order) for order, size in enumerate(sizes)]
    max_body = body_length(events[:count]) + more
    batch = cut(iter(events), max_body)
    assert batch == events[: len(batch)]
    assert batch
    assert len(batch) == 1 or body_length(batch) <= max_body
    if len(batch) < len(events):
        assert body_length(events[: len(batch) + 1]) > max_body


@given(event_sizes, st.integers(20, 1_500))
def test_cutting_again_and_again_leaves_nothing_out(sizes, max_body):
    """The batches together are the events, each once, in order."""
    events = [Carried(b"x" * size, order) for order, size in enumerate(sizes)]
    rest, seen = events, []
    while rest:
        batch = cut(rest, max_body)
        seen += batch
        rest = rest[len(batch) :]
    assert seen == events


def test_cutting_nothing_gives_nothing():
    """Without events there is no batch."""
    assert cut([], 100) == []


def interact_length(dialect: Dialect, event: bytes, queue_time: int = MAX_QUEUE_TIME) -> int:
    return len(build_interact(BASE, "c", None, "r", event, queue_time, dialect=dialect).body)


@pytest.mark.parametrize("dialect", [V1, V2], ids=["v1", "v2"])
@given(max_body=st.integers(1_024, 65_536), queue_time=st.integers(-5, 10**7))
def test_an_event_that_fits_the_room_fits_the_body(dialect, max_body, queue_time):
    """An event of exactly event_room bytes fits for every waiting time, and exactly for the longest."""
    event = b"x" * event_room(max_body, dialect)
    assert interact_length(dialect, event) == max_body
    assert interact_length(dialect, event, queue_time) <= max_body
    assert body_length([Carried(event)]) <= max_body
    assert interact_length(dialect, event + b"x") == max_body + 1


@pytest.mark.parametrize("dialect", [V1, V2], ids=["v1", "v2"])
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=5), st.integers(0, 500)
)
def test_an_event_with_a_query_fits_too(dialect, scopes, size):
    """Where v2 takes the query out of the event, nothing gets longer."""
    event = {
        "xdm": {"a": "é" * size},
        "data": {"query": 1},
        "query": {"personalization": {"decisionScopes": scopes}},
    }
    body = encode(event)
    assert interact_length(dialect, body) - len(body) <= 65_536 - event_room(65_536, dialect)


async def test_the_largest_event_is_sent_and_one_byte_more_is_refused(options, edge):
    """The bound that the edge sets is reached exactly, the longest waiting time included."""
    reserved = len(str(MAX_QUEUE_TIME)) - len("0")
    xdm = {"identityMap": {"CRMID": [{"id": "u", "primary": True}]}}
    async with Alloy() as alloy:
        await alloy.configure(**options | {"max_body_bytes": 2_048, "opt_in_enabled": False})
        await alloy.event(xdm=xdm, data="", view_start=True)
        largest = "x" * (2_048 - reserved - edge.requests[0].size)
        await alloy.event(xdm=xdm, data=largest, view_start=True)
        assert edge.requests[1].size == 2_048 - reserved
        with pytest.raises(EventTooLarge):
            await alloy.event(xdm=xdm, data=largest + "x", view_start=True)
        assert len(edge.requests) == 2


async def test_what_is_accepted_still_fits_with_an_identity(alloy, edge):
    """Room for the id that comes after consent is kept free at the call: nothing accepted turns out too large."""
    probe = alloy.event(data="x" * 65_536).exception()
    largest = "x" * (65_536 - (probe.size - probe.limit))
    parked = alloy.event(data=largest, view_start=True)
    assert isinstance(alloy.event(data=largest + "x").exception(), EventTooLarge)
    await alloy.opt_in(purposes="all")
    await parked
    assert 65_300 < edge.requests[0].size <= 65_536


small_json = st.recursive(
    st.none() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
    ),
    max_leaves=5,
)
names = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda name: name != "identityMap")


@given(
    st.dictionaries(names, small_json, min_size=1), st.none() | small_json, st.dictionaries(names, small_json)
)
def test_splicing_an_identity_equals_inserting_it(xdm, data, identity_map):
    """Put in as bytes, the identity map stands where inserting it into the object would put it."""
    event = {"xdm": xdm} | ({} if data is None else {"data": data})
    spliced = with_identity(encode(event), encode(identity_map))
    assert spliced == encode(event | {"xdm": {"identityMap": identity_map} | xdm})
    assert decode(spliced)["xdm"] == xdm | {"identityMap": identity_map}


# Whole answers, end to end: our own texts of every kind that an edge gives

OWN_ANSWERS: dict[str, EdgeResponse] = {
    "identity": answer({"requestId": "r", "handle": [IDENTITY]}),
    "hints": answer(
        {"handle": [{"type": "locationHint:result", "payload": [{"scope": "EdgeNetwork", "hint": "or2"}]}]}
    ),
    "odd identity": answer(
        {"handle": [{"type": "identity:result", "payload": [None, 5, {"id": 5}, {"namespace": "ECID"}, []]}]}
    ),
    "odd hints": answer(
        {
            "handle": [
                {
                    "type": "locationHint:result",
                    "payload": [
                        7,
                        {"scope": "EdgeNetwork", "hint": "../x", "ttlSeconds": "soon"},
                        {"scope": "EdgeNetwork", "hint": "or2", "ttlSeconds": 10**400},
                        {"scope": "EdgeNetwork", "hint": "or2", "ttlSeconds": -1},
                    ],
                }
            ]
        }
    ),
    "decisions": answer(
        {"handle": [{"type": "personalization:decisions", "eventIndex": 0, "payload": [{"scope": "s"}]}]}
    ),
    "consent in": answer(
        {"handle": [{"type": "state:store", "payload": [{"key": "kndctr_X_consent", "value": "general=in"}]}]}
    ),
    "partial": answer({"requestId": "r", "handle": [], "errors": [{"title": "late"}]}, 207),
    "no content": answer(b"", 204),
    "streaming": answer(streamed({"handle": [IDENTITY]}, {"errors": [{"title": "late"}]})),
    "streaming, cut": answer(streamed({"handle": [IDENTITY]}) + '\0{"req'),
    "ignored": answer({"warnings": [{"type": f"{EXEG}0301-200", "title": "no consent"}]}),
    "null": answer("null"),
    "list": answer("[]"),
    "NaN": answer('{"requestId":"1","handle":[],"x":NaN}'),
    "html": answer("<html></html>", content_type="text/html"),
    "blank": answer(" "),
    "cut": answer('{"requestId":'),
    "deep": answer('{"handle":' + "[" * 100_000),
    "huge number": answer('{"requestId":' + "9" * 5_000 + "}"),
    "latin": answer('{"title":"é"}'.encode("latin-1")),
    "datastream": answer({"type": f"{EXEG}0003-400", "status": 400, "title": "Unknown datastream"}, 400),
    "names event 0": answer({"type": f"{EXEG}0104-422", "report": {"eventIndex": 0}}, 422),
    "names event 9": answer({"type": f"{EXEG}0104-422", "report": {"eventIndex": 9}}, 422),
    "unauthorised": answer({"type": f"{EXEG}0500-401", "title": "who?"}, 401),
    "too many": answer({"type": "about:blank", "title": "slower"}, 429, retry_after="-5"),
    "gateway": answer("<html>502</html>", 502, content_type="text/html"),
    "server error": answer("", 500),
    "redirect": answer("", 301, location="http://evil.example/"),
}


def recorded_answers() -> dict[str, EdgeResponse]:
    """Return the recorded answers, when they are there."""
    return {path.stem: recorded(json.loads(path.read_text())) for path in sorted(ANSWERS.glob("*.json"))}


def recorded(document: dict[str, object]) -> EdgeResponse:
    if "body" in document:
        body = json.dumps(document["body"], ensure_ascii=False).encode()
    elif "body_base64" in document:
        body = base64.b64decode(document["body_base64"])
    else:
        body = document["body_text"].encode("utf-8", "surrogatepass")
    headers = {name.lower(): value for name, value in document["headers"].items()}
    return EdgeResponse(document["status"], headers, body)


RECORDED = recorded_answers()
needs_recorded = pytest.mark.skipif(not RECORDED, reason=f"the recorded answers are not here ({ANSWERS})")


def test_the_recorded_answers_are_all_there():
    """All 36 recorded answers are read, where they are there at all."""
    if not RECORDED:
        pytest.skip(f"the recorded answers are not here ({ANSWERS})")
    assert len(RECORDED) == 36


@needs_recorded
@pytest.mark.parametrize("name", RECORDED)
def test_each_recorded_answer_is_read_as_it_says(name):
    """A 2xx keeps every handle, warning and error; anything else ends in one error with all its facts."""
    response, document = RECORDED[name], json.loads((ANSWERS / f"{name}.json").read_text())
    if response.status >= 300:
        check_refusal(refusal(response), document)
        return
    reply = read_reply(response)
    envelopes = envelopes_of(document)
    handles = [handle for part in envelopes for handle in part.get("handle", [])]
    assert [(handle.type, list(handle.payload), handle.event_index) for handle in reply.handles] == [
        (handle["type"], handle["payload"], handle.get("eventIndex")) for handle in handles
    ]
    for field in ("warnings", "errors"):
        assert list(getattr(reply, field)) == [entry for part in envelopes for entry in part.get(field, [])]
    ids = [part["requestId"] for part in envelopes if "requestId" in part]
    assert reply.request_id == (ids[0] if ids else response.headers["x-request-id"])


def envelopes_of(document: dict[str, object]) -> list[dict[str, object]]:
    """Take an answer apart by hand: its whole records, each a JSON object."""
    if "body" in document:
        return [document["body"]]
    return [json.loads(line.lstrip("\0")) for line in document["body_text"].split("\n")[:-1]]


def check_refusal(error: EdgeError, document: dict[str, object]) -> None:
    problem = document.get("body", {"title": str(document.get("body_text")).strip()})
    report = problem.get("report", {})
    assert (error.status, error.type) == (document["status"], problem.get("type", "about:blank"))
    assert (error.title, error.detail) == (problem["title"], problem.get("detail", ""))
    assert error.report == report
    assert error.request_id == report.get("requestId", document["headers"]["x-request-id"])
    assert error.retryable is (document["status"] in RETRYABLE)


ALL_ANSWERS = {f"own: {name}": response for name, response in OWN_ANSWERS.items()} | RECORDED


@pytest.mark.parametrize("view_start", [True, False], ids=["interact", "collect"])
@pytest.mark.parametrize("name", ALL_ANSWERS)
async def test_each_answer_ends_its_event(name, view_start, options, edge):
    """Through the whole instance: one result or one documented error, and the next event is delivered."""
    response = ALL_ANSWERS[name]
    async with Alloy() as alloy:
        await alloy.configure(**options | {"max_attempts": 1})
        await alloy.opt_in(purposes="all")
        edge.answers.append(response)
        future = alloy.event(type="first", view_start=view_start)
        await settle()
        assert future.done()
        error = future.exception()
        if error is None:
            assert 200 <= response.status < 300
            assert isinstance(future.result(), EventResult)
        else:
            assert isinstance(error, AlloyError)
            assert isinstance(error, EdgeError) or name == "own: ignored"
        later = alloy.event(type="second")
        await settle()
        assert later.result().event_id
        assert await later
        assert alloy.statistics().open == 0
    assert edge.event_types == ["first", "second"]


@pytest.mark.parametrize("name", ALL_ANSWERS)
async def test_each_answer_ends_get_ecid(name, options, edge):
    """Asking for the ECID ends with 38 digits or one documented error, whatever the answer is; asking again works."""
    async with Alloy() as alloy:
        await alloy.configure(**options, max_attempts=1)
        await alloy.opt_in(purposes="all")
        edge.answers.append(ALL_ANSWERS[name])
        futures = [alloy.get_ecid(), alloy.get_ecid()]
        await settle()
        assert [future.done() for future in futures] == [True, True]
        for future in futures:
            assert future.exception() is not None or len(future.result()) == 38
            assert isinstance(future.exception(), (EdgeError, ConsentDeclined, type(None)))
        assert len(await alloy.get_ecid()) == 38


async def test_an_event_that_the_edge_ignored_is_declined_by_the_edge(options, edge):
    """Code 0301 ends the event as ConsentDeclined, said to come from the edge; the local choice stays."""
    async with Alloy() as alloy:
        await alloy.configure(**options)
        await alloy.opt_in(purposes="all")
        edge.answers.append(OWN_ANSWERS["ignored"])
        with pytest.raises(ConsentDeclined) as caught:
            await alloy.event()
        assert caught.value.by == "edge"
        assert await alloy.event()


async def test_an_answer_never_changes_the_local_choice(options, edge):
    """A server that says "in" after a refusal is not believed."""
    async with Alloy() as alloy:
        await alloy.configure(**options)
        await alloy.opt_in(purposes="all")
        edge.hold()
        edge.answers.append(OWN_ANSWERS["consent in"])
        future = alloy.event(view_start=True)
        await settle()
        await alloy.opt_in(purposes="none")
        edge.release()
        assert await future
        with pytest.raises(ConsentDeclined):
            await alloy.event()


async def test_an_id_from_an_answer_is_used_from_then_on(options, edge):
    """The ECID and the region of an answer go with the next request."""
    async with Alloy() as alloy:
        await alloy.configure(**options)
        await alloy.opt_in(purposes="all")
        hint = {
            "type": "locationHint:result",
            "payload": [{"scope": "EdgeNetwork", "hint": "or2", "ttlSeconds": 60}],
        }
        edge.answers.append(answer({"handle": [IDENTITY, hint]}))
        await alloy.event(view_start=True)
        await alloy.event()
    assert edge.requests[1].events[0]["xdm"]["identityMap"]["ECID"][0]["id"] == ECID
    assert "/or2/v1/collect" in edge.requests[1].url
