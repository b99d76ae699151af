"""``alloy-async send``, against the development edge."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

for _module in ("typer", "rich", "starlette", "uvicorn"):
    pytest.importorskip(_module)

from command_line import IDS, Person, count, read_back, run  # noqa: E402 - after the check for its packages

from alloy_async.devserver import create_app, serving  # noqa: E402 - as above
from alloy_async.stores import Preference, SQLiteStore, VisitorKey  # noqa: E402 - as above

pytestmark = pytest.mark.integration
REAL_EVENTS = Path(__file__).parents[2].parent / "shared" / "data" / "xdm-events.jsonl"


@pytest.fixture
def url():
    """A development edge that takes any datastream."""
    with serving(create_app()) as edge:
        yield edge.url


@pytest.fixture
def arguments(url):
    """Where to send, without the choice."""
    return ["--endpoint", url, *IDS]


def received(url: str) -> list[object]:
    """Return the value of ``n`` in each event that arrived."""
    return [event["xdm"].get("n") for event in read_back(url)]


# What arrives


def test_every_real_event_arrives_equal(url, arguments):
    """Each line of the file arrives once, and every value in it as it stands there."""
    if not REAL_EVENTS.exists():
        pytest.skip("the file of real events is not on this machine")
    done = run("send", str(REAL_EVENTS), *arguments, "--opt-in", "all")
    lines = [line for line in REAL_EVENTS.read_bytes().split(b"\n") if line.strip()]
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"{len(lines)} lines: {len(lines)} delivered\n",
        "",
    )
    arrived = [event["xdm"] for event in read_back(url)]
    assert len(arrived) == len(lines)
    for line in sorted(lines, key=len, reverse=True):  # the short ones stand in many
        sent = json.loads(line)
        place = next((place for place, event in enumerate(arrived) if holds(event, sent)), None)
        assert place is not None, f"missing: {line[:200]!r}"
        arrived.pop(place)


def holds(outer: object, inner: object) -> bool:
    """Return whether all of ``inner`` is in ``outer``, kinds of numbers and signs of zeros included."""
    if isinstance(inner, dict):
        return isinstance(outer, dict) and all(
            key in outer and holds(outer[key], value) for key, value in inner.items()
        )
    if isinstance(inner, list):
        return isinstance(outer, list) and len(outer) == len(inner) and all(map(holds, outer, inner))
    return type(outer) is type(inner) and repr(outer) == repr(inner)


@pytest.mark.parametrize(
    "text",
    [
        '{"n": 123456789012345678901234567890}',
        '{"n": -0.0, "m": 1.5e300}',
        r'{"n": "\u00e9\ud83d\ude00\u2028\/"}',
        '{"n": "a\u2028b\u0085c\u000bd"}'.replace("\u000b", "\\u000b"),
        '{"_id": "mine", "timestamp": "2026-01-01T00:00:00.000Z", "n": null}',
    ],
)
def test_values_arrive_as_they_are_written(url, arguments, text):
    """Numbers beyond 64 bits, escaped text, line separators inside of texts, and given ids arrive equal."""
    done = run("send", "-", *arguments, "--opt-in", "all", data=text.encode())
    assert done.returncode == 0, done.stderr
    assert holds(read_back(url)[0]["xdm"], json.loads(text))


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_are_no_trouble(url, arguments):
    """Only lines with something in them count."""
    data = b'\xef\xbb\xbf{"n": 1}\r\n\r\n   \n{"n": 2}'
    done = run("send", "-", *arguments, "--opt-in", "all", data=data)
    assert (done.returncode, done.stdout) == (0, "2 lines: 2 delivered\n")
    assert received(url) == [1, 2]


def test_an_empty_file_is_delivered(url, arguments, tmp_path):
    """Where there is no line, every line was delivered."""
    file = tmp_path / "empty.jsonl"
    file.touch()
    done = run("send", str(file), *arguments, "--opt-in", "all")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 lines: 0 delivered\n", "")


def test_variables_stand_in_for_options(url):
    """Ids and endpoint may come from the environment."""
    variables = {"ALLOY_ENDPOINT": url, "ALLOY_CONFIG_ID": "d", "ALLOY_ORG_ID": "o@AdobeOrg"}
    done = run("send", "-", "--opt-in", "all", data=b'{"n": 1}', **variables)
    assert done.returncode == 0, done.stderr
    assert received(url) == [1]


# What does not

BAD = rb"""{"n": 1}
[1, 2]
{"n": NaN}
not json
{"n": 1e400}
{"n": "\ud800"}
{"[bold]x\u001b[2J": "\udfff"}
{"n": 2
"""
REASONS = {
    2: "an array",
    3: "NaN",
    4: "not JSON",
    5: "xdm.n: is inf",
    6: "surrogate",
    7: r"[bold]x\x1b[2J",
    8: "not JSON",
    9: "UTF-8",
}


def test_a_bad_line_is_reported_and_the_rest_goes_on(url, arguments):
    """Each bad line is named with its reason, in nothing but printable text; the others are delivered."""
    done = run("send", "-", *arguments, "--opt-in", "all", data=BAD + b'\xff\n{"n": 3}\n')
    assert (done.returncode, done.stdout) == (1, "10 lines: 2 delivered, 8 unusable\n")
    for number, reason in REASONS.items():
        assert any(
            line.startswith(f"line {number}: ") and reason in line for line in done.stderr.splitlines()
        )
    assert len(done.stderr.splitlines()) == len(REASONS) and "\x1b" not in done.stderr
    assert received(url) == [1, 3]


def test_a_line_that_no_request_can_hold_is_reported(url, arguments):
    """An event beyond 64 KB, and a line without an end, stop no other."""
    data = b'{"n": "%b"}\n{"n": 1}\n{"n": "%b"}\n{"n": 2}' % (b"x" * 70_000, b"y" * 3_000_000)
    done = run("send", "-", *arguments, "--opt-in", "all", data=data)
    assert (done.returncode, done.stdout) == (1, "4 lines: 2 delivered, 2 unusable\n")
    assert "line 1: event: the event is" in done.stderr and "line 3: longer than" in done.stderr
    assert "yyy" not in done.stderr and received(url) == [1, 2]


def test_json_has_one_object_a_line_and_a_summary_that_adds_up(url, arguments):
    """With ``--json`` machines read each problem, and at last the books."""
    done = run("send", "-", *arguments, "--opt-in", "all", "--json", data=b'{"n": 1}\n[]\n{"n": 2}\nx')
    *problems, summary = map(json.loads, done.stdout.splitlines())
    assert [(found["type"], found["line"]) for found in problems] == [("problem", 2), ("problem", 4)]
    assert all(found["reason"] for found in problems)
    assert (summary["type"], summary["lines"], summary["unusable"], summary["accepted"]) == (
        "summary",
        4,
        2,
        2,
    )
    assert (summary["delivered"], summary["choice"], summary["interrupted"]) == (2, "all", False)
    assert (done.returncode, done.stderr) == (1, "")


def test_an_edge_that_nobody_runs_is_reported_line_by_line(arguments):
    """Where nothing listens, every line names the reason."""
    done = run("send", "-", "--endpoint", "http://127.0.0.1:9", *IDS, "--opt-in", "all", data=b"{}\n{}")
    assert (done.returncode, done.stdout) == (1, "2 lines: 0 delivered, 2 failed\n")
    assert "line 1: http://127.0.0.1:9" in done.stderr and "line 2: http://127.0.0.1:9" in done.stderr


@pytest.mark.parametrize("file", ["missing.jsonl", "."])
def test_a_file_that_cannot_be_read_is_a_usage_error(arguments, file, tmp_path):
    """A missing file and a folder are named: exit status 2."""
    done = run("send", str(tmp_path / file), *arguments, "--opt-in", "all")
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot be read" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--endpoint", "http://example.com", *IDS], "plain http"),
        (["--endpoint", "ftp://example.com", *IDS], "https://"),
        (["--endpoint", "http://127.0.0.1:1", *IDS, "--opt-in", "maybe"], "maybe"),
        (["--config-id", "d"], "--org-id"),
        (["--config-id", "two words", "--org-id", "o"], "config_id"),
    ],
)
def test_options_that_cannot_be_used_are_usage_errors(words, said):
    """A wrong option is named, nothing is read: exit status 2."""
    done = run("send", "-", *words, data=b"{}")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_setting_from_the_environment_that_cannot_be_used_is_a_usage_error(arguments):
    """What is found out only when the way to the edge is built is a usage error too."""
    done = run("send", "-", *arguments, "--opt-in", "all", data=b"{}", ALLOY_CA_BUNDLE="/missing.pem")
    assert done.returncode == 2 and "ca_bundle" in done.stderr and "Traceback" not in done.stderr


# The choice


def test_none_sends_nothing(url, arguments):
    """With "none" every line is refused, bad ones are found all the same, and the exit status is 1."""
    done = run("send", "-", *arguments, "--opt-in", "none", data=b'{"n": 1}\n{"n": 2}\nx')
    assert (done.returncode, done.stdout) == (1, "3 lines: 0 delivered, 1 unusable, 2 refused\n")
    assert "line 3: " in done.stderr and "nothing was sent" in done.stderr
    assert read_back(url) == []


def test_a_stored_refusal_is_only_taken_back_when_somebody_means_it(url, arguments, tmp_path):
    """``--opt-in all`` does not overwrite a stored "none"; with ``--change-choice`` it does."""
    kept = [*arguments, "--state-dir", str(tmp_path / "state")]
    run("send", "-", *kept, "--opt-in", "none", data=b'{"n": 1}')
    refused = run("send", "-", *kept, "--opt-in", "all", data=b'{"n": 2}')
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "--change-choice" in refused.stderr and read_back(url) == []
    assert run("send", "-", *kept, data=b'{"n": 3}').stdout == "1 line: 0 delivered, 1 refused\n"
    changed = run("send", "-", *kept, "--opt-in", "all", "--change-choice", data=b'{"n": 4}')
    assert changed.returncode == 0 and received(url) == [4]


def test_a_stored_consent_is_used_without_asking(url, arguments, tmp_path):
    """The next run with the same folder needs no ``--opt-in``, and a refusal may replace the consent."""
    kept = [*arguments, "--state-dir", str(tmp_path / "state")]
    assert run("send", "-", *kept, "--opt-in", "all", data=b'{"n": 1}').returncode == 0
    assert run("send", "-", *kept, data=b'{"n": 2}').returncode == 0
    assert run("send", "-", *kept, "--opt-in", "none", data=b'{"n": 3}').returncode == 1
    assert run("send", "-", *kept, data=b'{"n": 4}').returncode == 1
    assert received(url) == [1, 2]


def test_a_stored_choice_that_has_expired_counts_as_not_made(url, arguments, tmp_path):
    """An old refusal stands in nobody's way any more, and an old consent permits nothing."""
    kept = [*arguments, "--state-dir", str(tmp_path)]
    keep(tmp_path, Preference("none", 1_000.0, 2_000.0))
    assert run("send", "-", *kept, "--opt-in", "all", data=b'{"n": 1}').returncode == 0
    keep(tmp_path, Preference("all", 1_000.0, 2_000.0))
    assert run("send", "-", *kept, data=b'{"n": 2}').returncode == 2
    assert received(url) == [1]


def keep(folder: Path, preference: Preference) -> None:
    async def save() -> None:
        store = SQLiteStore(folder)
        await store.save_preference(VisitorKey(IDS[3], IDS[1]), preference)
        await store.aclose()

    asyncio.run(save())


def test_without_a_folder_the_choice_lasts_for_the_run(arguments, tmp_path):
    """Nothing stays in the temporary folder."""
    run("send", "-", *arguments, "--opt-in", "all", data=b"{}", TMPDIR=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_choice_that_cannot_be_kept_opens_nothing(url, arguments, tmp_path):
    """A state folder that is a file: nothing is sent, and the exit status is 1."""
    blocked = tmp_path / "state"
    blocked.write_text("in the way")
    done = run("send", "-", *arguments, "--state-dir", str(blocked), "--opt-in", "all", data=b"{}")
    assert done.returncode == 1 and str(blocked) in done.stderr and "Traceback" not in done.stderr
    assert read_back(url) == []


def test_a_choice_that_expires_meanwhile_is_obtained_again(url, arguments):
    """Events that come back to the gate because the consent has run out do not wait for ever."""
    data = b"".join(b'{"n": %d, "p": "%b"}\n' % (n, b"x" * 900) for n in range(3_000))
    done = run("send", "-", *arguments, "--opt-in", "all", data=data, ALLOY_PREFERENCE_MAX_AGE="0.05")
    assert (done.returncode, done.stdout) == (0, "3000 lines: 3000 delivered\n"), done.stderr
    assert sorted(received(url)) == list(range(3_000))


# The person


def test_the_person_is_asked_once_the_whole_file_waits(url, arguments, tmp_path):
    """``--opt-in ask`` asks at the terminal; yes delivers, with a bar and a table."""
    file = tmp_path / "events.jsonl"
    file.write_bytes(b'{"n": 1}\n{"n": 2}\n')
    with Person("send", str(file), *arguments) as person:
        person.wait_for("2 events wait. May the events of")
        assert read_back(url) == []
        person.type("yes\n")
        assert person.end() == 0
        assert count("delivered", person.seen) == [2] and "100%" in person.seen
    assert received(url) == [1, 2]


def test_a_person_who_says_no_is_heard(url, arguments, tmp_path):
    """No refuses everything, and the exit status is 1."""
    file = tmp_path / "events.jsonl"
    file.write_bytes(b'{"n": 1}\n')
    with Person("send", str(file), *arguments) as person:
        person.wait_for("[y/n]")
        person.type("n\n")
        assert person.end() == 1
        assert count("refused", person.seen) == [1]
    assert read_back(url) == []


def test_the_question_comes_when_the_room_is_full(url, arguments):
    """With data on standard input the terminal itself is asked, and no more waits than may be parked."""
    data = b"".join(b'{"n": %d}\n' % n for n in range(500))
    with Person("send", "-", *arguments, data=data, ALLOY_MAX_PARKED="10") as person:
        person.wait_for("10 events wait. May the events of standard input")
        person.type("y\n")
        assert person.end() == 0
        assert count("delivered", person.seen) == [500] and person.seen.count("[y/n]") == 1
    assert sorted(received(url)) == list(range(500))


def test_room_in_bytes_is_a_bound_too(arguments):
    """The question comes as well when the bytes of what waits reach their bound."""
    data = b"".join(b'{"n": "%b"}\n' % (b"x" * 10_000) for _ in range(100))
    with Person("send", "-", *arguments, data=data, ALLOY_MAX_PARKED_BYTES="100000") as person:
        person.wait_for("4 events wait.")
        person.type("n\n")
        assert person.end() == 1
        assert count("refused", person.seen) == [100] and count("overflowed", person.seen) == []


def test_the_end_of_input_at_the_question_is_no_consent(url, arguments, tmp_path):
    """Ctrl-D: nothing is sent, nothing is stored, and the exit status is 1."""
    file = tmp_path / "events.jsonl"
    file.write_bytes(b'{"n": 1}\n')
    with Person("send", str(file), *arguments, "--state-dir", str(tmp_path / "state")) as person:
        person.wait_for("[y/n]")
        person.type("\x04")
        assert person.end() == 1
        assert "No answer" in person.seen
    assert read_back(url) == [] and not (tmp_path / "state").exists()


def test_asking_again_replaces_a_stored_refusal(url, arguments, tmp_path):
    """``--change-choice`` with ask puts the question although a choice is stored."""
    kept = [*arguments, "--state-dir", str(tmp_path / "state")]
    file = tmp_path / "events.jsonl"
    file.write_bytes(b'{"n": 1}\n')
    run("send", "-", *kept, "--opt-in", "none", data=b"")
    with Person("send", str(file), *kept, "--opt-in", "ask", "--change-choice") as person:
        person.wait_for("[y/n]")
        person.type("y\n")
        assert person.end() == 0
    assert received(url) == [1]


def test_where_nobody_can_be_asked_it_says_what_to_do(url, arguments):
    """Without a terminal "ask" is a usage error, and a pipe that says yes is nobody."""
    done = run("send", "-", *arguments, data=b"y\n")
    assert (done.returncode, done.stdout) == (2, "") and "--opt-in all" in done.stderr
    assert read_back(url) == []


def test_a_name_of_a_file_is_no_markup(arguments, tmp_path):
    """What looks like markup or an escape sequence in a name is shown as it is."""
    file = tmp_path / "[red]\x1b[2Jevents"
    file.write_bytes(b"{}")
    with Person("send", str(file), *arguments) as person:
        assert r"[red]\x1b[2Jevents" in person.wait_for("[y/n]")
