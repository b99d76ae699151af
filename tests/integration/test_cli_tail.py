"""``alloy-async tail``."""

from __future__ import annotations

import json
import signal
import subprocess
import uuid

import httpx
import pytest

for _module in ("typer", "rich", "starlette", "uvicorn"):
    pytest.importorskip(_module)

from command_line import PATIENCE, command, environment, run  # noqa: E402 - after the check

from alloy_async.devserver import DevelopmentEdge, create_app, serving  # noqa: E402

pytestmark = pytest.mark.integration

FPID = "6f1c0f7e-3f0a-4a1c-9d58-0d6f6c1f2b3a"


class Tail:
    """The command as a process, read line by line."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            command("tail", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(PYTHONUNBUFFERED="1"),
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def line(self):
        return self.process.stdout.readline()

    def end(self):
        self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors


def send(url, **xdm):
    """Send an event in which nothing is found, so that it has one line."""
    xdm = {
        "_id": str(uuid.uuid4()),
        "timestamp": "2026-11-23T15:20:48Z",
        "eventType": "web",
        "identityMap": {"FPID": [{"id": FPID, "primary": True}]},
    } | xdm
    httpx.post(f"{url}/ee/v1/collect?configId=ds", json={"events": [{"xdm": xdm}]}, trust_env=False)


def test_it_shows_what_came_and_what_comes():
    """The newest of the past, then each event as it arrives; Ctrl-C is how it ends."""
    with serving(create_app(DevelopmentEdge())) as server:
        for name in ("first", "second", "third"):
            send(server.url, eventType=name)
        with Tail(server.url, "-n", "2") as shown:
            assert "second" in shown.line()
            assert "third" in shown.line()
            send(server.url, eventType="fourth")
            line = shown.line()
            assert [word in line for word in ("fourth", "recorded", "204", "ECID ", "waited ")] == [True] * 5
            assert shown.end() == (0, "")


def test_nothing_that_arrives_can_command_the_terminal():
    """An event's text is text: no escape sequence, no line of its own."""
    with serving(create_app(DevelopmentEdge())) as server:
        send(server.url, eventType="\x1b[2J[bold]\nforged line")
        with Tail(server.url) as shown:
            line = shown.line()
            assert "\x1b" not in line
            assert "[bold]" in line
            assert "forged line" in line


def test_scripts_get_json():
    """A line for each request, as the feed tells it."""
    with serving(create_app(DevelopmentEdge())) as server:
        send(server.url)
        with Tail(server.url, "--json") as shown:
            assert json.loads(shown.line())["events"][0]["type"] == "web"


def test_what_is_found_in_an_event_stands_below_it():
    """With what to do."""
    with serving(create_app(DevelopmentEdge())) as server:
        send(server.url, _id=None)
        with Tail(server.url) as shown:
            assert "recorded" in shown.line()
            assert "UUID" in shown.line()


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["lines", "json"])
def test_it_ends_when_nobody_reads_any_more(options):
    """As in ``tail | head``: a pipe that is closed behind it does not look like an edge that is gone."""
    with serving(create_app(DevelopmentEdge())) as server:
        send(server.url)
        with Tail(server.url, *options) as shown:
            shown.line()
            shown.process.stdout.close()
            send(server.url)
            assert shown.process.wait(PATIENCE) == 1
            errors = shown.process.stderr.read()
            assert "gone" not in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    "message",
    ["event: hello\ndata: {", "event: hello\ndata: {}", "event: hello\ndata: []", "event: hello\ndata: \xff"],
)
def test_what_is_no_edge_is_told_from_one(message):
    """Whatever it sends."""

    async def app(scope, receive, send):
        if scope["type"] != "http":
            await edge(scope, receive, send)
            return
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": f"{message}\n\n".encode("latin-1")})

    edge = create_app(DevelopmentEdge())
    app.state = edge.state
    with serving(app) as server:
        done = run("tail", server.url)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "No development edge answers" in done.stderr


def test_a_problem_is_shown_with_its_reason():
    """Also a request without events."""
    with serving(create_app(DevelopmentEdge())) as server:
        httpx.post(f"{server.url}/ee/v1/collect?configId=ds", json={"events": []}, trust_env=False)
        with Tail(server.url) as shown:
            assert "collect" in shown.line()
            assert "0103-400" in shown.line()


def test_it_goes_on_when_the_edge_comes_back():
    """What came in between is shown."""
    with serving(create_app(DevelopmentEdge())) as server:
        port = int(server.url.rpartition(":")[2])
        shown = Tail(server.url)
        send(server.url, eventType="before")
        with_edge = shown.line()
    with shown:
        assert "before" in with_edge
        assert "is gone" in shown.process.stderr.readline()
        with serving(create_app(DevelopmentEdge()), port=port) as server:
            send(server.url, eventType="after")
            assert "after" in shown.line()


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        ("http://127.0.0.1:9", 1, "alloy-async serve"),
        (f"http://{'a' * 70}.test", 1, "alloy-async serve"),
        ("8080", 2, "not an address"),
        ("http://[::1", 2, "not an address"),
        ("http://127.0.0.1:port", 2, "not an address"),
    ],
)
def test_an_address_where_no_edge_is_ends_with_advice(address, status, words):
    """At once, and without a traceback."""
    done = run("tail", address)
    assert (done.returncode, words in done.stderr, "Traceback" in done.stderr) == (status, True, False)
