"""Docstrings say "Example:"; griffe takes "Examples:" for code, and the other one for text."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Reads both alike."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
