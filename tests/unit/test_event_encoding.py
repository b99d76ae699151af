"""The short way of plain JSON gives what the careful way gives: the same event, or the same refusal."""

import collections
import contextlib
import copy
import dataclasses
import enum
import itertools
import json
import math
import sys
import types
import typing
import uuid
from datetime import UTC, datetime
from decimal import Decimal
from unittest import mock

import pydantic
import pytest
from hypothesis import example, given, strategies as st

from alloy_async import _json
from alloy_async._event import IMPLEMENTATION, EventContext, build_event, with_identity
from alloy_async._json import MAX_DEPTH, Unfit, encode, normalise, take


def slow_json(value: object) -> str:
    """Write as an interpreter without the accelerator does."""
    with mock.patch.object(json.encoder, "c_make_encoder", None):
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


@contextlib.contextmanager
def accelerated(*, orjson: bool, c: bool = True):
    """Work as an installation does that has, or lacks, orjson and the accelerator of json."""
    fast = pytest.importorskip("orjson").dumps if orjson else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(_json, "_fast_encoder", return_value=fast))
        if not c:
            stack.enter_context(mock.patch.object(_json, "_ENCODER", slow_json))
        yield


@contextlib.contextmanager
def the_careful_way():
    """Let nothing count as plain, and let the standard library write."""
    with (
        mock.patch.object(_json, "_write_plain", return_value=None),
        mock.patch.object(_json, "_fast_encoder", return_value=mock.Mock(side_effect=TypeError)),
    ):
        yield


try:
    import orjson as _orjson  # noqa: F401 - only asked whether it is there
except ImportError:
    INSTALLATIONS = [{"orjson": False}, {"orjson": False, "c": False}]
else:
    INSTALLATIONS = [{"orjson": True}, {"orjson": False}, {"orjson": False, "c": False}]

every_installation = pytest.mark.parametrize("installation", INSTALLATIONS, ids=str)


# Values


class Colour(enum.Enum):
    RED = "red"


class Word(enum.StrEnum):
    KEY = "key"


class Level(enum.IntEnum):
    HIGH = 3


class Raw(bytes, enum.Enum):
    """Bytes to marshal and to numpy, an Enum to orjson, which crashes where the value raises."""

    ONE = b"1"

    @property
    def value(self):
        raise LookupError("hush")


class Text(str):
    __slots__ = ()


class Sly(str):
    """Says that it is another text."""

    __slots__ = ()

    def __str__(self):
        return "sly"

    def __eq__(self, other):
        return True

    __hash__ = str.__hash__


class Number(int):
    pass


class Ratio(float):
    pass


class Another(dict):
    """Has other items than the dict that it is."""

    def items(self):
        return [("other", 1)]


class Pair(typing.NamedTuple):
    x: object
    y: object


@dataclasses.dataclass
class Order:
    lines: object


class Model(pydantic.BaseModel):
    held: object = pydantic.Field(None, serialization_alias="heldAs")


hostile = [
    math.nan,
    math.inf,
    -math.inf,
    Ratio("nan"),
    2**63,
    -(2**63),
    2**64,
    -(2**64),
    10**4_000,
    1e308,
    b"x",
    bytearray(b"x"),
    memoryview(b"x"),
    {1},
    frozenset("a"),
    1j,
    ...,
    StopIteration,
    object(),
    len,
    (item for item in "a"),
    compile("1", "", "eval"),
    datetime(2026, 1, 1),  # noqa: DTZ001 - naive on purpose
    datetime(2026, 1, 1, tzinfo=UTC),
    Decimal("1.5"),
    Decimal("NaN"),
    uuid.UUID(int=7),
    Colour.RED,
    Word.KEY,
    Level.HIGH,
    Raw.ONE,
    Text("sub"),
    Sly("x"),
    Number(5),
    Ratio(0.5),
    Another(a=2),
    collections.OrderedDict(a=1),
    types.MappingProxyType({"a": 1}),
    "\ud83d",
    "null",
    "NaN",
    -0.0,
    5e-324,
    None,
]
with contextlib.suppress(ImportError):
    import numpy as np

    hostile += [np.float64(0.1), np.float64("nan"), np.int64(3), np.str_("a"), np.array([1])]
with contextlib.suppress(ImportError):
    import orjson

    hostile += [orjson.Fragment(b"not JSON"), orjson.Fragment(b"1")]

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(), max_size=6)
    | st.sampled_from(hostile)
)
plain_leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
keys = texts | st.sampled_from(
    [1, True, None, 1.5, b"a", "\udc00", Text("t"), Sly("s"), Word.KEY, Colour.RED, (1,), "a", "a", "a"]
)


def containers(inner):
    return (
        st.lists(inner, max_size=4)
        | st.dictionaries(texts, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4)
        | st.tuples(inner)
        | st.builds(Pair, inner, inner)
        | st.builds(Order, inner)
        | st.builds(Model, held=inner)
    )


anything = st.recursive(leaves, containers, max_leaves=12)
plain = st.recursive(
    plain_leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
almost_plain = st.builds(
    lambda tree, path, odd: plant(copy.deepcopy(tree), path, odd), plain, st.lists(st.integers(0, 3)), leaves
)
"""One odd value, deep in a tree that is plain otherwise."""


def plant(tree: typing.Any, path: list[int], odd: object) -> typing.Any:
    if not isinstance(tree, (dict, list)) or not tree:
        return odd
    steps = list(tree) if isinstance(tree, dict) else range(len(tree))
    step = steps[(path[0] if path else 0) % len(steps)]
    tree[step] = plant(tree[step], path[1:], odd)
    return tree


# The two ways


def outcome(write: typing.Callable[[], bytes]) -> tuple[str, ...]:
    """Return what was written, by value with kinds and order, or what is wrong with it and where."""
    try:
        body = write()
    except Unfit as unfit:
        return ("refused", unfit.where(), unfit.problem)
    # pairs, so that a name that is there twice shows
    return ("written", repr(json.loads(body, parse_constant=pytest.fail, object_pairs_hook=list)))


def taken(value: object) -> bytes:
    snapshot, text = take(value, "xdm")
    return encode(snapshot) if text is None else text


@every_installation
@given(value=anything | almost_plain)
@example(value={"a": [None, math.nan]})
@example(value=[{1: 2}])
@example(value={"a": {Word.KEY: 1}})
def test_both_ways_take_the_same(installation, value):
    """Whatever comes, the value is the same, or the refusal, its path and its words."""
    with accelerated(**installation):
        quick = outcome(lambda: taken(value))
    with the_careful_way():
        assert quick == outcome(lambda: encode(normalise(value, "xdm")))


@every_installation
@pytest.mark.parametrize("value", [*hostile, 10**5_000], ids=lambda value: type(value).__name__)
def test_both_ways_take_the_same_of_every_odd_value(installation, value):
    """Each odd value alone, in a list, in an object, and next to a None."""
    for tree in (value, [value], {"a": value}, {"a": [None, {"b": value}]}):
        with accelerated(**installation):
            quick = outcome(lambda tree=tree: taken(tree))
        with the_careful_way():
            assert quick == outcome(lambda tree=tree: encode(normalise(tree, "xdm")))


@every_installation
@given(value=plain)
def test_plain_json_goes_the_short_way(installation, value):
    """What is plain is written without a copy; otherwise nothing would be won, and nothing tested here."""
    with accelerated(**installation):
        snapshot, text = take(value, "xdm")
        wide = any(type(leaf) is int and not -(2**63) < leaf < 2**63 for leaf in flat(value))
        assert wide == (text is None)
        assert wide or snapshot is value


def flat(value: object) -> typing.Iterator[object]:
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from flat(item)
    else:
        yield value


@every_installation
@pytest.mark.parametrize("kind", ["dict", "list"])
@pytest.mark.parametrize("depth", [253, 254, 255, 256, 257, 258, 300, 2_000, 100_000])
def test_both_ways_stop_at_the_same_depth(installation, kind, depth):
    """The encoders stop below the bound by themselves; the levels up to it are taken the careful way."""
    value: object = 1
    for _ in range(depth):
        value = {"a": value} if kind == "dict" else [value]
    with accelerated(**installation):
        got = outcome_of_deep(lambda: taken(value))
    assert got == ("written" if depth <= MAX_DEPTH else "refused")


def outcome_of_deep(write: typing.Callable[[], bytes]) -> str:
    try:
        write()
    except Unfit as unfit:
        return "refused" if "nested too deep" in unfit.problem else unfit.problem
    return "written"


@every_installation
def test_what_contains_itself_many_times_ends(installation):
    """Looking at it has a bound, though its branches double, or grow a thousandfold, with each level."""
    wide: list[object] = []
    wide += [wide] * 1_000
    twice: dict[str, object] = {}
    twice |= {"a": twice, "b": twice}
    with accelerated(**installation):
        for value in (wide, twice):
            assert outcome_of_deep(lambda value=value: taken(value)) == "refused"


@every_installation
def test_runs_none_of_the_callers_code_twice(installation):
    """Code of the caller's belongs to the careful way: it runs once."""
    runs = []

    class Counting(collections.UserDict):
        def items(self):
            runs.append(1)
            return super().items()

    with accelerated(**installation):
        taken({"a": Counting(b=1)})
    assert len(runs) == 1


def test_too_many_values_go_the_careful_way():
    """A very large event is taken as well."""
    value = [[number] for number in range(_json._MAX_PLAIN)]
    snapshot, text = take(value, "data")
    assert (text, snapshot) == (None, value)


# Events

NAMES = st.sampled_from(
    [
        "_id",
        "timestamp",
        "implementationDetails",
        "placeContext",
        "eventType",
        "eventMergeId",
        "identityMap",
        "a",
    ]
)
IDENTITY_MAPS = [
    {"CRM": [{"id": "1"}]},
    {"CRM": ({"id": "1"},)},
    {"CRM": [{"id": "1", "primary": True}, {"id": ""}]},
    {"CRM": [{}]},
    {"CRM": {}},
    [],
]
xdms = (
    st.none()
    | st.dictionaries(
        NAMES,
        plain | anything | texts | st.dictionaries(st.sampled_from(["name", "version", "x"]), plain | leaves),
        max_size=5,
    )
    | anything
    | st.sampled_from(IDENTITY_MAPS).map(lambda identity_map: {"identityMap": identity_map})
)
ARGUMENTS = {
    "xdm": xdms,
    "data": st.none() | plain | anything,
    "event_type": st.none() | st.sampled_from(["", "a", 1, "\ud800", Text("t")]) | texts,
    "merge_id": st.none() | texts,
    "decision_scopes": st.sampled_from([(), ["a"], ["a", "\udfff"], [1], "text"]),
    "local_time": st.booleans(),
    "new_id": st.sampled_from(["6ba7b810-9dad-41d1-80b4-00c04fd430c8", 'odd "id"']),
    "context": st.none()
    | st.dictionaries(
        NAMES.filter(lambda name: name != "identityMap"),  # which a context cannot hold
        plain | st.dictionaries(st.sampled_from(["name", "version", "x"]), plain | plain_leaves),
        max_size=4,
    ).map(EventContext),
}


PLAIN: dict[str, typing.Any] = {
    "xdm": None,
    "data": None,
    "event_type": None,
    "merge_id": None,
    "decision_scopes": (),
    "new_id": "the-id",
}


def described(arguments: dict[str, typing.Any]) -> tuple[object, ...]:
    """Return everything about an event but the order of its fields, or why there is none."""
    try:
        parts = build_event(now=0.0, **arguments)
    except Unfit as unfit:
        return ("refused", unfit.where(), unfit.problem)
    assert type(parts.event_id) is str
    assert parts.body.startswith(b'{"xdm":{"')
    assert sys.getsizeof(parts.body) == sys.getsizeof(b"") + len(parts.body)
    event = json.loads(parts.body, parse_constant=pytest.fail, object_pairs_hook=without_twins)
    return (parts.event_id, parts.has_identity, repr(event))


def without_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = [name for name, _ in pairs]
    assert len(names) == len(set(names))
    return dict(sorted(pairs))


@every_installation
@given(arguments=st.fixed_dictionaries(ARGUMENTS))
@example(arguments=PLAIN | {"xdm": {"_id": Text("own")}, "local_time": False})
@example(arguments=PLAIN | {"context": EventContext(implementationDetails={"name": "own"})})
@example(arguments=PLAIN | {"xdm": {"a": {"b": 1}}, "context": EventContext(a={"b": "\ud800"})})
@example(arguments=PLAIN | {"xdm": {"a": {"b": {}}}, "context": EventContext(a={"b": {"c": 10**4_000}})})
def test_both_ways_build_the_same_event(installation, arguments):
    """The event around the caller's JSON is the event that was merged as objects, or the same refusal."""
    with accelerated(**installation):
        quick = described(arguments)
    with the_careful_way():
        assert quick == described(arguments)


ADDED = {"_id": "the-id", "timestamp": "1970-01-01T00:00:00.000Z", "implementationDetails": IMPLEMENTATION}


@every_installation
@pytest.mark.parametrize(
    ("arguments", "event"),
    [
        ({}, {"xdm": ADDED}),
        ({"xdm": {}}, {"xdm": ADDED}),
        ({"xdm": {"a": [None]}}, {"xdm": ADDED | {"a": [None]}}),
        ({"xdm": {"_id": "own"}, "event_type": "t"}, {"xdm": ADDED | {"_id": "own", "eventType": "t"}}),
        ({"xdm": {"eventType": None}, "event_type": "t"}, {"xdm": ADDED | {"eventType": None}}),
        (
            {"xdm": {"implementationDetails": {"name": "own"}}},
            {"xdm": ADDED | {"implementationDetails": IMPLEMENTATION | {"name": "own"}}},
        ),
        ({"xdm": {"implementationDetails": 1}}, {"xdm": ADDED | {"implementationDetails": 1}}),
        ({"xdm": dict.fromkeys(ADDED, "1")}, {"xdm": dict.fromkeys(ADDED, "1")}),
        (
            {"context": {"implementationDetails": {"name": "own"}}},
            {"xdm": ADDED | {"implementationDetails": {"name": "own"}}},
        ),
        ({"context": {"a": {"b": 1}}, "xdm": {"a": {"c": 2}}}, {"xdm": ADDED | {"a": {"b": 1, "c": 2}}}),
        ({"data": {}}, {"xdm": ADDED, "data": {}}),
        ({"data": [{"a": 1}], "xdm": {"b": (1,)}}, {"xdm": ADDED | {"b": [1]}, "data": [{"a": 1}]}),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_the_caller_says_wins(installation, arguments, event):
    """Fields of the caller's replace those that are added, objects among them field by field, whoever writes."""
    with accelerated(**installation):
        parts = build_event(now=0.0, **PLAIN | arguments)
    assert json.loads(parts.body, object_pairs_hook=without_twins) == event
    spliced = json.loads(with_identity(parts.body, b"{}"))
    assert spliced["xdm"] == {"identityMap": {}} | event["xdm"]


@every_installation
def test_is_a_snapshot_even_of_what_changes_meanwhile(installation):
    """Code of the caller's that runs while the data is read can no longer change the xdm, in no way."""
    owns = ({}, {"implementationDetails": {"name": "own"}}, {"timestamp": "t"}, {"n": (1,)})
    for own, context in itertools.product(owns, (None, EventContext(a={"b": 0}, identity={}, timestamp=0))):
        xdm: dict[str, typing.Any] = {"a": {"b": 1}} | own

        class Meddling(collections.UserDict):
            def items(self, xdm=xdm):
                xdm["a"]["b"] = math.nan
                xdm.update(_id="changed", identityMap={}, timestamp=1)
                return [("c", 2)]

        with accelerated(**installation):
            parts = build_event(now=0.0, **PLAIN | {"xdm": xdm, "data": Meddling(), "context": context})
        event = json.loads(parts.body, object_pairs_hook=without_twins)
        assert (parts.event_id, parts.has_identity, event["data"]) == ("the-id", False, {"c": 2})
        assert (event["xdm"]["_id"], event["xdm"]["a"], "identityMap" in event["xdm"]) == (
            "the-id",
            {"b": 1},
            False,
        )


@every_installation
def test_leaves_the_callers_objects_and_our_constants_alone(installation):
    """Nothing is written into what was given, nor into what every event shares."""
    for own, data in itertools.product(({}, {"implementationDetails": {"name": "own"}}), (None, {"a": 1})):
        xdm = {"b": [1]} | own
        before = copy.deepcopy((xdm, data, IMPLEMENTATION))
        with accelerated(**installation):
            build_event(now=0.0, **PLAIN | {"xdm": xdm, "data": data, "event_type": "t", "local_time": True})
        assert (xdm, data, IMPLEMENTATION) == before
