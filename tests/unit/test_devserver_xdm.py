"""Checks against XDM schemas, with a small shop's schemas in the shape of the public repository."""

import copy
import json
import subprocess
import sys

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("jsonschema_rs")

from xdm_schemas import CLASS, EVENT, NS, SCHEMAS, document, field_group, write_schemas

from alloy_async.devserver.xdm import UnusableSchemas, XdmSchemas
from alloy_async.devserver.xdm.names import wire_path


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return XdmSchemas.load(write_schemas(tmp_path_factory.mktemp("xdm")))


@pytest.fixture
def load(tmp_path):
    """Load the shop's schemas with some more, or others in their place."""

    def with_more(**more):
        return XdmSchemas.load(
            write_schemas(tmp_path, {**SCHEMAS, **{f"{k}.schema.json": v for k, v in more.items()}})
        )

    return with_more


def event_with(*path, value):
    """Return the event that all schemas allow, changed in one place."""
    event = copy.deepcopy(EVENT)
    *parents, last = path
    holder = event["xdm"]
    for step in parents:
        holder = holder[step]
    holder[last] = value
    return event


def found(schemas, event):
    return [(finding.code, finding.path, finding.advice) for finding in schemas.check(event)]


# Names.


@pytest.mark.parametrize(
    ("schema", "wire"),
    [
        ("xdm:web", ("web",)),
        ("xdm:saveForLaterView ", ("saveForLaterView",)),
        ("@id", ("_id",)),
        ("dc:title", ("_dc", "title")),
        ("schema:latitude", ("_schema", "latitude")),
        ("https://ns.adobe.com/experience/target/mbox", ("_experience", "target", "mbox")),
        ("https://ns.adobe.com/", ("_https://ns.adobe.com/",)),
        ("https://example.com/name", ("https://example.com/name",)),
        ("web", ("web",)),
        ("_id", ("_id",)),
        ("", ("",)),
        (":", (":",)),
    ],
)
def test_a_schemas_name_has_its_spelling_on_the_wire(schema, wire):
    assert wire_path(schema) == wire


# Events.


def test_nothing_is_said_about_an_event_that_all_schemas_allow(shop):
    assert shop.check(EVENT) == []


@pytest.mark.parametrize("event", [{}, {"xdm": None}, {"xdm": [1]}, {"xdm": {}}])
def test_an_event_without_fields_has_none_that_are_wrong(shop, event):
    """What a schema requires of the whole event is not asked: which field groups a datastream has is not known."""
    assert shop.check(event) == []


ORDER = ("commerce", "order")


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ((*ORDER, "priceTotal"), "59.90", ("xdm-type", "xdm.commerce.order.priceTotal", "Send a number.")),
        ((*ORDER, "priceTotal"), None, ("xdm-type", "xdm.commerce.order.priceTotal", "Send a number.")),
        (ORDER, [], ("xdm-type", "xdm.commerce.order", "Send an object.")),
        (("productListItems", 0, "quantity"), 1.5, ("xdm-type", "xdm.productListItems[0].quantity", "Send a whole number.")),
        ((*ORDER, "orderType"), "chekout", ("xdm-enum", "xdm.commerce.order.orderType", "Did you mean 'checkout'?")),
        ((*ORDER, "orderType"), "x", ("xdm-enum", "xdm.commerce.order.orderType", "Send one of checkout, instant_purchase.")),
        ((*ORDER, "currencyCode"), "eur", ("xdm-pattern", "xdm.commerce.order.currencyCode", "Send what matches ^[A-Z]{3}$.")),
        (
            (*ORDER, "createdDate"),
            "2026-11-23",
            ("xdm-format", "xdm.commerce.order.createdDate", "Send a date-time, 2026-11-23T15:20:48.830Z for example."),
        ),
        (
            (*ORDER, "discount"),
            -1,
            ("xdm-minimum", "xdm.commerce.order.discount", "The schema says: the value is less than the minimum of 0."),
        ),
        (
            ("commerce", "purchases"),
            {},
            ("xdm-missing-field", "xdm.commerce.purchases", "Add it, or leave out 'xdm.commerce.purchases'."),
        ),
        (
            ("placeContext", "_schema", "latitude"),
            "52.1",
            ("xdm-type", "xdm.placeContext._schema.latitude", "Send a number."),
        ),
        (
            ("_experience", "target", "pageId"),
            "3",
            ("xdm-type", "xdm._experience.target.pageId", "Send a whole number."),
        ),
        (("metrics", "m1"), "1", ("xdm-type", "xdm.metrics.m1", "Send a whole number.")),
        (
            ("identityMap", "FPID", 0, "primary"),
            "yes",
            ("xdm-type", "xdm.identityMap.FPID[0].primary", "Send true or false."),
        ),
    ],
)  # fmt: skip
def test_a_value_that_a_schema_contradicts_is_named_with_what_to_send(shop, path, value, expected):
    assert found(shop, event_with(*path, value=value)) == [expected]


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        (("comerce",), "commerce"),
        (("commerce", "purchase"), "purchases"),
        ((*ORDER, "purchaseId"), "purchaseID"),
        (("productListItems", 0, "sku"), "SKU"),
        (("productListItems", 0, "set", "quantty"), "quantity"),
        (("identityMap", "FPID", 0, "authenticationState"), "authenticatedState"),
        (("placeContext", "_schema", "lattitude"), "latitude"),
        (("_experience", "target", "mBox"), "mbox"),
    ],
)
def test_a_misspelt_field_is_named_with_the_nearest_name_at_its_level(shop, path, meant):
    (finding,) = shop.check(event_with(*path, value=1))
    assert (finding.level, finding.code) == ("error", "xdm-unknown-field")
    assert finding.path.endswith(path[-1])
    assert finding.advice == f"Did you mean '{meant}'?"


def test_a_field_like_no_other_is_sent_to_where_it_belongs(shop):
    (finding,) = shop.check(event_with("loyaltyTier", value="gold"))
    assert (finding.code, finding.path) == ("xdm-unknown-field", "xdm.loyaltyTier")
    assert "_yourtenant" in finding.advice


@pytest.mark.parametrize(("name", "wire"), [("xdm:commerce", "commerce"), ("@id", "_id")])
def test_a_schemas_spelling_in_an_event_is_recognised(shop, name, wire):
    assert found(shop, event_with(name, value={})) == [
        ("xdm-unknown-field", f"xdm.{name}", f"On the wire it is spelled '{wire}'.")
    ]


@pytest.mark.parametrize(
    "path",
    [
        ("_acme",),  # an organisation's own
        ("commerce", "_acme"),
        ("notes", "anything"),  # an object of which no schema says what is in it
        ("extras", "b"),  # one that names a field and welcomes others
        ("identityMap", "LoyaltyCard"),  # a map
        ("metrics", "m22"),  # a name by its pattern
    ],
)
def test_names_that_schemas_leave_open_are_not_reported(shop, path):
    value = {"m22": 1, "LoyaltyCard": []}.get(path[-1], {"any": {"thing": 1}})
    assert shop.check(event_with(*path, value=value)) == []


def test_one_wrong_value_is_one_finding_however_many_field_groups_have_the_field(load):
    again = field_group(f"{NS}/again", {"xdm:commerce": {"$ref": f"{NS}/context/commerce"}})
    deeper = field_group(f"{NS}/deeper", {"xdm:commerce": {"allOf": [{"$ref": f"{NS}/context/commerce"}]}})
    schemas = load(again=again, deeper=deeper)
    assert len(schemas.check(event_with(*ORDER, "priceTotal", value="1"))) == 1


def test_field_groups_add_to_one_anothers_objects(load):
    """The name is known if any of them has it."""
    more = document(f"{NS}/data/gift", {"xdm:giftWrap": {"type": "boolean"}})
    group = field_group(
        f"{NS}/gift-event", {"xdm:commerce": {"properties": {"xdm:order": {"$ref": f"{NS}/data/gift"}}}}
    )
    schemas = load(more=more, group=group)
    assert schemas.check(event_with(*ORDER, "giftWrap", value=True)) == []
    assert found(schemas, event_with(*ORDER, "giftwrap", value=True))[0][2] == "Did you mean 'giftWrap'?"


def test_schemas_that_are_exported_in_the_wires_spelling_are_understood(tmp_path):
    """An organisation's own schema, as its registry writes it, needs no checkout beside it."""
    exported = {
        "$id": "https://ns.adobe.com/acme/schemas/1",
        "meta:class": CLASS,
        "type": "object",
        "properties": {"web": {"type": "object", "properties": {"URL": {"type": "string"}}}, "_acme": {"properties": {"tier": {"enum": ["gold"]}}}},
    }  # fmt: skip
    schemas = XdmSchemas.load(write_schemas(tmp_path, {"acme.schema.json": exported}))
    assert [
        f.path for f in schemas.check({"xdm": {"web": {"url": 1}, "_acme": {"tier": "lead", "teir": 1}}})
    ] == [
        "xdm._acme.tier",
        "xdm.web.url",
        "xdm._acme.teir",
    ]


# Bounds.


def nested(levels, name="set"):
    event = inner = {}
    for _ in range(levels):
        inner[name] = {}
        inner = inner[name]
    inner["quantty"] = 1
    return event


def test_a_schema_that_contains_itself_is_followed_as_far_as_the_event_goes(shop):
    (finding,) = shop.check({"xdm": {"productListItems": [nested(100)]}})
    assert finding.code == "xdm-unknown-field"
    assert finding.path.endswith("set.quantty")


@pytest.mark.parametrize("levels", [300, 508])
def test_more_levels_than_the_library_reads_are_said_so(shop, levels):
    """The names are looked at all the same."""
    codes = [finding.code for finding in shop.check({"xdm": {"productListItems": [nested(levels)]}})]
    assert codes == ["xdm-not-checked", "xdm-unknown-field"]


def test_text_that_is_not_unicode_is_said_so(shop):
    codes = [finding.code for finding in shop.check(event_with(*ORDER, "currencyCode", value="\ud800"))]
    assert codes == ["xdm-not-checked"]


def test_values_are_shown_in_excerpts_only(shop):
    (finding,) = shop.check(event_with(*ORDER, "priceTotal", value="\x00<secret>" * 1000))
    assert "'\\x00<secret>" in finding.message
    assert len(finding.message) < 120


def test_levels_are_shared_between_paths(shop):
    """Otherwise events of ever new depth would fill the memory."""
    for levels in range(40):
        shop.check({"xdm": {"productListItems": [nested(levels)]}})
    assert len(shop._fields._levels) < 40


# Loading.


def test_what_was_loaded_is_said(shop):
    assert shop.problems == ()
    assert shop.summary == "11 XDM schemas, 4 of them for ExperienceEvents"


def test_a_folder_that_is_not_there_is_named_with_what_to_give(tmp_path):
    with pytest.raises(UnusableSchemas, match=r"gone' is no folder\. Give a checkout of https://github"):
        XdmSchemas.load(tmp_path / "gone")


def test_a_folder_without_schemas_is_named(tmp_path):
    (tmp_path / "package.json").write_text("{}")
    with pytest.raises(UnusableSchemas, match=r"No usable \*\.schema\.json below"):
        XdmSchemas.load(tmp_path)


def test_a_folder_of_broken_files_names_the_first(tmp_path):
    with pytest.raises(UnusableSchemas, match=r"\(a\.schema\.json: left out, it cannot be read as JSON"):
        XdmSchemas.load(write_schemas(tmp_path, {"a.schema.json": "{", "b.schema.json": "["}))


def test_a_part_of_a_checkout_is_not_enough(tmp_path):
    part = {name: schema for name, schema in SCHEMAS.items() if "datatypes" in name}
    with pytest.raises(UnusableSchemas, match="Give the whole checkout"):
        XdmSchemas.load(write_schemas(tmp_path, part))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"$id": ', "other_broken.schema.json: left out, it cannot be read as JSON (Expecting value"),
        ("[" * 100_000, "other_broken.schema.json: left out, it cannot be read as JSON"),
        ("[]", "other_broken.schema.json: left out, it is no schema with an '$id'"),
        ({"title": "x"}, "other_broken.schema.json: left out, it is no schema with an '$id'"),
        ({"$id": CLASS}, "has the same '$id'"),
    ],
)
def test_a_file_that_cannot_be_used_does_not_stop_the_others(load, content, said):
    schemas = load(other_broken=content)
    (problem,) = schemas.problems
    assert said in problem
    assert "\n" not in problem
    assert schemas.summary.endswith("; problems: 1")
    assert schemas.check(EVENT) == []
    assert len(schemas.check(event_with(*ORDER, "priceTotal", value="1"))) == 1


@pytest.mark.parametrize(
    "reference", [f"{NS}/data/gone", "#/definitions/gone", "gone.json", f"{CLASS}#/allOf/99"]
)
def test_a_reference_that_leads_nowhere_is_named_and_asks_nothing(load, reference):
    schemas = load(group=field_group(f"{NS}/lost", {"xdm:lost": {"$ref": reference}}))
    assert schemas.problems == (
        f"group.schema.json: no file has what '$ref': '{reference}' names; it is not checked",
    )
    assert schemas.check(event_with("lost", value={"any": ["thing"]})) == []


def test_a_schema_whose_id_is_no_url_may_refer_to_itself(load):
    own = {
        "$id": "urn:acme:tier",
        "meta:extends": [CLASS],
        "definitions": {"tier": {"enum": ["gold"]}},
        "properties": {"tier": {"$ref": "#/definitions/tier"}},
    }
    schemas = load(own=own)
    assert schemas.problems == ()
    assert found(schemas, event_with("tier", value="glod")) == [
        ("xdm-enum", "xdm.tier", "Did you mean 'gold'?")
    ]


@pytest.mark.parametrize(
    ("field", "place"),
    [
        ({"type": "txet"}, "properties.wrong.type"),
        ({"pattern": "("}, "properties.wrong.pattern"),
        ({"allOf": [{"minimum": "1"}]}, "properties.wrong.allOf[0].minimum"),
    ],
)
def test_a_piece_that_is_no_json_schema_is_named_and_taken_out(load, field, place):
    schemas = load(group=field_group(f"{NS}/wrong", {"xdm:wrong": field}))
    assert schemas.problems == (f"group.schema.json: '{place}' is no JSON Schema; it is not checked",)
    assert schemas.check(event_with("wrong", value="any")) == []
    assert len(schemas.check(event_with(*ORDER, "priceTotal", value="1"))) == 1


def test_schemas_that_ask_themselves_in_a_circle_are_followed_once(load):
    one = {"$id": f"{NS}/one", "allOf": [{"$ref": f"{NS}/two"}], "properties": {"xdm:first": {}}}
    two = {"$id": f"{NS}/two", "anyOf": [{"$ref": f"{NS}/one"}], "properties": {"xdm:second": {}}}
    group = field_group(f"{NS}/circle", {"xdm:circle": {"$ref": f"{NS}/one"}})
    schemas = load(one=one, two=two, group=group)
    assert schemas.check(event_with("circle", value={"first": 1, "second": 2})) == []
    assert found(schemas, event_with("circle", value={"secnd": 2}))[0][2] == "Did you mean 'second'?"


def test_a_pattern_that_only_javascript_reads_leaves_its_names_open(load):
    field = {"properties": {"xdm:a": {}}, "patternProperties": {"^\\p{Lu}+$": {"type": "string"}}}
    schemas = load(group=field_group(f"{NS}/script", {"xdm:script": field}))
    assert schemas.check(event_with("script", value={"ÄÖ": "x"})) == []


def test_folders_of_tools_are_not_read(load, tmp_path):
    write_schemas(tmp_path, {".git/x.schema.json": "{", "node_modules/x.schema.json": "{"})
    assert load().problems == ()


def test_without_the_library_the_extra_is_named(tmp_path):
    code = (
        "import sys; sys.modules['jsonschema_rs'] = None\n"
        "from alloy_async.devserver.xdm import UnusableSchemas, XdmSchemas\n"
        "try: XdmSchemas.load(sys.argv[1])\n"
        "except UnusableSchemas as error: print(error)"
    )
    folder = str(write_schemas(tmp_path))
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith('pip install "alloy-async[xdm]".')


def test_the_schemas_of_the_tests_are_json():
    """They stand for files; what JSON cannot hold would test nothing."""
    assert json.loads(json.dumps(SCHEMAS)) == SCHEMAS
