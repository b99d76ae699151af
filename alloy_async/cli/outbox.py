"""``alloy-async outbox``: look at the events that are kept, send them now, or erase them."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Annotated, Any, NamedTuple, TypeVar

import typer

from .. import ConfigurationError
from ..errors import OutboxError
from ..outbox import Row, Shelf, SQLiteOutbox
from ..outbox.redis import RedisOutbox
from .flushing import Flushing
from .options import AllowInsecure, ConfigId, Endpoint, OrgId
from .sending import CannotRun
from .terminal import NoAnswer, NoTerminal, Terminal, moment, say, warn
from .which_outbox import OutboxPath, Redis, StateDir, WhichOutbox, which_file, which_outbox

__all__ = ["app"]

T = TypeVar("T")

app: typer.Typer = typer.Typer(
    help="Look at the events of a durable outbox, send them now, or erase them.", no_args_is_help=True
)


class _Listing(NamedTuple):
    shelf: Shelf
    rows: list[Row]


@app.command("ls")
def list_events(
    context: typer.Context,
    *,
    outbox: OutboxPath = None,
    state_dir: StateDir = None,
    redis: Redis = None,
    limit: Annotated[
        int, typer.Option(min=0, help="Events that are listed at most, the oldest first.")
    ] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """List the events that wait in an outbox, oldest first, without their content.

    "held" is an event that a running worker has, and will send; "free" is one that belongs to nobody now: a worker that
    runs, or the next that starts, takes it over once its visitor consents. So does `alloy-async outbox flush`, or with
    Redis `alloy-async relay`.

    --redis looks into Redis. So does ALLOY_REDIS_URL, unless --outbox or --state-dir, or their variables, name a file.
    """
    which = which_outbox(context, outbox, state_dir, redis)

    async def look(outbox: SQLiteOutbox | RedisOutbox) -> _Listing:
        return _Listing(await outbox.shelf(), await outbox.rows(limit))

    listing = _run(which, look)
    if as_json:
        typer.echo(json.dumps(which.as_object(listing.shelf) | _as_object(listing)))
    elif which.is_missing():
        _say_nothing_there(which)
    else:
        _print(which, listing)


@app.command()
def show(
    context: typer.Context,
    key: Annotated[int, typer.Argument(help="The event's key, as ls shows it.")],
    *,
    outbox: OutboxPath = None,
    state_dir: StateDir = None,
    redis: Redis = None,
) -> None:
    """Print one event as JSON, as it goes over the wire. It is a person's data: mind who looks over your shoulder."""
    which = which_outbox(context, outbox, state_dir, redis)
    row = _run(which, lambda outbox: outbox.row(key))
    if which.is_missing():
        _say_nothing_there(which)
        return
    if row is None or row.body is None:
        _warn_missing(which, key)
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
    redis: Annotated[str | None, typer.Option("--redis", hidden=True)] = None,
    wait: Annotated[
        float, typer.Option(min=0, max=86_400, help="Seconds after which what is not sent is left there.")
    ] = 60.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the outcomes as a JSON object, see above.")
    ] = False,
    allow_insecure: AllowInsecure = False,
) -> None:
    """Send now what belongs to no running worker. From Redis `alloy-async relay` sends instead.

    The visitor's choice is the one that is kept in the state folder; where none is kept, or "none", nothing is sent.
    What a running worker holds is left to it. What cannot be sent in --wait seconds stays in the outbox.

    With --json there is one object: {"accepted", "delivered", …, "open", "held", "free", "others"}. "accepted" is what
    was taken over, and the sum of what follows it up to "open"; then what is left in the outbox: held by running
    workers, belonging to nobody, and of other datastreams.

    The exit status is 0 when everything was delivered that belonged to nobody, 1 when not, 2 when the command cannot be
    carried out as it is written, 130 after Ctrl-C.
    """
    if redis is not None or outbox == "redis":
        warn(
            "flush sends from a file. What waits in Redis is sent by `alloy-async relay`, until Ctrl-C stops it; "
            "`alloy-async outbox ls` shows how much there is."
        )
        raise typer.Exit(2)
    options: dict[str, Any] = {"config_id": config_id, "ims_org_id": org_id}
    options |= {"endpoint": endpoint} if endpoint is not None else {}
    options |= {"state_dir": state_dir} if state_dir is not None else {}
    options |= {"allow_insecure": True} if allow_insecure else {}
    try:
        status = asyncio.run(Flushing(which_file(outbox, state_dir).path, options, as_json=as_json).run(wait))
    except (CannotRun, ConfigurationError, OutboxError) as error:
        warn(str(error))
        status = 1 if isinstance(error, OutboxError) else getattr(error, "status", 2)
    raise typer.Exit(status)


@app.command()
def purge(
    context: typer.Context,
    keys: Annotated[
        list[int] | None, typer.Argument(metavar="[KEY]...", help="Keys of events, as ls shows them.")
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Erase every event.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    outbox: OutboxPath = None,
    state_dir: StateDir = None,
    redis: Redis = None,
) -> None:
    """Erase events, without sending them, whoever holds them.

    A running worker that holds one notices before its next request; what is on the wire already goes its way.
    """
    if everything == bool(keys):
        warn("Say which events, by their keys, or --all. Nothing was erased.")
        raise typer.Exit(2)
    which = which_outbox(context, outbox, state_dir, redis)
    wanted = None if everything else sorted(set(keys or ()))
    found = _run(which, lambda outbox: _find(outbox, wanted))
    if which.is_missing():
        _say_nothing_there(which)
        return
    for key in found.missing:
        _warn_missing(which, key)
    if found.events and not (yes or _is_meant(which, found)):
        warn("Nothing was erased.")
        raise typer.Exit(1)
    if found.events or not found.missing:
        _purge(which, wanted, found.held)
    raise typer.Exit(1 if found.missing else 0)


class _Found(NamedTuple):
    """What a purge would erase.

    Attributes:
        events: how many there are.
        held: how many of them belong to a running worker.
        missing: keys of which there is none.
    """

    events: int
    held: int
    missing: list[int]


async def _find(outbox: SQLiteOutbox | RedisOutbox, keys: Sequence[int] | None) -> _Found:
    if keys is None:
        shelf = await outbox.shelf()
        return _Found(shelf.events, shelf.events - shelf.unclaimed, [])
    rows = {key: await outbox.row(key) for key in keys}
    there = [row for row in rows.values() if row is not None]
    missing = [key for key, row in rows.items() if row is None]
    return _Found(len(there), sum(row.claimed for row in there), missing)


def _is_meant(which: WhichOutbox, found: _Found) -> bool:
    whose = f", {found.held} of them held by running workers" if found.held else ""
    question = f"Erase {_events(found.events)} in {which}{whose}? They will never be sent."
    try:
        return asyncio.run(Terminal().ask(question)) == "all"
    except NoTerminal:
        warn("There is no terminal to ask at; say that you mean it with --yes. Nothing was erased.")
        raise typer.Exit(2) from None
    except (NoAnswer, KeyboardInterrupt):
        return False


def _purge(which: WhichOutbox, keys: Sequence[int] | None, held: int) -> None:
    purged = _run(which, lambda outbox: outbox.purge(keys))
    say(f"Erased: {_events(purged)}.")
    if held:
        say(f"Running workers held {held} of them; what was on the wire already goes its way.")
    remains = which.remains(_run(which, lambda outbox: outbox.shelf()))
    if purged and remains:
        say(remains)


def _run(which: WhichOutbox, work: Callable[[SQLiteOutbox | RedisOutbox], Awaitable[T]]) -> T:
    async def on_the_outbox() -> T:
        async with aclosing(which.make()) as outbox:
            return await work(outbox)

    try:
        return asyncio.run(on_the_outbox())
    except ConfigurationError as error:
        warn(f"--redis: {error}")
        raise typer.Exit(2) from None
    except OutboxError as error:
        warn(str(error))
        raise typer.Exit(1) from None


def _say_nothing_there(which: WhichOutbox) -> None:
    say(f"There is no outbox at {which}.")


def _warn_missing(which: WhichOutbox, key: int) -> None:
    warn(f"There is no event {key} in {which}; it may have been sent meanwhile.")


# What is shown


def _print(which: WhichOutbox, listing: _Listing) -> None:
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
    say(f"outbox    {which}")
    say(f"events    {shelf.events}, {shelf.size} bytes", style="bold")
    say(f"held      {shelf.events - shelf.unclaimed}, by {_workers(shelf.workers)}")
    say(f"free      {shelf.unclaimed}, of no running worker")
    erasing = which.erasing(shelf)
    if erasing is not None:
        say(f"erasing   {erasing}")


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
