"""``alloy-async serve``: the development edge in the foreground."""

import ipaddress
import re
import sqlite3
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from .terminal import say, warn
from .trust import Trust, trust_for

__all__ = ["serve"]


def serve(
    context: typer.Context,
    *,
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port to listen at; 0 takes a free one.")
    ] = 8080,
    host: Annotated[
        str, typer.Option(help="Address to listen at. It is a tool for a desk: keep to loopback.")
    ] = "127.0.0.1",
    sqlite: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the events in this SQLite file too.")
    ] = None,
    config_id: Annotated[
        list[str] | None,
        typer.Option(help="A datastream that is known; may be repeated. Without it any is taken."),
    ] = None,
    org_id: Annotated[str | None, typer.Option(help="Organisation that the edge belongs to.")] = None,
    tls: Annotated[
        bool, typer.Option("--tls", help="Speak https, with a certificate made for this run (extra: tls).")
    ] = False,
) -> None:
    """Run the development edge until Ctrl-C.

    A stand-in for the collection endpoint: it answers as the edge does, keeps what it receives, and shows it at
    /_dev/events and /_dev/requests (POST /_dev/reset forgets it). It listens on loopback unless told otherwise.
    """
    from ..devserver import DEMO_ORG, DevelopmentEdge, create_app, run  # noqa: PLC0415 - the other commands need no server

    trust = context.with_resource(trust_for(host)) if tls else None
    org_id = org_id or DEMO_ORG
    example = f"--config-id {config_id[0] if config_id else 'my-datastream'} --org-id {org_id}"
    try:
        edge = DevelopmentEdge(org_id=org_id, datastreams=config_id or None, database=sqlite)
    except (sqlite3.Error, OSError, ValueError) as error:
        warn(f"{sqlite}: cannot be used: {error}")
        raise typer.Exit(1) from None
    try:
        run(
            create_app(edge),
            host,
            port,
            tls=trust.certificate if trust else None,
            announce=lambda line: _announce(line, example, trust),
        )
    except OSError as error:
        warn(
            f"Cannot listen at {host}, port {port}: {error.strerror or error}. Choose another with --port or --host."
        )
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        pass  # Ctrl-C came after the announcement, and before the server listened for it
    finally:
        edge.close()


def _announce(line: str, example: str, trust: Trust | None) -> None:
    say(line)
    address = _address(line)
    exposed = not _is_loopback(address)
    trusting = trust.environment if trust else ""
    insecure = " --allow-insecure" if exposed and trust is None else ""
    say(
        f"Send to it: {trusting}alloy-async send events.jsonl --endpoint {address} {example} --opt-in ask{insecure}"
    )
    for advice in trust.advice(address) if trust else ():
        say(advice)
    if exposed:
        warn(
            "Warning: other machines can reach it, and it asks nobody who they are. Keep real visitors' data away."
        )
    say("Ctrl-C stops it.")


def _address(line: str) -> str:
    found = re.search(r"https?://\S+", line)
    return found[0] if found else ""


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(urlsplit(address).hostname or "").is_loopback
