"""One run of ``send``: from the stored choice to the summary."""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import ExitStack, aclosing
from io import FileIO
from pathlib import Path
from typing import Any

from .. import Alloy, AlloyError, ConfigurationError, ConsentStoreError, Settings, Statistics
from ..stores import Preference, SQLiteStore, VisitorKey
from .choice import Choice, CommandLineStore, Plan, Wish, make_plan
from .delivery import Delivery
from .interruption import Interruption, leave
from .lines import read_lines
from .report import Report, Summary
from .terminal import NoAnswer, NoTerminal, Terminal, warn

__all__ = ["CannotRun", "Sending"]

_NOBODY = "There is no terminal to ask at; say the visitor's choice with --opt-in all or --opt-in none."

_SAID: dict[Wish, Choice] = {Wish.ALL: "all", Wish.NONE: "none"}


class CannotRun(Exception):
    """The command ends without a summary.

    Attributes:
        status: the exit status.
    """

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


class Sending:
    """Sends one file.

    Args:
        source: unbuffered; where the lines come from.
        options: for ``configure``.
        wish: what ``--opt-in`` says.
        change: whether it may take back a stored choice.
        report: hears how it goes.
    """

    def __init__(
        self, source: FileIO, options: dict[str, Any], wish: Wish, *, change: bool, report: Report
    ) -> None:
        self._source = source
        self._options = options
        self._settings = Settings.resolve(options)
        self._wish = wish
        self._change = change
        self._report = report
        self._alloy = Alloy("send")
        self._delivery = Delivery(self._alloy, self._settings, obtain=self._obtain, observer=report)
        self._terminal: Terminal | None = None

    async def run(self, grace: float) -> int:
        """Send everything that can be sent.

        Args:
            grace: seconds to finish what is under way after a signal.

        Returns:
            The exit status.

        Raises:
            CannotRun: nothing was read.
        """
        with ExitStack() as stack:
            folder = self._settings.state_dir or _temporary_folder(stack)
            async with aclosing(CommandLineStore(folder)) as store:
                stored = await self._load(store)
                plan = self._plan(stored)
                task = asyncio.create_task(self._deliver(plan, stored, store), name="alloy-send")
                with Interruption(end=task.cancel, clear_up=stack.close) as interruption:
                    status = await self._finish(task, grace, interruption)
        if interruption.signal is not None:
            leave(interruption.exit_status)
        return status

    async def _load(self, store: SQLiteStore) -> Preference | None:
        key = VisitorKey(self._settings.ims_org_id, self._settings.config_id)
        try:
            stored = await store.load_preference(key)
        except ConsentStoreError as error:
            raise CannotRun(f"{error} Nothing was sent.", 1) from None
        return None if stored is None or stored.expires_at <= time.time() else stored

    def _plan(self, stored: Preference | None) -> Plan:
        plan = make_plan(stored.purposes if stored else None, self._wish, change=self._change)
        if plan is Plan.CONFLICT:
            raise CannotRun(
                'The stored choice is "none"; nothing was sent. If the visitor has changed their mind, '
                "say so with --change-choice.",
                1,
            )
        if plan is not Plan.KEEP and self._wish is Wish.ASK:
            self._find_terminal()  # now, and not after a long file has been read
        return plan

    async def _deliver(self, plan: Plan, stored: Preference | None, store: SQLiteStore) -> None:
        await self._alloy.configure(
            **self._options,
            opt_in_enabled=True,
            errors_enabled=True,
            store=store,
            hooks=(self._delivery.notice,),
        )
        if plan is Plan.KEEP and stored is not None:
            self._delivery.adopt(stored.purposes, stored.expires_at)
            self._report.resume()
        elif plan is Plan.CHOOSE_FIRST:
            await self._delivery.choose()
        await self._delivery.deliver(read_lines(self._source.fileno()))

    async def _finish(self, task: asyncio.Task[None], grace: float, interruption: Interruption) -> int:
        async with self._alloy:
            await asyncio.wait({task})
            self._report.pause()
            if interruption.signal is not None:
                warn(
                    f"Interrupted; what is under way gets at most {grace:g} s. Ctrl-C again ends it at once."
                )
            books = await self._alloy.aclose(grace)
            await self._delivery.settle()
        problem = None if task.cancelled() else task.exception()
        if problem is not None:
            warn(_sentence(problem))
        self._report.finish(self._summary(books, interrupted=interruption.signal is not None))
        if isinstance(problem, (CannotRun, ConfigurationError)):
            return getattr(problem, "status", 2)
        return 0 if problem is None and books.delivered == self._delivery.lines else 1

    def _summary(self, books: Statistics, *, interrupted: bool) -> Summary:
        delivery = self._delivery
        return Summary(
            lines=delivery.lines,
            books=books,
            choice=delivery.choice,
            stopped=delivery.stopped,
            first_stopped=delivery.first_stopped,
            interrupted=interrupted,
        )

    # The choice

    async def _obtain(self, waiting: int) -> Choice:
        choice = _SAID.get(self._wish) or await self._ask(waiting)
        self._report.resume()
        return choice

    async def _ask(self, waiting: int) -> Choice:
        self._report.pause()
        events = f"{waiting} events wait. " if waiting else ""
        question = f"{events}May the events of {self._name()} be sent to {self._settings.base_url()}?"
        return await self._find_terminal().ask(question)

    def _find_terminal(self) -> Terminal:
        try:
            self._terminal = self._terminal or Terminal(stdin_is_taken=self._source.fileno() == 0)
        except NoTerminal:
            raise CannotRun(_NOBODY, 2) from None
        return self._terminal

    def _name(self) -> str:
        return "standard input" if self._source.fileno() == 0 else str(self._source.name)


def _temporary_folder(stack: ExitStack) -> Path:
    """Make a folder that only we can read, and that goes with the stack."""
    folder = tempfile.TemporaryDirectory(prefix="alloy-send-", ignore_cleanup_errors=True)
    return Path(stack.enter_context(folder))


def _sentence(problem: BaseException) -> str:
    """Say why a run ended early; what nobody foresaw is raised."""
    if isinstance(problem, NoAnswer):
        return "No answer: nothing was sent."
    if isinstance(problem, OSError):
        return f"Reading stopped: {problem.strerror or problem}."
    if isinstance(problem, (AlloyError, CannotRun)):
        return str(problem)
    raise problem
