"""The commands of the command line, by name."""

from typing import Any

import typer

from pumer.cli import app


def every_command() -> dict[str, Any]:
    """Every command, those of groups too, as in "data check"."""
    return _commands(typer.main.get_command(app), "")


def _commands(group: Any, prefix: str) -> dict[str, Any]:
    found = {}
    for name, command in group.commands.items():
        inner = _commands(command, f"{prefix}{name} ") if hasattr(command, "commands") else {prefix + name: command}
        found |= inner
    return found
