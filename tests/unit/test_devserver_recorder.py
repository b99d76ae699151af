"""What was received is kept: all of it, in order, within bounds, and in a file when asked."""

import json
import logging
import sqlite3
import stat
import threading

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from alloy_async.devserver import RecordedEvent, RecordedRequest, Recorder, SQLiteFile, recorder as module


def event(event_id, *, text=None, request_id="r-1"):
    xdm = {} if event_id is None else {"_id": event_id}
    return RecordedEvent(
        event=json.dumps({"xdm": xdm}) if text is None else text,
        event_id=event_id,
        request_id=request_id,
        path="/ee/v1/collect",
        datastream_id="ds",
        received_at="2026-11-23T15:20:48.830Z",
    )


def request(**changes):
    fields = {
        "method": "POST",
        "path": "/ee/v1/collect",
        "query": {"configId": "ds"},
        "headers": {"host": "localhost"},
        "body": '{"events": [1.10]}',
        "text": None,
        "status": 204,
        "request_id": "r-1",
        "received_at": "2026-11-23T15:20:48.830Z",
    }
    return RecordedRequest(**{**fields, **changes})


def ids(recorder):
    return [kept.event_id for kept in recorder.events()[0]]


def flags(recorder):
    return [kept.duplicate for kept in recorder.events()[0]]


def test_duplicates_are_flagged_and_kept():
    """Within one request and across requests; events without an id are never duplicates."""
    recorder = Recorder()
    recorder.add_events([event("a"), event("b"), event("a")])
    recorder.add_events([event("b"), event(None), event(None), event("c")])
    assert ids(recorder) == ["a", "b", "a", "b", None, None, "c"]
    assert flags(recorder) == [False, False, True, True, False, False, False]


def test_beyond_the_bound_the_oldest_go_counted_and_said_once(caplog):
    """The log holds one line however many are dropped; ids of dropped events are forgotten with them."""
    recorder = Recorder(max_events=2)
    recorder.add_events([event("a"), event("b")])
    assert (recorder.events()[1], caplog.records) == (0, [])
    recorder.add_events([event("c"), event("d"), event("a")])
    assert (ids(recorder), recorder.events()[1]) == (["d", "a"], 3)
    assert flags(recorder) == [False, False]
    for _ in range(3):
        recorder.add_request(request())
    assert (len(recorder.requests()[0]), recorder.requests()[1]) == (2, 1)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_an_id_is_remembered_until_its_last_event_is_dropped():
    """Of two events of one id the first may go; the second still makes a third a duplicate."""
    recorder = Recorder(max_events=2)
    recorder.add_events([event("a"), event("a"), event("b"), event("a")])
    assert list(zip(ids(recorder), flags(recorder), strict=True)) == [("b", False), ("a", True)]


def test_big_events_are_bounded_by_size(monkeypatch):
    """The count alone would allow gigabytes; the newest event is kept however big it is."""
    monkeypatch.setattr(module, "MAX_SIZE", 100)
    recorder = Recorder()
    recorder.add_events([event(name, text=json.dumps("x" * 40)) for name in "abc"])
    assert (ids(recorder), recorder.events()[1]) == (["b", "c"], 1)
    recorder.add_events([event("d", text=json.dumps("x" * 400))])
    assert (ids(recorder), recorder.events()[1]) == (["d"], 3)


def test_a_bound_below_one_is_refused():
    """A recorder that keeps nothing would be a puzzle, not a setting."""
    with pytest.raises(ValueError, match="at least 1"):
        Recorder(max_events=0)


def test_an_event_is_read_back_to_the_letter():
    """Its own text stands in the JSON unchanged, beside what is known about it."""
    text = '{"xdm": {"n": 0.12345678901234567890, "s": "\\ud800"}}'
    written = event("a", text=text).as_json()
    assert text in written
    assert json.loads(written) == {
        "event": json.loads(text),
        "requestId": "r-1",
        "path": "/ee/v1/collect",
        "datastreamId": "ds",
        "receivedAt": "2026-11-23T15:20:48.830Z",
        "duplicate": False,
    }


def test_a_request_is_read_back_without_its_credentials():
    """Every credential's header is redacted, the rest stands."""
    headers = {"authorization": "Bearer s3cret", "proxy-authorization": "s3cret", "x-api-key": "client"}
    written = request(headers=headers).as_json()
    assert "s3cret" not in written
    assert '"body": {"events": [1.10]}' in written
    assert json.loads(written) == {
        "method": "POST",
        "path": "/ee/v1/collect",
        "query": {"configId": "ds"},
        "headers": {
            "authorization": "[REDACTED]",
            "proxy-authorization": "[REDACTED]",
            "x-api-key": "client",
        },
        "body": {"events": [1.1]},
        "text": None,
        "status": 204,
        "requestId": "r-1",
        "receivedAt": "2026-11-23T15:20:48.830Z",
        "fault": None,
    }
    assert json.loads(request(body=None, text="{").as_json())["text"] == "{"
    assert json.loads(request(body=None).as_json())["body"] is None


def test_two_threads_lose_nothing():
    """A test reads in its own thread while the server writes; here both write, and one reads."""
    recorder = Recorder()
    threads = [
        threading.Thread(
            target=lambda: [recorder.add_events([event("same")]) or recorder.events() for _ in range(300)]
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(flags(recorder)) == [False] + [True] * 599


@pytest.fixture
def path(tmp_path):
    return tmp_path / "edge.db"


def stored(path):
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT event, request_id, duplicate FROM events ORDER BY n").fetchall()
    finally:
        connection.close()


def test_a_file_holds_every_event_also_those_that_memory_dropped(path):
    """Another program can read them while the edge runs; the file is its owner's alone."""
    recorder = Recorder(max_events=1, sink=SQLiteFile(path))
    recorder.add_events([event("a"), event("b")])
    recorder.add_events([event("b", request_id="r-2")])
    assert stored(path) == [
        ('{"xdm": {"_id": "a"}}', "r-1", 0),
        ('{"xdm": {"_id": "b"}}', "r-1", 0),
        ('{"xdm": {"_id": "b"}}', "r-2", 1),
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    recorder.close()


def test_the_next_start_takes_up_the_file(path):
    """Newest events within the bound, in order, flags kept; what came before still makes a duplicate."""
    first = Recorder(sink=SQLiteFile(path))
    first.add_events([event("a"), event("\ud800"), event("b"), event("b"), event(None)])
    first.close()
    second = Recorder(max_events=4, sink=SQLiteFile(path))
    assert list(zip(ids(second), flags(second), strict=True)) == [
        ("\ud800", False),
        ("b", False),
        ("b", True),
        (None, False),
    ]
    assert second.events()[1] == 1
    second.add_events([event("\ud800")])
    assert flags(second)[-1]
    second.close()


def test_clearing_clears_the_file(path):
    """What was reset does not come back on the next start."""
    recorder = Recorder(sink=SQLiteFile(path))
    recorder.add_events([event("a")])
    recorder.add_request(request())
    recorder.clear()
    assert (recorder.events(), recorder.requests(), stored(path)) == (([], 0), ([], 0), [])
    recorder.add_events([event("a")])
    assert flags(recorder) == [False]
    recorder.close()


def test_a_closed_file_is_opened_again_by_the_next_write(path):
    """An application may be served twice."""
    recorder = Recorder(sink=SQLiteFile(path))
    recorder.close()
    recorder.add_events([event("a")])
    assert len(stored(path)) == 1
    recorder.close()


def test_a_file_that_fails_is_heard_and_memory_goes_on(path, caplog):
    """A full disk is a line in the log, not an answer that the real edge would never give."""
    sink = SQLiteFile(path)
    recorder = Recorder(sink=sink)
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE events")
    connection.commit()
    connection.close()
    recorder.add_events([event("a")])
    assert ids(recorder) == ["a"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    recorder.close()


def test_a_file_of_another_version_is_refused_and_left_alone(path):
    """Better no start than a table written over."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(ValueError, match="schema version 7"):
        Recorder(sink=SQLiteFile(path))
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()


def test_a_path_that_does_not_work_is_heard_at_the_start(tmp_path):
    """Not with the first event, hours later."""
    with pytest.raises(OSError, match="missing"):
        Recorder(sink=SQLiteFile(tmp_path / "missing" / "edge.db"))
