"""What MkDocs adds to the pages: references made from the code, notebooks, and names for links to files elsewhere."""

import base64
import json
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
    """Add the two references and the notebooks."""
    for name, content in {"settings": settings(), "api": api()}.items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        page, image = notebook_page(notebook)
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=page))
        files.append(File.generated(config, f"notebooks/{notebook.stem}.png", content=image))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Name files outside of the pages, to which a site has no links."""
    if page.file.src_uri.startswith("notebooks/"):
        return markdown
    return OUTSIDE.sub(lambda found: f"{found[1]} (`{found[2]}`)", markdown)


def notebook_page(notebook: Path) -> tuple[str, bytes]:
    """A notebook with its outputs as a page, and its picture."""
    parts, image = [], b""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source.replace("(../docs/", "(../").replace(".ipynb)", ".md)"))
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text'])}```")
            else:
                image = base64.b64decode(output["data"]["image/png"])
                parts.append(f"![What the cell shows]({notebook.stem}.png)")
    return "\n\n".join(parts), image


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
