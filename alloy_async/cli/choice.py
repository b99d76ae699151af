"""The choice behind a run: what was said at the command line, what is kept, and who is asked."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum, StrEnum
from typing import Literal, TypeAlias

from ..stores import Preference, SQLiteStore, VisitorKey

__all__ = ["Choice", "CommandLineStore", "Plan", "Wish", "make_plan"]

Choice: TypeAlias = Literal["all", "none"]


class Wish(StrEnum):
    """What ``--opt-in`` says."""

    ALL = "all"
    NONE = "none"
    ASK = "ask"


class Plan(Enum):
    """How a run comes to its choice."""

    KEEP = "the stored choice holds"
    CHOOSE_FIRST = "the choice is said, or asked for, before anything is read"
    CHOOSE_LATER = "the person is asked once everything waits, or as much as there is room for"
    CONFLICT = "a stored refusal stands in the way"


def make_plan(stored: Choice | None, wish: Wish, *, change: bool) -> Plan:
    """Return how a run comes to its choice.

    Args:
        stored: the choice that is kept and still valid.
        wish: what the command line says.
        change: whether it may take back a refusal, and ask again.
    """
    if stored is None:
        return Plan.CHOOSE_LATER if wish is Wish.ASK else Plan.CHOOSE_FIRST
    if wish is Wish.ASK:
        return Plan.CHOOSE_FIRST if change else Plan.KEEP
    if wish.value == stored:
        return Plan.KEEP
    # A refusal may always replace a consent; the other way round somebody has to mean it.
    return Plan.CONFLICT if stored == "none" and not change else Plan.CHOOSE_FIRST


class CommandLineStore(SQLiteStore):
    """The SQLite store, which notes that a choice was made at the command line."""

    async def save_preference(self, key: VisitorKey, preference: Preference, *, by: str = "") -> None:
        """Keep a choice with the source ``cli``."""
        await super().save_preference(key, replace(preference, source="cli"), by=by)
