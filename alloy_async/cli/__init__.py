"""The command line: try it out, send files, look after a stored choice. One module for each command."""

from typing import Annotated

import typer

from .. import __version__
from .consent import app as consent
from .demo import demo
from .outbox import app as outbox
from .relay import relay
from .send import send
from .serve import serve
from .tail import tail

__all__ = ["app"]

app: typer.Typer = typer.Typer(
    name="alloy-async",
    help="Collect events, and only with consent. Start with: alloy-async demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    # Their listing of local variables would show visitors' events and secrets.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:  # noqa: FBT001 - how typer calls it
    if value:
        typer.echo(f"alloy-async {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    pass


app.command()(demo)
app.command()(serve)
app.command()(tail)
app.command()(send)
app.command()(relay)
app.add_typer(consent, name="consent")
app.add_typer(outbox, name="outbox")
