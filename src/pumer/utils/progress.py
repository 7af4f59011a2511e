"""Progress on the terminal."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pumer.utils.processes import is_main_process


def progress_bar(enabled: bool = True) -> Progress:
    """A progress bar on stderr, gone when it is done; tasks in it set the field `note`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not (enabled and is_main_process()),
    )
