"""The read-back: for the person at the desk, for no web page from elsewhere."""

import json

import httpx
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from alloy_async.devserver import DevelopmentEdge, create_app
from alloy_async.devserver.desk import check_desk
from alloy_async.devserver.problems import Problem

PATHS = [
    ("GET", "/_dev/events"),
    ("GET", "/_dev/requests"),
    ("POST", "/_dev/reset"),
    ("GET", "/_dev/nothing"),
]


def client(development_edge, base_url="http://127.0.0.1:8765"):
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(development_edge)), base_url=base_url)


async def send(browser, *event_ids):
    events = [{"xdm": {"_id": event_id}} for event_id in event_ids]
    answer = await browser.post("/ee/v1/collect?configId=ds", json={"events": events})
    assert answer.status_code == 204


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:8765",
        "127.0.0.1",
        "127.0.0.1:8765",
        "127.8.9.10:1",
        "[::1]",
        "[::1]:8765",
        "desk.example:8765",
    ],
)
def test_loopback_and_named_hosts_pass(host):
    """With and without port, in any letter case."""
    check_desk([host], [], scheme="http", named={"desk.example"})
    check_desk([host], [f"http://{host.lower()}"], scheme="http", named={"desk.example"})


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [""],
        ["evil.example"],
        ["evil.example:8765"],
        ["127.0.0.1.evil.example"],
        ["localhost.evil.example"],
        ["evil.example@localhost"],
        ["localhost@evil.example"],
        ["localhost:8765@evil.example"],
        ["localhost:8765:1"],
        ["localhost:"],
        ["localhost\n"],
        ["localhost/"],
        ["xlocalhost"],
        ["0.0.0.0"],
        ["192.168.1.5"],
        ["[::2]"],
        ["[::1"],
        ["::1"],
        ["127.1"],
        ["2130706433"],
        ["localhost", "localhost"],
        ["sub.desk.example"],
    ],
)
def test_every_other_host_is_refused(hosts):
    """A name that merely resolves to loopback (DNS rebinding) is not loopback's name."""
    with pytest.raises(Problem) as caught:
        check_desk(hosts, [], scheme="http", named={"desk.example"})
    assert caught.value.status == 403


@pytest.mark.parametrize(
    "origins",
    [
        ["null"],
        [""],
        ["http://evil.example"],
        ["http://localhost:8766"],
        ["http://localhost"],
        ["https://localhost:8765"],
        ["http://127.0.0.1:8765"],
        ["http://localhost:8765.evil.example"],
        ["http://localhost:8765", "http://evil.example"],
    ],
)
def test_every_origin_but_the_servers_own_is_refused(origins):
    """Another port, scheme or spelling of loopback is another origin."""
    with pytest.raises(Problem) as caught:
        check_desk(["localhost:8765"], origins, scheme="http", named=())
    assert caught.value.status == 403


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"},
    ],
)
async def test_a_page_elsewhere_neither_reads_nor_resets(method, path, headers):
    """Everything below /_dev is guarded, what does not exist included; the refusal says nothing about events."""
    with DevelopmentEdge() as edge:
        async with client(edge) as browser:
            await send(browser, "secret-id")
            answer = await browser.request(method, path, headers=headers)
            assert answer.status_code == 403
            assert answer.headers["content-type"] == "application/problem+json"
            assert "secret-id" not in answer.text
            assert "access-control-allow-origin" not in answer.headers
            assert len(edge.events) == 1


async def test_no_answer_of_the_desk_may_be_embedded_or_cached():
    """A page elsewhere could otherwise load it without reading it, as a script or an image."""
    async with client(DevelopmentEdge()) as browser:
        for path, origin in (
            ("events", "http://127.0.0.1:8765"),
            ("requests", "http://127.0.0.1:8765"),
            ("events", "null"),
        ):
            headers = (await browser.get(f"/_dev/{path}", headers={"origin": origin})).headers
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
        {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"},
        {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"},
    ],
    ids=["link", "page", "address bar"],
)
async def test_a_person_may_come_from_anywhere(headers):
    async with client(DevelopmentEdge()) as browser:
        assert (await browser.get("/_dev/", headers=headers)).status_code == 200


async def test_hosts_that_the_operator_named_may_read():
    """In any letter case; others still may not."""
    edge = DevelopmentEdge(hosts={"Desk.Example"})
    async with client(edge, "http://desk.example:9000") as browser:
        assert (await browser.get("/_dev/events")).status_code == 200
        assert (await browser.get("/_dev/events", headers={"origin": "http://desk.example:9000"})).is_success
        assert (await browser.get("/_dev/events", headers={"host": "other.example"})).status_code == 403


async def test_events_are_listed_in_order_of_arrival():
    """As they were received, with what is known about each."""
    edge = DevelopmentEdge()
    async with client(edge) as browser:
        assert (await browser.get("/_dev/events")).json() == {"events": [], "dropped": 0}
        body = (
            '{"events":[{"xdm":{"_id":"a","n":123456789012345678901234567890,"f":1.10}},{"xdm":{"_id":"b"}}]}'
        )
        await browser.post(
            "/ee/or2/v1/collect?configId=ds&requestId=req-1",
            content=body,
            headers={"content-type": "text/plain"},
        )
        await send(browser, "a")
        answer = await browser.get("/_dev/events")
    assert '{"xdm":{"_id":"a","n":123456789012345678901234567890,"f":1.10}}' in answer.text
    first, second, third = answer.json()["events"]
    assert first["event"]["xdm"]["n"] == 123456789012345678901234567890
    assert first["requestId"].startswith("req-1-")
    assert first["requestId"] == second["requestId"] != third["requestId"]
    assert (first["path"], first["datastreamId"]) == ("/ee/or2/v1/collect", "ds")
    assert [item["event"]["xdm"]["_id"] for item in (first, second, third)] == ["a", "b", "a"]
    assert [item["duplicate"] for item in (first, second, third)] == [False, False, True]
    assert edge.events == answer.json()["events"]


async def test_more_events_than_one_piece_of_the_answer_are_listed_whole():
    """The answer is written in pieces; their seams do not show."""
    edge = DevelopmentEdge(max_events=1_100)
    async with client(edge) as browser:
        for start in range(0, 1_200, 100):
            await send(browser, *range(start, start + 100))
        listing = (await browser.get("/_dev/events")).json()
    assert [item["event"]["xdm"]["_id"] for item in listing["events"]] == list(range(100, 1_200))
    assert listing["dropped"] == 100


async def test_requests_are_listed_whole():
    """Those that were refused as well, with the status answered; bodies that are not JSON as text."""
    edge = DevelopmentEdge()
    async with client(edge) as browser:
        await browser.post(
            "/ee/v1/interact?configId=ds&requestId=r",
            json={"events": [{"xdm": {}}]},
            headers={"authorization": "Bearer s3cret", "x-double": "1"},
        )
        await browser.post(
            "/nowhere",
            content=b"\xff{",
            headers=[("content-type", "text/plain"), ("x-twice", b"\xe9"), ("x-twice", "2")],
        )
        await browser.get("/ee/v1/interact")
        listing = (await browser.get("/_dev/requests")).json()
    taken, lost, wrong = listing["requests"]
    assert taken["query"] == {"configId": "ds", "requestId": "r"}
    assert (taken["method"], taken["path"], taken["status"]) == ("POST", "/ee/v1/interact", 200)
    assert taken["body"] == {"events": [{"xdm": {}}]}
    assert taken["text"] is None
    assert taken["headers"]["authorization"] == "[REDACTED]"
    assert taken["headers"]["x-double"] == "1"
    assert lost["headers"]["x-twice"] == "é, 2"
    assert (lost["path"], lost["status"], lost["body"], lost["text"]) == ("/nowhere", 404, None, "\\xff{")
    assert (wrong["method"], wrong["status"]) == ("GET", 405)
    assert listing["dropped"] == 0
    assert edge.requests == listing["requests"]


async def test_the_desk_does_not_appear_in_what_it_shows():
    """Looking changes nothing."""
    edge = DevelopmentEdge()
    async with client(edge) as browser:
        await browser.get("/_dev/requests")
        assert (await browser.get("/_dev/requests")).json() == {"requests": [], "dropped": 0}


async def test_reset_forgets_everything():
    """Events, requests, known ids, and who refused."""
    edge = DevelopmentEdge()
    fpid = {"FPID": [{"id": "6f1c0f7e-3f0a-4a1c-9d58-0d6f6c1f2b3a"}]}
    refusal = [{"standard": "Adobe", "version": "1.0", "value": {"general": "out"}}]
    async with client(edge) as browser:
        await send(browser, "a")
        await browser.post(
            "/ee/v1/privacy/set-consent?configId=ds", json={"consent": refusal, "identityMap": fpid}
        )
        assert (await browser.post("/_dev/reset")).status_code == 204
        assert (edge.events, edge.requests) == ([], [])
        event = {"xdm": {"_id": "a", "identityMap": fpid}}
        await browser.post(
            "/ee/v1/collect?configId=ds",
            content=json.dumps({"events": [event]}),
            headers={"content-type": "application/json"},
        )
        assert [item["duplicate"] for item in edge.events] == [False]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/_dev/events"), ("GET", "/_dev/reset"), ("DELETE", "/_dev/requests")]
)
async def test_the_desk_takes_each_path_with_its_own_method(method, path):
    """A link cannot reset."""
    async with client(DevelopmentEdge()) as browser:
        assert (await browser.request(method, path)).status_code == 405
