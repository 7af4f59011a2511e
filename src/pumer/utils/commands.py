"""What every command of a command line does: read its config, check it, load its job, end in one line."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.metadata import version as version_of
from pathlib import Path
from textwrap import fill, indent
from typing import Annotated, Any, cast

import typer
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from pumer.utils.config import described, load, to_dict
from pumer.utils.errors import InputError, out_of_memory, refused_by_system
from pumer.utils.places import JobConfig
from pumer.utils.processes import interrupts_end_at_once, interrupts_raise, is_first_to_report, is_main_process

INTERRUPTED = 130
UNUSABLE_INPUT = 2
VERBOSE, JSON = "--verbose", "--json"
"""Options of every command, wherever they stand."""
SETTING = re.compile(r"[\w.]+=")
_UsageError = cast(type[Any], typer.BadParameter.__base__)
_verbose: ContextVar[bool] = ContextVar("verbose", default=False)
_json: ContextVar[bool] = ContextVar("json", default=False)
_written: ContextVar[tuple[Path, ...]] = ContextVar("written", default=())


class Commands(TyperGroup):
    """Ends every command the same way: 2 for unusable input, 130 for Ctrl-C, a traceback for a defect."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take --verbose and --json wherever they stand."""
        ctx.meta["arguments"] = list(args)
        with _ended_in_one_line(args):
            if "" in args:
                raise InputError("an argument is empty; give it a value, or leave it out")
            common = [option for option in (VERBOSE, JSON) if option in args]
            return list(super().parse_args(ctx, [*common, *(each for each in args if each not in common)]))

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with _ended_in_one_line(ctx.meta["arguments"]):
            return super().invoke(ctx)


@contextmanager
def _ended_in_one_line(arguments: list[str]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:
        _report(str(stop) or "interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        message = _line(error, arguments)
        if message is None:
            raise
        _report(f"error: {message}")
        raise typer.Exit(UNUSABLE_INPUT) from error
    finally:
        interrupts_end_at_once()


def _report(line: str) -> None:
    if is_first_to_report():
        typer.echo(line, err=True)


def _line(error: Exception, arguments: list[str]) -> str | None:
    """The one line about an error that a user can do something about; None for a defect, and where help is shown."""
    if isinstance(error, InputError):
        # An error from a data-loading process arrives inside that process's traceback; its last line is the message.
        return str(error).strip().splitlines()[-1].removeprefix("pumer.utils.errors.InputError: ")
    if isinstance(error, _UsageError) and type(error).__name__ != "NoArgsIsHelpError":
        return _usage(error, arguments)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and out_of_memory(error)):
        said = (str(error).strip() or "out of memory").splitlines()[0].removesuffix(".")
        return f"{said}; lower batch_size (of a benchmark: batch_sizes, memory_batch)"
    return refused_by_system(error, " or ".join(map(str, _written.get())) or "a file")


def _usage(error: Any, arguments: list[str]) -> str:
    """The line about wrong arguments; of an option that does not exist, as the setting it may have meant."""
    said = " ".join(error.format_message().split()).removesuffix(".")
    option, near = getattr(error, "option_name", None) or "", getattr(error, "possibilities", True)
    command = error.ctx.command if error.ctx else None
    has_settings = command is not None and any("KEY=VALUE" in (each.metavar or "") for each in command.params)
    if near or not has_settings or not option.startswith("--"):
        return f"{said}; see `{error.ctx.command_path if error.ctx else 'pumer'} --help`"
    at = next((at for at, argument in enumerate(arguments) if argument.partition("=")[0] == option), -1)
    following = arguments[at].partition("=")[2] or "".join(arguments[at + 1 : at + 2]) if at >= 0 else ""
    value = "VALUE" if not following or following.startswith("-") else following
    return f"{said}; settings are key=value, without dashes: {option[2:].replace('-', '_')}={value}"


def with_settings(config: type[Any] | None, *lines: str) -> type[TyperCommand]:
    """A command whose help lists the settings of a config, and ends in examples."""

    class WithSettings(TyperCommand):
        config_type, examples = config, lines

        def format_help(self, ctx: Any, formatter: Any) -> None:
            super().format_help(ctx, formatter)
            if config is not None:
                shown = [f"{key}\n{indent(fill(text, 90), ' ' * 4)}" for key, text in described(config).items()]
                typer.echo("\n".join(["Settings, as KEY=VALUE:\n", *shown, ""]))
            if lines:
                typer.echo("\n".join(["Examples:\n", *(f"  {line}" for line in lines)]))
            typer.echo("\nOf every command: --json prints the result as JSON, --verbose shows the settings.")

    return WithSettings


def group(help_text: str, **settings: Any) -> typer.Typer:
    """Commands that print their help when none is given."""
    return typer.Typer(help=help_text, no_args_is_help=True, **{"add_completion": False, **settings})


def application(help_text: str, **settings: Any) -> typer.Typer:
    """A command line, with the options that all commands have."""
    app = group(help_text, cls=Commands, pretty_exceptions_enable=False, **settings)

    @app.callback(help=help_text)
    def common(
        as_json: Annotated[bool, typer.Option(JSON, help="Print the result as JSON, of any command.")] = False,
        verbose: Annotated[bool, typer.Option(VERBOSE, help="Show the settings in force, of any command.")] = False,
        version: Annotated[
            bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
        ] = False,
    ) -> None:
        _verbose.set(verbose)
        _json.set(as_json)

    return app


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"pumer {version_of('pumer')}")
        raise typer.Exit


def resolve(cls: type[JobConfig], settings: list[str] | None, recipe: Path | None = None, **given: Any) -> JobConfig:
    """The config of a job, from arguments (None and false are passed over), a recipe and settings, later ones first."""
    arguments = {name: value for name, value in given.items() if value is not None and value is not False}
    return checked(load(cls, recipe, settings or (), arguments))


def checked(config: JobConfig) -> JobConfig:
    """A config whose files and folders are there; shown on stderr with --verbose."""
    config.check_places()
    _written.set(config.written)
    if _verbose.get() and is_main_process():
        shown = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
        Console(stderr=True, style="dim").print(shown, highlight=False, markup=False)
    return config


def run_job(module: str, *arguments: Any, **options: Any) -> Any:
    """Load a job, which takes seconds, limit what libraries log, and run it."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pumer").setLevel(logging.INFO if is_main_process() else logging.ERROR)
    job = import_module(module)
    transformers = import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    interrupts_raise()
    return job.run(*arguments, **options)


def console() -> Console:
    """For tables and lines on stdout; silent with --json, and in all but the first of several processes."""
    return Console(quiet=_json.get() or not is_main_process())


def report(result: Any) -> None:
    """Print the result of a command as JSON, if --json was given."""
    if _json.get() and is_main_process():
        typer.echo(json.dumps(to_dict(result), indent=2))


def say(text: object) -> None:
    """Print a line as it is: no markup, no colours, not wrapped."""
    console().print(str(text), highlight=False, markup=False, soft_wrap=True)


def show_table(title: str, rows: Mapping[str, Any]) -> None:
    """Show names beside what belongs to them."""
    table = Table(title=title or None, title_justify="left", box=None, show_header=False, title_style="bold")
    table.add_column(no_wrap=True)
    for name, value in rows.items():
        table.add_row(name, Text(str(value)))
    console().print(table)
