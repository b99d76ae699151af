"""``alloy-async demo``."""

from __future__ import annotations

import pytest

for _module in ("typer", "rich", "starlette", "uvicorn"):
    pytest.importorskip(_module)

from command_line import Person, count, run  # noqa: E402 - after the check for its packages

from alloy_async.samples import sample_events  # noqa: E402 - as above

pytestmark = pytest.mark.integration
EVENTS = len(sample_events())


def test_it_delivers_everything_after_all_and_nothing_after_none():
    """Both tables add up, and the edge itself confirms them."""
    done = run("demo")
    assert done.returncode == 0, done.stderr
    assert count("accepted", done.stdout) == [EVENTS, EVENTS]
    assert count("delivered", done.stdout) == [EVENTS, 0]
    assert count("refused", done.stdout) == [0, EVENTS]
    assert count("failed", done.stdout) == [0, 0]
    assert count("received by the edge", done.stdout) == [EVENTS, 0]


def test_it_shows_that_nothing_was_sent_before_the_choice():
    """The edge is asked before the visitor chooses, and has received nothing."""
    done = run("demo")
    before, _, after = done.stdout.partition('The visitor says "all"')
    assert f"{EVENTS} sample events are parked" in before and "has received 0 events" in before
    assert f"has received {EVENTS} events" in after


def test_it_is_plain_in_a_pipe_and_quiet_on_standard_error():
    """Without a terminal there is no bar, no colour and no complaint."""
    done = run("demo")
    assert "\x1b" not in done.stdout and "Delivering" not in done.stdout and done.stderr == ""


def test_settings_of_the_machine_do_not_reach_it():
    """Variables for real use, and a proxy, change nothing."""
    done = run(
        "demo", ALLOY_MAX_PARKED="1", ALLOY_EDGE_DOMAIN="edge.example", HTTP_PROXY="http://127.0.0.1:9"
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_yes_at_the_terminal_delivers():
    """``--ask`` asks, and yes means all."""
    with Person("demo", "--ask") as person:
        person.wait_for(f"May these {EVENTS} events be sent? [y/n]")
        person.type("y\n")
        assert person.end() == 0
        assert count("delivered", person.seen) == count("received by the edge", person.seen) == [EVENTS]


def test_a_no_at_the_terminal_sends_nothing():
    """No means none; that adds up too."""
    with Person("demo", "--ask") as person:
        person.wait_for("[y/n]")
        person.type("n\n")
        assert person.end() == 0
        assert count("refused", person.seen) == [EVENTS]
        assert count("received by the edge", person.seen) == [0]


def test_another_word_is_asked_again():
    """Only yes and no are answers."""
    with Person("demo", "--ask") as person:
        person.wait_for("[y/n]")
        person.type("maybe\nno\n")
        assert person.end() == 0
        assert person.seen.count("[y/n]") == 2


def test_the_end_of_input_is_no_consent():
    """Ctrl-D answers nothing: nothing is sent, and the exit status is 1."""
    with Person("demo", "--ask") as person:
        person.wait_for("[y/n]")
        person.type("\x04")
        assert person.end() == 1
        assert "No answer" in person.seen and count("received by the edge", person.seen) == [0]


def test_ctrl_c_at_the_question_ends_it():
    """Ctrl-C exits with 130 and without a traceback."""
    with Person("demo", "--ask") as person:
        person.wait_for("[y/n]")
        person.type("\x03")
        assert person.end() == 130
        assert "Interrupted" in person.seen and "Traceback" not in person.seen


def test_a_pipe_is_not_asked():
    """Where there is no terminal, nobody can be asked: exit status 2."""
    done = run("demo", "--ask", data=b"y\n")
    assert done.returncode == 2 and "no terminal" in done.stderr and done.stdout == ""


def test_the_bar_shows_on_a_terminal():
    """A person sees the progress."""
    with Person("demo") as person:
        assert person.end() == 0
        assert "Delivering" in person.seen and "100%" in person.seen
