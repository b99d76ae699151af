"""``alloy-async consent``."""

from __future__ import annotations

import asyncio
import json

import pytest

for _module in ("typer", "rich"):
    pytest.importorskip(_module)

from command_line import run  # noqa: E402 - after the check for its packages

from alloy_async import Alloy  # noqa: E402 - as above
from alloy_async.stores import Preference, SQLiteStore, VisitorKey  # noqa: E402 - as above
from alloy_async.testing import RecordingEdge  # noqa: E402 - as above

pytestmark = pytest.mark.integration

HERE = VisitorKey("A@AdobeOrg", "stream-1")
THERE = VisitorKey("A@AdobeOrg", "stream-2")
CHOSEN, EXPIRES = 1_790_000_000.0, 4_000_000_000.0


def keep(folder, *kept) -> None:
    async def save() -> None:
        store = SQLiteStore(folder)
        for key, preference in kept:
            await store.save_preference(key, preference)
        await store.aclose()

    asyncio.run(save())


def look(folder, *words) -> list[dict]:
    done = run("consent", "show", "--state-dir", str(folder), "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_shows_the_choice_with_its_times_and_its_source(tmp_path):
    """A person sees what was chosen, when, by whom, until when, and for what."""
    keep(tmp_path, (HERE, Preference("none", CHOSEN, EXPIRES, source="my app")))
    done = run("consent", "show", "--state-dir", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("A@AdobeOrg", "stream-1", "none", "2026-09-21T14:13:20Z", "my app", "2096-10-02T07:06:40Z"):
        assert text in done.stdout


def test_it_shows_every_choice_or_the_one_that_is_meant(tmp_path):
    """Without ids it lists all; ids narrow the list."""
    keep(tmp_path, (HERE, Preference("all", CHOSEN, EXPIRES)), (THERE, Preference("none", CHOSEN, EXPIRES)))
    assert [(found["datastream"], found["choice"]) for found in look(tmp_path)] == [
        ("stream-1", "all"),
        ("stream-2", "none"),
    ]
    assert [found["choice"] for found in look(tmp_path, "--config-id", "stream-2")] == ["none"]
    assert [
        found["choice"] for found in look(tmp_path, "--org-id", "A@AdobeOrg", "--config-id", "stream-1")
    ] == ["all"]
    assert look(tmp_path, "--org-id", "B@AdobeOrg") == []


def test_an_expired_choice_is_said_to_be_expired(tmp_path):
    """It is still there, and counts as not made."""
    keep(tmp_path, (HERE, Preference("all", 1_000.0, 2_000.0)))
    assert look(tmp_path)[0]["expired"] is True
    assert "expired" in run("consent", "show", "--state-dir", str(tmp_path)).stdout


@pytest.mark.parametrize("command", ["show", "forget"])
def test_where_nothing_is_stored_it_says_so_and_leaves_no_trace(tmp_path, command):
    """A folder that is empty, or missing, stays as it is: exit status 0."""
    for folder in (tmp_path, tmp_path / "missing"):
        done = run("consent", command, "--state-dir", str(folder))
        assert done.returncode == 0 and "No choice is stored" in done.stdout and done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_forgotten_choice_is_gone(tmp_path):
    """``forget`` removes the choice, and says what running programs do."""
    keep(tmp_path, (HERE, Preference("none", CHOSEN, EXPIRES)))
    done = run("consent", "forget", "--state-dir", str(tmp_path))
    assert done.returncode == 0 and "Forgotten" in done.stdout and "run now" in done.stdout
    assert look(tmp_path) == []


def test_of_several_choices_none_is_forgotten_by_accident(tmp_path):
    """With several stored, the ids must say which one."""
    keep(tmp_path, (HERE, Preference("all", CHOSEN, EXPIRES)), (THERE, Preference("none", CHOSEN, EXPIRES)))
    done = run("consent", "forget", "--state-dir", str(tmp_path))
    assert done.returncode == 2 and "--config-id" in done.stderr and len(look(tmp_path)) == 2
    run("consent", "forget", "--state-dir", str(tmp_path), ALLOY_DATASTREAM_ID="stream-2")
    assert [found["datastream"] for found in look(tmp_path)] == ["stream-1"]


@pytest.mark.parametrize("command", ["show", "forget"])
def test_a_damaged_file_is_a_clear_error(tmp_path, command):
    """It is named, with what to do: exit status 1, and no traceback."""
    file = tmp_path / "alloy.sqlite3"
    file.write_bytes(b"damaged" * 1_000)
    done = run("consent", command, "--state-dir", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert str(file) in done.stderr and "damaged" in done.stderr and "Traceback" not in done.stderr


def test_what_is_stored_is_no_markup(tmp_path):
    """Ids that look like markup or escape sequences are shown as they are."""
    keep(tmp_path, (VisitorKey("[red]o\x1b[2J", "d"), Preference("all", CHOSEN, EXPIRES)))
    assert r"[red]o\x1b[2J" in run("consent", "show", "--state-dir", str(tmp_path)).stdout


def test_an_identity_without_a_choice_is_shown_and_forgotten(tmp_path):
    """Where consent was never asked for, what is kept can be seen and erased all the same."""

    async def keep():
        async with Alloy() as alloy:
            await alloy.configure(
                config_id="c", ims_org_id="o", state_dir=tmp_path, transport=RecordingEdge()
            )
            await alloy.event()

    asyncio.run(keep())
    shown = run("consent", "show", "--state-dir", str(tmp_path), "--json")
    assert json.loads(shown.stdout) == [
        {"organisation": "o", "datastream": "c", "visitor": "", "choice": None}
    ]
    assert run("consent", "forget", "--state-dir", str(tmp_path)).returncode == 0
    assert json.loads(run("consent", "show", "--state-dir", str(tmp_path), "--json").stdout) == []
