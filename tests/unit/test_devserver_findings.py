"""Findings: words for a page, which neither a long value nor a hostile name can break."""

import json

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from alloy_async.devserver import well_known
from alloy_async.devserver.advice import advice_for
from alloy_async.devserver.findings import MAX_EXCERPT, MAX_MADE, Finding, bounded, excerpt, place
from alloy_async.devserver.problems import _TITLES
from alloy_async.devserver.well_known import EVENT_TYPES, NAMESPACES, nearest

DOCUMENTED = """
0000-503 0001-500 0002-400 0003-400 0004-422 0010-422 0011-422 0012-422 0013-422 0100-500 0101-400 0102-400 0103-400
0104-422 0105-400 0106-400 0107-400 0108-400 0109-408 0110-400 0111-415 0112-413 0113-400 0200-504 0201-503 0202-502
0203-502 0204-200 0205-502 0300-502 0301-200 0302-409 0303-200 0304-400 0305-400 0306-400 0307-502 0308-400 0400-403
0500-401 0501-401 0502-401 0503-401 0504-401 0505-401 0506-401
"""


def finding(level="error", code="a"):
    return Finding(level, code, "xdm", "message", "advice")


def test_a_finding_is_written_as_the_page_reads_it():
    written = json.loads(json.dumps(finding().as_dict()))
    assert written == {
        "level": "error",
        "code": "a",
        "path": "xdm",
        "message": "message",
        "advice": "advice",
    }


def test_as_many_findings_as_allowed_are_all_kept():
    findings = [finding(code=str(n)) for n in range(20)]
    assert bounded(findings) == findings


def test_those_beyond_are_counted_in_one_more():
    kept = bounded([finding(code=str(n)) for n in range(27)])
    assert [one.code for one in kept] == [*map(str, range(20)), "more-findings"]
    assert kept[-1].message == "and 7 more"


def test_where_not_all_were_made_the_count_says_so():
    assert bounded([finding()] * MAX_MADE)[-1].message == "and at least 180 more"


def test_errors_are_kept_before_warnings():
    kept = bounded([finding("warning")] * 20 + [finding("error", "late")])
    assert kept[0].code == "late"
    assert kept[-1].level == "warning"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("text", "'text'"),
        ("<b>'\"\n\x00\u202e\ud800", "'<b>\\'\"\\n\\x00\\u202e\\ud800'"),
        ({"a": "secret"}, "an object"),
        (["secret"], "an array"),
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (1.5, "1.5"),
        (17, "17"),
    ],
)
def test_an_excerpt_shows_a_value_harmlessly(value, shown):
    assert excerpt(value) == shown


def test_an_integer_that_the_interpreter_does_not_write_is_described():
    assert excerpt(10**5000) == "a very large integer"


@pytest.mark.parametrize("value", ["x" * 10_000, "\x00" * 10_000, 2**256 - 1])
def test_an_excerpt_is_short(value):
    assert len(excerpt(value)) <= MAX_EXCERPT


@pytest.mark.parametrize(
    ("parts", "written"),
    [
        (["xdm", "productListItems", 0, "SKU"], "xdm.productListItems[0].SKU"),
        (["xdm", "a.b", "\n"], "xdm.a.b.\\n"),
        (["xdm", ""], "xdm."),
        ([], ""),
    ],
)
def test_a_place_is_written_as_people_write_it(parts, written):
    assert place(parts) == written


@pytest.mark.parametrize("parts", [["x" * 10_000], ["x"] * 512, ["\x00" * 90] * 512, [0] * 512])
def test_a_place_is_short(parts):
    assert len(place(parts)) <= 300


@pytest.mark.parametrize("code", [*DOCUMENTED.split(), "403", "404", "405"])
def test_every_documented_code_has_advice_of_its_own(code):
    assert advice_for(code) != advice_for("9999-400")


def test_every_problem_that_this_edge_answers_has_advice():
    assert [code for code in _TITLES if advice_for(code) == advice_for("9999-400")] == []


def test_the_status_does_not_matter_and_a_whole_type_is_understood():
    """Mobile clients saw the same codes with other statuses."""
    assert advice_for("0201-502") == advice_for("0201-503")
    assert advice_for("https://ns.adobe.com/aep/errors/EXEG-0306-400") == advice_for("0306-400")


def test_a_name_like_a_known_one_is_found():
    assert nearest("CRM_ID", NAMESPACES, 0.85) == "CRMID"
    assert nearest("EMAIL", NAMESPACES, 0.85) == "Email"


@pytest.mark.parametrize("name", [*sorted(NAMESPACES), "", "x", "E" * 1000, "loyalty"])
def test_a_known_name_and_one_like_no_other_have_no_nearest(name):
    assert nearest(name, NAMESPACES, 0.85) is None


def test_names_that_are_longer_than_any_are_not_compared():
    """Comparing grows with the square of the length."""
    assert nearest("a" * 80, frozenset({"a" * 79}), 0.7) == "a" * 79
    assert nearest("a" * 81, frozenset({"a" * 80}), 0.7) is None


def test_no_well_known_event_type_is_a_misspelling_of_another():
    assert len(EVENT_TYPES) > 90
    assert all(nearest(name, EVENT_TYPES, 0.9) is None for name in EVENT_TYPES)


def test_a_long_name_is_not_remembered():
    """A thousand of them, each as long as a request, would stay for good."""
    kept = well_known._nearest.cache_info().currsize
    assert nearest("x" * 60_000, NAMESPACES, 0.5) is None
    assert well_known._nearest.cache_info().currsize == kept
