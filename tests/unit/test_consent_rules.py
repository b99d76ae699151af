"""The consent tables."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, strategies as st

from alloy_async._consent._rules import (
    PURPOSES,
    STARTS_EPOCH,
    TRANSITIONS,
    VERDICT,
    Consent,
    Occurrence,
    Verdict,
    follow,
    parse_choice,
    verdict,
)


def test_tables_are_complete():
    """Every state has a verdict and a word, and knows what to do with everything that can happen."""
    assert set(VERDICT) == set(PURPOSES) == set(Consent)
    assert set(TRANSITIONS) == set(itertools.product(Consent, Occurrence))


def test_only_a_written_all_opens_the_gate():
    """Nothing but "all", said and written, leads to consent; and it always does."""
    for (consent, occurrence), following in TRANSITIONS.items():
        stays = consent is Consent.IN and occurrence is Occurrence.WRITING_ALL
        assert (following is Consent.IN) == (occurrence is Occurrence.SAID_ALL or stays)


def test_none_always_closes_the_gate():
    """Whatever was before, "none" is a refusal, and starts an epoch."""
    for consent in Consent:
        assert follow(consent, 7, Occurrence.SAID_NONE) == (Consent.OUT, 8)


@pytest.mark.parametrize("occurrence", Occurrence)
def test_epochs_grow_with_refusals_only(occurrence):
    """A refusal and a forgetting start an epoch; nothing else does, and none ever ends."""
    for consent in Consent:
        _, epoch = follow(consent, 3, occurrence)
        assert epoch == 3 + (occurrence in STARTS_EPOCH)


@given(st.sampled_from(list(Consent)))
def test_a_command_of_an_older_epoch_is_refused_whatever_holds_now(consent):
    """What was refused once stays refused after a new "all"."""
    assert verdict(consent, current=False) is Verdict.REFUSE
    assert verdict(consent, current=True) is VERDICT[consent]


@pytest.mark.parametrize("word", ["all", "ALL", "All", "aLL"])
def test_any_letter_case_of_all_is_taken(word):
    """The word counts, not its case."""
    assert parse_choice(word) == "all"


@given(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.binary(), st.text(), st.lists(st.text())
    )
)
def test_nothing_else_is_a_choice(value):
    """Whatever is not one of the two words is no choice, however much it looks like a yes."""
    word = value.lower() if isinstance(value, str) else None
    assert parse_choice(value) == (word if word in {"all", "none"} else None)


@pytest.mark.parametrize("value", [" all ", "all\n", "yes", "y", "true", "on", "1", 1, True, b"all", ["all"]])
def test_near_misses_are_no_choice(value):
    """Blanks, other words for yes, and other types are refused."""
    assert parse_choice(value) is None
