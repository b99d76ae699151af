"""The normaliser: what is taken, what is refused, and where."""

import asyncio
import collections
import contextlib
import dataclasses
import enum
import fractions
import inspect
import ipaddress
import json
import math
import pathlib
import re
import sys
import types
import typing
import uuid
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from unittest import mock

import pydantic
import pytest
from hypothesis import given, strategies as st

from alloy_async._json import MAX_DEPTH, Unfit, decode, encode, normalise

A_UUID = uuid.UUID("6ba7b810-9dad-41d1-80b4-00c04fd430c8")


class Colour(enum.Enum):
    RED = "red"


class Weekday(enum.StrEnum):
    MONDAY = "mon"


class Permission(enum.IntFlag):
    READ = 1
    WRITE = 2


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Ratio(float):
    pass


class Pair(typing.NamedTuple):
    x: int
    y: int


@dataclasses.dataclass
class Order:
    number: str
    lines: list[int] = dataclasses.field(default_factory=list)


class Product(pydantic.BaseModel):
    stock_unit: str = pydantic.Field(serialization_alias="SKU")
    price: Decimal = Decimal("1.50")


class Tags(pydantic.RootModel[list[str]]):
    pass


def refusal(value: object, name: str = "xdm") -> Unfit:
    """Normalise and encode a value that must be refused, and return the refusal."""
    with pytest.raises(Unfit) as caught:
        encode(normalise(value, name))
    return caught.value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        # str, bool, int, float, None: as they are
        ('é 🍪 " \\ \n </script>', r'"é 🍪 \" \\ \n </script>"'),
        ("", '""'),
        ("\0\x7f\u2028", '"\\u0000\x7f\u2028"'),
        (True, "true"),
        (False, "false"),
        (None, "null"),
        (0, "0"),
        (-7, "-7"),
        (2**64, "18446744073709551616"),
        (-(2**200), str(-(2**200))),
        (-0.0, "-0.0"),
        (1.5e300, "1.5e+300"),
        (0.1, "0.1"),
        (Text("sub"), '"sub"'),
        (Number(5), "5"),
        (Ratio(0.5), "0.5"),
        # dict and any Mapping: object
        ({"b": 1, "a": {"": []}}, '{"b":1,"a":{"":[]}}'),
        ({Text("k"): 1}, '{"k":1}'),
        (collections.OrderedDict(z=1, a=2), '{"z":1,"a":2}'),
        (collections.defaultdict(list, a=[1]), '{"a":[1]}'),
        (types.MappingProxyType({"a": 1}), '{"a":1}'),
        (collections.ChainMap({"a": 1}), '{"a":1}'),
        # list, tuple, namedtuple: array
        ([1, [2, []]], "[1,[2,[]]]"),
        ((1, 2), "[1,2]"),
        (Pair(1, 2), "[1,2]"),
        # aware datetime, date, time: ISO 8601 text
        (datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC), '"2026-03-04T05:06:07Z"'),
        (datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=UTC), '"2026-03-04T05:06:07.000089Z"'),
        (datetime(2026, 3, 4, 5, 6, 7, tzinfo=timezone(timedelta(hours=-9))), '"2026-03-04T05:06:07-09:00"'),
        (date(2026, 3, 4), '"2026-03-04"'),
        (time(5, 6, 7), '"05:06:07"'),
        # Decimal: number
        (Decimal("19.99"), "19.99"),
        (Decimal("1.10"), "1.1"),
        (Decimal(5), "5"),
        (Decimal("5.00"), "5"),
        (Decimal("1E+3"), "1000"),
        (Decimal(2**80), str(2**80)),
        # UUID: text
        (A_UUID, f'"{A_UUID}"'),
        # Enum: its value
        (Colour.RED, '"red"'),
        (Weekday.MONDAY, '"mon"'),
        (Permission.READ | Permission.WRITE, "3"),
        # dataclass, pydantic model by alias: object
        (Order("o-1", [1]), '{"number":"o-1","lines":[1]}'),
        (Product(stock_unit="s"), '{"SKU":"s","price":1.5}'),
        (Tags(["a"]), '["a"]'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_takes_what_has_one_meaning(value, text):
    """Each kind of the table becomes the JSON that the table says, at the top and inside."""
    assert encode(normalise(value, "xdm")).decode() == text
    assert encode(normalise({"a": [value]}, "xdm")).decode() == f'{{"a":[{text}]}}'


def test_subclasses_become_the_plain_kinds():
    """A subclass may carry anything along; the snapshot holds the plain kind, keys included."""
    ((key, values),) = normalise({Text("k"): [Text("v"), Number(1), Ratio(0.5), Pair(1, 2)]}, "data").items()
    assert [type(item) for item in (key, *values)] == [str, str, int, float, list]


async def a_coroutine():
    """Never runs."""


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (Ratio("nan"), "nan"),
        (Decimal("NaN"), "NaN"),
        (Decimal("sNaN"), "sNaN"),
        (Decimal("Infinity"), "Infinity"),
        (Decimal("1E+5000"), "4 200 digits"),
        (10**5000, "4 200 digits"),
        (-(10**5000), "4 200 digits"),
        (datetime(2026, 3, 4, 5, 6, 7), "time zone"),  # noqa: DTZ001 - naive on purpose
        (timedelta(seconds=1), "timedelta"),
        (b"bytes", "bytes"),
        (bytearray(b"x"), "bytearray"),
        (memoryview(b"x"), "memoryview"),
        ({1, 2}, "set"),
        (frozenset("a"), "frozenset"),
        (collections.deque([1]), "deque"),
        ((item for item in ()), "generator"),
        (range(3), "range"),
        (1j, "complex"),
        (fractions.Fraction(1, 3), "Fraction"),
        (object(), "object"),
        (len, "builtin_function_or_method"),
        (Order, "type"),
        (Product, "ModelMetaclass"),
        (Colour, "EnumType"),
        (pathlib.PurePosixPath("/a"), "PurePosixPath"),
        (ipaddress.ip_address("127.0.0.1"), "IPv4Address"),
        (re.compile("a"), "Pattern"),
        (ValueError("x"), "ValueError"),
        (..., "ellipsis"),
        (pydantic.SecretStr("hush"), "SecretStr"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_refuses_the_rest_and_says_where(value, hint):
    """What has no one meaning is refused, with its kind and its path; the value itself stays out of the text."""
    assert hint in refusal(value).problem
    unfit = refusal({"commerce": {"items": [0, {"price": value}]}})
    assert unfit.where() == "xdm.commerce.items[1].price"
    assert "hush" not in str(unfit)


@pytest.mark.parametrize(
    "key", [1, True, None, 1.5, A_UUID, (1, 2), b"a", Colour.RED, Weekday.MONDAY, date(2026, 1, 1)], ids=repr
)
def test_refuses_keys_that_are_not_text(key):
    """The standard library would turn the key 1 into "1"; here it is refused, at its object."""
    unfit = refusal({"a": [{key: 1}]})
    assert (unfit.where(), "keys must be str" in unfit.problem) == ("xdm.a[0]", True)


def test_refuses_half_of_a_surrogate_pair_where_it_stands():
    """Text that UTF-8 cannot hold is refused by the writer; in a key it is reported at the object that has it."""
    for text, path in (("\ud83d", "xdm.a[1]"), ({"\udc00": 1}, "xdm.a[1]"), (["\udfff"], "xdm.a[1][0]")):
        with pytest.raises(Unfit, match="surrogate") as caught:
            encode({"xdm": normalise({"a": ["\U0001f36a", text]}, "xdm")})
        assert caught.value.where() == path
        assert caught.value.__context__ is None  # Python's own error holds the text


def test_writes_paths_as_a_person_would():
    """A path begins with the name of the argument and counts positions in brackets."""
    assert refusal([[math.nan]], "data").where() == "data[0][0]"
    assert refusal(math.nan, "data").where() == "data"
    assert Unfit("x").where() == ""


def test_follows_lists_with_tuples_enums_and_classes_inside():
    """A path goes through every kind of container."""

    wrapped = enum.Enum("wrapped", {"ONE": {"deep": (object(),)}})
    order = Order("1", [wrapped.ONE])
    assert refusal((order,)).where() == "xdm[0].lines[0].deep[0]"


# Depth, cycles, and the limits of the interpreter


def nest(kind: str, depth: int) -> typing.Any:
    value: typing.Any = 1
    for _ in range(depth):
        value = {"a": value} if kind == "dict" else [value]
    return value


@pytest.mark.parametrize("kind", ["dict", "list"])
def test_takes_nesting_up_to_the_bound(kind):
    """The last level that is taken is MAX_DEPTH; it comes back as it was."""
    value = nest(kind, MAX_DEPTH)
    assert decode(encode(normalise(value, "xdm"))) == value


@pytest.mark.parametrize("kind", ["dict", "list"])
@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 2 * MAX_DEPTH, 100_000])
def test_refuses_nesting_beyond_the_bound(kind, depth):
    """One level more is refused, and so are very many, without a crash."""
    assert "nested too deep" in refusal(nest(kind, depth)).problem


def cycles():
    own_dict: dict[str, object] = {}
    own_dict["self"] = own_dict
    own_list: list[object] = []
    own_list.append(own_list)
    two: dict[str, object] = {"list": []}
    two["list"].append(two)  # type: ignore[attr-defined]  # a list
    order = Order("1")
    order.lines.append(order)  # type: ignore[arg-type]  # on purpose
    node = Node()
    node.next = node
    return [own_dict, own_list, two, order, node]


class Node(pydantic.BaseModel):
    next: object = None


@pytest.mark.parametrize("value", cycles(), ids=["dict", "list", "two steps", "dataclass", "model"])
def test_refuses_what_contains_itself(value):
    """A cycle ends in a refusal, not in a crash."""
    assert "contains itself" in refusal({"a": value}).problem


def test_refuses_an_enum_that_is_its_own_value():
    """An Enum whose value leads back to it is refused like any other cycle."""

    class Loop(enum.Enum):
        A = "a"

    Loop.A._value_ = Loop.A
    assert "nested too deep" in refusal(Loop.A).problem


def test_takes_the_same_object_twice():
    """An object that is shared is no cycle; it is written wherever it stands."""
    shared = {"n": [1]}
    assert encode(normalise([shared, shared], "data")) == b'[{"n":[1]},{"n":[1]}]'


def test_survives_a_call_from_near_the_recursion_limit():
    """Called with hardly any frames left, it takes the value or refuses it; Python's own error never shows."""
    value = {"a": [*nest("list", 60), "\ud800"]}
    outcomes = collections.Counter(at_depth(remaining, value) for remaining in range(20, 400, 3))
    assert set(outcomes) == {"refused"}


def at_depth(remaining: int, value: object) -> str:
    """Normalise and encode a value with about the given number of frames left."""
    if sys.getrecursionlimit() - len(inspect.stack(0)) > remaining:
        return _descend(sys.getrecursionlimit() - len(inspect.stack(0)) - remaining, value)
    return "skipped"


def _descend(steps: int, value: object) -> str:
    if steps > 0:
        return _descend(steps - 1, value)
    try:
        encode(normalise(value, "xdm"))
    except Unfit:
        return "refused"
    return "taken"


@pytest.mark.parametrize("digits", [19, 20, 400, 4_200])
def test_takes_integers_beyond_64_bits_exactly(digits):
    """Integers keep each digit, however many the interpreter itself can write."""
    number = 10 ** (digits - 1) + 7
    assert decode(encode(normalise([number, -number], "data"))) == [number, -number]
    assert decode(encode(normalise(Decimal(number), "data"))) == number


def test_takes_every_integer_below_the_interpreters_limit_or_refuses_it():
    """Around the limit of 4 300 digits there is a refusal or a number, never a stray ValueError."""
    for digits in (4_213, 4_214, 4_215, 4_300, 4_301):
        for number in (10**digits, Decimal(10) ** digits):
            try:
                text = encode(normalise(number, "data"))
            except Unfit:
                assert digits > 4_200
            else:
                assert len(text) == digits + 1


@pytest.mark.parametrize(
    "text",
    ["1" + "0" * 309 + ".5", "-1" + "0" * 400 + ".25", "1" + "0" * 4_000 + ".5"],
    ids=["310", "401", "4001"],
)
def test_refuses_decimals_that_no_float_can_hold(text):
    """A Decimal with a fraction beyond the range of a float is refused, not made infinite."""
    assert refusal({"price": Decimal(text)}).where() == "xdm.price"


@given(st.decimals(allow_nan=True, allow_infinity=True))
def test_takes_or_refuses_any_decimal(number):
    """Every Decimal becomes the number that is nearest to it, or is refused."""
    try:
        result = decode(encode(normalise(number, "data")))
    except Unfit:
        return
    assert math.isclose(result, number, rel_tol=1e-15, abs_tol=1e-320)


# Properties

surrogate_free = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | surrogate_free,
    lambda inner: st.lists(inner) | st.dictionaries(surrogate_free, inner),
)

odd_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.complex_numbers(),
    st.decimals(),
    st.fractions(),
    st.uuids(),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.datetimes(),
    st.datetimes(timezones=st.timezones()),
    st.sampled_from(
        [*Colour, *Weekday, Permission(3), Order, object(), len, ..., NotImplemented, A_UUID, Pair(1, 2)]
    ),
    st.builds(Order, st.text()),
    st.builds(Product, stock_unit=surrogate_free),
    st.builds(Text, st.text()),
)
odd_keys = st.text() | st.integers() | st.booleans() | st.none() | st.binary() | st.builds(Text, st.text())
odd_objects = st.recursive(
    odd_leaves,
    lambda inner: st.one_of(
        st.lists(inner),
        st.tuples(inner, inner),
        st.sets(st.integers()),
        st.dictionaries(odd_keys, inner),
        st.dictionaries(st.text(), inner).map(types.MappingProxyType),
        st.dictionaries(st.text(), inner).map(collections.ChainMap),
        st.lists(inner).map(collections.deque),
        st.builds(Order, st.text(), st.lists(inner)),
        st.builds(Node, next=inner),
    ),
)


@given(json_values)
def test_json_comes_back_as_it_was(value):
    """What is JSON already is written and read again without a change, kinds and order included."""
    again = decode(encode(normalise(value, "data")))
    assert repr(again) == repr(value)


@given(json_values)
def test_writes_what_the_standard_library_reads(value):
    """The bytes are compact UTF-8 that the plain standard library reads as the same value, whoever writes them."""
    assert repr(json.loads(encode(normalise(value, "data")))) == repr(value)


@given(json_values)
def test_writes_what_the_standard_library_writes(value):
    """Without the extra ``fast`` the value is the same, kinds and order included; a float may be spelt otherwise."""
    with mock.patch("alloy_async._json._fast_encoder", return_value=None):
        body = encode(normalise(value, "data"))
    assert repr(json.loads(body)) == repr(value)


@given(json_values)
def test_the_last_resort_writes_the_same(value):
    """What no fast encoder takes is left to the standard library, which writes it as it always does."""
    refuses = mock.Mock(side_effect=ValueError)
    with mock.patch("alloy_async._json._fast_encoder", return_value=refuses):
        body = encode(normalise(value, "data"))
    assert body == json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@given(odd_objects)
def test_takes_or_refuses_anything(value):
    """Whatever comes, there is valid JSON at the end, or a refusal that says where."""
    try:
        body = encode(normalise(value, "data"))
    except Unfit:
        return
    json.loads(body, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


@given(odd_objects)
def test_shares_nothing_with_what_was_given(value):
    """The snapshot holds no container of the caller's, and only the kinds that JSON has."""
    try:
        snapshot = normalise(value, "data")
    except Unfit:
        return
    given_containers = {id(item) for item in containers(value)}
    for item in containers(snapshot):
        assert type(item) in {dict, list}
        assert id(item) not in given_containers
    for leaf in leaves(snapshot):
        assert type(leaf) in {str, int, float, bool, type(None)}


def children(value: object) -> list[object]:
    if isinstance(value, Order):
        return [value.lines]
    if isinstance(value, Node):
        return [value.next]
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple, collections.deque)) else []


def containers(value: object) -> list[object]:
    own = [value] if isinstance(value, (Mapping, list, Order, Node)) else []
    return own + [item for child in children(value) for item in containers(child)]


def leaves(value: object) -> list[object]:
    if isinstance(value, (dict, list)):
        return [leaf for child in children(value) for leaf in leaves(child)]
    return [value]


def test_later_changes_change_nothing():
    """The caller may go on with the objects; the snapshot stays what it was."""
    value = {"items": [{"n": 1}], "order": Order("1", [1])}
    snapshot = normalise(value, "xdm")
    value["items"][0]["n"] = 2
    value["order"].lines.append(2)
    assert snapshot == {"items": [{"n": 1}], "order": {"number": "1", "lines": [1]}}


# Objects that misbehave while they are read


class RaisingMapping(Mapping):
    def __getitem__(self, key):
        raise ValueError("hush")

    def __iter__(self):
        return iter(["a"])

    def __len__(self):
        return 1


class RaisingList(list):
    def __iter__(self):
        raise ZeroDivisionError("hush")


class RaisingZone(tzinfo):
    def utcoffset(self, _moment):
        raise LookupError("hush")


class RaisingModel(pydantic.BaseModel):
    a: int = 1

    @pydantic.field_serializer("a")
    def _raise(self, _value: int) -> int:
        raise KeyError("hush")


@dataclasses.dataclass
class Half:
    here: int
    missing: int


def half() -> Half:
    value = Half(1, 2)
    del value.missing
    return value


@pytest.mark.parametrize(
    "value",
    [
        RaisingMapping(),
        RaisingList([1]),
        datetime(2026, 1, 1, tzinfo=RaisingZone()),
        RaisingModel(),
        half(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_refuses_what_raises_while_it_is_read(value):
    """An object whose own code raises is refused with its path; its exception and text stay inside."""
    with pytest.raises(Unfit) as caught:
        encode(normalise({"a": [value]}, "xdm"))
    assert caught.value.where() == "xdm.a[0]"
    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is None


# numpy and pandas


def test_takes_numpy_scalars_and_refuses_the_rest_of_numpy():
    """numpy numbers, booleans and texts are what they stand for; arrays, moments and non-numbers are refused."""
    numpy = pytest.importorskip("numpy")
    given_values = [numpy.int64(-5), numpy.uint64(2**64 - 1), numpy.float32(0.5), numpy.float64(0.1)]
    given_values += [numpy.bool_(True), numpy.str_("é")]
    assert encode(normalise(given_values, "data")).decode() == '[-5,18446744073709551615,0.5,0.1,true,"é"]'
    assert [type(value) for value in normalise(given_values, "data")] == [int, int, float, float, bool, str]
    refused = [
        numpy.float64("nan"),
        numpy.float32("inf"),
        numpy.array([1]),
        numpy.array(1),
        numpy.bytes_(b"x"),
    ]
    refused += [
        numpy.datetime64("2026-01-01"),
        numpy.timedelta64(1, "s"),
        numpy.complex64(1),
        numpy.void(b"ab"),
    ]
    for value in refused:
        assert refusal({"a": value}).where() == "xdm.a"


def test_takes_pandas_moments_and_refuses_the_rest_of_pandas():
    """An aware Timestamp is a datetime; NaT, NA, naive moments, durations and frames are refused."""
    pandas = pytest.importorskip("pandas")
    moment = pandas.Timestamp("2026-03-04T05:06:07Z")
    assert normalise(moment, "data") == "2026-03-04T05:06:07Z"
    assert type(normalise(moment, "data")) is str
    refused = [
        pandas.NaT,
        pandas.NA,
        pandas.Timestamp("2026-03-04"),
        pandas.Timedelta("1s"),
        pandas.Series([1]),
    ]
    for value in [*refused, pandas.DataFrame({"a": [1]})]:
        assert refusal({"a": value}).where() == "xdm.a"


# Reading


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", "nul", "{'a':1}", "[" * 100_000, "1" * 5_000, b"\xef\xbb\xbf{", "\ud800"],
    ids=lambda body: repr(body)[:12],
)
def test_reading_what_is_not_json_raises_value_error(body):
    """Broken text, endless nesting and absurd numbers all raise ValueError and nothing else."""
    with pytest.raises(ValueError):
        decode(body)


@given(st.binary() | st.text())
def test_reading_anything_gives_a_value_or_value_error(body):
    """No input makes reading fail in any other way."""
    with contextlib.suppress(ValueError):
        decode(body)


async def test_runs_inside_a_loop_as_well():
    """A coroutine in the data is refused without being awaited."""
    coroutine = a_coroutine()
    try:
        assert "coroutine" in refusal({"a": coroutine}).problem
    finally:
        coroutine.close()
    future = asyncio.get_running_loop().create_future()
    assert "Future" in refusal(future).problem
