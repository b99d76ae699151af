"""All checks in one call: bounded, and never in the way of an event."""

import json
from datetime import UTC, datetime

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from hypothesis import given, settings, strategies as st
from xdm_schemas import EVENT, SCHEMAS, write_schemas

from alloy_async.devserver.checks import Checks
from alloy_async.devserver.findings import MAX_FINDINGS, MAX_MADE

NOW = datetime(2026, 11, 23, 15, 30, tzinfo=UTC)


def clock():
    return NOW


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    pytest.importorskip("jsonschema_rs")
    from alloy_async.devserver.xdm import XdmSchemas

    return Checks(XdmSchemas.load(write_schemas(tmp_path_factory.mktemp("xdm"))), clock=clock)


def run(checks, event, version="v2"):
    return checks.events(event, json.dumps(event), version)


def test_an_event_that_is_right_has_no_findings(checks):
    assert run(checks, EVENT) == []
    assert run(Checks(clock=clock), EVENT) == []


def test_both_kinds_of_checks_are_made(checks):
    event = {"xdm": {**EVENT["xdm"], "timestamp": "2026-11-23T15:20:48", "comerce": {}}}
    assert {finding.code for finding in run(checks, event)} == {
        "timestamp-naive",
        "xdm-format",
        "xdm-unknown-field",
    }


def test_without_schemas_only_the_structure_is_checked_and_that_is_said(checks):
    event = {"xdm": {**EVENT["xdm"], "comerce": {}}}
    assert run(Checks(clock=clock), event) == []
    assert Checks().summary == "Events are checked for their structure alone: no XDM schemas were given."
    assert checks.summary == "Events are checked against 11 XDM schemas, 4 of them for ExperienceEvents."


def test_the_time_is_read_for_each_event():
    times = iter([NOW, datetime(2026, 11, 23, 15, 0, tzinfo=UTC)])
    checks = Checks(clock=lambda: next(times))
    event = {"xdm": {**EVENT["xdm"], "timestamp": "2026-11-23T15:20:48Z"}}
    assert [[finding.code for finding in run(checks, event)] for _ in range(2)] == [[], ["timestamp-future"]]


@pytest.mark.parametrize(
    "xdm",
    [
        {"productListItems": [0] * 1000},
        {f"field{n}": 1 for n in range(1000)},
        {"identityMap": {"FPID": [{"id": 1}] * 1000}},
    ],
)
def test_of_very_many_findings_some_are_shown_and_the_rest_counted(checks, xdm):
    findings = run(checks, {"xdm": xdm})
    assert len(findings) == MAX_FINDINGS + 1
    assert findings[-1].message.startswith("and at least ")
    assert int(findings[-1].message.split()[3]) <= 2 * MAX_MADE


def names_of(schemas):
    found = set()
    for part in json.dumps(schemas).split('"'):
        found.add(part.rpartition(":")[2])
    return sorted(found)


names = st.text(max_size=12) | st.sampled_from(
    [*names_of(SCHEMAS), "xdm", "data", "identityMap", "_id", "\ud800"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | names,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5),
    max_leaves=25,
)
known = st.dictionaries(st.sampled_from(sorted(EVENT["xdm"])), values)


@settings(deadline=None)
@given(event=values | st.builds(dict, xdm=values | known, data=values), version=st.sampled_from(["v1", "v2"]))
def test_no_json_value_is_too_much(checks, event, version):
    """Whatever arrives, there is an answer, it fits a page, and it is JSON."""
    findings = checks.events(event, json.dumps(event), version)
    assert len(findings) <= MAX_FINDINGS + 1
    for finding in findings:
        written = finding.as_dict()
        assert all(len(text) <= 400 and text.isprintable() for text in written.values())
        json.dumps(written).encode()
