"""What was received is kept: all of it, in order, within bounds, and in a file when asked."""

import json
import logging
import sqlite3
import stat
import threading

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from alloy_async.devserver import (
    EdgeAnswer,
    Exchange,
    Finding,
    JSONLinesFile,
    ReceivedEvent,
    Recorder,
    SQLiteFile,
    jsonl as jsonl_module,
    recorder as module,
    sqlite as sqlite_module,
)

RECEIVED_AT = "2026-11-23T15:20:48.830Z"


def exchange(*event_ids, events=(), outcome="recorded", **changes):
    """An exchange with an event for each id, or with the given texts as events."""
    texts = [*events, *(json.dumps({"xdm": {} if i is None else {"_id": i}}) for i in event_ids)]
    body, received, names = '{"events": [', [], [*(None for _ in events), *event_ids]
    for index, (text, name) in enumerate(zip(texts, names, strict=True)):
        body += ", " if index else ""
        received.append(
            ReceivedEvent(index, len(body), len(body) + len(text), name, None, None, outcome, None)
        )
        body += text
    fields = {
        "received_at": RECEIVED_AT,
        "request_id": "r-1",
        "method": "POST",
        "path": "/ee/v1/collect",
        "query": {"configId": "ds"},
        "headers": {"host": "localhost"},
        "body": body + "]}",
        "text": None,
        "size": len(body) + 2,
        "answer": EdgeAnswer(204, {}, b""),
        "action": "collect",
        "datastream_id": "ds",
        "events": tuple(received),
    }
    return Exchange(**{**fields, **changes})


def ids(recorder):
    return [event.event_id for _, event in recorder.events()[0]]


def numbers(recorder):
    return [kept.n for kept in recorder.exchanges()[0]]


def flags(recorder):
    return [event.outcome == "duplicate" for _, event in recorder.events()[0]]


def test_duplicates_are_flagged_and_kept():
    """Within one request and across requests; events without an id are never duplicates."""
    recorder = Recorder()
    recorder.add(exchange("a", "b", "a"))
    recorder.add(exchange("b", None, None, "c"))
    assert ids(recorder) == ["a", "b", "a", "b", None, None, "c"]
    assert flags(recorder) == [False, False, True, True, False, False, False]


@pytest.mark.parametrize("outcome", ["withheld", "refused"])
def test_an_event_that_was_not_taken_is_shown_but_not_listed(outcome):
    """It makes no duplicate of the one that is taken later."""
    recorder = Recorder()
    recorder.add(exchange("a", outcome=outcome))
    recorder.add(exchange("a"))
    assert (ids(recorder), flags(recorder)) == (["a"], [False])
    assert [event.outcome for kept in recorder.exchanges()[0] for event in kept.events] == [
        outcome,
        "recorded",
    ]


def test_numbers_follow_the_order_of_arrival_and_go_on_after_clearing():
    """A number is never used twice, so that a page cannot take one exchange for another."""
    recorder = Recorder()
    assert [recorder.add(exchange()).n for _ in range(3)] == [1, 2, 3]
    recorder.clear()
    assert (recorder.window(), recorder.get(3)) == ((4, 4, 4), None)
    assert recorder.add(exchange()).n == 4
    assert (recorder.window(), recorder.get(4).n, recorder.get(5)) == ((4, 5, 4), 4, None)


def test_what_came_since_a_number_is_read_in_pieces():
    """From the oldest that is kept, when that one is gone."""
    recorder = Recorder(max_events=4)
    for _ in range(6):
        recorder.add(exchange())
    assert [kept.n for kept in recorder.since(0, 3)] == [3, 4, 5]
    assert [kept.n for kept in recorder.since(6, 3)] == [6]
    assert recorder.since(7, 3) == []


def test_beyond_the_bound_the_oldest_go_counted_and_said_once(caplog):
    """The log holds one line however many are dropped; ids of dropped events are forgotten with them."""
    recorder = Recorder(max_events=2)
    recorder.add(exchange("a", "b"))
    assert (recorder.events()[1], caplog.records) == (0, [])
    recorder.add(exchange("c"))
    recorder.add(exchange("a"))
    assert (ids(recorder), flags(recorder), recorder.events()[1]) == (["c", "a"], [False, False], 2)
    for _ in range(3):
        recorder.add(exchange())
    assert (numbers(recorder), recorder.exchanges()[1], recorder.events()[1]) == ([5, 6], 4, 4)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_an_id_is_remembered_until_its_last_event_is_dropped():
    """Of two events of one id the first may go; the second still makes a third a duplicate."""
    recorder = Recorder(max_events=2)
    for name in "aaba":
        recorder.add(exchange(name))
    assert list(zip(ids(recorder), flags(recorder), strict=True)) == [("b", False), ("a", True)]


def test_big_exchanges_are_bounded_by_size(monkeypatch):
    """The count alone would allow gigabytes; the newest is kept however big it is."""
    monkeypatch.setattr(module, "MAX_SIZE", 2 * exchange(events=[json.dumps("x" * 40)]).weight)
    recorder = Recorder()
    for _ in range(3):
        recorder.add(exchange(events=[json.dumps("x" * 40)]))
    assert (numbers(recorder), recorder.events()[1]) == ([2, 3], 1)
    recorder.add(exchange(events=[json.dumps("x" * 400)]))
    assert (numbers(recorder), recorder.events()[1]) == ([4], 3)


def test_a_bound_below_one_is_refused():
    """A recorder that keeps nothing would be a puzzle, not a setting."""
    with pytest.raises(ValueError, match="at least 1"):
        Recorder(max_events=0)


def test_an_event_is_read_back_to_the_letter():
    """Its own text stands in the JSON unchanged, beside what is known about it."""
    text = '{"xdm": {"n": 0.12345678901234567890, "s": "\\ud800"}}'
    whole = exchange(events=["{}", text])
    written = whole.as_event_json(whole.events[1])
    assert text in written
    assert json.loads(written) == {
        "event": json.loads(text),
        "requestId": "r-1",
        "path": "/ee/v1/collect",
        "datastreamId": "ds",
        "receivedAt": RECEIVED_AT,
        "duplicate": False,
    }


def test_a_request_is_read_back_to_the_letter():
    """What a parser would round stands as it was sent; what was not JSON stands as text."""
    written = exchange(body='{"events": [1.10]}', n=7).as_request_json()
    assert '"body": {"events": [1.10]}' in written
    assert json.loads(written) == {
        "n": 7,
        "method": "POST",
        "path": "/ee/v1/collect",
        "query": {"configId": "ds"},
        "headers": {"host": "localhost"},
        "body": {"events": [1.1]},
        "text": None,
        "status": 204,
        "requestId": "r-1",
        "receivedAt": RECEIVED_AT,
        "fault": None,
    }
    assert json.loads(exchange(body=None, text="{").as_request_json())["text"] == "{"


def test_listeners_hear_of_every_change_until_they_leave():
    """They ask for what changed themselves."""
    recorder, heard = Recorder(), []
    leave = recorder.subscribe(lambda: heard.append(recorder.window().next))
    recorder.add(exchange("a"))
    recorder.clear()
    leave()
    recorder.add(exchange("b"))
    assert heard == [2, 2]


def test_two_threads_lose_nothing():
    """A test reads in its own thread while the server writes; here both write, and both read."""
    recorder = Recorder()
    threads = [
        threading.Thread(
            target=lambda: [recorder.add(exchange("same")) and recorder.events() for _ in range(150)]
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(flags(recorder)) == [False] + [True] * 299
    assert numbers(recorder) == list(range(1, 301))


@pytest.fixture(params=[SQLiteFile, JSONLinesFile])
def kind(request):
    return request.param


@pytest.fixture
def path(tmp_path):
    return tmp_path / "edge"


def remembered(path, kind, **options):
    recorder = Recorder(sink=kind(path), **options)
    recorder.close()
    return recorder


def full_exchange():
    finding = Finding("warning", "xdm-unknown-field", "xdm.a", "is unknown", "remove it")
    text = '{"xdm": {"n": 0.12345678901234567890,\n "s": "\\ud800", "e": 1e400}}'
    whole = exchange(events=[text], headers={"x-test-tag": "checkout"}, fault="latency 250", consent="in")
    event = whole.events[0]
    received = ReceivedEvent(
        0, event.start, event.end, "\ud800", "web", "ECID 1", "recorded", "2026-11-23T15:20:48Z", (finding,)
    )
    answer = EdgeAnswer(200, {"content-type": "application/json"}, b'{"handle": [], "n": 1}')
    return Exchange(**{**fields_of(whole), "events": (received,), "answer": answer, "visitor": "ECID 1"})


def fields_of(whole):
    return {name: getattr(whole, name) for name in Exchange.__dataclass_fields__}


def test_the_next_start_takes_up_the_file_to_the_letter(path, kind):
    """Whatever is known of an exchange comes back as it was; in a file a line break is as good as a space."""
    recorder = Recorder(sink=kind(path))
    kept = recorder.add(full_exchange())
    recorder.close()
    [again] = remembered(path, kind).exchanges()[0]
    assert again.event_text(again.events[0]).replace("\n", " ") == kept.event_text(kept.events[0]).replace(
        "\n", " "
    )
    assert again.entry() == kept.entry()
    assert json.loads(again.as_json()) == json.loads(kept.as_json())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "answer",
    [
        EdgeAnswer(204, {"x-request-id": "r"}, b""),
        EdgeAnswer(502, {"content-type": "text/plain"}, b"Bad gateway"),
        EdgeAnswer(0, {}, b""),
    ],
)
def test_an_answer_that_is_not_json_comes_back_too(path, kind, answer):
    """Also a request that could not be read."""
    recorder = Recorder(sink=kind(path))
    recorder.add(exchange(answer=answer, body=None, text="{\ufffd", events=()))
    recorder.close()
    [again] = remembered(path, kind).exchanges()[0]
    assert (again.answer, again.text, again.body) == (answer, "{\ufffd", None)


def test_a_file_holds_everything_also_what_memory_dropped(path, kind):
    """The newest within the bound are taken up, flags kept; the numbers go on, and older ones are counted."""
    first = Recorder(max_events=4, sink=kind(path))
    for names in (["a", "b"], ["\ud800"], ["b"], [None]):
        first.add(exchange(*names))
    first.close()
    second = Recorder(max_events=3, sink=kind(path))
    assert list(zip(ids(second), flags(second), strict=True)) == [
        ("\ud800", False),
        ("b", True),
        (None, False),
    ]
    assert (second.events()[1], second.exchanges()[1], numbers(second)) == (2, 1, [2, 3, 4])
    assert second.add(exchange("\ud800")).n == 5
    assert flags(second)[-1]
    second.close()


def test_clearing_clears_the_file(path, kind):
    """What was reset does not come back on the next start."""
    recorder = Recorder(sink=kind(path))
    recorder.add(exchange("a"))
    recorder.clear()
    assert (recorder.events(), recorder.exchanges()) == (([], 0), ([], 0))
    recorder.add(exchange("a"))
    assert flags(recorder) == [False]
    recorder.close()
    again = Recorder(sink=kind(path))
    again.add(exchange("b"))
    again.close()
    assert ids(remembered(path, kind)) == ["a", "b"]


def test_a_closed_file_is_opened_again_by_the_next_write(path, kind):
    """An application may be served twice."""
    recorder = Recorder(sink=kind(path))
    recorder.close()
    recorder.add(exchange("a"))
    recorder.close()
    assert ids(remembered(path, kind)) == ["a"]


def test_a_file_that_fails_is_heard_and_memory_goes_on(path, kind, caplog, monkeypatch):
    """A full disk is a line in the log, not an answer that the real edge would never give."""

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kind, "write", fail)
    recorder = Recorder(sink=kind(path))
    recorder.add(exchange("a"))
    assert ids(recorder) == ["a"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    recorder.close()


def test_a_path_that_does_not_work_is_heard_at_the_start(tmp_path, kind):
    """Not with the first event, hours later."""
    with pytest.raises(OSError, match="missing"):
        Recorder(sink=kind(tmp_path / "missing" / "edge"))


def test_a_sqlite_file_of_another_version_is_refused_and_left_alone(path):
    """Better no start than a table written over."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(ValueError, match="schema version 7"):
        Recorder(sink=SQLiteFile(path))
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()


def test_sqlite_shows_events_to_any_tool(path):
    """The view has a row for each, those of v2 interact too, with the event's own text."""
    recorder = Recorder(sink=SQLiteFile(path))
    recorder.add(exchange("a", events=['{"xdm":{"n":1.10}}']))
    single = '{"event": {"xdm":{}}}'
    event = ReceivedEvent(0, 10, 20, None, "web", "ECID 1", "withheld", None)
    recorder.add(Exchange(**{**fields_of(exchange()), "body": single, "events": (event,)}))
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT exchange, id, type, visitor, outcome, event FROM events").fetchall()
    connection.close()
    recorder.close()
    assert rows == [
        (1, None, None, None, "recorded", '{"xdm":{"n":1.10}}'),
        (1, "a", None, None, "recorded", '{"xdm":{"_id":"a"}}'),
        (2, None, "web", "ECID 1", "withheld", '{"xdm":{}}'),
    ]


def test_lines_that_cannot_be_read_are_skipped_left_and_said(path, caplog):
    """As the last one after a power cut; the next one begins on a line of its own."""
    recorder = Recorder(sink=JSONLinesFile(path))
    recorder.add(exchange("a"))
    recorder.close()
    with path.open("a") as file:
        file.write('{"recorded": 1, "request": {"body": {"ev')
    recorder = Recorder(sink=JSONLinesFile(path))
    recorder.add(exchange("b"))
    recorder.close()
    assert ids(remembered(path, JSONLinesFile)) == ["a", "b"]
    assert len(path.read_text().splitlines()) == 3
    assert "1 exchanges" in caplog.text


def test_lines_that_another_tool_wrote_anew_are_read(path):
    """``jq`` sorts and spaces as it likes."""
    recorder = Recorder(sink=JSONLinesFile(path))
    recorder.add(exchange("a"))
    recorder.close()
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True, separators=(",", ":")) + "\n")
    [again] = remembered(path, JSONLinesFile).exchanges()[0]
    assert json.loads(again.event_text(again.events[0])) == {"xdm": {"_id": "a"}}


@pytest.mark.parametrize("sink", [SQLiteFile, JSONLinesFile])
def test_no_more_of_a_file_is_taken_up_than_memory_takes(path, sink, monkeypatch):
    """Of a file of gigabytes the newest is read, and the rest is counted as dropped."""
    recorder = Recorder(sink=sink(path))
    for event_id in "abcd":
        recorder.add(exchange(event_id, "x"))
    recorder.close()
    two = 2 * len(exchange("a", "x").as_json()) + 50
    for module_of_sink in (sqlite_module, jsonl_module):
        monkeypatch.setattr(module_of_sink, "MAX_SIZE", two)
    past = sink(path)
    loaded = past.load(100)
    past.close()
    assert [one.events[0].event_id for one in loaded.exchanges] == ["c", "d"]
    assert (loaded.earlier_exchanges, loaded.earlier_events) == (2, 4)
    for module_of_sink in (sqlite_module, jsonl_module):
        monkeypatch.setattr(module_of_sink, "MAX_SIZE", 1)
    again = remembered(path, sink)
    assert (numbers(again), again.exchanges()[1], again.events()[1]) == ([4], 3, 6)


def edited(**changes):
    """The JSON of an exchange with one member that somebody edited, named by its path."""
    whole = json.loads(exchange("a").as_json())
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = whole
        for name in parents:
            place = place[int(name) if name.isdigit() else name]
        place[last] = value
    return json.dumps(whole)


EDITED = {
    "no object": "[]",
    "too deep": "[" * 100_000,
    "a body that is no object": edited(request__body=[1]),
    "a body nested too deep": edited(request__body=json.loads('{"xdm":' + "[" * 600 + "]" * 600 + "}")),
    "headers that are a list": edited(request__headers=["a"]),
    "a header that is a number": edited(request__headers={"a": 1}),
    "a query that is a text": edited(request__query="a"),
    "a path that is null": edited(request__path=None),
    "text that is a number": edited(request__body=None, request__text=5, entry__events=[]),
    "an id that is an object": edited(entry__events__0__id={}),
    "an unknown outcome": edited(entry__events__0__outcome="lost"),
    "a finding without a path": edited(entry__events__0__findings=[{"level": "error"}]),
    "an event that is not in the body": edited(entry__events__0__index=7),
    "a problem that is none": edited(
        answer={
            "status": 400,
            "headers": {"content-type": "application/problem+json"},
            "body": {},
            "text": None,
        }
    ),
}


@pytest.mark.parametrize("text", EDITED.values(), ids=EDITED)
@pytest.mark.parametrize("sink", [SQLiteFile, JSONLinesFile])
def test_what_somebody_edited_does_not_stop_the_start(path, sink, text, caplog):
    """It is skipped, and the log says so; all others are there, and can be shown."""
    recorder = Recorder(sink=sink(path))
    recorder.add(exchange("a"))
    recorder.close()
    if sink is JSONLinesFile:
        path.write_text(f"{path.read_text()}{text}\n")
    else:
        with sqlite3.connect(path) as connection:
            row = (RECEIVED_AT, "POST", "/", 200, 1, text)
            connection.execute(
                "INSERT INTO exchanges (received_at, method, path, status, recorded, exchange)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )
        connection.close()
    again = remembered(path, sink)
    assert ids(again) == ["a"]
    assert [kept.entry()["n"] for kept in again.exchanges()[0]] == [1]
    assert "1 exchanges" in caplog.text


@pytest.mark.parametrize("sink", [SQLiteFile, JSONLinesFile])
def test_an_answer_in_records_is_kept_as_text(path, sink):
    """It is called JSON and is none: put in unchanged, it would make the whole line unreadable."""
    records = b'\0{"requestId": "r", "handle": []}\n\0{"requestId": "r", "handle": []}\n'
    answer = EdgeAnswer(200, {"content-type": "application/json;charset=utf-8"}, records)
    recorder = Recorder(sink=sink(path))
    recorder.add(exchange("a", answer=answer))
    recorder.close()
    [again] = remembered(path, sink).exchanges()[0]
    assert again.answer == answer
    assert json.loads(again.as_json())["answer"]["text"] == records.decode()


def test_a_success_that_is_called_a_problem_is_none():
    """A fault switch may call any answer anything."""
    answer = EdgeAnswer(200, {"content-type": "application/problem+json"}, b'{"handle": []}')
    assert exchange("a", answer=answer).entry()["problem"] is None


LONG = "x" * 60_000


@pytest.mark.parametrize(
    "changes",
    [
        {"path": f"/{LONG}"},
        {"query": {"requestId": LONG}},
        {"query": {LONG: ""}},
        {"answer": EdgeAnswer(204, {"x-request-id": LONG}, b"")},
        {"events": (ReceivedEvent(0, 0, 2, LONG, None, None, "recorded", None),)},
        {"events": (ReceivedEvent(0, 0, 2, None, LONG, None, "recorded", None),)},
        {"events": (ReceivedEvent(0, 0, 2, None, None, LONG, "recorded", None),)},
        {"events": (ReceivedEvent(0, 0, 2, None, None, None, "recorded", LONG),)},
        {
            "events": (
                ReceivedEvent(
                    0, 0, 2, None, None, None, "recorded", None, (Finding("error", "c", LONG, "", ""),)
                ),
            )
        },
    ],
    ids=["path", "query", "name", "answer", "id", "type", "visitor", "timestamp", "finding"],
)
def test_everything_that_takes_memory_is_weighed(changes):
    """Otherwise a client with long paths or ids would fill it."""
    fields = {key: value for key, value in changes.items() if key != "events"}
    heavy = exchange("a", **fields)
    heavy.events = changes.get("events", heavy.events)
    assert heavy.weight >= 60_000
