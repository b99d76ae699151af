"""Consent: three vocabularies, one answer."""

import base64
from contextlib import suppress

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from hypothesis import given, strategies as st

from alloy_async.devserver.consent import ConsentMemory, consent_string_denies, decide, read_consent_entry
from alloy_async.devserver.problems import Problem
from alloy_async.devserver.tcf import ADOBE_VENDOR, UnreadableTCString, read_tc_string

# A published example: purposes 1 and 10, vendor 565.
PUBLISHED = "CO052l-O052l-DGAMBFRACBgAIBAAAAAAIYgEawAQEagAAAA"
# A published example of version 1, which travels under the label "2.0".
OLD = "BObdrPUOevsguAfDqFENCNAAAAAmeAAA.PVAfDObdrA.DqFENCAmeAENCDA"


def tc_string(*, purposes=(), vendors=(), ranges=None, version=2):
    """Write the core segment of a TC string, bit by bit."""
    bits = f"{version:06b}" + "0" * 146
    bits += "".join("1" if purpose in purposes else "0" for purpose in range(1, 25))
    bits += "0" * 24 + "0" + "0" * 12
    if ranges is None:
        highest = max(vendors, default=0)
        bits += f"{highest:016b}" + "0"
        bits += "".join("1" if vendor in vendors else "0" for vendor in range(1, highest + 1))
    else:
        bits += f"{max(last for _, last in ranges):016b}" + "1" + f"{len(ranges):012b}"
        for first, last in ranges:
            bits += f"0{first:016b}" if first == last else f"1{first:016b}{last:016b}"
    bits += "0" * (-len(bits) % 8)
    raw = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def tcf(value, **extra):
    return {"standard": "IAB TCF", "version": "2.0", "value": value, **extra}


def adobe_1(general):
    return {"standard": "Adobe", "version": "1.0", "value": {"general": general}}


def adobe_2(value):
    return {"standard": "Adobe", "version": "2.0", "value": {"collect": {"val": value}}}


def code_of(consents) -> str:
    with pytest.raises(Problem) as caught:
        decide(consents)
    return caught.value.type.rpartition("EXEG-")[2]


@pytest.mark.parametrize(
    ("item", "choice"),
    [
        (adobe_1("in"), "in"),
        (adobe_1("out"), "out"),
        (adobe_1("pending"), "out"),
        (adobe_2("y"), "in"),
        (adobe_2("n"), "out"),
        (adobe_2("p"), "out"),
        (adobe_2("u"), "out"),
        (adobe_2("li"), "in"),
        ({"standard": "Adobe", "version": "2.0", "value": {"marketing": {"preferred": "email"}}}, None),
        (tcf(PUBLISHED), "in"),
        (tcf(PUBLISHED + ".IFoEUQQgAIQwgIwQABAEAAAAOIAACAIAAAAQAIAgEAACEAAAAAgAQBAAAAAAAGBAAgAA"), "in"),
        (tcf(tc_string(purposes={1}, vendors={ADOBE_VENDOR})), "in"),
        (tcf(tc_string(purposes={2, 10}, vendors={ADOBE_VENDOR})), "out"),
        (tcf(tc_string(purposes={1}, vendors={564, 566})), "out"),
        (tcf(tc_string(purposes={1})), "out"),
        (tcf(tc_string(purposes={1}, ranges=[(3, 3), (500, 600)])), "in"),
        (tcf(tc_string(purposes={1}, ranges=[(3, 564), (566, 700)])), "out"),
        (tcf(tc_string(), gdprApplies=False), "in"),
        (tcf("no TC string", gdprApplies=False), "in"),
    ],
)
def test_each_standard_decides(item, choice):
    """Values that grant, values that refuse, and what says nothing about collection."""
    assert decide([item]) == choice


def test_one_refusal_among_several_statements_is_enough():
    """A client that says both is taken at its no, in either order."""
    assert decide([adobe_2("y"), tcf(tc_string())]) == "out"
    assert decide([adobe_1("out"), adobe_1("in")]) == "out"


@pytest.mark.parametrize(
    ("consents", "code"),
    [
        (None, "0103-400"),
        ([], "0103-400"),
        ({}, "0102-400"),
        (["in"], "0102-400"),
        ([{"standard": "Adobe", "version": "1.0"}], "0103-400"),
        ([{"version": "1.0", "value": {"general": "in"}}], "0103-400"),
        ([{"standard": "Adobe", "version": "3.0", "value": {"general": "in"}}], "0102-400"),
        ([{"standard": ["Adobe"], "version": {}, "value": {}}], "0102-400"),
        ([{"standard": "Adobe", "version": "1.0", "value": {"analytics": "in"}}], "0102-400"),
        ([{"standard": "Adobe", "version": "1.0", "value": {}}], "0103-400"),
        ([{"standard": "Adobe", "version": "1.0", "value": "in"}], "0102-400"),
        ([adobe_1("maybe")], "0102-400"),
        ([adobe_1(True)], "0102-400"),
        ([adobe_2("yes")], "0102-400"),
        ([adobe_2(["y"])], "0102-400"),
        ([{"standard": "Adobe", "version": "2.0", "value": {"collect": "y"}}], "0102-400"),
        ([{"standard": "IAB TCF", "version": "2.0"}], "0103-400"),
        ([{"standard": "IAB TCF", "version": "2.2", "value": PUBLISHED}], "0102-400"),
        ([tcf(7)], "0102-400"),
        ([tcf(PUBLISHED, gdprApplies="no")], "0102-400"),
        ([tcf("", gdprApplies=False)], "0104-422"),
        ([tcf("!!!")], "0104-422"),
        ([tcf(OLD)], "0104-422"),
    ],
)
def test_a_malformed_statement_has_its_code(consents, code):
    """Nothing malformed counts as a choice."""
    assert code_of(consents) == code


def test_the_finding_about_an_empty_string_names_its_place():
    """The report says which of the statements is meant."""
    with pytest.raises(Problem) as caught:
        decide([adobe_1("in"), tcf("")])
    assert caught.value.errors == (
        "IAB consent string value must not be empty for standard 'IAB TCF' at index 1",
    )


@given(
    st.sets(st.integers(1, 24)),
    st.sets(st.integers(1, 1200), max_size=8),
    st.booleans(),
)
def test_reading_a_tc_string_gives_what_was_written(purposes, vendors, as_ranges):
    """Bit field and range encoding both carry the vendors."""
    ranges = [(vendor, vendor) for vendor in sorted(vendors)] if as_ranges and vendors else None
    consent = read_tc_string(tc_string(purposes=purposes, vendors=vendors, ranges=ranges))
    assert consent.purposes == purposes
    assert {vendor for numbers in consent.vendors for vendor in numbers} == vendors


@given(st.text(max_size=60) | st.text(alphabet="CABx09-_.=", max_size=60))
def test_no_text_breaks_the_reader(text):
    """A TC string is read, or refused in one way."""
    with suppress(UnreadableTCString):
        read_tc_string(text)


@pytest.mark.parametrize(
    "text",
    [
        tc_string(purposes={1}, vendors={ADOBE_VENDOR}, version=1),
        tc_string(purposes={1}, vendors={ADOBE_VENDOR}, version=3),
        PUBLISHED[:20] + "!" + PUBLISHED[20:],
        PUBLISHED.replace("-", "+"),
        "",
    ],
)
def test_what_is_no_tc_string_of_version_2_is_unreadable(text):
    """Other versions, foreign characters, the other base64 alphabet, nothing."""
    with pytest.raises(UnreadableTCString):
        read_tc_string(text)


def test_a_string_that_ends_early_is_unreadable_at_every_length():
    """Of a string cut anywhere in the part that is read, nothing is guessed."""
    whole = tc_string(purposes={1}, vendors={ADOBE_VENDOR})
    for length in range(len(whole) - 1):
        with pytest.raises(UnreadableTCString):
            read_tc_string(whole[:length])


def event_with(text, **extra):
    return {"consentStrings": [{"consentStandard": "IAB TCF", "consentStringValue": text, **extra}]}


@pytest.mark.parametrize(
    ("xdm", "denies"),
    [
        ({}, False),
        (event_with(PUBLISHED), False),
        (event_with(tc_string()), True),
        (event_with(tc_string(), gdprApplies=True), True),
        (event_with(tc_string(), gdprApplies=False), False),
        (event_with(OLD), False),
        (event_with(None), False),
        ({"consentStrings": "none"}, False),
        ({"consentStrings": [None, 3]}, False),
        ({"consentStrings": [{"consentStandard": "other", "consentStringValue": tc_string()}]}, False),
    ],
)
def test_an_event_is_withheld_for_a_refusal_not_for_an_oddity(xdm, denies):
    """Only a TC string that can be read and denies does deny."""
    assert consent_string_denies(xdm) is denies


@pytest.mark.parametrize(
    ("value", "choice"),
    [
        ("general=in", "in"),
        ("general=out", "out"),
        ("other=in; general=out", "out"),
        ("general=maybe", None),
        ("general", None),
        ("", None),
        ("generalin=in", None),
    ],
)
def test_of_the_consent_cookie_only_general_is_read(value, choice):
    """Whatever cannot be read is no choice."""
    assert read_consent_entry(value) == choice


def test_the_memory_holds_the_last_choice_and_is_bounded():
    """A visitor may change their mind; beyond the capacity the longest unchanged refusal goes."""
    memory = ConsentMemory(capacity=2)
    for visitor in ("a", "b", "a", "c"):
        memory.save(visitor, "out")
    assert [memory.is_out(visitor) for visitor in ("a", "b", "c", None)] == [True, False, True, False]
    memory.save("a", "in")
    assert not memory.is_out("a")
    memory.clear()
    assert not memory.is_out("c")
