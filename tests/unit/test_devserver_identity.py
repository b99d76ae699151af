"""Identity: which visitor an event belongs to."""

import base64
import uuid

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from hypothesis import given, strategies as st

from alloy_async.devserver.identity import (
    ecid_from_fpid,
    find_ecid,
    mint_ecid,
    pack_identity_cookie,
    read_identity_map,
    require_primary,
    unpack_identity_cookie,
)
from alloy_async.devserver.problems import Problem

FPID = "6f1c0f7e-3f0a-4a1c-9d58-0d6f6c1f2b3a"
ECID = "41861666193140161934276845651148876988"
OTHER = "00220265604383520435419115041346010258"


def code_of(call, *arguments, **keywords) -> str:
    with pytest.raises(Problem) as caught:
        call(*arguments, **keywords)
    return caught.value.type.rpartition("EXEG-")[2]


def test_an_fpid_always_gives_the_same_ecid():
    """The value is fixed: a test that stored it yesterday still holds today; letter case does not matter."""
    assert ecid_from_fpid(FPID) == ecid_from_fpid(FPID.upper()) == "44882309766353042011698456329755805183"
    assert ecid_from_fpid(str(uuid.uuid4())) != ecid_from_fpid(FPID)


@given(st.uuids(version=4))
def test_every_derived_and_minted_ecid_has_38_digits(fpid):
    """Leading zeros included."""
    for ecid in (ecid_from_fpid(str(fpid)), mint_ecid()):
        assert len(ecid) == 38
        assert ecid.isdecimal()


def test_two_minted_ecids_differ():
    """An unknown visitor is never somebody else."""
    assert mint_ecid() != mint_ecid()


@pytest.mark.parametrize(
    ("maps", "cookie", "expected"),
    [
        ([{"ECID": [{"id": ECID}], "FPID": [{"id": FPID}]}], OTHER, ECID),
        ([{}, {"ECID": [{"id": ECID}]}], OTHER, ECID),
        ([{"ECID": [{"id": ECID}]}, {"ECID": [{"id": OTHER}]}], None, ECID),
        ([{"FPID": [{"id": FPID}]}], OTHER, OTHER),
        ([{"FPID": [{"id": FPID}]}], None, ecid_from_fpid(FPID)),
        ([{}, {"FPID": [{"id": FPID}]}], None, ecid_from_fpid(FPID)),
        ([{"ECID": [{"id": "1"}]}], None, None),
        ([{"ECID": [{"id": "1"}], "FPID": [{"id": FPID}]}], None, ecid_from_fpid(FPID)),
        ([{"CRMID": [{"id": "u-1"}]}], None, None),
    ],
)
def test_the_nearest_and_strongest_identity_wins(maps, cookie, expected):
    """ECID in a map, then the cookie's, then an FPID; the event's own map before the payload's."""
    assert find_ecid(maps, cookie) == expected


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ([], "0102-400"),
        ("ECID", "0102-400"),
        ({"ECID": {"id": ECID}}, "0102-400"),
        ({"ECID": [ECID]}, "0102-400"),
        ({"CRMID": [{"id": ""}]}, "0305-400"),
        ({"CRMID": [{}]}, "0305-400"),
        ({"CRMID": [{"id": 7}]}, "0305-400"),
        ({"FPID": [{"id": "6f1c0f7e-3f0a-1a1c-9d58-0d6f6c1f2b3a"}]}, "0308-400"),
        ({"FPID": [{"id": FPID.replace("-", "")}]}, "0308-400"),
        ({"FPID": [{"id": FPID + "\n"}]}, "0308-400"),
        ({"FPID": [{"id": FPID}, {"id": "x"}]}, "0308-400"),
    ],
)
def test_a_malformed_identity_map_is_refused(value, code):
    """With the code for its fault, naming the event."""
    assert code_of(read_identity_map, value, event_index=3) == code
    with pytest.raises(Problem) as caught:
        read_identity_map(value, event_index=3)
    assert caught.value.event_index == 3


def test_no_identity_map_is_an_empty_one():
    """Events without identity are legal in v1."""
    assert read_identity_map(None) == {}


def test_v2_wants_exactly_one_primary_identity():
    """None and two are refused alike; "true" is not true."""
    require_primary(
        {"A": [{"id": "a", "primary": True}], "B": [{"id": "b", "primary": False}]}, event_index=0
    )
    two = {"A": [{"id": "a", "primary": True}], "B": [{"id": "b", "primary": True}]}
    for identities in ({}, two, {"A": [{"id": "a", "primary": "true"}]}):
        assert code_of(require_primary, identities, event_index=0) == "0306-400"


@pytest.mark.parametrize("urlsafe", [False, True])
def test_a_cookie_with_more_fields_gives_its_ecid(urlsafe):
    """Field 1 is found between fields of every wire type, padded or not, in both base64 alphabets."""
    raw = (
        b"\x50\xff\x83\x01"  # 10, varint
        b"\x59\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8"  # 11, 64 bits
        b"\x65\xff\xfe\xfd\xfc"  # 12, 32 bits
        b"\x52\x02\x08\x01"  # 10, bytes
        b"\x0a\x26" + ECID.encode() + b"\xf0\x01\x00"
    )
    value = (base64.urlsafe_b64encode if urlsafe else base64.b64encode)(raw).decode()
    assert unpack_identity_cookie(value) == unpack_identity_cookie(value.rstrip("=")) == ECID


def test_a_number_of_more_than_64_bits_makes_a_cookie_unreadable():
    """Ten bytes hold any number that protobuf knows."""
    field = b"\x0a\x26" + ECID.encode()
    for padding, expected in ((9, ECID), (10, None)):
        raw = b"\x50" + b"\x80" * padding + b"\x01" + field
        assert unpack_identity_cookie(base64.b64encode(raw).decode()) == expected


def test_the_smallest_cookie_is_what_clients_accept():
    """The value is the one that the browser client was seen to accept."""
    known = "41861666193140161934276845651148876988"
    assert pack_identity_cookie(known) == "CiY0MTg2MTY2NjE5MzE0MDE2MTkzNDI3Njg0NTY1MTE0ODg3Njk4OA=="
    assert unpack_identity_cookie(pack_identity_cookie(known)) == known


@given(
    st.text(max_size=80)
    | st.binary(max_size=80).map(lambda raw: base64.b64encode(raw).decode())
    | st.just(base64.b64encode(b"\x80" * 48_000).decode())
)
def test_no_cookie_breaks_the_reader(value):
    """What cannot be read counts as no identity."""
    ecid = unpack_identity_cookie(value)
    assert ecid is None or len(ecid) == 38
