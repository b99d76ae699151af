"""The layers: what each module may import. The table is the one of docs/explanation/layers.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pytest

import alloy_async

PACKAGE = Path(alloy_async.__file__).parent
FRONT = "alloy_async"

WORDS = [
    "errors",
    "edge.breaker",
    "_clock",
    "_options",
    "_version",
    "_json",
    "_process",
    "_threads",
    "_slices",
    "settings",
    "_futures",
]
RULES = [
    "_consent._room",
    "_consent._rules",
    "_event",
    "_ledger",
    "_patience",
    "_spellings",
    "edge._answers",
    "edge.retry",
    "hooks",
    "identity",
]
BORDERS = [
    "edge",
    "edge._loop_bound",
    "edge._trust",
    "edge.protocol",
    "edge.state",
    "edge.transport",
    "outbox._admission",
    "outbox._raised",
    "outbox.base",
    "stores.base",
]
ROOMS = [
    "_consent",
    "_consent._opt_in",
    "_database",
    "_line",
    "_redis",
    "edge._aiohttp",
    "edge._httpx",
    "outbox",
    "outbox._damage",
    "outbox._redis_left",
    "outbox._redis_place",
    "outbox._redis_rows",
    "outbox._redis_scripts",
    "outbox._redis_worker",
    "outbox._seat",
    "outbox._sweeper",
    "outbox._tables",
    "outbox.memory",
    "outbox.redis",
    "outbox.sqlite",
    "stores",
    "stores._sqlite_news",
    "stores.memory",
    "stores.nowhere",
    "stores.redis",
    "stores.sqlite",
]
ENGINE = [
    "edge.token",
    "edge.client",
    "_commands",
    "_batch",
    "_expiry",
    "_taking_over",
    "_outbox_epoch",
    "_held",
    "_fallback",
    "_unwritten",
    "_detour",
    "_lookout",
    "_group_writer",
    "_outbox_keeper",
    "_courier",
    "_preference",
    "_signed",
    "_erasing",
    "_household",
    "_event_filter",
    "_identity_keeper",
    "_ecid_request",
    "_departures",
    "_choice_reading",
    "_visitor",
    "_visitors",
    "_recovered",
]
FACE = ["_engine", "_personal", "visitor", "_client", FRONT, "blocking"]
WEB = [
    "_cookies",
    "_request_context",
    "_request_visitor",
    "_consent_endpoint",
    "asgi",
    "fastapi",
]
ROWS = [WORDS, RULES, BORDERS, ROOMS, ENGINE, FACE, WEB]

IN_ORDER = (WORDS, ENGINE, FACE, WEB)
"""Rows in which a module may import those that stand before it. In the others neighbours do not know one another."""

OUTBOX_FILE = (
    "_database",
    "outbox._tables",
    "outbox._damage",
    "outbox._seat",
    "outbox._sweeper",
    "outbox.sqlite",
)
"""One room in several modules: the file, its tables, a damaged file, a worker, sweeping, and the outbox itself."""

REDIS_OUTBOX = (
    "_redis",
    "outbox._redis_scripts",
    "outbox._redis_place",
    "outbox._redis_worker",
    "outbox._redis_left",
    "outbox._redis_rows",
    "outbox.redis",
)
"""Likewise: the connection, what Redis does, where, a worker, what the dead have left, what a person
sees, and the outbox itself."""

NEIGHBOURS = {
    ("edge.protocol", "edge.transport"),  # the protocol of its own row
    ("edge.state", "edge.protocol"),  # what an answer hands back
    ("outbox.base", "stores.base"),  # whose an event is, in the words of the stores
    ("outbox._admission", "outbox.base"),  # as above
    ("stores.sqlite", "_database"),  # one room in two modules: what is kept, and how a file is used
    ("stores.sqlite", "stores._sqlite_news"),  # as above, and what is told of it
    ("stores._sqlite_news", "_database"),  # as above
    ("stores.redis", "_redis"),  # as above, in Redis
    *((upper, lower) for room in (OUTBOX_FILE, REDIS_OUTBOX) for lower, upper in combinations(room, 2)),
}

DOORS = ["__main__", "cli", "devserver", "samples", "testing"]
"""Packages and modules that use the library as anybody does."""

HOMES = {
    "aiohttp": ("edge._aiohttp",),
    "certifi": ("edge._aiohttp",),
    "fastapi": ("fastapi",),
    "httpx": ("edge._httpx", "testing._in_process"),
    "jsonschema_rs": ("devserver.xdm.values",),
    "orjson": ("_json",),
    "pydantic": ("settings",),
    "redis": ("_redis",),
    "platformdirs": ("stores.sqlite",),
    "cryptography": ("devserver.certificate",),
    "starlette": ("devserver",),
    "trustme": ("devserver.certificate",),
    "uvicorn": ("devserver",),
    "typer": ("cli",),
    "rich": ("cli",),
}
"""Libraries, and the only modules or packages that import them."""


class Import(NamedTuple):
    """One import: who, of which module, which names (none for a plain ``import``)."""

    importer: str
    module: str
    names: tuple[str, ...]


def modules() -> dict[str, Path]:
    """Every module of the package by its name below it; the package itself by its own name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join(parts) or FRONT] = path
    return found


MODULES = modules()


def imports() -> Iterator[Import]:
    for name, path in MODULES.items():
        for node in runtime_nodes(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from (Import(name, alias.name, ()) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from expand(name, path, node)


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Walk a tree, but not into ``if TYPE_CHECKING:``."""
    for child in ast.iter_child_nodes(node):
        if (
            isinstance(child, ast.If)
            and isinstance(child.test, ast.Name)
            and child.test.id == "TYPE_CHECKING"
        ):
            continue
        yield child
        yield from runtime_nodes(child)


def expand(name: str, path: Path, node: ast.ImportFrom) -> Iterator[Import]:
    """Name the module in full; ``from . import x`` means the module x where there is one."""
    if not node.level:
        yield Import(name, node.module or "", tuple(alias.name for alias in node.names))
        return
    here = [] if name == FRONT else name.split(".")
    package = here if path.name == "__init__.py" else here[:-1]
    base = package[: len(package) - node.level + 1]
    target = ".".join([*base, *(node.module or "").split(".")]).strip(".")
    for alias in node.names:
        inner = f"{target}.{alias.name}".strip(".")
        if inner in MODULES:
            yield Import(name, f"alloy_async.{inner}", ())
        else:
            yield Import(name, f"alloy_async.{target}".rstrip("."), (alias.name,))


def own(imported: Import) -> str | None:
    """Return which of our modules is imported, or None."""
    if imported.module == FRONT:
        return FRONT
    return imported.module.removeprefix(f"{FRONT}.") if imported.module.startswith(f"{FRONT}.") else None


def door(module: str) -> str | None:
    first = module.split(".", maxsplit=1)[0]
    return first if first in DOORS else None


def row(module: str) -> int:
    return next(index for index, modules in enumerate(ROWS) if module in modules)


def allowed(importer: str, target: str) -> bool:
    if door(target) is not None:
        return False
    mine, theirs = row(importer), row(target)
    if mine != theirs:
        return theirs < mine
    modules = ROWS[mine]
    in_order = modules in IN_ORDER and modules.index(target) < modules.index(importer)
    return in_order or (importer, target) in NEIGHBOURS or target.startswith(f"{importer}.")


OURS = [(imported, target) for imported in imports() if (target := own(imported)) is not None]


def test_every_module_has_its_row():
    """Each module stands in exactly one row, or belongs to a door, and the table names none that is gone."""
    table = [module for modules in ROWS for module in modules]
    assert sorted(table) == sorted(module for module in MODULES if door(module) is None)
    assert {door(module) for module in MODULES} - {None} <= set(DOORS)


def test_no_module_imports_from_below():
    """Imports lead upwards: words, rules, borders, rooms, engine, face."""
    wrong = [
        f"{one.importer} imports {target}"
        for one, target in OURS
        if not door(one.importer) and not allowed(one.importer, target)
    ]
    assert wrong == []


def test_doors_use_public_names_only():
    """What stands at a door imports nothing with a leading underscore that is not its own."""
    wrong = [
        f"{one.importer} imports {', '.join(one.names)} of {target}"
        for one, target in OURS
        if (mine := door(one.importer)) is not None
        and mine != door(target)
        and any(
            part.startswith("_") and not part.startswith("__") for part in [*target.split("."), *one.names]
        )
    ]
    assert wrong == []


def test_no_module_imports_itself_in_a_circle():
    """There is no cycle, neither inside a row nor behind a door; a package's front page is no module of its circle."""
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for one, target in OURS:
        graph[one.importer].add(target)
    done: set[str] = set()
    while ready := {module for module in graph.keys() - done if graph[module] <= done | {module}}:
        done |= ready
    assert graph.keys() - done == set()


@pytest.mark.parametrize(("library", "homes"), HOMES.items(), ids=HOMES.keys())
def test_a_library_is_imported_in_its_home_only(library, homes):
    """Each library has one home; nobody else imports it, not even inside a function."""
    importers = {one.importer for one in imports() if one.module.split(".")[0] == library}
    at_home = {
        importer
        for importer in importers
        for home in homes
        if importer == home or importer.startswith(f"{home}.")
    }
    assert importers - at_home == set()
