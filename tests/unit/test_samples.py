"""The bundled events are numerous, varied, valid and about nobody."""

import ipaddress
import json
import re
import uuid
from collections.abc import Iterator
from datetime import datetime
from importlib.resources import files
from itertools import pairwise
from typing import Any

import pytest

from alloy_async.samples import sample_events

EVENTS = sample_events()
OWN = [event for event in EVENTS if "_id" in event]
LINES = files("alloy_async.samples").joinpath("events.jsonl").read_bytes().split(b"\n")[:-1]
ADDED = {"_id", "timestamp", "identityMap"}  # what the SDK adds where the caller gave none


def everything(value: Any, depth: int = 1) -> Iterator[tuple[Any, int]]:
    """Each value within a value, with its depth."""
    yield value, depth
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from everything(inner, depth + 1)


VALUES = [pair for event in EVENTS for pair in everything(event)]
TEXTS = [value for value, _ in VALUES if isinstance(value, str)]


def test_there_are_many_events_of_many_types():
    assert len(EVENTS) == len(LINES) >= 200
    assert len({event["eventType"] for event in EVENTS}) >= 60


def test_each_call_returns_objects_of_its_own():
    sample_events()[0].clear()
    assert sample_events()[0] == EVENTS[0]


def test_every_event_is_a_json_object_that_any_encoder_may_write():
    """No NaN, no infinity, no lone surrogate."""
    for event in EVENTS:
        assert isinstance(event, dict)
        text = json.dumps(event, allow_nan=False, ensure_ascii=False)
        assert json.loads(text.encode()) == event


def test_events_are_small_and_large_but_never_too_large():
    sizes = sorted(map(len, LINES))
    assert 50 < sizes[0] < 100
    assert 6_000 < sizes[-1] < 30_000
    assert max(len(text.encode()) for text in TEXTS) > 4_000


def test_about_a_third_carry_id_time_and_identities_of_their_own():
    """An event carries all three or none: half of them would be neither a replay nor a new event."""
    assert {frozenset(ADDED & event.keys()) for event in EVENTS} == {frozenset(ADDED), frozenset()}
    assert 0.25 < len(OWN) / len(EVENTS) < 0.45


def test_own_ids_are_unique_uuids():
    ids = [uuid.UUID(event["_id"]) for event in OWN]
    assert len(set(ids)) == len(ids)
    assert all(one.version == 4 for one in ids)


@pytest.mark.parametrize("event", OWN, ids=lambda event: event["_id"][:8])
def test_an_own_identity_map_is_valid_and_has_one_primary(event):
    identities = [one for entries in event["identityMap"].values() for one in entries]
    for one in identities:
        assert one.keys() == {"id", "authenticatedState", "primary"}
        assert one["id"]
        assert one["authenticatedState"] in {"ambiguous", "authenticated", "loggedOut"}
    assert [one["primary"] for one in identities].count(True) == 1


def test_a_visit_is_told_in_time_order():
    """Neighbours that share an identity are one visit."""
    for before, after in pairwise(OWN):
        moments = [datetime.fromisoformat(event["timestamp"]) for event in (before, after)]
        assert all(moment.tzinfo for moment in moments)
        if before["identityMap"] == after["identityMap"]:
            assert moments[0] < moments[1]


def test_the_total_of_each_order_is_the_sum_of_its_items():
    purchases = [event for event in EVENTS if event["eventType"] == "commerce.purchases"]
    assert len(purchases) >= 5
    for event in purchases:
        total = sum(item["priceTotal"] for item in event["productListItems"])
        assert event["commerce"]["order"]["priceTotal"] == pytest.approx(total)


def test_what_other_encoders_trip_over_is_there():
    found = [value for value, _ in VALUES]
    assert max(depth for _, depth in VALUES) >= 11
    assert any(type(value) is int and abs(value) >= 2**64 for value in found)
    assert any(type(value) is float and str(value) == "-0.0" for value in found)
    for kind in ({}, [], None, True, False):
        assert any(type(value) is type(kind) and value == kind for value in found)


@pytest.mark.parametrize(
    "script", ["\u0600-\u06ff", "\u0590-\u05ff", "\u0400-\u04ff", "\u4e00-\u9fff", "\uac00-\ud7a3"]
)
def test_texts_come_in_many_scripts(script):
    assert any(re.search(f"[{script}]", text) for text in TEXTS)


def test_lines_come_as_utf8_and_as_ascii_escapes():
    assert any(not line.isascii() for line in LINES)
    assert any(rb"\u" in line and line.isascii() for line in LINES)


def test_hosts_and_addresses_are_those_meant_for_documentation():
    hosts = {host for text in TEXTS for host in re.findall(r"https?://([^/?#\s]*)", text)}
    assert hosts
    assert all(re.fullmatch(r"([a-z]+\.)?example\.(com|org)", host) for host in hosts)
    networks = [ipaddress.ip_network(net) for net in ("192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32")]
    environments = [event["environment"] for event in EVENTS if "environment" in event]
    addresses = [env[key] for env in environments for key in ("ipV4", "ipV6") if key in env]
    assert addresses
    assert all(any(ipaddress.ip_address(one) in net for net in networks) for one in addresses)
