"""Bodies: every event keeps its own text, and nonsense becomes a problem."""

import json
import sys

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from hypothesis import given, strategies as st

from alloy_async.devserver.body import MAX_DEPTH, read_body, read_media_type
from alloy_async.devserver.problems import Problem

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def problem_of(content: bytes) -> Problem:
    with pytest.raises(Problem) as caught:
        read_body(content)
    return caught.value


def texts(body, name):
    return [body.text[start:end] for start, end in body.event_spans[name]]


@pytest.mark.parametrize(
    "text",
    [
        "1.10",
        "1e400",
        "-0.0",
        "0.1234567890123456789012345678901234567890",
        "123456789012345678901234567890",
        '{"a":1,  "a":2}',
        '"\\ud800 \\u00e9 é 🌲"',
        "[1 ,2]",
    ],
)
def test_an_events_text_is_kept_to_the_letter(text):
    """What a parser would round, merge or normalise stands in the text as it was sent."""
    event = f'{{"xdm": {{"v": {text}}}}}'
    body = read_body(f' {{ "meta" : {{}} , "events" : [ {event} ,\n{event}] }} '.encode())
    assert texts(body, "events") == [event, event]


def test_the_text_of_a_single_event_is_kept_too():
    """v2 interact sends one event under another name."""
    assert texts(read_body(b'{"event": {"xdm":{}} }'), "event") == ['{"xdm":{}}']


@given(
    st.dictionaries(st.text() | st.sampled_from(["events", "event"]), json_values, max_size=5),
    st.sampled_from([None, 2]),
    st.booleans(),
)
def test_the_envelope_is_read_as_the_standard_library_reads_it(value, indent, ascii_only):
    """Reading member by member gives the same fields as one json.loads, and each event's text parses to it."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    body = read_body(text.encode())
    assert body.fields == value
    if isinstance(value.get("events"), list):
        assert [json.loads(event) for event in texts(body, "events")] == value["events"]


@given(st.text(alphabet='{}[]":,\\ 01aeEtrufalsn.-\n', max_size=40))
def test_whatever_the_standard_library_refuses_is_refused(text):
    """The hand-read envelope takes neither more nor less than JSON objects."""
    try:
        expected = json.loads(text)
    except ValueError:
        expected = None
    if isinstance(expected, dict):
        assert read_body(text.encode()).fields == expected
    else:
        assert problem_of(text.encode()).status in {400, 408}


def test_of_events_that_stand_twice_the_later_count():
    """Fields and texts agree on which of two members is meant."""
    body = read_body(b'{"events":[{"xdm":{"_id":"a"}}],"events":[{"xdm":{"_id":"b"}}]}')
    assert texts(body, "events") == ['{"xdm":{"_id":"b"}}']
    assert body.fields["events"] == [{"xdm": {"_id": "b"}}]
    assert "events" not in read_body(b'{"events":[{}],"events":7}').event_spans


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[1,2",
        b'{"a":1,}',
        b'{"a" 1}',
        b"{1:2}",
        b'{"a":1}{"b":2}',
        b'{"events":[{},]}',
        b'{"events":[{} {}]}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        b"\xef\xbb\xbf{}",
        b'{"a":' + b"9" * (sys.get_int_max_str_digits() + 1) + b"}",
    ],
)
def test_what_is_not_json_is_invalid(content):
    """Syntax, encoding, literals and numbers beyond the interpreter's bound are one kind of refusal."""
    assert problem_of(content).type.endswith("EXEG-0101-400")


def test_an_empty_body_and_another_value_than_an_object_have_their_own_codes():
    """0109-408 for no body at all, 0102-400 for JSON of another kind."""
    assert problem_of(b"").type.endswith("EXEG-0109-408")
    assert problem_of(b"[]").type.endswith("EXEG-0102-400")
    assert problem_of(b' "x" ').type.endswith("EXEG-0102-400")


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    return ('{"events":[{},' + opening * depth + "1" + closing * depth + "]}").encode()


def test_nesting_is_read_down_to_the_stated_depth():
    """The bound is exact for each event, and brackets inside strings do not count."""
    assert len(read_body(nested(MAX_DEPTH)).fields["events"]) == 2
    assert problem_of(nested(MAX_DEPTH + 1)).detail.startswith("The body is nested too deep")
    assert problem_of(nested(MAX_DEPTH + 1, '{"b":', "}")).detail.startswith("The body is nested too deep")
    wide = b'{"a":[' + b"[{}]," * MAX_DEPTH + b"1]}"
    assert len(read_body(wide).fields["a"]) == MAX_DEPTH + 1
    text = "[{" * MAX_DEPTH + '\\"[' * MAX_DEPTH
    assert read_body(f'{{"a":"{text}"}}'.encode()).fields["a"]


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 65_536,
        b'{"a":' * 13_000,
        b'{"a":' + b"[" * 32_000 + b"]" * 32_000 + b"}",
        b'{"a":' + b"[" * 600 + b'"' + b'\\"' * 32_000,
        b'{"a":' + b"[" * 600 + b'"' + b"\\" * 64_001,
        b'{"a":[' + b"[]," * 21_000,
    ],
)
def test_bodies_made_to_exhaust_the_reader_are_refused(content):
    """By the parser's own bound or by ours; nothing but the problem comes out."""
    assert problem_of(content).type.endswith("EXEG-0101-400")


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain; charset=UTF-8", "Text/JavaScript ;x=y"]
)
def test_json_travels_under_three_names(content_type):
    """Browsers send text/plain to avoid a preflight."""
    read_media_type(content_type)


@pytest.mark.parametrize(
    "content_type", [None, "", "application/xml", "application/x-jackson-smile", "application/jsonp"]
)
def test_other_media_types_are_refused(content_type):
    """Anything else, and nothing at all, is 0111-415."""
    with pytest.raises(Problem) as caught:
        read_media_type(content_type)
    assert caught.value.type.endswith("EXEG-0111-415")
