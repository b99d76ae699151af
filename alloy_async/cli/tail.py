"""``alloy-async tail``: what a development edge receives, as it happens."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx
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
    follower = _Follower(address.rstrip("/"), lines)
    show = _show_json if as_json else _show
    try:
        with httpx.Client(verify=not _is_loopback(address), trust_env=False, timeout=_ALIVE) as client:
            _follow(follower, client, show)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        warn(
            f"{address}: not an address. Give it as alloy-async serve printed it, such as http://127.0.0.1:8080"
        )
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        pass  # how it ends


def _follow(follower: _Follower, client: httpx.Client, show: Any) -> None:
    while True:
        try:
            for entry in follower.entries(client):
                show(entry)
        except httpx.UnsupportedProtocol:
            raise
        except httpx.HTTPError as error:
            if follower.session is None:
                warn(
                    f"No development edge answers at {follower.address}: {error}. Start one: alloy-async serve"
                )
                raise typer.Exit(1) from None
        warn(f"{follower.address} is gone; waiting for it. Ctrl-C ends.")
        _wait_for(follower, client)


def _wait_for(follower: _Follower, client: httpx.Client) -> None:
    while True:
        time.sleep(_PAUSE)
        try:
            client.get(f"{follower.address}/_dev/search")
        except httpx.HTTPError:
            continue
        return


@dataclass
class _Follower:
    """Reads the feed, and knows where it was when the connection broke."""

    address: str
    lines: int
    session: str | None = None
    last_id: str | None = None
    _skip: int = field(default=0, init=False)

    def entries(self, client: httpx.Client) -> Iterator[dict[str, Any]]:
        """Yield entries until the edge ends the stream."""
        headers = {} if self.last_id is None else {"Last-Event-ID": self.last_id}
        with client.stream("GET", f"{self.address}/_dev/feed", headers=headers) as answer:
            if "event-stream" not in answer.headers.get("content-type", ""):
                raise httpx.ReadError(f"status {answer.status_code}, which no development edge answers")
            for name, identity, data in _messages(answer.iter_lines()):
                self.last_id = identity or self.last_id
                if name == "hello":
                    self._meet(data)
                elif name == "entries":
                    yield from self._not_skipped(data)

    def _meet(self, hello: dict[str, Any]) -> None:
        """Of an edge's first greeting only the newest is shown; after a break nothing is left out."""
        self._skip = max(0, hello["earlier"] - self.lines) if self.session is None else 0
        self.session = hello["session"]

    def _not_skipped(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        shown = entries[self._skip :]
        self._skip = max(0, self._skip - len(entries))
        return shown


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


def _is_loopback(address: str) -> bool:
    """Tell whether an address is this machine, whose throw-away certificate nobody has signed."""
    host = urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
