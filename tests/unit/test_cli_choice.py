"""How a run of ``send`` comes to its choice: the whole table."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from alloy_async.cli.choice import CommandLineStore, Plan, Wish, make_plan
from alloy_async.stores import Preference, VisitorKey


@pytest.mark.parametrize(
    ("stored", "wish", "change", "plan"),
    [
        (None, Wish.ALL, False, Plan.CHOOSE_FIRST),
        (None, Wish.ALL, True, Plan.CHOOSE_FIRST),
        (None, Wish.NONE, False, Plan.CHOOSE_FIRST),
        (None, Wish.NONE, True, Plan.CHOOSE_FIRST),
        (None, Wish.ASK, False, Plan.CHOOSE_LATER),
        (None, Wish.ASK, True, Plan.CHOOSE_LATER),
        ("all", Wish.ALL, False, Plan.KEEP),
        ("all", Wish.ALL, True, Plan.KEEP),
        ("all", Wish.NONE, False, Plan.CHOOSE_FIRST),
        ("all", Wish.NONE, True, Plan.CHOOSE_FIRST),
        ("all", Wish.ASK, False, Plan.KEEP),
        ("all", Wish.ASK, True, Plan.CHOOSE_FIRST),
        ("none", Wish.ALL, False, Plan.CONFLICT),
        ("none", Wish.ALL, True, Plan.CHOOSE_FIRST),
        ("none", Wish.NONE, False, Plan.KEEP),
        ("none", Wish.NONE, True, Plan.KEEP),
        ("none", Wish.ASK, False, Plan.KEEP),
        ("none", Wish.ASK, True, Plan.CHOOSE_FIRST),
    ],
)
def test_the_plan_follows_the_table(stored, wish, change, plan):
    """A stored choice holds; a refusal is only taken back when somebody means it."""
    assert make_plan(stored, wish, change=change) is plan


async def test_a_choice_of_the_command_line_is_kept_as_such(tmp_path):
    """Its source is ``cli``."""
    store, key, now = CommandLineStore(tmp_path), VisitorKey("o", "d"), time.time()
    await store.save_preference(key, Preference("all", now, now + 60))
    kept = await store.load_preference(key)
    await store.aclose()
    assert kept is not None and (kept.purposes, kept.source) == ("all", "cli")
