"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["REDIS", "AllowInsecure", "ConfigId", "Endpoint", "OrgId", "StateDir"]

CONFIG_ID_VARIABLES = ["ALLOY_CONFIG_ID", "ALLOY_DATASTREAM_ID"]
ORG_ID_VARIABLES = ["ALLOY_IMS_ORG_ID", "ALLOY_ORG_ID"]

ConfigId = Annotated[
    str, typer.Option(envvar=CONFIG_ID_VARIABLES, help="Datastream that receives the events.")
]
OrgId = Annotated[
    str,
    typer.Option(envvar=ORG_ID_VARIABLES, help="Organisation that owns the datastream, such as …@AdobeOrg."),
]
StateDir = Annotated[
    Path | None, typer.Option(envvar="ALLOY_STATE_DIR", help="Folder in which the choice is kept.")
]
REDIS = typer.Option(
    "--redis",
    envvar="ALLOY_REDIS_URL",
    metavar="URL",
    help="Redis or Valkey, with user and password where it asks for them; rather in ALLOY_REDIS_URL, since others on the "
    "machine can read a command line.",
)
"""For ``Annotated``: some commands cannot do without it, others can."""

Endpoint = Annotated[
    str | None, typer.Option(envvar="ALLOY_ENDPOINT", help="Scheme and host of the collection endpoint.")
]
AllowInsecure = Annotated[bool, typer.Option("--allow-insecure", help="Allow plain http to another machine.")]
