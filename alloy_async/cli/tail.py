"""``alloy-async tail``: what a development edge receives, as it happens."""

from __future__ import annotations

import ipaddress
import json
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

import typer

from .entries import lines_of
from .terminal import say, warn

__all__ = ["tail"]

_ALIVE = 60.0
"""Seconds without a word after which the edge counts as gone; it gives a sign of life four times in that time."""
_PAUSE = 1.0
"""Seconds before another attempt."""


def tail(
    address: Annotated[
        str, typer.Argument(metavar="URL", help="Address that alloy-async serve printed.")
    ] = "http://127.0.0.1:8080",
    *,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="Requests of the past to show first.")
    ] = 10,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object for each request, for jq and scripts.")
    ] = False,
) -> None:
    """Show what a development edge receives, until Ctrl-C.

    A line for each event: when it came, the answer's status, its type, what became of it, whose it is, and how long it
    had waited since it was called. It goes on when the edge is started again.
    """
    parts = _split(address)
    if parts is None:
        warn(
            f"{address}: not an address. Give it as alloy-async serve printed it, such as http://127.0.0.1:8080"
        )
        raise typer.Exit(2)
    with suppress(KeyboardInterrupt):  # how it ends
        _follow(_Follower(parts, lines), _show_json if as_json else _show)


def _split(address: str) -> SplitResult | None:
    try:
        parts = urlsplit(address)
        _ = parts.port  # looked at here for the first time
    except ValueError:
        return None
    return parts if parts.scheme in {"http", "https"} and parts.hostname else None


def _follow(follower: _Follower, show: Callable[[dict[str, Any]], None]) -> None:
    while True:
        try:
            for entry in follower.entries():
                show(entry)
        except _Gone as error:
            if follower.session is None:
                warn(
                    f"No development edge answers at {follower.address}: {error}. Start one: alloy-async serve"
                )
                raise typer.Exit(1) from None
        if not follower.is_waiting:
            follower.is_waiting = True
            warn(f"{follower.address} is gone; waiting for it. Ctrl-C ends.")
        time.sleep(_PAUSE)


class _Gone(Exception):
    """The edge cannot be reached, went away, or is something else."""


@dataclass
class _Follower:
    """Reads the feed, and knows where it was when the connection broke."""

    parts: SplitResult
    lines: int
    session: str | None = None
    last_id: str | None = None
    is_waiting: bool = False
    _skip: int = field(default=0, init=False)

    @property
    def address(self) -> str:
        return f"{self.parts.scheme}://{self.parts.netloc}"

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield entries until the edge ends the stream.

        Raises:
            _Gone: it cannot be reached, went away, or is something else.
        """
        try:
            yield from self._read()
        # Its own errors only: a pipe that is closed behind this command is not the edge's.
        except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
            raise _Gone(str(error)) from error

    def _read(self) -> Iterator[dict[str, Any]]:
        headers = {} if self.last_id is None else {"Last-Event-ID": self.last_id}
        with closing(_connect(self.parts)) as connection:
            connection.request("GET", "/_dev/feed", headers=headers)
            answer = connection.getresponse()
            if "event-stream" not in answer.headers.get("content-type", ""):
                raise ValueError(f"status {answer.status}")
            for name, identity, data in _messages(line.decode().rstrip("\n") for line in answer):
                self.last_id = identity or self.last_id
                if name == "hello":
                    self._meet(data)
                elif name == "entries":
                    yield from self._not_skipped(data)

    def _meet(self, hello: dict[str, Any]) -> None:
        """Of an edge's first greeting only the newest is shown; after a break nothing is left out."""
        self._skip = max(0, hello["earlier"] - self.lines) if self.session is None else 0
        self.session, self.is_waiting = hello["session"], False

    def _not_skipped(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        shown = entries[self._skip :]
        self._skip = max(0, self._skip - len(entries))
        return shown


def _connect(parts: SplitResult) -> HTTPConnection:
    if parts.scheme == "http":
        return HTTPConnection(parts.netloc, timeout=_ALIVE)
    # Nobody has signed the throw-away certificate of an edge on this machine.
    trusting = ssl._create_unverified_context() if _is_loopback(parts.hostname or "") else None  # noqa: S323, SLF001
    return HTTPSConnection(parts.netloc, timeout=_ALIVE, context=trusting)


def _messages(lines: Iterator[str]) -> Iterator[tuple[str, str | None, Any]]:
    """Yield name, id and data of each message. Source: HTML Living Standard, server-sent events."""
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and name:
            fields[name] = value.removeprefix(" ")
        elif not line and "data" in fields:
            yield fields.get("event", ""), fields.get("id"), json.loads(fields["data"])
            fields = {}


def _show(entry: dict[str, Any]) -> None:
    for line, style in lines_of(entry):
        say(line, style=style)


def _show_json(entry: dict[str, Any]) -> None:
    typer.echo(json.dumps(entry))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
