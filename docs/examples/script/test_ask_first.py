"""The script asks once, and does what it is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ask_first


async def test_yes_delivers_both_events_and_is_remembered(edge, capsys):
    """After "y" both events arrive; the next run does not ask."""
    await ask_first.main([], ask=lambda question: "y")
    assert [record["event"]["xdm"]["eventType"] for record in edge.events] == [
        "application.launch",
        "report.made",
    ]

    def never(question):
        raise AssertionError("asked twice")

    await ask_first.main([], ask=never)
    assert len(edge.events) == 4
    assert capsys.readouterr().out.count("delivered: ") == 4


async def test_anything_else_sends_nothing(edge, capsys):
    """After an empty answer nothing arrives, and the script says so."""
    await ask_first.main([], ask=lambda question: "")
    assert edge.requests == []
    assert capsys.readouterr().out == "not sent: ConsentDeclined\n" * 2


async def test_forgetting_asks_again(edge):
    """--forget makes the script ask again."""
    questions = []
    for arguments in ([], ["--forget"]):
        await ask_first.main(arguments, ask=lambda question: questions.append(question) or "n")
    assert len(questions) == 2


def test_it_runs_as_a_script(edge):
    """Started as a program it ends well, and what it prints is about its two events."""
    script = Path(ask_first.__file__)
    done = subprocess.run([sys.executable, script], input="yes\n", capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("delivered: ") == 2
    assert len(edge.events) == 2
