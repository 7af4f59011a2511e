"""What MkDocs adds to the pages: references made from the code, and links to files beside the pages as their names."""

import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

import pumer
from pumer.cli import app
from pumer.utils.config import described

OUTSIDE = re.compile(r"!?\[([^\]]+)\]\((?:\.\./)+([^)]+)\)")
ROOT = Path(__file__).parents[2]


def on_files(files: Files, config: Any) -> Files:
    """Add the two references."""
    for name, content in {"settings": settings(), "api": api()}.items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Name files outside of the pages, to which a site has no links."""
    return OUTSIDE.sub(lambda found: f"{found[1]} (`{found[2]}`)", markdown)


def settings() -> str:
    """Every command with its arguments, options and settings."""
    pages = ["# Settings of every command\n"]
    root = typer.main.get_command(app)
    context = root.context_class(root, info_name="pumer")
    for name, command in commands(root, "pumer"):
        text = get_docs_for_click(obj=command, ctx=context, name=name, indent=1)
        pages.append(re.sub(r"^#+ `", "## `", text, flags=re.MULTILINE))
        if command.config_type is not None:
            rows = described(command.config_type)
            pages += ["| setting | |", "|---|---|"]
            pages += [f"| `{key}` | {_cell(value)} |" for key, value in rows.items()]
            pages.append("")
        pages += ["Examples:\n", "```sh", *command.examples, "```\n"]
    return "\n".join(pages)


def commands(group: Any, prefix: str) -> list[tuple[str, Any]]:
    """The commands of a group and of the groups in it, by their full names."""
    found = []
    for name, command in group.commands.items():
        full = f"{prefix} {name}"
        found += commands(command, full) if hasattr(command, "commands") else [(full, command)]
    return found


def api() -> str:
    """The public names of the package: functions, classes, settings of the methods."""
    kinds: dict[str, list[str]] = {"Functions": [], "Classes": [], "Methods": []}
    for name in pumer.__all__:
        module = pumer._HOMES[name]
        kind = "Methods" if module == "reducers" else "Classes" if name[0].isupper() else "Functions"
        kinds[kind].append(f"::: pumer.{module}.{name}\n")
    return "\n".join(["# Python\n", *(f"## {kind}\n\n" + "\n".join(blocks) for kind, blocks in kinds.items())])


def _cell(text: str) -> str:
    """Text in a cell of a table."""
    return re.sub(r"([|<>])", r"\\\1", text).replace("\n", " ")
