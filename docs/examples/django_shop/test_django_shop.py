"""The shop asks each visitor once, and sends what those did who agreed; over HTTP, as a server runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("django", reason="needs Django")

# Django is configured once in a process, so each run has one of its own.
VISITS = """
import re
import django_shop
from django.test import Client

ASKED, alloy = "May we record", django_shop.get_alloy()

class Browser(Client):
    def __init__(self):
        super().__init__(enforce_csrf_checks=True, SERVER_NAME="localhost")

    def page(self):
        return self.get("/").content.decode()

    def send(self, action, **fields):
        token = re.search('value="([^"]+)"', self.page())[1]
        return self.post(action, {"csrfmiddlewaretoken": token, **fields}).status_code
"""


@pytest.fixture
def run(edge):
    """Return a function that runs visits in a process of their own, and returns the words it printed."""

    def run_visits(script):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        words = [sys.executable, "-W", "error::ResourceWarning", "-c", VISITS + script]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment)
        assert done.returncode == 0, done.stderr
        assert "Error" not in done.stderr and "Warning" not in done.stderr  # lines of the log may stand there
        return done.stdout.split()

    return run_visits


def types_of(edge):
    return sorted(record["event"]["xdm"]["eventType"].rpartition(".")[2] for record in edge.events)


def test_nothing_is_sent_before_the_visitor_has_agreed(run, edge):
    """What ada did before her yes is sent with it; the banner is gone then."""
    printed = run("""
ada = Browser()
print(ASKED in ada.page(), ada.send("/checkout"), alloy.statistics().parked)
print(ada.send("/consent", purposes="all"), ASKED in ada.page())
alloy.close()
""")
    assert printed == ["True", "302", "3", "302", "False"]
    assert types_of(edge) == ["pageViews"] * 4 + ["purchases"]
    pages = {record["event"]["xdm"]["web"]["webPageDetails"]["URL"] for record in edge.events}
    assert pages == {"http://localhost/", "http://localhost/checkout"}


def test_a_refusal_sends_nothing_and_is_not_another_visitors(run, edge):
    """Bob's no leaves nothing of Bob, and does not stop Ada; the process ends without closing anything."""
    printed = run("""
ada, bob = Browser(), Browser()
print(bob.send("/consent", purposes="none"), ASKED in bob.page(), alloy.statistics().refused)
print(ada.send("/consent", purposes="all"), ada.post("/checkout").status_code)
""")
    assert printed == ["302", "False", "2", "302", "403"]  # the last one had no CSRF token
    assert types_of(edge) == ["pageViews"]


def test_a_word_that_is_no_choice_is_refused(run, edge):
    """Only "all" and "none" are choices; a choice is posted."""
    printed = run("""
eve = Browser()
print(eve.send("/consent", purposes="maybe"), eve.get("/consent").status_code, ASKED in eve.page())
""")
    assert printed == ["400", "405", "True"]
    assert edge.requests == []


def test_management_commands_start_nothing(edge):
    """Checking the project configures no instance."""
    script = Path(__file__).with_name("django_shop.py")
    done = subprocess.run([sys.executable, script, "check"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert edge.requests == []
