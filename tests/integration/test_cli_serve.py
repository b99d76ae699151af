"""``alloy-async serve``."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path
from typing import Self

import pytest

for _module in ("typer", "rich", "starlette", "uvicorn"):
    pytest.importorskip(_module)

from command_line import IDS, PATIENCE, command, environment, read_back, run  # noqa: E402 - after the check

pytestmark = pytest.mark.integration


class Served:
    """The development edge as a process; ``lines`` is what it printed until it said how to stop it."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            command("serve", "--port", "0", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        self.lines = ""
        while "Ctrl-C" not in self.lines:
            line = self.process.stdout.readline()
            assert line, self.process.stderr.read()
            self.lines += line
        self.url = re.search(r"https?://[0-9.:]+", self.lines)[0]
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def end(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Send a signal; return exit status and standard error."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_stopped(number):
    """It says where it listens and who can reach it, takes events, and ends cleanly."""
    with Served() as served:
        assert "loopback only" in served.lines
        assert run("send", "-", "--endpoint", served.url, *IDS, "--opt-in", "all", data=b"{}").returncode == 0
        assert len(read_back(served.url)) == 1
        assert served.end(number) == (0, "")


def test_what_it_prints_can_be_pasted():
    """The command that it suggests works as it stands."""
    with Served() as served:
        suggested = re.search(r"alloy-async (send .*)", served.lines)[1].split()
        assert suggested[1] == "events.jsonl" and suggested[-1] == "ask"
        done = run("send", "-", *suggested[2:-1], "all", data=b'{"a": 1}')
        assert done.returncode == 0, done.stderr
        served.end()


def test_it_warns_where_other_machines_can_reach_it():
    """A host that is not loopback is served, with a warning."""
    with Served("--host", "0.0.0.0") as served:
        assert "NOT loopback" in served.lines and "--allow-insecure" in served.lines
        status, errors = served.end()
        assert status == 0 and "other machines can reach it" in errors


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_page_is_where_it_says(host):
    with Served("--host", host) as served:
        page = re.search(r"Page: (\S+)", served.lines)[1]
        with urllib.request.urlopen(page) as answer:
            assert answer.headers["content-type"].startswith("text/html")
        served.end()


def test_with_tls_it_says_how_clients_believe_it():
    """The command that it suggests works as it stands, https and all; its file goes with it."""
    pytest.importorskip("trustme")
    with Served("--tls") as served:
        variable, suggested = re.search(r"(\S+)=\S+ alloy-async (send .*)", served.lines).group(1, 2)
        bundle = re.search(rf"{variable}=(\S+)", served.lines)[1]
        assert "https://" in suggested and "SHA-256" in served.lines
        assert "--ignore-certificate-errors-spki-list=" in served.lines
        words = suggested.split()
        sent = run("send", "-", *words[2:-1], "all", data=b'{"a": 1}', **{variable: bundle})
        assert sent.returncode == 0, sent.stderr
        assert run("send", "-", *words[2:-1], "all", data=b'{"a": 1}').returncode == 1
        served.end()
    assert not Path(bundle).exists()


def test_with_tls_other_machines_need_no_leave_to_be_insecure():
    """The suggested command has no --allow-insecure; the warning stays."""
    pytest.importorskip("trustme")
    with Served("--host", "0.0.0.0", "--tls") as served:
        assert "--allow-insecure" not in served.lines
        status, errors = served.end()
        assert status == 0 and "other machines can reach it" in errors


def test_a_port_in_use_is_a_clear_error():
    """Two servers cannot share a port: exit status 1, and no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("serve", "--port", port)
    assert done.returncode == 1 and port in done.stderr and "Traceback" not in done.stderr


def test_events_survive_in_the_sqlite_file(tmp_path):
    """With ``--sqlite`` a second start still knows the events of the first."""
    file = str(tmp_path / "edge.sqlite3")
    with Served("--sqlite", file) as served:
        run("send", "-", "--endpoint", served.url, *IDS, "--opt-in", "all", data=b'{"n": 1}')
        served.end()
    with Served("--sqlite", file) as served:
        assert [event["xdm"]["n"] for event in read_back(served.url)] == [1]
        served.end()


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path):
    """A file of another kind is left alone: exit status 1, and no traceback."""
    file = tmp_path / "notes.txt"
    file.write_text("not a database, but long enough to look like one" * 50)
    done = run("serve", "--port", "0", "--sqlite", str(file))
    assert done.returncode == 1 and str(file) in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--sqlite", "--jsonl"])
def test_a_file_that_cannot_be_used_is_named_with_its_option(tmp_path, option):
    done = run("serve", "--port", "0", option, str(tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{option} {tmp_path}: cannot be used" in done.stderr and "another file" in done.stderr


def test_a_host_that_no_certificate_names_is_a_clear_error():
    pytest.importorskip("trustme")
    done = run("serve", "--port", "0", "--tls", "--host", "a" * 70)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "--host aaaa" in done.stderr


def test_only_known_datastreams_are_taken():
    """``--config-id`` names the datastreams that are known, and may be repeated."""
    with Served("--config-id", "one", "--config-id", "two") as served:
        arguments = ["send", "-", "--endpoint", served.url, "--org-id", "o@AdobeOrg", "--opt-in", "all"]
        assert run(*arguments, "--config-id", "two", data=b"{}").returncode == 0
        unknown = run(*arguments, "--config-id", "three", data=b"{}\n{}")
        assert unknown.returncode == 1
        assert "line 1: " in unknown.stderr and "line 2: " in unknown.stderr and "EXEG-0003" in unknown.stderr
        served.end()


def test_faults_are_switched_on_from_the_command_line():
    """``--fault`` may be repeated and is shown; ``send`` gets through in spite of it."""
    faults = (
        "--fault",
        "status=503,retry-after=0,times=1",
        "--fault",
        "reset=after,times=1",
        "--fault-seed",
        "7",
    )
    with Served(*faults) as served:
        assert "Fault: status 503" in served.lines and "Fault: reset after" in served.lines
        done = run("send", "-", "--endpoint", served.url, *IDS, "--opt-in", "all", data=b"{}")
        assert done.returncode == 0, done.stderr
        with urllib.request.urlopen(f"{served.url}/_dev/faults") as answer:
            state = json.load(answer)
        assert (state["seed"], [fault["acted"] for fault in state["faults"]]) == (7, [1, 1])
        assert len(read_back(served.url)) == 2
        assert served.end() == (0, "")


def test_a_fault_that_cannot_be_used_is_a_clear_error():
    """The field and the nearest known name; nothing is served."""
    done = run("serve", "--port", "0", "--fault", "statsu=503")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "--fault" in done.stderr and "did you mean status?" in " ".join(done.stderr.split())


def test_decisions_are_answered_out_of_a_file(tmp_path):
    """``--decisions`` names it; one that cannot be used is a clear error that says where."""
    item = {"schema": "https://ns.adobe.com/personalization/json-content-item", "content": 1}
    file = tmp_path / "decisions.json"
    file.write_text(json.dumps({"scopes": {"hero": [item]}}))
    query = {"personalization": {"decisionScopes": ["hero"]}}
    body = json.dumps({"events": [{"xdm": {}, "query": query}]}).encode()
    with Served("--decisions", str(file)) as served:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{served.url}/ee/v1/interact?configId=ds", body, headers)
        with urllib.request.urlopen(request) as answer:
            assert '"scope": "hero"' in answer.read().decode()
        served.end()
    file.write_text('{"scopes": {"hero": 1}}')
    done = run("serve", "--port", "0", "--decisions", str(file))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert str(file) in done.stderr and "scopes.hero must be a list" in done.stderr
    assert "--decisions" in done.stderr
