"""Hostile and careless input: each recorded line does what it says, and so do our own.

A line names a command, its options, and what is expected: ``ok``, or ``error``, which means one documented exception
that names the option or path, nothing sent, and an instance that stays usable. ``either`` allows both; a crash, a hang
and a foreign exception are never allowed.
"""

import ast
import asyncio
import collections
import dataclasses
import enum
import fractions
import ipaddress
import json
import math
import operator
import os
import pathlib
import re
import sqlite3
import types
import uuid
import zlib
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pydantic
import pytest
from common import IDS, settle

from alloy_async import (
    Alloy,
    AlloyError,
    ConfigurationError,
    ConsentDeclined,
    ConsentStoreError,
    InvalidCommand,
)
from alloy_async._spellings import COMMANDS
from alloy_async.edge.transport import EdgeResponse
from alloy_async.stores import MemoryStore
from alloy_async.stores.base import Preference, VisitorKey
from alloy_async.stores.sqlite import FILE_NAME, SQLiteStore
from alloy_async.testing import RecordingEdge

LINES = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "bad-input-examples.jsonl"

LONGEST = 60.0
"""Seconds after which a line counts as hanging."""

FUTURE_COMMANDS = {"setConsent", "getIdentity", "appendIdentityToUrl", "from_cookies"}
"""Commands of a line that this project does not have."""


# Values that JSON cannot hold


def word(spec: dict[str, Any]) -> Any:
    """Return what a spec says in its one field besides the name of its kind."""
    return next(value for key, value in spec.items() if key != "$t")


def number(expression: Any) -> int:
    """Evaluate an integer, or an expression such as ``10**5000 + 1``."""
    return calculate(ast.parse(str(expression), mode="eval").body)


OPERATORS = {
    ast.Pow: operator.pow,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.LShift: operator.lshift,
    ast.USub: operator.neg,
}


def calculate(node: ast.expr) -> int:
    if isinstance(node, ast.Constant):
        return int(node.value)
    if isinstance(node, ast.UnaryOp):
        return OPERATORS[type(node.op)](calculate(node.operand))
    assert isinstance(node, ast.BinOp)
    return OPERATORS[type(node.op)](calculate(node.left), calculate(node.right))


class Text(str):
    __slots__ = ()


async def never_awaited() -> None:
    """Do nothing."""


def make_enum(spec: dict[str, Any]) -> enum.Enum:
    value = spec.get("v", spec.get("value"))
    if spec["kind"] == "str":
        return enum.StrEnum("Word", {"MEMBER": str(value or "a")}).MEMBER
    if spec["kind"] == "intflag":
        return enum.IntFlag("Flags", {"READ": 1, "WRITE": 2})(int(value or 3))
    return enum.Enum("Plain", {"MEMBER": value if value is not None else "a"}).MEMBER


def make_model(spec: dict[str, Any]) -> pydantic.BaseModel:
    aliases = spec.get("aliases") or {}
    if isinstance(aliases, list):
        aliases = dict(zip(spec["fields"], aliases, strict=True))
    fields = {
        name: (Any, pydantic.Field(decode(value), alias=aliases.get(name)))
        for name, value in spec["fields"].items()
    }
    return pydantic.create_model("Model", **fields)()


def make_dataclass(spec: dict[str, Any]) -> Any:
    return dataclasses.make_dataclass("Data", spec["fields"])(**decode(spec["fields"]))


def make_namedtuple(spec: dict[str, Any]) -> Any:
    names = list(spec["fields"])
    return collections.namedtuple("Named", names)(**decode(spec["fields"]))  # noqa: PYI024 - its names come from data


def make_cycle(spec: dict[str, Any]) -> Any:
    if spec["kind"] == "list_self":
        itself: list[Any] = []
        itself.append(itself)
        return itself
    start: dict[str, Any] = {}
    start["a"] = start if spec["kind"] == "dict_self" else [start]
    return start


def make_nest(spec: dict[str, Any]) -> Any:
    if spec["kind"] == "jsontext":
        return "[" * spec["depth"] + "]" * spec["depth"]
    value: Any = 1
    for _ in range(spec["depth"]):
        value = {"a": value} if spec["kind"] == "dict" else [value]
    return value


def make_pandas(spec: dict[str, Any]) -> Any:
    kind = getattr(pytest.importorskip("pandas"), spec["kind"])
    return kind(decode(spec["v"])) if "v" in spec else kind if not callable(kind) else kind([1])


def make_numpy(spec: dict[str, Any]) -> Any:
    numpy = pytest.importorskip("numpy")
    return numpy.dtype(spec["dtype"]).type(*([spec["v"]] if "v" in spec else []))


def make_array(spec: dict[str, Any]) -> Any:
    return pytest.importorskip("numpy").array(
        spec.get("v", spec.get("items", [1, 2])), dtype=spec.get("dtype")
    )


def make_timedelta(spec: dict[str, Any]) -> timedelta:
    units = {name: value for name, value in spec.items() if name in {"days", "hours", "minutes", "seconds"}}
    return timedelta(**units) if units else timedelta(seconds=float(word(spec)))


def join(parts: list[Any]) -> Any:
    return parts[0][:0].join(parts) if parts else ""


def gzip_bomb(megabytes: int) -> bytes:
    """Return gigabytes of zeros, compressed, without ever holding them."""
    compressor = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    parts = [compressor.compress(bytes(1 << 20)) for _ in range(megabytes)]
    return b"".join(parts) + compressor.flush()


def cookies_to_store(count: int) -> str:
    entries = [{"key": f"kndctr_X_{n}", "value": "v", "maxAge": 60} for n in range(count)]
    return json.dumps({"requestId": "1", "handle": [{"type": "state:store", "payload": entries}]})


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A path that has to be prepared: directory, unreadable, symlink_outside, disk_full, read_only."""

    kind: str


SHARED = {"n": 1}

KINDS: dict[str, Any] = {
    "float": lambda spec: float(word(spec)),
    "int": lambda spec: number(word(spec)),
    "decimal": lambda spec: Decimal(word(spec)),
    "fraction": lambda spec: fractions.Fraction(word(spec)),
    "datetime": lambda spec: datetime.fromisoformat(word(spec)),
    "date": lambda spec: date.fromisoformat(word(spec)),
    "time": lambda spec: time.fromisoformat(word(spec)),
    "timedelta": make_timedelta,
    "uuid": lambda spec: uuid.UUID(word(spec)),
    "bytes": lambda spec: bytes.fromhex(spec["hex"]),
    "bytearray": lambda spec: bytearray.fromhex(spec["hex"]),
    "memoryview": lambda spec: memoryview(bytes.fromhex(spec["hex"])),
    "set": lambda spec: set(decode(spec["items"])),
    "frozenset": lambda spec: frozenset(decode(spec["items"])),
    "tuple": lambda spec: tuple(decode(spec["items"])),
    "deque": lambda spec: collections.deque(decode(spec["items"])),
    "generator": lambda spec: (item for item in decode(spec["items"])),
    "enum": make_enum,
    "namedtuple": make_namedtuple,
    "dataclass": make_dataclass,
    "typeddict": lambda spec: decode(spec["fields"]),
    "mappingproxy": lambda spec: types.MappingProxyType(decode(spec["fields"])),
    "ordereddict": lambda spec: collections.OrderedDict(decode(spec["fields"])),
    "defaultdict": lambda spec: collections.defaultdict(list, decode(spec["fields"])),
    "pydantic": make_model,
    "numpy": make_numpy,
    "ndarray": make_array,
    "pandas": make_pandas,
    "object": lambda _: object(),
    "function": lambda _: word,
    "coroutine": lambda _: never_awaited(),
    "path": lambda spec: pathlib.Path(spec.get("v", "/tmp/x")),
    "url": lambda spec: httpx.URL(spec.get("v", "https://x.example/")),
    "ipaddress": lambda spec: ipaddress.ip_address(spec.get("v", "127.0.0.1")),
    "regex": lambda spec: re.compile(spec.get("v", "a+")),
    "complex": lambda spec: complex(str(spec["v"]).replace(" ", "")) if "v" in spec else complex(1, 2),
    "exception": lambda spec: ValueError(spec.get("v", "hush")),
    "str_subclass": lambda spec: Text(word(spec)),
    "ellipsis": lambda _: ...,
    "secret": lambda spec: pydantic.SecretStr(spec.get("v", "hush")),
    "none": lambda _: None,
    "bool": lambda spec: bool(word(spec)),
    "lone_surrogate": lambda spec: chr(int(word(spec), 16)),
    "cycle": make_cycle,
    "shared_ref": lambda _: [SHARED, SHARED],
    "nest": make_nest,
    "str": lambda spec: spec["repeat"] * spec["n"],
    "list": lambda spec: [decode(spec["repeat"])] * spec["n"],
    "dict": lambda spec: {f"key{n}": n for n in range(spec["n"])},
    "concat": lambda spec: join(decode(spec["parts"])),
    "encode": lambda spec: decode(spec["v"]).encode(spec["charset"]),
    "jsonint": lambda spec: '{"requestId":"1","handle":[],"n":%s}' % ("9" * spec["digits"]),
    "handles": lambda spec: cookies_to_store(spec["n"]),
    "gzip_bomb": lambda spec: gzip_bomb(spec["mb"]),
    "fs": lambda spec: Prepared(spec["kind"]),
}


def decode(value: Any) -> Any:
    """Turn what a line writes into what it means."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$t" in value:
        return KINDS[value["$t"]](value)
    if "$items" in value:
        return {decode(key): decode(item) for key, item in value["$items"]}
    return {key: decode(item) for key, item in value.items()}


DIRECTIVES = {
    "$mutate_after_call",
    "$before_configure",
    "$twice",
    "$after_close",
    "$from_other_loop",
    "$cancel_while_parked",
    "$while_parked",
    "$store",
}


def split_directives(options: Any) -> tuple[Any, dict[str, Any]]:
    """Take the directives out of a line's options."""
    if not isinstance(options, dict) or "$t" in options or "$items" in options:
        return decode(options), {}
    unknown = {key for key in options if key.startswith("$")} - DIRECTIVES
    assert not unknown, f"directives unknown to this test: {unknown}"
    plain = {key: decode(value) for key, value in options.items() if key not in DIRECTIVES}
    return plain, {key: decode(value) for key, value in options.items() if key in DIRECTIVES}


# Where a line runs


class Edge(RecordingEdge):
    """A recording edge that keeps the bytes too."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    async def send(self, request, may_start):
        """Keep the bytes of a request that may start."""
        if may_start():
            self.texts.append(request.body.decode())
        return await super().send(request, may_start)


class FullDisk(MemoryStore):
    """A store that cannot write."""

    async def save_preference(self, key, preference, *, by=""):
        """Fail as a full disk does."""
        raise ConsentStoreError("save", "test", "database or disk is full.")


async def prepare(folder: pathlib.Path, kind: str) -> dict[str, Any]:
    """Prepare the place of the state, and return the options of ``configure`` that point to it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / FILE_NAME
    if kind == "directory":
        path.mkdir()
    elif kind == "unreadable":
        path.write_bytes(b"all")  # root may read it all the same, and must not take it for consent
        path.chmod(0)
    elif kind == "symlink_outside":
        path.symlink_to(await consenting_file(folder.parent / "outside"))
    elif kind == "read_only" and os.geteuid() != 0:
        folder.chmod(0o500)
    elif kind in {"disk_full", "read_only"}:  # root may write in any folder
        return {"store": FullDisk()}
    else:
        raise AssertionError(f"unknown kind of path: {kind}")
    return {"state_dir": folder, "store": "sqlite"}


async def consenting_file(folder: pathlib.Path) -> pathlib.Path:
    """Write a file that holds an honest "all"."""
    folder.mkdir(mode=0o700)
    store = SQLiteStore(folder)
    key = VisitorKey(IDS["ims_org_id"], IDS["config_id"])
    await store.save_preference(key, Preference("all", 0.0, 1e12))
    await store.aclose()
    return store.path


# What is expected


async def outcome(future: asyncio.Future[Any]) -> AlloyError | None:
    """Await a command; return its error when it is a documented one, and let everything else out."""
    try:
        await future
    except AlloyError as error:
        return error
    return None


def check_outcome(line: dict[str, Any], error: AlloyError | None) -> None:
    """Compare how a command ended with what the line says."""
    if error is not None:
        check_names_the_fault(line, error)
    if not line.get("either"):
        assert ("error" if error is not None else "ok") == line["expect"], (line["why"], error)


def check_names_the_fault(line: dict[str, Any], error: AlloyError) -> None:
    """A refused input is named by option or path, in a text of bounded length; the classes are the documented ones."""
    text = str(error)
    assert type(error).__module__ == "alloy_async.errors"
    assert "internal error" not in text
    assert "hush" not in text
    assert len(text) < 2_000
    required = re.search(r"must name the path (\S+)", line.get("why", ""))
    assert required is None or required[1] in text
    if (
        isinstance(error, ConfigurationError)
        and line["command"] == "configure"
        and "$twice" not in line["options"]
    ):
        assert error.option
    if type(error) is InvalidCommand and line["command"] in COMMANDS and has_only_options(line):
        assert error.path


def has_only_options(line: dict[str, Any]) -> bool:
    """Return whether an option is all that can be wrong, so that it must be named."""
    return isinstance(line["options"], dict) and not DIRECTIVES & line["options"].keys()


def check_wire(line: dict[str, Any], texts: list[str]) -> None:
    """Compare what was sent with the fragment, or exact text, that the line asks for."""
    if "wire" in line:
        wanted = [line["wire"], *line.get("wire_alternatives", [])]
        sent = [json.loads(text) for text in texts]
        assert any(appears(fragment, body) for fragment in wanted for body in sent), texts
    if "wire_raw" in line:
        wanted = [line["wire_raw"], *line.get("wire_alternatives_raw", [])]
        assert any(raw in text for raw in wanted for text in texts), texts


def appears(fragment: Any, body: Any) -> bool:
    """Return whether a fragment stands anywhere in a body."""
    if covers(fragment, body):
        return True
    inner = body.values() if isinstance(body, dict) else body if isinstance(body, list) else ()
    return any(appears(fragment, item) for item in inner)


def covers(fragment: Any, body: Any) -> bool:
    if isinstance(fragment, dict):
        return isinstance(body, dict) and all(
            key in body and covers(value, body[key]) for key, value in fragment.items()
        )
    if isinstance(fragment, list):
        return isinstance(body, list) and len(body) == len(fragment) and all(map(covers, fragment, body))
    return isinstance(fragment, bool) is isinstance(body, bool) and fragment == body


async def check_still_usable(alloy: Alloy, edge: Edge) -> None:
    """After whatever happened, consent can be given and a good event is delivered."""
    with suppress(ConfigurationError):  # the gate may be switched off
        await alloy.opt_in(purposes="all")
    assert (await alloy.event(type="good")).event_id
    assert edge.event_types[-1] == "good"


async def check_still_closed(alloy: Alloy, edge: Edge) -> None:
    """A choice that could not be written opens nothing: events go on waiting."""
    parked = alloy.event()
    await settle()
    assert not parked.done()
    assert edge.requests == []


# How a line is carried out


async def try_configure(line: dict[str, Any], base: dict[str, Any]) -> None:
    options, directives = split_directives(line["options"])
    edge: Edge = base["transport"]
    given = {"transport": edge, "store": MemoryStore()} | options
    async with Alloy() as alloy:
        if "$twice" in directives:
            await alloy("configure", given)
        error = await outcome(alloy("configure", given))
        check_outcome(line, error)
        assert edge.requests == []
        if error is not None and "$twice" not in directives:
            await alloy.configure(**base)
        await check_still_usable(alloy, edge)


async def try_create_instance(line: dict[str, Any]) -> None:
    options, _ = split_directives(line["options"])
    error: AlloyError | None = None
    try:
        alloy = Alloy(**options)
    except AlloyError as raised:
        error = raised
    check_outcome(line, error)
    if error is None:
        await alloy.aclose()


async def try_load_preferences(line: dict[str, Any], base: dict[str, Any], folder: pathlib.Path) -> None:
    options, _ = split_directives(line["options"])
    if "file" in options:
        where = await prepare(folder, options["file"].kind)
    else:
        content = options["content"]
        folder.mkdir(mode=0o700)
        (folder / FILE_NAME).write_bytes(
            content if isinstance(content, bytes) else content.encode("utf-8", "replace")
        )
        where = {"state_dir": folder, "store": "sqlite"}
    edge: Edge = base["transport"]
    async with Alloy() as alloy:
        check_outcome(line, await outcome(alloy.configure(**base | where)))
        parked = alloy.event()
        await settle()
        assert not parked.done()
        assert edge.requests == []
        said = await outcome(alloy.opt_in(purposes="all"))
        assert said is None or isinstance(said, ConsentStoreError)
        if said is None:
            assert await parked
    assert parked.done()
    with suppress(OSError):
        folder.chmod(0o700)


async def try_answer(line: dict[str, Any], base: dict[str, Any]) -> None:
    """Give the line's answer over a real socket."""
    loopback = pytest.importorskip("alloy_async.testing._loopback")
    options, _ = split_directives(line["options"])
    async with loopback.LoopbackEdge() as edge, Alloy() as alloy:
        kept = {name: value for name, value in base.items() if name not in {"transport", "clock"}}
        await alloy.configure(**kept, endpoint=edge.url)
        await alloy.opt_in(purposes="all")
        for view_start in (True, False):
            edge.answers.append(scripted_answer(loopback, line["response"]))
            error = await outcome(alloy("event", options | {"viewStart": view_start}))
            check_outcome(line, error)
        assert len(edge.arrivals) == 2  # tried once each, and sent nowhere else
        assert (await alloy.event(type="good")).event_id
        assert all("cookie" not in arrival.headers for arrival in edge.arrivals)
        await alloy.opt_in(purposes="none")
        with pytest.raises(ConsentDeclined):
            await alloy.event()


def scripted_answer(loopback: Any, response: dict[str, Any]) -> Any:
    body = decode(response.get("body", response.get("body_text", "")))
    if not isinstance(body, (str, bytes)):
        body = json.dumps(body)
    raw = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    headers = {name.lower(): str(value) for name, value in response.get("headers", {}).items()}
    if isinstance(response.get("body"), dict) and response["body"].get("$t") == "gzip_bomb":
        headers.setdefault("content-encoding", "gzip")
    answer = EdgeResponse(response["status"], headers, raw)
    return loopback.Chunked(answer, 1 << 20) if len(raw) > 1 << 23 else answer


async def try_command(line: dict[str, Any], base: dict[str, Any], folder: pathlib.Path) -> None:
    """Call a command while consent is pending, give consent, and look at what became of it."""
    options, directives = split_directives(line["options"])
    edge: Edge = base["transport"]
    if "$store" in directives:
        base = base | await store_for(directives["$store"], folder)
    async with Alloy() as alloy:
        if "$before_configure" in directives:
            check_outcome(line, await outcome(alloy(line["command"], options)))
            await alloy.configure(**base)
            await check_still_usable(alloy, edge)
            return
        await alloy.configure(**base)
        if "$after_close" in directives:
            await alloy.aclose()
        error = await carry_out(alloy, line["command"], options, directives)
        check_outcome(line, error)
        assert edge.requests == [] or error is None
        if "$after_close" in directives:
            return
        if "$store" in directives and error is not None:
            await check_still_closed(alloy, edge)
            return
        await check_still_usable(alloy, edge)
    check_wire(line, edge.texts)
    if error is None and line["command"] == "event" and "$cancel_while_parked" not in directives:
        assert len(edge.events) == 1 + directives.get("$while_parked", 2 if "$twice" in directives else 1)


async def carry_out(
    alloy: Alloy, command: str, options: Any, directives: dict[str, Any]
) -> AlloyError | None:
    """Call a command as its directives say, and return the first error, if any."""
    if "$from_other_loop" in directives:
        return await asyncio.to_thread(asyncio.run, outcome_elsewhere(alloy, command, options))
    count = directives.get("$while_parked", 2 if "$twice" in directives else 1)
    futures = [alloy(command, options) for _ in range(count)]
    if "$mutate_after_call" in directives:
        change(options, *directives["$mutate_after_call"])
    await settle()
    if "$cancel_while_parked" in directives:
        for future in futures:
            future.cancel()
    if command != "optIn" and not all(future.done() for future in futures):
        await alloy.opt_in(purposes="all")
    errors = [await outcome(future) for future in futures if not future.cancelled()]
    return next((error for error in errors if error is not None), None)


async def outcome_elsewhere(alloy: Alloy, command: str, options: Any) -> AlloyError | None:
    return await outcome(alloy(command, options))


def change(options: Any, path: str, value: Any) -> None:
    """Change the caller's own object, as careless code does after a call."""
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in steps:
        options = options[step]
    options[last] = value


async def store_for(given: Any, folder: pathlib.Path) -> dict[str, Any]:
    if isinstance(given, Prepared):
        return await prepare(folder, given.kind)
    if given in {"disk_full", "read_only", "directory", "unreadable", "symlink_outside"}:
        return await prepare(folder, given)
    return {"store": given}


async def carry_out_line(line: dict[str, Any], base: dict[str, Any], folder: pathlib.Path) -> None:
    if line["command"] == "create_instance":
        await try_create_instance(line)
    elif line["command"] == "load_preferences":
        await try_load_preferences(line, base, folder)
    elif "response" in line:
        await try_answer(line, base)
    elif line["command"] == "configure" and "$before_configure" not in line["options"]:
        await try_configure(line, base)
    else:
        await try_command(line, base, folder)


# Our own lines: one for each kind and each directive, so that this file proves something without the recorded ones


def event(value: Any, expect: str, why: str = "", **more: Any) -> dict[str, Any]:
    return {"command": "event", "options": {"data": {"v": value}}, "expect": expect, "why": why, **more}


def reply(
    expect: str, status: int = 200, headers: dict[str, str] | None = None, **body: Any
) -> dict[str, Any]:
    response = {"status": status, "headers": headers or {"content-type": "application/json"}, **body}
    return {"command": "event", "options": {}, "expect": expect, "why": "", "response": response}


def command_line(command: str, options: Any, expect: str, **more: Any) -> dict[str, Any]:
    return {"command": command, "options": options, "expect": expect, "why": "", **more}


OWN_LINES: dict[str, dict[str, Any]] = {
    "nan": event([{"$t": "float", "v": "nan"}], "error", "must name the path data.v[0]"),
    "long int": event({"$t": "int", "v": "10**5000"}, "error"),
    "big int": event({"$t": "int", "v": "2**64"}, "ok", wire_raw='"v":18446744073709551616'),
    "decimal": event({"$t": "decimal", "v": "1.10"}, "ok", wire={"v": 1.1}),
    "fraction": event({"$t": "fraction", "v": "1/3"}, "error"),
    "datetime": event(
        {"$t": "datetime", "v": "2026-01-02T03:04:05Z"}, "ok", wire={"v": "2026-01-02T03:04:05Z"}
    ),
    "naive": event({"$t": "datetime", "v": "2026-01-02T03:04:05"}, "error"),
    "date": event({"$t": "date", "v": "2026-01-02"}, "ok", wire={"v": "2026-01-02"}),
    "time": event({"$t": "time", "v": "03:04:05"}, "ok", wire={"v": "03:04:05"}),
    "timedelta": event({"$t": "timedelta", "seconds": 5}, "error"),
    "bytes": event({"$t": "bytes", "hex": "00ff"}, "error"),
    "bytearray": event({"$t": "bytearray", "hex": "00ff"}, "error"),
    "memoryview": event({"$t": "memoryview", "hex": "00ff"}, "error"),
    "set": event({"$t": "set", "items": [1]}, "error"),
    "tuple": event({"$t": "tuple", "items": [1]}, "ok", wire={"v": [1]}),
    "deque": event({"$t": "deque", "items": [1]}, "error"),
    "generator": event({"$t": "generator", "items": [1]}, "error"),
    "str enum": event({"$t": "enum", "kind": "str", "v": "w"}, "ok", wire={"v": "w"}),
    "plain enum": event({"$t": "enum", "kind": "plain", "v": 5}, "ok", wire={"v": 5}),
    "intflag": event({"$t": "enum", "kind": "intflag"}, "ok", wire={"v": 3}),
    "namedtuple": event({"$t": "namedtuple", "fields": {"x": 1}}, "ok", wire={"v": [1]}),
    "dataclass": event({"$t": "dataclass", "fields": {"x": 1}}, "ok", wire={"v": {"x": 1}}),
    "typeddict": event({"$t": "typeddict", "fields": {"x": 1}}, "ok", wire={"v": {"x": 1}}),
    "ordereddict": event({"$t": "ordereddict", "fields": {"x": 1}}, "ok", wire={"v": {"x": 1}}),
    "defaultdict": event({"$t": "defaultdict", "fields": {"x": 1}}, "ok", wire={"v": {"x": 1}}),
    "pydantic": event(
        {"$t": "pydantic", "fields": {"x": 1}, "aliases": {"x": "X"}}, "ok", wire={"v": {"X": 1}}
    ),
    "numpy": event({"$t": "numpy", "dtype": "int64", "v": 5}, "ok", wire={"v": 5}),
    "ndarray": event({"$t": "ndarray", "dtype": "int64"}, "error"),
    "NaT": event({"$t": "pandas", "kind": "NaT"}, "error"),
    "Series": event({"$t": "pandas", "kind": "Series"}, "error"),
    "function": event({"$t": "function"}, "error"),
    "coroutine": event({"$t": "coroutine"}, "error"),
    "path": event({"$t": "path", "v": "/x"}, "error"),
    "ipaddress": event({"$t": "ipaddress"}, "error"),
    "regex": event({"$t": "regex"}, "error"),
    "complex": event({"$t": "complex"}, "error"),
    "exception": event({"$t": "exception"}, "error"),
    "ellipsis": event({"$t": "ellipsis"}, "error"),
    "secret": event({"$t": "secret"}, "error"),
    "none": event({"$t": "none"}, "ok", wire={"v": None}),
    "surrogate": event({"$t": "lone_surrogate", "v": "d83d"}, "error"),
    "cycle": event({"$t": "cycle", "kind": "two_step"}, "error"),
    "list cycle": event({"$t": "cycle", "kind": "list_self"}, "error"),
    "shared": event({"$t": "shared_ref"}, "ok", wire={"v": [{"n": 1}, {"n": 1}]}),
    "deep": event({"$t": "nest", "kind": "dict", "depth": 100_000}, "error"),
    "deep text": event({"$t": "nest", "kind": "jsontext", "depth": 20_000}, "ok"),
    "long text": event({"$t": "str", "repeat": "x", "n": 100_000}, "error"),
    "long list": event({"$t": "list", "repeat": 1, "n": 100_000}, "error"),
    "wide": event({"$t": "dict", "n": 5_000}, "error"),
    "concat": event(
        {"$t": "concat", "parts": ["a", {"$t": "str", "repeat": "b", "n": 2}]}, "ok", wire={"v": "abb"}
    ),
    "encoded": event({"$t": "encode", "v": "a", "charset": "utf-16"}, "error"),
    "number as key": event({"$items": [[1, 1]]}, "error"),
    "mutated": command_line(
        "event", {"data": {"v": [1]}, "$mutate_after_call": ["data.v.0", 2]}, "ok", wire={"v": [1]}
    ),
    "options list": command_line("event", [], "error"),
    "options text": command_line("optIn", "all", "error"),
    "unknown option": command_line("event", {"xdmm": {}}, "error"),
    "option no text": command_line("event", {"$items": [[1, 2]]}, "error"),
    "before": command_line("event", {"$before_configure": True}, "error"),
    "opt in before": command_line("optIn", {"purposes": "all", "$before_configure": True}, "error"),
    "after close": command_line("event", {"$after_close": True}, "error"),
    "opt in after close": command_line("optIn", {"purposes": "all", "$after_close": True}, "error"),
    "elsewhere": command_line("event", {"$from_other_loop": True}, "error"),
    "opt in elsewhere": command_line("optIn", {"purposes": "all", "$from_other_loop": True}, "error"),
    "cancelled": command_line("event", {"$cancel_while_parked": True}, "ok"),
    "many parked": command_line("event", {"$while_parked": 300}, "ok"),
    "event twice": command_line("event", {"xdm": {"_id": "same"}, "$twice": True}, "ok"),
    "opt in twice": command_line("optIn", {"purposes": "all", "$twice": True}, "ok"),
    "configure twice": command_line("configure", {"configId": "c", "imsOrgId": "o", "$twice": True}, "error"),
    "full disk": command_line(
        "optIn", {"purposes": "all", "$store": {"$t": "fs", "kind": "disk_full"}}, "error"
    ),
    "unsafe store": command_line(
        "optIn", {"purposes": "all", "$store": {"$t": "fs", "kind": "symlink_outside"}}, "error"
    ),
    "type no text": command_line("event", {"type": 5}, "error"),
    "empty type": command_line("event", {"type": ""}, "error"),
    "merge id no text": command_line("event", {"mergeId": 5}, "error"),
    "view start 1": command_line("event", {"viewStart": 1}, "error"),
    "view start yes": command_line("event", {"viewStart": "yes"}, "error"),
    "scopes text": command_line("event", {"decisionScopes": "x"}, "error"),
    "scopes number": command_line("event", {"decisionScopes": [1]}, "error"),
    "scopes, too many": command_line("event", {"decisionScopes": ["x"] * 31}, "error"),
    "xdm list": command_line("event", {"xdm": []}, "error"),
    "id no text": command_line("event", {"xdm": {"_id": 5}}, "error"),
    "identities list": command_line("event", {"xdm": {"identityMap": []}}, "error"),
    "identity empty": command_line("event", {"xdm": {"identityMap": {"A": [{"id": ""}]}}}, "error"),
    "long key": event({"$items": [[{"$t": "str", "repeat": "k", "n": 300_000}, {"$t": "object"}]]}, "error"),
    "purposes list": command_line("optIn", {"purposes": ["all"]}, "error"),
    "purposes bytes": command_line("optIn", {"purposes": {"$t": "bytes", "hex": "616c6c"}}, "error"),
    "purposes true": command_line("optIn", {"purposes": True}, "error"),
    "purposes long": command_line("optIn", {"purposes": {"$t": "str", "repeat": "x", "n": 10**6}}, "error"),
    "purposes huge": command_line("optIn", {"purposes": {"$t": "int", "v": "10**5000"}}, "error"),
    "purposes subclass": command_line("optIn", {"purposes": {"$t": "str_subclass", "v": "all"}}, "ok"),
    "option huge": command_line("event", {"$items": [[{"$t": "int", "v": "10**5000"}, 1]]}, "error"),
    "log nothing": command_line("log", {}, "error"),
    "log yes": command_line("log", {"enabled": "yes"}, "error"),
    "ecid option": command_line("getEcid", {"x": 1}, "error"),
    "command long": command_line("x" * 10_000, {}, "error"),
    "command private": command_line("_configure", {}, "error"),
    "customer ids empty": command_line("setCustomerIds", {}, "error"),
    "customer ids of ours": command_line("setCustomerIds", {"ECID": {"id": "x"}}, "error"),
    "customer ids, two primary": command_line(
        "setCustomerIds", {name: {"id": "x", "primary": True} for name in "ab"}, "error"
    ),
    "customer ids, hash yes": command_line("setCustomerIds", {"a": {"id": "x", "hash": "yes"}}, "error"),
    "customer ids, state": command_line(
        "setCustomerIds", {"a": {"id": "x", "authenticatedState": []}}, "error"
    ),
    "customer ids": command_line(
        "setCustomerIds", {"CRM": {"id": "u"}}, "ok", wire={"identityMap": {"CRM": [{"id": "u"}]}}
    ),
    "customer id no text": command_line("setCustomerIds", {"CRM": {"id": 5}}, "error"),
    "bad name": command_line("create_instance", {"name": {"$t": "concat", "parts": ["a", "\0"]}}, "error"),
    "good name": command_line("create_instance", {"name": "second"}, "ok"),
    "empty file": command_line("load_preferences", {"content": ""}, "ok"),
    "text file": command_line("load_preferences", {"content": '{"purposes": "all"}'}, "ok"),
    "folder": command_line("load_preferences", {"file": {"$t": "fs", "kind": "directory"}}, "ok"),
    "link": command_line("load_preferences", {"file": {"$t": "fs", "kind": "symlink_outside"}}, "ok"),
    "read only": command_line("load_preferences", {"file": {"$t": "fs", "kind": "read_only"}}, "ok"),
    "full": command_line("load_preferences", {"file": {"$t": "fs", "kind": "disk_full"}}, "ok"),
    "bomb": reply("error", body={"$t": "gzip_bomb", "mb": 200}),
    "huge number": reply("error", body={"$t": "jsonint", "digits": 5_000}),
    "many cookies": reply("ok", body={"$t": "handles", "n": 2_000}),
    "too many cookies": reply("error", body={"$t": "handles", "n": 50_000}),
    "deep answer": reply("error", body={"$t": "nest", "kind": "jsontext", "depth": 100_000}),
    "wrong charset": reply("error", headers={"content-type": "a; charset=utf-16"}, body_text='{"a":1}'),
    "damaged gzip": reply("error", headers={"content-encoding": "gzip"}, body_text="no gzip"),
    "unknown coding": reply("error", headers={"content-encoding": "br"}, body_text="x"),
    "gateway": reply("error", status=502, body_text="<html>"),
    "redirect": reply("error", 307, {"location": "/ee/v1/interact?configId=c&requestId=elsewhere"}),
    "cookie": reply("ok", 204, {"set-cookie": "sid=1; Path=/"}),
}


def recorded_lines() -> dict[str, dict[str, Any]]:
    if not LINES.exists():
        return {}
    lines = [json.loads(text) for text in LINES.read_text().splitlines()]
    return {line["id"]: line for line in lines}


RECORDED = recorded_lines()


def cases(lines: dict[str, dict[str, Any]]) -> list[Any]:
    """Return the names of lines; those that need a socket carry the mark for it."""
    mark = pytest.mark.integration
    return [pytest.param(name, marks=[mark] * ("response" in line)) for name, line in lines.items()]


@pytest.fixture
def base(options):
    """Options of ``configure`` for a line; the gate is on."""
    return options | {"transport": Edge(), "max_attempts": 1}


@pytest.fixture(autouse=True)
def _coroutines_are_closed(monkeypatch):
    """A coroutine that is only a value is closed at the end, as nobody ever awaits it."""
    made = []

    def make(_spec):
        made.append(never_awaited())
        return made[-1]

    monkeypatch.setitem(KINDS, "coroutine", make)
    yield
    for coroutine in made:
        coroutine.close()


@pytest.mark.skipif(not RECORDED, reason=f"the recorded lines are not here ({LINES})")
@pytest.mark.parametrize("name", cases(RECORDED))
async def test_each_recorded_line_does_what_it_says(name, base, tmp_path):
    """Each recorded line ends as it says: refused with its reason, or taken and sent."""
    line = RECORDED[name]
    if line["command"] in FUTURE_COMMANDS and line["command"] not in COMMANDS:
        pytest.skip(f"there is no command {line['command']}")
    async with asyncio.timeout(LONGEST):
        await carry_out_line(line, base, tmp_path / "state")


@pytest.mark.parametrize("name", cases(OWN_LINES))
async def test_each_line_of_our_own_does_what_it_says(name, base, tmp_path):
    """Each kind of value and each directive, in a line of our own, ends as the line says."""
    async with asyncio.timeout(LONGEST):
        await carry_out_line(OWN_LINES[name], base, tmp_path / "state")


def test_every_line_is_carried_out_or_skipped_by_name():
    """No recorded line uses a kind, directive or command that this file does not know."""
    if not RECORDED:
        pytest.skip(f"the recorded lines are not here ({LINES})")
    known = {*COMMANDS, *FUTURE_COMMANDS, "create_instance", "load_preferences", "noSuchCommand"}
    assert {line["command"] for line in RECORDED.values()} <= known
    assert len(RECORDED) >= 61


def test_values_of_every_kind_can_be_made():
    """Every kind of the format becomes the value that it names."""
    made = {
        "float": ({"v": "inf"}, math.inf),
        "int": ({"v": "-(2**64) + 1"}, -(2**64) + 1),
        "frozenset": ({"items": [1]}, frozenset({1})),
        "url": ({"v": "https://x.example/a b"}, httpx.URL("https://x.example/a b")),
        "bool": ({"v": False}, False),
        "lone_surrogate": ({"v": "DC00"}, "\udc00"),
        "encode": ({"v": "é", "charset": "utf-16-le"}, b"\xe9\x00"),
        "mappingproxy": ({"fields": {"a": {"$t": "none"}}}, {"a": None}),
        "str_subclass": ({"v": "x"}, "x"),
        "fs": ({"kind": "directory"}, Prepared("directory")),
    }
    for kind, (spec, value) in made.items():
        assert decode({"$t": kind, **spec}) == value
    bomb = zlib.decompress(gzip_bomb(1), zlib.MAX_WBITS | 16)
    assert bomb == bytes(1 << 20)
    in_the_data_readme = """float int decimal fraction datetime date time timedelta uuid bytes bytearray memoryview set
        frozenset tuple deque generator enum namedtuple dataclass typeddict mappingproxy ordereddict defaultdict pydantic
        numpy ndarray pandas object function coroutine path url ipaddress regex complex exception str_subclass ellipsis
        secret none bool lone_surrogate cycle shared_ref nest str list dict concat encode jsonint handles gzip_bomb fs"""
    assert set(KINDS) == set(in_the_data_readme.split())


async def test_the_file_behind_the_link_would_count(tmp_path):
    """The file behind the symbolic link does hold "all": only the link keeps it from counting."""
    path = await consenting_file(tmp_path / "outside")
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT purposes FROM preference").fetchall() == [("all",)]
    connection.close()
