"""Run the notebooks of `notebooks/` and write what their cells print and show into them; Jupyter is not needed.

    python -m benchmarks.notebooks                          # all of them, in place
    python -m benchmarks.notebooks notebooks/quickstart.ipynb

A cell shows its last line where that is an expression, as Jupyter does it: images as PNG, other values as text.
"""

import ast
import base64
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from pumer.utils.files import read_json, write_text

FOLDER = Path(__file__).parents[1] / "notebooks"
WIDTH = 1000


def run(notebook: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Run the cells of code in order, in one namespace and the current folder; yields the outputs of each."""
    names: dict[str, Any] = {}
    for number, cell in enumerate(_code(notebook), start=1):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        printed, value = io.StringIO(), None
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, f"cell {number}", "exec"), names)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
        outputs: list[dict[str, Any]] = []
        if printed.getvalue():
            text = printed.getvalue().splitlines(keepends=True)
            outputs.append({"name": "stdout", "output_type": "stream", "text": text})
        if value is not None:
            shown = {"data": _shown(value), "execution_count": number, "metadata": {}, "output_type": "execute_result"}
            outputs.append(shown)
        yield outputs


def write(path: Path) -> None:
    """Run a notebook in its own folder and write it back with its outputs."""
    notebook = read_json(path)
    with contextlib.chdir(path.parent):
        results = list(run(notebook))
    for number, (cell, outputs) in enumerate(zip(_code(notebook), results, strict=True), start=1):
        cell |= {"execution_count": number, "outputs": outputs}
    write_text(path, json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def _code(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _shown(value: Any) -> dict[str, Any]:
    """What a notebook keeps of a value: images at most `WIDTH` wide and in few colours, for a small file."""
    if not hasattr(value, "_repr_png_"):
        return {"text/plain": [repr(value)]}
    image, file = Image.open(io.BytesIO(value._repr_png_())).convert("RGB"), io.BytesIO()
    image.thumbnail((WIDTH, image.height))
    image.quantize(64, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return {"image/png": base64.b64encode(file.getvalue()).decode(), "text/plain": [f"<{type(value).__name__}>"]}


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "agg")
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(FOLDER.glob("*.ipynb")):
        write(path.absolute())
