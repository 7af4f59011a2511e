"""What ships with the package: small pre-trained models."""

from pathlib import Path


def checkpoint_dir(name: str = "vilt-small") -> Path:
    """The folder of a checkpoint that ships with the package: "vilt-small" or "meter-small"."""
    return Path(__file__).parents[1] / "assets" / name
