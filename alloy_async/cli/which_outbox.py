"""Which outbox a command means: a file, or the one in Redis."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from ..outbox import Shelf, SQLiteOutbox
from ..outbox.redis import RedisOutbox
from ..stores import SQLiteStore
from .options import REDIS
from .terminal import warn

__all__ = [
    "OutboxFile",
    "OutboxInRedis",
    "OutboxPath",
    "Redis",
    "StateDir",
    "WhichOutbox",
    "is_missing",
    "which_file",
    "which_outbox",
]

FILE_NAME = "outbox.sqlite3"
"""What ``outbox="sqlite"`` makes in the state folder."""

WORDS = frozenset({"memory", "redis", "sqlite"})
"""What ALLOY_OUTBOX may say instead of a path."""

OutboxPath = Annotated[
    str | None,
    typer.Option(
        "--outbox",
        metavar="PATH",
        envvar="ALLOY_OUTBOX",
        help="File of the outbox, instead of --state-dir; or the word redis.",
    ),
]
StateDir = Annotated[
    Path | None,
    typer.Option(
        envvar="ALLOY_STATE_DIR",
        help=f"Folder in which {FILE_NAME} and the choice are kept; default: the user's state folder.",
    ),
]
Redis = Annotated[str | None, REDIS]


@dataclass(frozen=True)
class OutboxFile:
    """An outbox in a file."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def make(self) -> SQLiteOutbox:
        """Return the outbox."""
        return SQLiteOutbox(self.path)

    def is_missing(self) -> bool:
        """Return whether there is certainly none."""
        return is_missing(self.path)

    def as_object(self, shelf: Shelf) -> dict[str, object]:
        """Return where it is, and whether erased data may still be read there, for a machine."""
        return {"path": str(self.path.absolute()), "erasing": shelf.erasing}

    def erasing(self, shelf: Shelf) -> str | None:
        """Return the same for a person."""
        return "not finished: remains may be readable in the file" if shelf.erasing else "finished"

    def remains(self, shelf: Shelf) -> str | None:
        """Return what is to be said of remains, once something was erased."""
        if not shelf.erasing:
            return None
        return (
            "The file still holds remains of erased events, because another process reads it; "
            "the next worker that starts overwrites them."
        )


@dataclass(frozen=True)
class OutboxInRedis:
    """The outbox that ``outbox="redis"`` makes; has the methods of ``OutboxFile``."""

    url: str = field(repr=False)

    def __str__(self) -> str:
        return self.make().place

    def make(self) -> RedisOutbox:
        """Return the outbox.

        Raises:
            ConfigurationError: the URL cannot be used.
        """
        return RedisOutbox(self.url)

    def is_missing(self) -> bool:
        """Return False: where none was made there is an empty one."""
        return False

    def as_object(self, shelf: Shelf) -> dict[str, object]:
        """Return where it is; what Redis' own files hold nobody can tell."""
        return {"redis": str(self).removeprefix("Redis at ")}

    def erasing(self, shelf: Shelf) -> str | None:
        """Return None."""
        return None

    def remains(self, shelf: Shelf) -> str | None:
        """Return what is to be said of Redis' own files."""
        return (
            "They are gone from the data of Redis. Its append-only file and snapshots, where it keeps any, hold them until "
            "they are written anew (BGREWRITEAOF, BGSAVE)."
        )


WhichOutbox: TypeAlias = OutboxFile | OutboxInRedis


def which_outbox(
    context: typer.Context, outbox: str | None, state_dir: Path | None, redis: str | None
) -> WhichOutbox:
    """Return the outbox that is meant: what the command line names, else the environment, else the file.

    Raises:
        typer.Exit: it names two, or Redis without a URL.
    """
    if not _is_in_redis(context, outbox, state_dir, redis):
        return which_file(outbox, state_dir)
    if redis is None:
        warn("--outbox says redis, but not where that is: give its URL with --redis or in ALLOY_REDIS_URL.")
        raise typer.Exit(2)
    return OutboxInRedis(redis)


def which_file(outbox: str | None, state_dir: Path | None) -> OutboxFile:
    """Return the file that is meant, where it can be none but a file."""
    if outbox and outbox not in WORDS:
        return OutboxFile(Path(outbox))
    return OutboxFile(SQLiteStore(state_dir).path.with_name(FILE_NAME))


def is_missing(file: Path) -> bool:
    """Return whether there is certainly no file."""
    try:
        file.lstat()
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        pass  # whoever opens it says what is wrong
    return False


def _is_in_redis(
    context: typer.Context, outbox: str | None, state_dir: Path | None, redis: str | None
) -> bool:
    says_redis = outbox == "redis"
    typed = {name for name in ("outbox", "state_dir", "redis") if _is_typed(context, name)}
    if typed == {"state_dir"}:
        return False
    if "redis" not in typed:
        # A URL in the environment may be there for the choices alone, so a file that is named comes first.
        return says_redis or (redis is not None and outbox is None and state_dir is None)
    if "state_dir" in typed or ("outbox" in typed and not says_redis):
        warn("--redis names one outbox, --outbox or --state-dir another; say which of them.")
        raise typer.Exit(2)
    return True


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
