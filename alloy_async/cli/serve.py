"""``alloy-async serve``: the development edge in the foreground."""

from __future__ import annotations

import ipaddress
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from .terminal import say, warn
from .trust import Trust, trust_for

if TYPE_CHECKING:
    from ..devserver import Checks, DevelopmentEdge, Faults, Sink

__all__ = ["serve"]

# The server's modules are imported where they are used: the other commands need none of them.


class _Mode(StrEnum):
    """What findings of the XDM checks lead to."""

    warn = "warn"
    refuse = "refuse"


def serve(
    context: typer.Context,
    *,
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port to listen at; 0 takes a free one.")
    ] = 8080,
    host: Annotated[
        str, typer.Option(help="Address to listen at. It is a tool for a desk: keep to loopback.")
    ] = "127.0.0.1",
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    sqlite: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Keep what it receives in this SQLite file too, and show its past."
        ),
    ] = None,
    jsonl: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The same as JSON lines: one for each request.")
    ] = None,
    config_id: Annotated[
        list[str] | None,
        typer.Option(help="A datastream that is known; may be repeated. Without it any is taken."),
    ] = None,
    org_id: Annotated[str | None, typer.Option(help="Organisation that the edge belongs to.")] = None,
    xdm: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Check events against the XDM schemas in this folder (extra: xdm)."
        ),
    ] = None,
    xdm_mode: Annotated[
        _Mode, typer.Option(help="Whether events that contradict a check are shown, or refused.")
    ] = _Mode.warn,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE,…",
            help="What shall go wrong, for example status=503,retry-after=2,rate=0.3,path=/interact; may be repeated.",
        ),
    ] = None,
    fault_seed: Annotated[int, typer.Option(help="Seed of the dice that faults with a rate throw.")] = 0,
    decisions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON file with what is answered to those who ask for decisions."),
    ] = None,
    tls: Annotated[
        bool, typer.Option("--tls", help="Speak https, with a certificate made for this run (extra: tls).")
    ] = False,
) -> None:
    """Run the development edge until Ctrl-C.

    A stand-in for the collection endpoint: it answers as the edge does, keeps what it receives, and shows it on a page
    below /_dev/. It listens on loopback unless told otherwise.
    """
    from ..devserver import DEMO_ORG, DevelopmentEdge  # noqa: PLC0415

    org_id = org_id or DEMO_ORG
    trust = context.with_resource(trust_for(host)) if tls else None
    faults, checks = _faults(fault or [], fault_seed), _checks(xdm)
    with _explained(f"--jsonl {jsonl}" if jsonl else f"--sqlite {sqlite}"):
        edge = DevelopmentEdge(
            org_id=org_id,
            datastreams=config_id or None,
            sink=_sink(sqlite, jsonl),
            checks=checks,
            strict=xdm_mode is _Mode.refuse,
            faults=faults,
            decisions=decisions,
            hosts=[f"[{host}]" if ":" in host else host],  # the page's address that is printed has to work
        )
    example = f"--config-id {config_id[0] if config_id else 'my-datastream'} --org-id {org_id}"
    more = [checks.summary, *(f"Fault: {fault.label}" for fault in faults)]
    _run(edge, host, port, trust, lambda line: _announce(line, example, more, trust, open_page=open_page))


def _run(
    edge: DevelopmentEdge, host: str, port: int, trust: Trust | None, announce: Callable[[str], object]
) -> None:
    from ..devserver import create_app, run  # noqa: PLC0415

    try:
        run(create_app(edge), host, port, tls=trust.certificate if trust else None, announce=announce)
    except OSError as error:
        reason = error.strerror or error
        warn(f"Cannot listen at {host}, port {port}: {reason}. Choose another with --port or --host.")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        pass  # Ctrl-C came after the announcement, and before the server listened for it
    finally:
        edge.close()


@contextmanager
def _explained(file: str) -> Iterator[None]:
    """Say what was wrong with a file, and end.

    Args:
        file: the one with what was received, as it was given.
    """
    from ..devserver import DecisionsError  # noqa: PLC0415

    try:
        yield
    except DecisionsError as error:
        warn(f"--decisions {error}")
        raise typer.Exit(1) from None
    except (sqlite3.Error, OSError, ValueError) as error:
        warn(f"{file}: cannot be used: {error}. Give another file, or move this one away.")
        raise typer.Exit(1) from None


def _sink(sqlite: Path | None, jsonl: Path | None) -> Sink | None:
    from ..devserver import JSONLinesFile, SQLiteFile  # noqa: PLC0415

    if sqlite is not None and jsonl is not None:
        raise typer.BadParameter("give one of --sqlite and --jsonl: each keeps everything")
    if jsonl is not None:
        return JSONLinesFile(jsonl)
    return None if sqlite is None else SQLiteFile(sqlite)


def _faults(texts: list[str], seed: int) -> Faults:
    from ..devserver import Fault, FaultError, Faults  # noqa: PLC0415

    try:
        return Faults([Fault.from_text(text) for text in texts], seed)
    except FaultError as error:
        raise typer.BadParameter(str(error), param_hint="--fault") from None


def _checks(folder: Path | None) -> Checks:
    from ..devserver import Checks, UnusableSchemas, XdmSchemas  # noqa: PLC0415

    if folder is None:
        return Checks()
    try:
        schemas = XdmSchemas.load(folder)
    except UnusableSchemas as error:
        warn(f"--xdm: {error}")
        raise typer.Exit(1) from None
    for problem in schemas.problems:
        warn(f"--xdm: {problem}")
    return Checks(schemas)


def _announce(line: str, example: str, more: list[str], trust: Trust | None, *, open_page: bool) -> None:
    say(line)
    address = _address(line)
    exposed = not _is_loopback(address)
    trusting = trust.environment if trust else ""
    insecure = " --allow-insecure" if exposed and trust is None else ""
    say(
        f"Send to it: {trusting}alloy-async send events.jsonl --endpoint {address} {example} --opt-in ask{insecure}"
    )
    for advice in (*more, *(trust.advice(address) if trust else ())):
        say(advice)
    if exposed:
        warn(
            "Warning: other machines can reach it, and it asks nobody who they are. Keep real visitors' data away."
        )
    if open_page:
        typer.launch(f"{address}/_dev/")
    say("Ctrl-C stops it.")


def _address(line: str) -> str:
    found = re.search(r"https?://\S+", line)
    return found[0] if found else ""


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(urlsplit(address).hostname or "").is_loopback
