"""What is generated for the documentation says everything that the code says."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
import zlib
from itertools import pairwise
from pathlib import Path

import command_page
import diagrams
import inventory
import pytest
import settings_page

from alloy_async._consent._rules import PURPOSES, TRANSITIONS, VERDICT, Consent, Occurrence
from alloy_async.settings import Settings

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "alloy_async"
DOORS = ("cli", "devserver", "samples", "testing")

SVG = "{http://www.w3.org/2000/svg}"


def texts() -> list[str]:
    return [element.text or "" for element in ET.fromstring(diagrams.gate_svg()).iter(f"{SVG}text")]


@pytest.mark.parametrize("consent", Consent, ids=lambda consent: consent.name)
def test_the_diagram_shows_each_state_and_what_it_does_with_commands(consent):
    """Each state stands in the picture, with the purposes and the verdict that the tables give it."""
    place = texts().index(consent.name)
    assert texts()[place + 1] == f'purposes "{PURPOSES[consent]}": {VERDICT[consent].value}'


@pytest.mark.parametrize("occurrence", Occurrence, ids=lambda occurrence: occurrence.name)
def test_the_diagram_shows_each_occurrence_on_as_many_arrows_as_the_table_has(occurrence):
    """Each occurrence is written once on each of its arrows."""
    arrows = {(start, end) for (start, happened), end in TRANSITIONS.items() if happened is occurrence}
    assert [text.removesuffix(" ✕") for text in texts()].count(occurrence.value) == len(arrows)


def test_the_diagram_has_an_arrow_for_each_pair_of_states():
    """There are as many arrows as ways from a state to a state."""
    lines = [path for path in ET.fromstring(diagrams.gate_svg()).iter(f"{SVG}path") if path.get("marker-end")]
    assert len(lines) == len({(start, end) for (start, _), end in TRANSITIONS.items()})


def test_the_diagram_takes_the_colour_of_the_page():
    """No text has a colour of its own, which could not be read on both light and dark."""
    elements = ET.fromstring(diagrams.gate_svg()).iter(f"{SVG}text")
    assert {element.get("fill") for element in elements} == {"currentColor"}


def test_the_table_has_a_row_for_each_occurrence():
    """The table says where each occurrence leads from each state."""
    rows = diagrams.gate_table().splitlines()[2:]
    expected = [[TRANSITIONS[consent, occurrence].name for consent in Consent] for occurrence in Occurrence]
    assert [row.split(" | ")[1:-1] for row in rows] == expected


def test_the_settings_page_has_a_section_for_each_setting():
    """Each setting is listed once, in the model's order, with its description."""
    page = settings_page.settings_table()
    headings = [f"## `{name}`" for name in Settings.model_fields]
    places = [page.index(heading) for heading in headings]
    assert all(a < b for a, b in pairwise(places))
    assert all(str(field.description) in page for field in Settings.model_fields.values())


def test_the_settings_page_names_variables_that_are_read(tmp_path):
    """Each variable that the page names is one that the settings take from the environment."""
    page = settings_page.settings_table()
    assert "`ALLOY_PARKED_TTL`" in page
    assert "ALLOY_TRANSPORT" in page
    assert "ALLOY_HOOKS" not in page
    found = Settings.resolve({}, {"ALLOY_CONFIG_ID": "a", "ALLOY_ORG_ID": "b", "ALLOY_PARKED_TTL": "60"})
    assert (found.config_id, found.ims_org_id, found.parked_ttl) == ("a", "b", 60)


def test_the_command_page_has_each_command_with_its_options():
    """Each command has a section, and an option of each stands in it."""
    sections = re.split(r"^## ", command_page.command_sections(), flags=re.MULTILINE)[1:]
    options = {section.partition("\n")[0]: section for section in sections}
    assert {
        "alloy-async demo",
        "alloy-async serve",
        "alloy-async send",
        "alloy-async consent show",
        "alloy-async outbox ls",
        "alloy-async outbox purge",
    } <= options.keys()
    assert "`--ask`" in options["alloy-async demo"]
    assert "`ALLOY_ENDPOINT`" in options["alloy-async send"]


def test_the_inventory_names_what_exists():
    """Each name of Python's that the documentation may refer to is in the inventory, in the format Sphinx reads."""
    compressed = inventory.python_inventory().split(b"zlib.\n", 1)[1]
    lines = zlib.decompress(compressed).decode().splitlines()
    assert lines[0] == "_asyncio.Future py:class 1 library/asyncio-future.html#asyncio.Future -"
    assert len(lines) == len(inventory.PAGES)


def test_the_page_of_layers_names_each_module():
    """No module is missing from the table of the layers, none stands there that is gone."""
    page = (DOCS / "explanation" / "layers.md").read_text("utf-8")
    table = page.partition("| words |")[2].partition("## One event")[0]
    named = set(re.findall(r"`([\w/]+)`", table))
    paths = [path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")]
    inside = {path.as_posix() for path in paths if path.name != "__init__" and path.parts[0] not in DOORS}
    assert named == inside | {"__init__", *DOORS}
