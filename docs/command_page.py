"""Writes the page of the command line from the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from alloy_async.cli import app

__all__ = ["command_sections"]


def command_sections() -> str:
    """Return one Markdown section for each command, with its help and a table of its options."""
    return "\n".join(
        _section(name, command) for name, command in _commands("alloy-async", typer.main.get_command(app))
    )


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield every command that does something, groups left out."""
    children = getattr(command, "commands", None)
    if children is None:
        yield name, command
        return
    for child in children.values():
        yield from _commands(f"{name} {child.name}", child)


def _section(name: str, command: Any) -> str:
    usage = " ".join([name, *(_argument(one) for one in command.params if one.param_type_name == "argument")])
    rows = [_row(one) for one in command.params if _is_shown(one)]
    table = ["| option | | default | environment |", "| --- | --- | --- | --- |", *rows]
    return "\n".join(
        [f"## {name}", "", f"`{usage} [OPTIONS]`", "", _escape(command.help or ""), "", *table, ""]
    )


def _is_shown(parameter: Any) -> bool:
    return parameter.param_type_name == "option" and parameter.name != "help" and not parameter.hidden


def _argument(parameter: Any) -> str:
    return parameter.metavar or parameter.name.upper()


def _row(option: Any) -> str:
    spelled = ", ".join(f"`{spelling}`" for spelling in [*option.opts, *option.secondary_opts])
    variables = [option.envvar] if isinstance(option.envvar, str) else option.envvar or []
    default = "required" if option.required else _default(option.default)
    return f"| {spelled} | {_escape(option.help or '')} | {default} | {', '.join(f'`{one}`' for one in variables)} |"


def _default(value: object) -> str:
    if value is None or value is False or value == () or callable(value) or "UNSET" in repr(value):
        return ""
    return f"`{getattr(value, 'value', value)}`"


def _escape(text: str) -> str:
    """Keep braces, pipes and addresses from being read as markup."""
    return text.replace("|", r"\|").replace("<", r"\<").replace("*", r"\*").strip()
