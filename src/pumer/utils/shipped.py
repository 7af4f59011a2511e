"""What ships with the package, found by name: small pre-trained models and recipes."""

import difflib
from pathlib import Path

from pumer.utils.errors import InputError, unknown

PACKAGE = Path(__file__).parents[1]
SMALL = {f"small:{name}": PACKAGE / f"assets/{name}-small" for name in ("vilt", "vilt-wide", "meter", "llava")}
"""Small pre-trained models by name."""


def located(model: str | Path) -> str:
    """The folder of a model that ships with the package, such as "small:vilt"; other names as they are."""
    name = str(model)
    if name.startswith("small:") and name not in SMALL:
        raise InputError(unknown("model", name, SMALL))
    return str(SMALL.get(name, name))


def name_of(model: str | Path) -> str:
    """The name of a model that ships, by its folder, which differs from machine to machine; other names as they are."""
    return next((name for name, folder in SMALL.items() if str(folder) == str(model)), str(model))


def recipes() -> dict[str, str]:
    """The recipes that ship, by name, with what they train: the first sentence of their comments."""
    folder = PACKAGE / "recipes"
    return {
        file.relative_to(folder).with_suffix("").as_posix(): _first_sentence(file)
        for file in sorted(folder.glob("*/*"))
    }


def _first_sentence(file: Path) -> str:
    lines = (line.removeprefix("#").strip() for line in file.read_text(encoding="utf-8").splitlines()[2:10])
    return " ".join(lines).partition(". ")[0]


def recipe_file(recipe: str | Path) -> Path:
    """The YAML file of a recipe: a file, or the name of a recipe that ships, such as "vilt/vqav2-pumer"."""
    if "=" in str(recipe) and not Path(recipe).exists():
        raise InputError(f"'{recipe}' is a setting, and a recipe comes first: give one such as vilt/vqav2-pumer before")
    path, folder = Path(recipe), PACKAGE / "recipes"
    named = folder / f"{recipe}.yaml"
    if path.suffix in (".yaml", ".yml") or path.exists() or path.is_absolute():
        return path
    if not named.is_file():
        near = difflib.get_close_matches(str(recipe), recipes(), n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise InputError(
            f"recipe '{recipe}' is unknown; {hint}see `pumer list recipes`, or give a YAML file of your own"
        )
    return named
