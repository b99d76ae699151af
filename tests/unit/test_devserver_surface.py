"""Whatever knocks at the development edge gets an answer: no 500, no silence, nothing that breaks a header."""

import asyncio
import json

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from hypothesis import example, given, settings, strategies as st

from alloy_async.devserver import DevelopmentEdge, create_app

ACTIONS = ("interact", "collect", "privacy/set-consent", "identity/acquire")
paths = st.one_of(
    st.builds(
        "/ee{}/{}/{}".format,
        st.sampled_from(["", "/or2"]),
        st.sampled_from(["v1", "v2"]),
        st.sampled_from(ACTIONS),
    ),
    st.builds(
        "/_dev/{}".format,
        st.sampled_from(["", "events", "requests", "requests/1", "requests/x", "search", "reset"]),
    ),
    st.text().map(lambda text: f"/{text}"),
)
queries = st.dictionaries(
    st.sampled_from(["configId", "datastreamId", "requestId", "silent", "q"]) | st.text(max_size=5),
    st.text(max_size=40),
    max_size=4,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = [
    "xdm",
    "data",
    "query",
    "meta",
    "events",
    "event",
    "consent",
    "identityMap",
    "identity",
    "fetch",
    "state",
    "entries",
]
NAMES += [
    "_id",
    "eventType",
    "timestamp",
    "standard",
    "version",
    "value",
    "key",
    "FPID",
    "ECID",
    "id",
    "primary",
    "domain",
]


def nearly(inner):
    """Values of a request's members, of any shape: what a fuzzer that knows the protocol sends."""
    return st.dictionaries(st.sampled_from(NAMES), inner, max_size=4) | st.lists(inner, max_size=3)


protocol_values = st.recursive(json_values, nearly, max_leaves=20)
bodies = st.one_of(
    st.dictionaries(st.sampled_from(NAMES), protocol_values, max_size=5).map(
        lambda value: json.dumps(value).encode()
    ),
    st.binary(max_size=200),
    st.text(alphabet='{}[]":,\\ 0e-"eventsxdm', max_size=60).map(str.encode),
    st.integers(500, 4_000).map(lambda depth: b'{"events":' + b"[" * depth + b"]" * depth + b"}"),
)
headers = st.dictionaries(
    st.sampled_from(
        [
            b"content-type",
            b"x-request-id",
            b"authorization",
            b"x-test-tag",
            b"origin",
            b"cookie",
            b"content-length",
        ]
    ),
    st.binary(max_size=30) | st.sampled_from([b"application/json", b"text/plain; charset=x", b"9" * 30]),
)


def ask(app, method, path, query, header, body):
    """Call the application as a server does; returns status, headers and body."""
    sent = []
    received = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive():
        return next(received, {"type": "http.disconnect"})

    async def send(message):
        sent.append(message)

    query_string = "&".join(f"{name}={value}" for name, value in query.items()).encode(errors="replace")
    scope = {
        "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": path, "raw_path": path.encode(errors="replace"),
        "root_path": "", "query_string": query_string, "headers": [(b"host", b"127.0.0.1:8080"), *header.items()],
        "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 8080),
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], sent[0]["headers"], b"".join(message.get("body", b"") for message in sent[1:])


@settings(deadline=None)
@given(
    st.sampled_from(["POST", "GET", "PUT", "OPTIONS", "HEAD", "DELETE", "BREW"]),
    paths,
    queries,
    headers,
    bodies,
)
@example(
    "POST",
    "/ee/v1/collect",
    {"configId": "ds"},
    {b"content-type": b"application/json"},
    b'{"events":[{"xdm":{"_id":"\\ud800"}}]}',
)
@example("POST", "/ee/v1/collect", {"configId": "ds", "requestId": "a\r\nset-cookie: b"}, {}, b"{}")
@example(
    "POST",
    "/ee/v1/collect",
    {"configId": "ds"},
    {b"content-type": b"application/json"},
    b'{"events":[{"xdm":{"timestamp":"2026-11-23"}}]}',
)
def test_everything_is_answered_and_can_be_read_back(method, path, query, header, body):
    """And the read-back still works after it: what arrived is JSON, whatever it was."""
    edge = DevelopmentEdge()
    app = create_app(edge)
    status, answered, _ = ask(app, method, path, query, header, body)
    assert 200 <= status < 500
    assert not any(b"\r" in value or b"\n" in value for _, value in answered)
    for back in ("events", "requests", "search"):
        status, _, content = ask(app, "GET", f"/_dev/{back}", {"q": "x"}, {}, b"")
        assert (status, type(json.loads(content))) == (200, dict)
    for exchange in edge.recorder.exchanges()[0]:
        assert json.loads(exchange.as_json())["entry"]["n"] == exchange.n
