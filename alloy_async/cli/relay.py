"""``alloy-async relay``: send what web workers store in Redis, in the foreground."""

import asyncio
from typing import Annotated, Any

import typer

from .. import Alloy, AlloyError, ConfigurationError, Statistics
from .interruption import Interruption
from .options import REDIS, AllowInsecure, ConfigId, Endpoint, OrgId
from .outcomes import as_object
from .terminal import say, warn

__all__ = ["relay"]


def relay(
    *,
    redis: Annotated[str, REDIS],
    config_id: ConfigId,
    org_id: OrgId,
    endpoint: Endpoint = None,
    grace: Annotated[
        float, typer.Option(min=0, max=3_600, help="Seconds for what is on the wire, once it is to stop.")
    ] = 5.0,
    allow_insecure: AllowInsecure = False,
) -> None:
    """Send what other processes store with outbox="redis" and relay=True, until Ctrl-C or SIGTERM.

    Any number may run, on any machines; each event belongs to one of them at a time. A relay keeps no choices: an event
    is stored with its visitor's consent, and a refusal erases it, also from a relay that has it in hand.

    The exit status is 0 when it was told to stop, 1 when Redis cannot be used, 2 when an option cannot be.
    """
    options: dict[str, Any] = {"config_id": config_id, "ims_org_id": org_id, "redis_url": redis}
    options |= {"endpoint": endpoint} if endpoint is not None else {}
    options |= {"allow_insecure": True} if allow_insecure else {}
    try:
        books = asyncio.run(_relay(options, grace))
    except AlloyError as error:
        warn(str(error))
        raise typer.Exit(2 if isinstance(error, ConfigurationError) else 1) from None
    say(_sentence(books))


async def _relay(options: dict[str, Any], grace: float) -> Statistics:
    async with Alloy("relay") as alloy:
        await alloy.configure(
            **options,
            opt_in_enabled=False,
            store="memory",
            outbox="redis",
            when_outbox_fails="refuse",  # it asks nobody, and so takes over nothing that lies on this machine
            relay=False,
            hooks=(),
        )
        say("Relaying. Ctrl-C stops it.")
        work = asyncio.create_task(alloy.relay(), name="alloy-relay")
        with Interruption(end=work.cancel, clear_up=lambda: None):
            await asyncio.wait({work})
            return await alloy.aclose(grace)


def _sentence(books: Statistics) -> str:
    """Return what became of the events in one line."""
    counts = as_object(books.accepted, books)
    parts = [f"{counts[name]} {name}" for name in ("delivered", "failed", "kept") if counts.get(name)]
    return f"Stopped: {', '.join(parts) or 'nothing was sent'}."
