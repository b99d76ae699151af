"""Identifiers of events: UUIDs of version 4, made many at once."""

from __future__ import annotations

import uuid

from alloy_async._clock import RandomIds

MANY = 1_000  # more than are made at once


def test_each_is_a_uuid_of_version_4():
    """They are written as RFC 9562 has them, version and variant included."""
    ids = RandomIds()
    made = [uuid.UUID(text) for text in (ids() for _ in range(MANY))]
    assert {(one.version, one.variant) for one in made} == {(4, uuid.RFC_4122)}


def test_every_digit_is_random_but_the_version():
    """Each place takes every value that it may have, so no two ids are alike."""
    ids = RandomIds()
    made = [ids() for _ in range(MANY)]
    places = ["".join(sorted(set(digits))) for digits in zip(*made, strict=True)]
    random, variant = "0123456789abcdef", "89ab"
    assert places == [
        *[random] * 8,
        "-",
        *[random] * 4,
        "-",
        "4",
        *[random] * 3,
        "-",
        variant,
        *[random] * 3,
        "-",
        *[random] * 12,
    ]
    assert len(set(made)) == MANY
