"""Parts of messages."""

from collections.abc import Sequence


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few of many names, as text for a message."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
