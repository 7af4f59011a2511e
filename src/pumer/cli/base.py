"""What all commands share: the application, the arguments of more than one command."""

from typing import Annotated, Any, cast

import typer

from pumer.settings.common import METHODS, PRESETS, TASKS
from pumer.utils.commands import SETTING, application, group
from pumer.utils.config import described
from pumer.utils.errors import InputError
from pumer.utils.shipped import SMALL

app = application(
    "Faster vision-language transformers: fewer tokens inside the layers.\n\nSettings of a command are key=value.",
    add_completion=True,
)
data = group("Check, prepare and write data sets.")
app.add_typer(data, name="data")


def _completed(ctx: typer.Context) -> list[str]:
    """Settings of the command that is typed, and the methods of its reduction."""
    names = described(cast(Any, ctx.command).config_type)
    return [*(f"{name}=" for name in names), *(f"reduction={method}" for method in METHODS if "reduction" in names)]


def choice(*names: str, **shown: Any) -> Any:
    """An argument that a shell completes to one of these names, or to a file."""
    return typer.Argument(autocompletion=lambda: list(names), **shown)


Settings = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", show_default=False, autocompletion=_completed)
]
Model = Annotated[str, choice(*SMALL, metavar="MODEL", help="Folder, hub name, or one that ships, such as small:vilt.")]
ModelOrPreset = Annotated[
    str | None,
    choice(
        *SMALL,
        *(f"preset:{name}" for name in PRESETS),
        metavar="MODEL",
        help="Folder, hub name, one that ships, such as small:vilt, or a preset; preset:vilt-b32 by default.",
        show_default=False,
    ),
]
Task = Annotated[str, choice(*TASKS, metavar="TASK", help="vqav2, nlvr2, snli_ve, flickr30k or coco.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there already.")]


def numbers(option: str, text: str) -> list[int]:
    """The numbers of an option such as 8,16,32."""
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise InputError(f"{option} is '{text}'; give whole numbers, as in 8,16,32") from None


def option(help_text: str) -> object:
    """An option that is not given by default."""
    return typer.Option(help=help_text, show_default=False)


def model_or_setting(model: str | None, settings: list[str] | None) -> tuple[str | None, list[str]]:
    """Arguments of a command whose first one may be a model, or a setting."""
    if model is not None and SETTING.match(model):
        return None, [model, *(settings or [])]
    return model, settings or []
