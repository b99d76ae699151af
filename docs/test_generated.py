"""What is generated for the documentation says everything that the code says."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import xml.etree.ElementTree as ET
import zlib
from itertools import pairwise
from pathlib import Path
from typing import get_args

import command_page
import diagrams
import inventory
import pytest
import settings_page

from alloy_async import errors
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


def test_the_settings_page_names_types_that_a_person_can_read():
    """What pydantic is told of a type is left out; each word that a setting takes is there."""
    types = re.findall(r"^- Type: (.*)$", settings_page.settings_table(), flags=re.MULTILINE)
    assert [text for text in types if "typing" in text or "(" in text or " at 0x" in text] == []
    assert "`float | None`" in types
    assert '`"refuse" | "wait" | "local"`' in types
    for name in ("store", "outbox", "transport"):
        words = get_args(get_args(Settings.model_fields[name].annotation)[0])
        section = settings_page.settings_table().partition(f"## `{name}`\n")[2].partition("- Default")[0]
        assert [word for word in words if f'`"{word}"`' not in section.partition("- Type")[2]] == []


def test_the_page_of_errors_has_each_with_its_place_in_the_tree():
    """The tree of the page is that of the module, and each error is described below it."""
    page = (DOCS / "reference" / "errors.md").read_text("utf-8")
    tree = inspect.getdoc(errors).partition("::\n\n")[2].partition("\n\n")[0]
    assert inspect.cleandoc(tree) == page.partition("```text\n")[2].partition("\n```")[0]
    described = set(re.findall(r"autoexception:: [\w.]*\.(\w+)\(\)", page))
    assert described == {*errors.__all__}
    assert described == set(re.findall(r"[A-Z]\w+(?= {2}|$)", tree, flags=re.MULTILINE))


WRITTEN = [
    (page.name, path, signature)
    for page in sorted((DOCS / "reference").glob("*.md"))
    for path, signature in re.findall(
        r"^\.\. autoclass:: ([\w.]+)\((.+)\)$", page.read_text("utf-8"), re.MULTILINE
    )
]


@pytest.mark.parametrize(("page", "path", "signature"), WRITTEN, ids=[path for _, path, _ in WRITTEN])
def test_a_signature_that_is_written_by_hand_is_that_of_the_code(page, path, signature):
    """Each argument is there with its default; only what counts failures is for ourselves."""
    written = ast.parse(f"def _({signature}): ...").body[0].args
    defaults = dict(zip(written.kwonlyargs, written.kw_defaults, strict=True))
    module, _, name = path.rpartition(".")
    code = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    named = {argument.arg for argument in (*written.args, *written.kwonlyargs)}
    assert named == code.keys() - {"failures"}
    for argument, default in defaults.items():
        assert ast.literal_eval(default) == code[argument.arg].default


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
