"""Whatever knocks at the development edge gets an answer: no 500, no silence, nothing that breaks a header."""

import asyncio
import importlib.util
import json

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from hypothesis import HealthCheck, example, given, settings, strategies as st
from starlette.datastructures import Headers
from xdm_schemas import write_schemas

from alloy_async.devserver import Checks, DevelopmentEdge, Recorder, XdmSchemas, create_app
from alloy_async.devserver.past import read_exchange
from alloy_async.devserver.recorder import Past

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
# No server lets line breaks through.
header_values = st.binary(max_size=30).map(lambda value: value.translate(None, b"\r\n"))
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
    header_values | st.sampled_from([b"application/json", b"text/plain; charset=x", b"9" * 30]),
)


def ask(app, method, path, query, header, body):
    """Call the application as a server does; returns status, headers and body."""
    sent = []
    received = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive():
        return (
            next(received, None) or await asyncio.Event().wait()
        )  # the client stays until it has its answer

    async def send(message):
        sent.append(message)

    query_string = "&".join(f"{name}={value}" for name, value in query.items()).encode(errors="replace")
    scope = {
        "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": path, "raw_path": path.encode(errors="replace"),
        "root_path": "", "query_string": query_string, "headers": [*({b"host": b"127.0.0.1:8080"} | header).items()],
        "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 8080),
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 60))
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


# What somebody may have switched on, and what meets it.

MEDIA = ["sessionStart", "ping", "nothing"]
all_paths = paths | st.builds("/ee/va/v1/{}".format, st.sampled_from(MEDIA))
desk_headers = st.dictionaries(
    st.sampled_from([b"host", b"origin", b"sec-fetch-site", b"last-event-id"]),
    header_values
    | st.sampled_from(
        [
            b"localhost",
            b"[::1]:80",
            b"127.0.0.1:99999999",
            b"http://localhost",
            b"null",
            b"[::g]",
            b"a@localhost",
        ]
    ),
)
switched_faults = st.lists(
    st.sampled_from(
        [
            {"status": 503, "retryAfter": 1},
            {"status": 599, "retryAfterDate": 604_800, "rate": 0.5},
            {"text": "down \ud800"},
            {"errors": True},
            {"contentType": "application/problem+json"},
            {"contentType": "text/html", "eventType": "", "path": "\ud800"},
            {"status": 400, "visitor": "FPID \ud800"},
        ]
    ),
    max_size=3,
)
asked = st.fixed_dictionaries(
    {
        "events": st.lists(
            st.fixed_dictionaries(
                {"xdm": protocol_values},
                optional={
                    "query": st.fixed_dictionaries(
                        {
                            "personalization": st.dictionaries(
                                st.sampled_from(["decisionScopes", "surfaces", "schemas"]),
                                st.lists(st.sampled_from(["hero", "\ud800", ""]) | json_values, max_size=3)
                                | json_values,
                            )
                        }
                    )
                },
            ),
            max_size=3,
        )
    },
    optional={
        "event": protocol_values,
        "query": protocol_values,
        "meta": st.fixed_dictionaries(
            {},
            optional={
                "konductorConfig": st.fixed_dictionaries(
                    {
                        "streaming": st.fixed_dictionaries(
                            {"enabled": st.booleans()},
                            optional={
                                "recordSeparator": st.sampled_from(["", "\ud800", '1, "x": ']) | json_values,
                                "lineFeed": st.sampled_from(["", "\0"]) | json_values,
                            },
                        )
                    }
                ),
                "state": protocol_values,
            },
        ),
        "xdm": protocol_values,
        "consent": protocol_values,
    },
)
asking_bodies = bodies | asked.map(lambda value: json.dumps(value).encode())


@pytest.fixture(scope="module")
def equipped(tmp_path_factory):
    """Everything that a development edge may be given besides faults."""
    folder = tmp_path_factory.mktemp("equipment")
    decisions = folder / "decisions.json"
    item = {"schema": "https://ns.adobe.com/personalization/json-content-item", "content": {"a": "\ud800"}}
    decisions.write_text(
        json.dumps({"scopes": {"hero": [item], "\ud800": [item]}, "surfaces": {"hero": [item]}})
    )
    checks = Checks()
    if importlib.util.find_spec("jsonschema_rs") is not None:
        checks = Checks(XdmSchemas.load(write_schemas(folder)))
    return {"decisions": decisions, "checks": checks}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["POST", "POST", "POST", "GET", "OPTIONS", "HEAD"]),
    all_paths,
    queries,
    headers | desk_headers,
    asking_bodies,
    st.fixed_dictionaries({"strict": st.booleans(), "authenticated": st.booleans()}),
    switched_faults,
)
def test_everything_is_answered_whatever_is_switched_on(
    equipped, method, path, query, header, body, options, faults
):
    """It is read back as it was answered, from a file too, and the faults and the feed with it."""
    edge = DevelopmentEdge(**equipped, **options)
    app = create_app(edge)
    switched = ask(app, "POST", "/_dev/faults", {}, {}, json.dumps({"faults": faults}).encode())
    assert switched[0] in {200, 400}
    query = {"configId": "ds", "datastreamId": "ds"} | query
    header = {
        b"content-type": b"application/json",
        b"authorization": b"Bearer t",
        b"x-api-key": b"k",
    } | header
    header = {b"x-gw-ims-org-id": b"o"} | header
    status, answered, _ = ask(app, method, path, query, header, body)
    assert 200 <= status < (600 if faults else 500)
    assert not any(b"\r" in value or b"\n" in value for _, value in answered)
    assert ask(app, "GET", "/_dev/faults", {}, {}, b"")[0] == 200
    for exchange in edge.recorder.exchanges()[0]:
        again = read_exchange(exchange.as_json())
        assert (again.answer.status, again.body, again.text) == (status, exchange.body, exchange.text)
        assert again.entry() == exchange.entry()
        assert exchange.weight > 0
    if edge.recorder.exchanges()[0]:
        assert asyncio.run(first_entries(app.state.feed))[0]["status"] == status


async def first_entries(feed):
    messages = [message async for message in until_entries(feed)]
    return json.loads(messages[-1].partition("data: ")[2])


async def until_entries(feed):
    async for message in feed.messages():
        yield message
        if message.startswith("event: entries"):
            return


@pytest.mark.parametrize("number", ["9" * 30, "9" * 5_000, "0", "-1", "x"])
def test_an_exchange_that_cannot_be_is_not_found(number):
    status, _, _ = ask(create_app(), "GET", f"/_dev/requests/{number}", {}, {}, b"")
    assert status == 404


@pytest.mark.parametrize("field", ["path", "visitor", "eventType", "text"])
def test_faults_may_hold_any_text(field):
    """They can be read back, and a name that no UTF-8 can spell is refused like any other."""
    app = create_app()
    kind = {} if field == "text" else {"status": 503}
    switched = json.dumps({"faults": [{**kind, field: "\ud800"}]}).encode()
    assert ask(app, "POST", "/_dev/faults", {}, {}, switched)[0] == 200
    status, _, content = ask(app, "GET", "/_dev/faults", {}, {}, b"")
    assert (status, json.loads(content)["faults"][0][field]) == (200, "\ud800")
    assert ask(app, "POST", "/_dev/faults", {}, {}, b'{"faults":[{"\\ud800":1}]}')[0] == 400


@pytest.mark.parametrize("place", ['{"faults":[{"status":%s}]}', '{"faults":%s}', '{"seed":%s,"faults":[]}'])
def test_faults_of_any_depth_are_refused(place):
    """What can just be read is more than can be written, further down the stack."""
    app = create_app()
    for depth in range(800, 1_020):
        body = (place % ("[" * depth + "]" * depth)).encode()
        assert ask(app, "POST", "/_dev/faults", {}, {}, body)[0] == 400


def test_only_the_head_of_the_feed_ends_at_once():
    """A client that asks for no body would wait for its end."""
    status, answered, content = ask(create_app(), "HEAD", "/_dev/feed", {}, {}, b"")
    assert (status, content) == (200, b"")
    assert dict(answered)[b"content-type"].startswith(b"text/event-stream")


def test_many_headers_are_read_in_one_pass(monkeypatch):
    """One pass for each name held the loop for seconds, for a head of 64 KB."""
    passes = []
    getlist = Headers.getlist
    monkeypatch.setattr(Headers, "getlist", lambda self, name: passes.append(name) or getlist(self, name))
    edge = DevelopmentEdge()
    many = {f"x-{n}".encode(): b"1" for n in range(500)}
    ask(create_app(edge), "POST", "/ee/v1/collect", {"configId": "ds"}, many, b"{}")
    assert len(passes) < 10
    assert edge.requests[0]["headers"]["x-499"] == "1"


def test_a_file_that_cannot_be_emptied_is_said():
    """What it holds would come back with the next start."""
    edge = DevelopmentEdge(sink=Broken())
    app = create_app(edge)
    ask(app, "POST", "/ee/v1/collect", {"configId": "ds"}, {}, b"{}")
    status, _, content = ask(app, "POST", "/_dev/reset", {}, {}, b"")
    assert (status, "disk on fire" in json.loads(content)["detail"]) == (500, True)
    assert edge.requests == []


class Broken:
    """A sink whose disk fails."""

    def load(self, limit):
        return Past(())

    def write(self, exchange):
        pass

    def clear(self):
        raise OSError("disk on fire")

    def close(self):
        raise OSError("disk on fire")


def test_a_file_that_cannot_be_closed_does_not_stop_the_end(caplog):
    with DevelopmentEdge(sink=Broken()):
        pass
    assert "disk on fire" in caplog.text


def test_readers_hear_of_a_reset_that_failed_in_the_file():
    told = []
    recorder = Recorder(sink=Broken())
    recorder.subscribe(lambda: told.append("news"))
    with pytest.raises(OSError, match="disk on fire"):
        recorder.clear()
    assert told == ["news"]
