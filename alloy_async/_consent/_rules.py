"""The consent gate as two tables; whatever decides about consent stands in this file, and nothing else does.

Theory of operation. A visitor's consent is in one of three states. What happens to it is an *occurrence*: the visitor
says "all" or "none", an "all" waits to be written, the choice expires or is forgotten. ``TRANSITIONS`` says which state
follows. What a command meets is a *verdict*, and ``VERDICT`` is the whole policy.

A refusal must also reach what waits somewhere else at that moment: parked, queued, about to be retried. Hence each
refusal starts a new *epoch*. A command carries the epoch in which it was called; one of an older epoch is refused
wherever it is looked at, also when the visitor has said "all" again in the meantime. Nothing has to be found and
marked for this to hold, so nothing can be missed.

The diagram in the documentation is drawn from these tables.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, TypeAlias

__all__ = [
    "PURPOSES",
    "TRANSITIONS",
    "VERDICT",
    "Choice",
    "Consent",
    "Occurrence",
    "Purposes",
    "Verdict",
    "follow",
    "parse_choice",
    "verdict",
]

Choice: TypeAlias = Literal["all", "none"]
"""What a visitor may say."""

Purposes: TypeAlias = Literal["all", "none", "pending"]
"""What is known of a visitor's choice."""


class Consent(Enum):
    """What is known of the visitor's consent."""

    # Enum's own hash is written in Python and hashes the name; the tables are looked up several times for each event.
    __hash__ = object.__hash__

    PENDING = "pending"
    IN = "all"
    OUT = "none"


class Occurrence(Enum):
    """What can happen to a visitor's consent."""

    SAID_ALL = "all"
    """ "all" was said, and is written where it survives."""
    WRITING_ALL = "all, not yet written"
    """ "all" was said and is being written; a refusal no longer stands, consent is not recorded yet."""
    SAID_NONE = "none"
    FORGOTTEN = "forgotten"
    EXPIRED = "expired"


class Verdict(Enum):
    """What becomes of a command."""

    PASS = "pass"  # noqa: S105 - not a password
    PARK = "park"
    REFUSE = "refuse"


VERDICT = {Consent.PENDING: Verdict.PARK, Consent.IN: Verdict.PASS, Consent.OUT: Verdict.REFUSE}

TRANSITIONS = {
    (Consent.PENDING, Occurrence.SAID_ALL): Consent.IN,
    (Consent.PENDING, Occurrence.WRITING_ALL): Consent.PENDING,
    (Consent.PENDING, Occurrence.SAID_NONE): Consent.OUT,
    (Consent.PENDING, Occurrence.FORGOTTEN): Consent.PENDING,
    (Consent.PENDING, Occurrence.EXPIRED): Consent.PENDING,
    (Consent.IN, Occurrence.SAID_ALL): Consent.IN,
    (Consent.IN, Occurrence.WRITING_ALL): Consent.IN,
    (Consent.IN, Occurrence.SAID_NONE): Consent.OUT,
    (Consent.IN, Occurrence.FORGOTTEN): Consent.PENDING,
    (Consent.IN, Occurrence.EXPIRED): Consent.PENDING,
    (Consent.OUT, Occurrence.SAID_ALL): Consent.IN,
    (Consent.OUT, Occurrence.WRITING_ALL): Consent.PENDING,
    (Consent.OUT, Occurrence.SAID_NONE): Consent.OUT,
    (Consent.OUT, Occurrence.FORGOTTEN): Consent.PENDING,
    (Consent.OUT, Occurrence.EXPIRED): Consent.PENDING,
}

STARTS_EPOCH = frozenset({Occurrence.SAID_NONE, Occurrence.FORGOTTEN})
"""Occurrences after which nothing that was called before may ever be sent."""

PURPOSES: dict[Consent, Purposes] = {Consent.PENDING: "pending", Consent.IN: "all", Consent.OUT: "none"}

_CHOICES: dict[str, Choice] = {"all": "all", "none": "none"}


def follow(consent: Consent, epoch: int, occurrence: Occurrence) -> tuple[Consent, int]:
    """Return the consent and the epoch that follow."""
    return TRANSITIONS[consent, occurrence], epoch + (occurrence in STARTS_EPOCH)


def verdict(consent: Consent, *, current: bool) -> Verdict:
    """Return what becomes of a command.

    Args:
        consent: what is known now.
        current: whether the command was called in the present epoch, that is after the last refusal.
    """
    return VERDICT[consent] if current else Verdict.REFUSE


def parse_choice(purposes: object) -> Choice | None:
    """Read "all" or "none" in any letter case; None for everything else, however much it looks like a yes.

    Source: adobe/alloy (2019), optIn: the word is checked without regard to case. There the original spelling was
    stored, and matched nothing later; here it is normalised.
    """
    return _CHOICES.get(purposes.lower()) if isinstance(purposes, str) else None
