"""``alloy-async send``: a file of events through the gate."""

import asyncio
from io import FileIO
from typing import Annotated, Any

import typer

from .. import ConfigurationError, Settings
from .choice import Wish
from .options import AllowInsecure, ConfigId, Endpoint, OrgId, StateDir
from .report import JsonReport, TextReport
from .sending import CannotRun, Sending
from .terminal import warn

__all__ = ["send"]


def send(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="JSON lines in UTF-8; - is standard input.")],
    *,
    config_id: ConfigId,
    org_id: OrgId,
    endpoint: Endpoint = None,
    opt_in: Annotated[
        Wish, typer.Option(help="The visitor's choice; ask: asked at the terminal, unless one is stored.")
    ] = Wish.ASK,
    state_dir: StateDir = None,
    change_choice: Annotated[
        bool, typer.Option("--change-choice", help="Replace a stored choice, a refusal included.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON lines for machines, see above.")
    ] = False,
    grace: Annotated[
        float, typer.Option(min=0, max=86_400, help="Seconds to finish what is under way after Ctrl-C.")
    ] = 5.0,
    allow_insecure: AllowInsecure = False,
) -> None:
    """Send a file of events, one XDM object a line, through the consent gate.

    The events wait until the choice is known. With all or none it is said at once; otherwise you are asked when the
    whole file waits, or as much of it as there is room for (ALLOY_MAX_PARKED, ALLOY_MAX_PARKED_BYTES). The choice is
    kept in --state-dir; without it in a temporary folder, for this run. A stored "none" is only taken back with
    --change-choice.

    A line that cannot be sent is reported with its number and the reason, and the rest goes on.

    With --json there is one object a line on standard output: for each line that was not delivered
    {"type": "problem", "line", "reason"}, for each remark of the edge {"type": "note", "line", "remark"}, and at the end
    {"type": "summary", "lines", "unusable", "accepted", "delivered", …}, where lines = unusable + accepted, and accepted
    is the sum of what follows it up to "open".

    The exit status is 0 when every line was delivered, 1 when not, 2 when the command cannot be carried out as it is
    written, 130 after Ctrl-C. A second Ctrl-C ends it at once.
    """
    options: dict[str, Any] = {"config_id": config_id, "ims_org_id": org_id}
    options |= {"endpoint": endpoint} if endpoint is not None else {}
    options |= {"state_dir": state_dir} if state_dir is not None else {}
    options |= {"allow_insecure": True} if allow_insecure else {}
    try:
        Settings.resolve(options)
        with _open(file) as source:
            report = JsonReport() if as_json else TextReport(source)
            sending = Sending(source, options, opt_in, change=change_choice, report=report)
            status = asyncio.run(sending.run(grace))
    except (CannotRun, ConfigurationError) as error:
        warn(str(error))
        status = getattr(error, "status", 2)
    raise typer.Exit(status)


def _open(file: str) -> FileIO:
    """Open the source, unbuffered."""
    try:
        return FileIO(0, closefd=False) if file == "-" else FileIO(file)
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte in it
        raise CannotRun(f"{file}: cannot be read: {getattr(error, 'strerror', error)}.", 2) from None
