"""What is received is told as it happens, to readers that are slow, come back, or are too many."""

import asyncio
import json

import httpx
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from alloy_async.devserver import DevelopmentEdge, EdgeRequest, create_app, feed as module, readback
from alloy_async.devserver.feed import Feed, FeedFull

COLLECT = {"method": "POST", "path": "/ee/v1/collect", "query": {"configId": "ds"}}
JSON = {"content-type": "application/json"}


def send(edge, *event_ids, **headers):
    events = [{"xdm": {"_id": event_id, "eventType": "web"}} for event_id in event_ids]
    body = json.dumps({"events": events}).encode()
    return edge.answer(EdgeRequest(**COLLECT, headers={**JSON, **headers}, body=body))


@pytest.fixture
def edge():
    return DevelopmentEdge(max_events=4)


async def no_pause(_):
    await asyncio.sleep(0)


class Reader:
    """Reads messages of a feed, parsed."""

    def __init__(self, feed, last_event_id=None):
        self.messages = feed.messages(last_event_id)
        self.last_id = None

    async def next(self):
        fields = dict(line.split(": ", 1) for line in (await anext(self.messages)).strip().split("\n"))
        self.last_id = fields.get("id", self.last_id)
        return fields["event"], json.loads(fields["data"])

    async def numbers(self):
        name, entries = await self.next()
        assert name == "entries"
        return [entry["n"] for entry in entries]


@pytest.fixture
async def open_reader(edge):
    feed, readers = Feed(edge.recorder, pause=no_pause), []

    def open_one(last_event_id=None, of=feed):
        readers.append(Reader(of, last_event_id))
        return readers[-1]

    open_one.feed = feed
    yield open_one
    for reader in readers:
        await reader.messages.aclose()


async def test_the_past_comes_first_then_what_happens(edge, open_reader):
    """A page that is opened late shows the same as one that was open all day."""
    send(edge, "a")
    reader = open_reader()
    name, hello = await reader.next()
    assert (name, hello["dropped"], hello["earlier"], hello["before"]) == ("hello", 0, 1, 1)
    assert await reader.numbers() == [1]
    send(edge, "b")
    assert await reader.numbers() == [2]


async def test_what_gathers_is_told_at_once(edge, open_reader, monkeypatch):
    """In pieces, so that none is endless."""
    reader = open_reader()
    await reader.next()
    for name in "abc":
        send(edge, name)
    assert await reader.numbers() == [1, 2, 3]
    monkeypatch.setattr(module, "_CHUNK", 2)
    late = open_reader()
    await late.next()
    assert [await late.numbers(), await late.numbers()] == [[1, 2], [3]]


@pytest.mark.parametrize(
    ("sent", "told"),
    [(["ab", "c", "d"], [[1], [2, 3]]), (["abc", "d"], [[1], [2]]), (["", "", "a"], [[1, 2], [3]])],
)
async def test_a_message_has_so_many_events(edge, open_reader, monkeypatch, sent, told):
    """An exchange is never cut, however many it has."""
    monkeypatch.setattr(module, "_CHUNK", 2)
    for ids in sent:
        send(edge, *ids)
    reader = open_reader()
    assert (await reader.next())[0] == "hello"
    assert [await reader.numbers() for _ in told] == told


class Turns:
    """Counts how often others had their turn."""

    def __init__(self):
        self.count = 0

    async def __aenter__(self):
        self._task = asyncio.create_task(self._take())
        return self

    async def __aexit__(self, *_):
        self._task.cancel()

    async def _take(self):
        while True:
            self.count += 1
            await asyncio.sleep(0)


async def test_a_long_past_leaves_others_their_turn(edge, open_reader, monkeypatch):
    """A socket that takes everything never makes the writer wait."""
    monkeypatch.setattr(module, "_CHUNK", 1)
    for name in "abcd":
        send(edge, name)
    reader = open_reader()
    async with Turns() as turns:
        assert (await reader.next())[0] == "hello"
        assert [await reader.numbers() for _ in range(4)] == [[1], [2], [3], [4]]
        assert turns.count >= 3


@pytest.mark.parametrize("listing", ["events", "requests"])
async def test_a_long_listing_leaves_others_their_turn(edge, browser, listing, monkeypatch):
    answer = await browser.get(f"/_dev/{listing}")
    assert answer.json() == {"dropped": 0, listing: []}
    for name in "abcd":
        send(edge, name)

    async def turns():
        async with Turns() as counted:
            answer = await browser.get(f"/_dev/{listing}")
        assert len(answer.json()[listing]) == 4
        return counted.count

    at_once = await turns()
    monkeypatch.setattr(readback, "_CHUNK", 1)
    assert await turns() >= at_once + 3


async def test_an_entry_says_what_became_of_each_event(edge, open_reader):
    """Its shape is the page's whole knowledge of an exchange."""
    send(edge, "a", "a", **{"x-test-tag": "checkout"})
    reader = open_reader()
    await reader.next()
    _, [entry] = await reader.next()
    events = entry.pop("events")
    assert [(event["id"], event["outcome"], event["type"]) for event in events] == [
        ("a", "recorded", "web"),
        ("a", "duplicate", "web"),
    ]
    assert {
        name: entry[name] for name in ("n", "action", "status", "tag", "datastreamId", "problem", "fault")
    } == {
        "n": 1,
        "action": "collect",
        "status": 204,
        "tag": "checkout",
        "datastreamId": "ds",
        "problem": None,
        "fault": None,
    }


async def test_a_refused_request_says_why(edge, open_reader):
    """Its events are shown, as refused."""
    send(edge)
    body = json.dumps({"events": [{"xdm": {"identityMap": {"FPID": [{"id": "x"}]}}}]}).encode()
    edge.answer(EdgeRequest(**COLLECT, headers=JSON, body=body))
    reader = open_reader()
    await reader.next()
    _, [empty, bad] = await reader.next()
    assert (empty["problem"]["code"], empty["events"]) == ("0103-400", [])
    assert (bad["problem"]["code"], bad["problem"]["eventIndex"]) == ("0308-400", 0)
    assert [event["outcome"] for event in bad["events"]] == ["refused"]


async def test_a_reader_that_comes_back_hears_only_what_it_missed(edge, open_reader):
    """Of another session everything: the numbers began anew."""
    send(edge, "a")
    first = open_reader()
    await first.next()
    await first.next()
    send(edge, "b")
    again = open_reader(first.last_id)
    await again.next()
    assert await again.numbers() == [2]
    for strange in ("", "other-1", first.last_id + "x", "-", f"{first.last_id}9" * 9):
        reader = open_reader(strange)
        await reader.next()
        assert await reader.numbers() == [1, 2]


async def test_dropping_and_clearing_are_told(edge, open_reader):
    """A page can forget what the edge forgot."""
    send(edge, "a")
    reader = open_reader()
    await reader.next()
    await reader.next()
    for name in "bcde":
        send(edge, name)
    assert await reader.next() == ("dropped", {"before": 2})
    assert await reader.numbers() == [2, 3, 4, 5]
    edge.reset()
    assert await reader.next() == ("cleared", {"before": 6})
    send(edge, "f")
    assert await reader.numbers() == [6]
    late = open_reader()
    assert (await late.next())[1]["dropped"] == 0


async def test_news_from_another_thread_wake_a_reader(edge, open_reader):
    """A test clears in its own thread while the server serves."""
    reader = open_reader()
    await reader.next()
    waiting = asyncio.ensure_future(reader.next())
    await asyncio.sleep(0)
    await asyncio.to_thread(send, edge, "a")
    assert (await waiting)[0] == "entries"


async def test_closing_ends_every_reader(edge, open_reader):
    """A server can stop though pages are open."""
    reader = open_reader()
    await reader.next()
    waiting = asyncio.ensure_future(anext(reader.messages, "the end"))
    await asyncio.sleep(0)
    open_reader.feed.close()
    assert await waiting == "the end"


async def test_readers_are_bounded_and_leave_nothing_behind(edge, open_reader, monkeypatch):
    """One that leaves makes room."""
    monkeypatch.setattr(module, "_MAX_READERS", 1)
    first = open_reader()
    await first.next()
    with pytest.raises(FeedFull):
        await open_reader().next()
    await first.messages.aclose()
    assert (await open_reader().next())[0] == "hello"


async def test_who_hears_nothing_for_long_gets_a_sign_of_life(edge, open_reader, monkeypatch):
    """So that a broken connection is noticed."""
    monkeypatch.setattr(module, "_SIGN_OF_LIFE", 0)
    reader = open_reader()
    await reader.next()
    assert (await anext(reader.messages)).startswith(":")


async def test_changed_faults_are_told(edge, open_reader):
    """Whoever changed them."""
    state = {"seed": 0, "faults": []}
    feed = Feed(edge.recorder, faults=lambda: dict(state), pause=no_pause)
    reader = open_reader(of=feed)
    await reader.next()
    assert await reader.next() == ("faults", state)
    state["faults"] = [{"status": 503}]
    feed.wake()
    assert await reader.next() == ("faults", state)


@pytest.fixture
async def browser(edge):
    transport = httpx.ASGITransport(create_app(edge))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


async def test_one_exchange_is_read_whole(edge, browser):
    """Request and answer, to the letter, with the entry that the feed told."""
    send(edge, "a")
    answer = await browser.get("/_dev/requests/1")
    whole = answer.json()
    assert whole["request"]["body"]["events"][0]["xdm"]["_id"] == "a"
    assert (whole["answer"]["status"], whole["answer"]["body"]) == (204, None)
    assert whole["entry"]["n"] == 1
    missing = await browser.get("/_dev/requests/2")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize("query", ["needle", "NEEDLE", "nadel é", "\U0001f332"])
async def test_a_search_looks_into_the_payload(edge, browser, query):
    """In any case, and for text that JSON escapes too."""
    send(edge, "a needle")
    send(edge, "hay")
    send(edge, "Needle nadel é \U0001f332")
    found = (await browser.get("/_dev/search", params={"q": query})).json()
    assert found == {"matches": [3, 1] if query.lower() == "needle" else [3]}
    assert (await browser.get("/_dev/search")).json() == {"matches": []}


async def test_readers_beyond_the_bound_are_told_so(edge, browser, monkeypatch):
    """By an answer, not by silence."""
    monkeypatch.setattr(module, "_MAX_READERS", 0)
    assert (await browser.get("/_dev/feed")).status_code == 503
