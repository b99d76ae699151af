"""``alloy-async demo``: the gate at work, in a few seconds and with nothing to set up."""

import asyncio
import json
import os
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from http.client import HTTPConnection
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

import typer
from rich.console import Console

from .. import Alloy
from ..samples import sample_events
from .outcomes import adds_up, outcome_table, progress_bar
from .terminal import NoAnswer, NoTerminal, Terminal, say, warn

__all__ = ["demo"]

Choice: TypeAlias = Literal["all", "none"]

Decide: TypeAlias = Callable[[int], Awaitable[Choice | None]]
"""Takes how many events wait, and returns the visitor's choice; None when there is none."""

DATASTREAM = "3a1f0c52-8f0e-4d7b-9d53-5d0f8a6f2b10"
"""Made up; the development edge takes any."""


def demo(
    *,
    ask: Annotated[
        bool, typer.Option("--ask", help="Ask you, instead of saying all and then none itself.")
    ] = False,
) -> None:
    """Show the consent gate at work, against a development edge inside this process.

    It parks the bundled sample events, shows that nothing was sent, says "all", and shows what became of each event;
    then the same with "none". Nothing leaves this machine, and nothing is kept. The exit status is 0 when everything
    added up.
    """
    try:
        shown = _demo(ask=ask)
    except NoTerminal:
        warn("There is no terminal to ask at; leave out --ask.")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        warn("Interrupted; nothing is kept.")
        raise typer.Exit(130) from None
    raise typer.Exit(0 if shown else 1)


def _demo(*, ask: bool) -> bool:
    from ..devserver import DEMO_ORG, create_app, serving  # noqa: PLC0415 - the other commands need no server

    decisions = [_asking(Terminal())] if ask else [_saying("all"), _saying("none")]
    _leave_environment()
    results = []
    for decide in decisions:
        with serving(create_app()) as edge, tempfile.TemporaryDirectory(prefix="alloy-demo-") as state_dir:
            options = {"endpoint": edge.url, "ims_org_id": DEMO_ORG, "state_dir": state_dir}
            results.append(asyncio.run(_Showing(edge.url, options).show(decide)))
    if all(results):
        say("Everything adds up.", style="green")
    else:
        warn("It does not add up: see above.")
    return all(results)


def _saying(choice: Choice) -> Decide:
    async def decide(_: int) -> Choice:
        return choice

    return decide


def _asking(terminal: Terminal) -> Decide:
    async def decide(events: int) -> Choice | None:
        try:
            return await terminal.ask(f"May these {events} events be sent?")
        except NoAnswer:
            warn("No answer: nothing is sent.")
            return None

    return decide


def _leave_environment() -> None:
    """Show the defaults: neither settings for real use nor a proxy of this machine may reach the demonstration."""
    for name in list(os.environ):
        if name.startswith("ALLOY_") or name.lower().endswith("_proxy"):
            del os.environ[name]


class _Showing:
    """One visitor, one choice.

    Args:
        url: address of the development edge.
        options: where the events go and the choice is kept.
    """

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._url = url
        self._options = options
        self._alloy = Alloy("demo")

    async def show(self, decide: Decide) -> bool:
        """Go from the first event to the table; return whether it adds up."""
        async with self._alloy as alloy:
            await alloy.configure(config_id=DATASTREAM, opt_in_enabled=True, **self._options)
            parked = self._park()
            early = await self._received()
            choice = await decide(len(parked))
            if choice is not None:
                await self._choose(choice, parked)
        received = await self._received()
        self._print_table(choice, received)
        return early == 0 and self._is_right(choice, len(parked), received)

    def _park(self) -> list[asyncio.Future[Any]]:
        parked = [self._alloy.event(xdm=event) for event in sample_events()]
        say(
            f"{self._alloy.statistics().parked} sample events are parked: they wait for the visitor's choice."
        )
        return parked

    async def _choose(self, choice: Choice, parked: Sequence[asyncio.Future[Any]]) -> None:
        say(f'The visitor says "{choice}".')
        with progress_bar(Console()) as progress:
            task = progress.add_task("Delivering" if choice == "all" else "Refusing", total=len(parked))
            for future in parked:
                future.add_done_callback(lambda _: progress.advance(task))
            await self._alloy.opt_in(purposes=choice)
            await asyncio.gather(*parked, return_exceptions=True)

    def _print_table(self, choice: Choice | None, received: int) -> None:
        title = f'What became of the events after "{choice}"' if choice else "What became of the events"
        table = outcome_table(title, self._alloy.statistics(), after={"received by the edge": received})
        Console().print(table)

    def _is_right(self, choice: Choice | None, events: int, received: int) -> bool:
        books = self._alloy.statistics()
        ended = {"all": books.delivered, "none": books.refused}.get(choice or "")
        sent = events if choice == "all" else 0
        return adds_up(books) and ended == books.accepted == events and received == books.delivered == sent

    async def _received(self) -> int:
        """Ask the edge itself, over the wire, how many events arrived, and say it."""
        received = await asyncio.to_thread(_count_received, self._url)
        say(f"The development edge at {self._url} has received {_events(received)}.")
        return received


def _count_received(url: str) -> int:
    connection = HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request("GET", "/_dev/events")
        return len(json.loads(connection.getresponse().read())["events"])
    finally:
        connection.close()


def _events(count: int) -> str:
    return f"{count} events" if count else "0 events: nothing was sent"
