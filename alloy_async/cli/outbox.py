"""``alloy-async outbox``: look at the events that are kept, send them now, or erase them."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import typer

from .. import ConfigurationError
from ..errors import OutboxError
from ..outbox import Row, Shelf, SQLiteOutbox
from ..stores import SQLiteStore
from .flushing import Flushing, is_missing
from .options import AllowInsecure, ConfigId, Endpoint, OrgId
from .sending import CannotRun
from .terminal import NoAnswer, NoTerminal, Terminal, moment, say, warn

__all__ = ["app"]

T = TypeVar("T")

FILE_NAME = "outbox.sqlite3"
"""What ``outbox="sqlite"`` makes in the state folder."""

WORDS = frozenset({"memory", "redis", "sqlite"})
"""What ALLOY_OUTBOX may say instead of a path."""

app: typer.Typer = typer.Typer(
    help="Look at the events of a durable outbox, send them now, or erase them.", no_args_is_help=True
)

OutboxPath = Annotated[
    str | None,
    typer.Option(
        "--outbox", metavar="PATH", envvar="ALLOY_OUTBOX", help="File of the outbox, instead of --state-dir."
    ),
]
StateDir = Annotated[
    Path | None,
    typer.Option(
        envvar="ALLOY_STATE_DIR",
        help=f"Folder in which {FILE_NAME} and the choice are kept; default: the user's state folder.",
    ),
]


class _Listing(NamedTuple):
    shelf: Shelf
    rows: list[Row]


@app.command("ls")
def list_events(
    *,
    outbox: OutboxPath = None,
    state_dir: StateDir = None,
    limit: Annotated[
        int, typer.Option(min=0, help="Events that are listed at most, the oldest first.")
    ] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """List the events that wait in an outbox, oldest first, without their content.

    "held" is an event that a running worker has, and will send; "free" is one that belongs to nobody now: the next
    worker that starts takes it over, and so does `alloy-async outbox flush`.
    """
    file = _file(outbox, state_dir)

    async def look(outbox: SQLiteOutbox) -> _Listing:
        return _Listing(await outbox.shelf(), await outbox.rows(limit))

    listing = _run(file, look)
    if as_json:
        typer.echo(json.dumps({"path": str(file.absolute())} | _as_object(listing)))
    elif is_missing(file):
        _say_nothing_there(file)
    else:
        _print(file, listing)


@app.command()
def show(
    key: Annotated[int, typer.Argument(help="The event's key, as ls shows it.")],
    *,
    outbox: OutboxPath = None,
    state_dir: StateDir = None,
) -> None:
    """Print one event as JSON, as it goes over the wire. It is a person's data: mind who looks over your shoulder."""
    file = _file(outbox, state_dir)
    row = _run(file, lambda outbox: outbox.row(key))
    if is_missing(file):
        _say_nothing_there(file)
        return
    if row is None or row.body is None:
        warn(f"There is no event {key} in {file}; it may have been sent meanwhile.")
        raise typer.Exit(1)
    typer.echo(_printable_json(row.body.decode("utf-8", "replace")))


@app.command()
def flush(
    *,
    config_id: ConfigId,
    org_id: OrgId,
    endpoint: Endpoint = None,
    outbox: OutboxPath = None,
    state_dir: StateDir = None,
    wait: Annotated[
        float, typer.Option(min=0, max=86_400, help="Seconds after which what is not sent is left there.")
    ] = 60.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the outcomes as a JSON object, see above.")
    ] = False,
    allow_insecure: AllowInsecure = False,
) -> None:
    """Send now what belongs to no running worker.

    The visitor's choice is the one that is kept in the state folder; where none is kept, or "none", nothing is sent.
    What a running worker holds is left to it. What cannot be sent in --wait seconds stays in the outbox.

    With --json there is one object: {"accepted", "delivered", …, "open", "held", "free", "others"}. "accepted" is what
    was taken over, and the sum of what follows it up to "open"; then what is left in the outbox: held by running
    workers, belonging to nobody, and of other datastreams.

    The exit status is 0 when everything was delivered that belonged to nobody, 1 when not, 2 when the command cannot be
    carried out as it is written, 130 after Ctrl-C.
    """
    options: dict[str, Any] = {"config_id": config_id, "ims_org_id": org_id}
    options |= {"endpoint": endpoint} if endpoint is not None else {}
    options |= {"state_dir": state_dir} if state_dir is not None else {}
    options |= {"allow_insecure": True} if allow_insecure else {}
    file = _file(outbox, state_dir)
    try:
        status = asyncio.run(Flushing(file, options, as_json=as_json).run(wait))
    except (CannotRun, ConfigurationError, OutboxError) as error:
        warn(str(error))
        status = 1 if isinstance(error, OutboxError) else getattr(error, "status", 2)
    raise typer.Exit(status)


@app.command()
def purge(
    keys: Annotated[
        list[int] | None, typer.Argument(metavar="[KEY]...", help="Keys of events, as ls shows them.")
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Erase every event.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    outbox: OutboxPath = None,
    state_dir: StateDir = None,
) -> None:
    """Erase events, without sending them, whoever holds them.

    A running worker that holds one notices before its next request; what is on the wire already goes its way.
    """
    if everything == bool(keys):
        warn("Say which events, by their keys, or --all. Nothing was erased.")
        raise typer.Exit(2)
    file = _file(outbox, state_dir)
    wanted = None if everything else sorted(set(keys or ()))
    found = _run(file, lambda outbox: _find(outbox, wanted))
    if is_missing(file):
        _say_nothing_there(file)
        return
    missing = [] if wanted is None else sorted(set(wanted) - {row.key for row in found})
    for key in missing:
        warn(f"There is no event {key} in {file}; it may have been sent meanwhile.")
    if found and not (yes or _is_meant(file, found)):
        warn("Nothing was erased.")
        raise typer.Exit(1)
    if found or not missing:
        _purge(file, wanted)
    raise typer.Exit(1 if missing else 0)


def _purge(file: Path, keys: Sequence[int] | None) -> None:
    purged = _run(file, lambda outbox: outbox.purge(keys))
    say(f"Erased: {_events(purged)}.")
    if _run(file, lambda outbox: outbox.shelf()).erasing:
        say(
            "The file still holds remains of erased events, because another process reads it; "
            "the next worker that starts overwrites them."
        )


async def _find(outbox: SQLiteOutbox, keys: Sequence[int] | None) -> list[Row]:
    if keys is None:
        return await outbox.rows((await outbox.shelf()).events)
    rows = [await outbox.row(key) for key in keys]
    return [row for row in rows if row is not None]


def _is_meant(file: Path, found: list[Row]) -> bool:
    held = sum(row.claimed for row in found)
    whose = f", {held} of them held by running workers" if held else ""
    question = f"Erase {_events(len(found))} in {file}{whose}? They will never be sent."
    try:
        return asyncio.run(Terminal().ask(question)) == "all"
    except NoTerminal:
        warn("There is no terminal to ask at; say that you mean it with --yes. Nothing was erased.")
        raise typer.Exit(2) from None
    except (NoAnswer, KeyboardInterrupt):
        return False


# The file


def _file(outbox: str | None, state_dir: Path | None) -> Path:
    if outbox and outbox not in WORDS:
        return Path(outbox)
    return SQLiteStore(state_dir).path.with_name(FILE_NAME)


def _run(file: Path, work: Callable[[SQLiteOutbox], Awaitable[T]]) -> T:
    async def on_the_file() -> T:
        async with aclosing(SQLiteOutbox(file)) as outbox:
            return await work(outbox)

    try:
        return asyncio.run(on_the_file())
    except OutboxError as error:
        warn(str(error))
        raise typer.Exit(1) from None


def _say_nothing_there(file: Path) -> None:
    say(f"There is no outbox at {file}.")


# What is shown


def _print(file: Path, listing: _Listing) -> None:
    shelf, rows = listing
    if rows:
        cells = [("key", "_id", "datastream", "bytes", "released", "way", "worker"), *map(_cells, rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for place, row in enumerate(cells):
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            say(line.rstrip(), style="" if place else "bold")
        if shelf.events > len(rows):
            say(f"… and {shelf.events - len(rows)} more; --limit shows more of them.")
        say("")
    say(f"outbox    {file}")
    say(f"events    {shelf.events}, {shelf.size} bytes", style="bold")
    say(f"held      {shelf.events - shelf.unclaimed}, by {_workers(shelf.workers)}")
    say(f"free      {shelf.unclaimed}, of no running worker")
    say(f"erasing   {'not finished: remains may be readable in the file' if shelf.erasing else 'finished'}")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        str(row.key),
        row.event_id,
        row.visitor.datastream,
        str(row.size),
        moment(row.accepted_at),
        "interact" if row.needs_answer else "collect",
        "held" if row.claimed else "free",
    )


def _as_object(listing: _Listing) -> dict[str, object]:
    shelf, rows = listing
    return {
        "events": shelf.events,
        "size": shelf.size,
        "workers": shelf.workers,
        "held": shelf.events - shelf.unclaimed,
        "free": shelf.unclaimed,
        "erasing": shelf.erasing,
        "rows": [
            {
                "key": row.key,
                "id": row.event_id,
                "organisation": row.visitor.organisation,
                "datastream": row.visitor.datastream,
                "visitor": row.visitor.visitor,
                "size": row.size,
                "releasedAt": moment(row.accepted_at),
                "needsAnswer": row.needs_answer,
                "held": row.claimed,
            }
            for row in rows
        ],
    }


def _printable_json(text: str) -> str:
    """Write what a terminal would obey as JSON's escapes; nothing else changes, numbers least of all."""
    return "".join(sign if sign.isprintable() else json.dumps(sign)[1:-1] for sign in text)


def _events(count: int) -> str:
    return f"{count} {'event' if count == 1 else 'events'}"


def _workers(count: int) -> str:
    return f"{count} running {'worker' if count == 1 else 'workers'}"
