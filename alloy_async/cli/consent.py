"""``alloy-async consent``: look at a choice that is kept, or forget it."""

import asyncio
import json
from collections.abc import Coroutine
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple, TypeVar

import typer

from .. import ConsentStoreError
from ..stores import Preference, SQLiteStore, VisitorKey
from .options import CONFIG_ID_VARIABLES, ORG_ID_VARIABLES, StateDir
from .terminal import moment, say, warn

__all__ = ["app"]

T = TypeVar("T")

app: typer.Typer = typer.Typer(help="Look at a stored choice, or forget it.", no_args_is_help=True)

AnyConfigId = Annotated[
    str | None,
    typer.Option("--config-id", envvar=CONFIG_ID_VARIABLES, help="Only the choice for this datastream."),
]
AnyOrgId = Annotated[
    str | None,
    typer.Option("--org-id", envvar=ORG_ID_VARIABLES, help="Only the choice for this organisation."),
]


class _Stored(NamedTuple):
    key: VisitorKey
    preference: Preference | None


@app.command()
def show(
    *,
    state_dir: StateDir = None,
    config_id: AnyConfigId = None,
    org_id: AnyOrgId = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON array, empty when nothing is stored.")
    ] = False,
) -> None:
    """Show which choices are stored: what was chosen, when, by whom, for what, and until when it holds.

    Without --state-dir it looks at the folder that programs use which name none.
    """
    store = SQLiteStore(state_dir)
    found = _run(_find(store, config_id, org_id))
    if as_json:
        typer.echo(json.dumps([_as_object(stored) for stored in found]))
        return
    _print(found)
    if not found:
        _say_nothing_stored(store)


@app.command()
def forget(*, state_dir: StateDir = None, config_id: AnyConfigId = None, org_id: AnyOrgId = None) -> None:
    """Remove a stored choice, and the identity that was kept with it; it is asked for again.

    Programs that run now hear of it within a quarter of a second: what waits there is refused, and they ask again.
    """
    store = SQLiteStore(state_dir)
    found = _run(_find(store, config_id, org_id))
    if len(found) > 1:
        _print(found)
        warn(
            "Several choices are stored; say which one to forget with --config-id and --org-id. Nothing was removed."
        )
        raise typer.Exit(2)
    if not found:
        _say_nothing_stored(store)
        return
    _run(_forget(store, found[0].key))
    preference = found[0].preference
    choice = f'the choice "{preference.purposes}"' if preference is not None else "what was kept"
    say(f"Forgotten: {choice} of {found[0].key.organisation}, and its identity.")
    say("Programs that run now hear of it within a quarter of a second.")


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except ConsentStoreError as error:
        warn(str(error))
        raise typer.Exit(1) from None


async def _find(store: SQLiteStore, config_id: str | None, org_id: str | None) -> list[_Stored]:
    async with aclosing(store):
        keys = await _keys(store, config_id, org_id)
        return [_Stored(key, await store.load_preference(key)) for key in keys]


async def _forget(store: SQLiteStore, key: VisitorKey) -> None:
    async with aclosing(store):
        await store.forget(key)


async def _keys(store: SQLiteStore, config_id: str | None, org_id: str | None) -> list[VisitorKey]:
    return [
        key
        for key in await store.keys()
        if config_id in {None, key.datastream} and org_id in {None, key.organisation}
    ]


def _say_nothing_stored(store: SQLiteStore) -> None:
    say(f"No choice is stored in {store.path}.")


def _print(found: list[_Stored]) -> None:
    for place, (key, preference) in enumerate(found):
        if place:
            say("")
        say(f"organisation  {key.organisation}")
        say(f"datastream    {key.datastream}")
        if key.visitor:
            say(f"visitor       {key.visitor}")
        if preference is None:
            say("choice        none that is understood; an identity, or a row that is damaged", style="bold")
            continue
        expired = "; it has expired, and counts as not made" if _has_expired(preference) else ""
        say(f"choice        {preference.purposes}{expired}", style="bold")
        say(f"chosen        {moment(preference.chosen_at)}, source {preference.source}")
        say(f"expires       {moment(preference.expires_at)}")


def _as_object(stored: _Stored) -> dict[str, object]:
    key, preference = stored
    visitor = {"organisation": key.organisation, "datastream": key.datastream, "visitor": key.visitor}
    if preference is None:
        return {**visitor, "choice": None}
    return {
        **visitor,
        "choice": preference.purposes,
        "chosenAt": moment(preference.chosen_at),
        "source": preference.source,
        "expiresAt": moment(preference.expires_at),
        "expired": _has_expired(preference),
    }


def _has_expired(preference: Preference) -> bool:
    return preference.expires_at <= datetime.now(UTC).timestamp()
