"""Trained models on the Hugging Face hub: the repository is made before the training, and filled after it."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from pumer.utils.errors import InputError
from pumer.utils.files import first_line

LEFT_OUT = [".*", "checkpoint-*", "teacher/*"]
"""Files of a model's folder that are not uploaded: half-written ones, checkpoints, the teacher's answers."""

_REASONS = (HTTPError, HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, ConnectionError)


def create(name: str, private: bool | None = None) -> str:
    """Make a repository, unless it is there: a missing login or permission shows before any work.

    Args:
        name: "user/model", or "model" for one of the user who is logged in.
        private: whether it is; null for the account's default.

    Returns:
        Its full name.
    """
    try:
        return str(HfApi().create_repo(name, private=private, exist_ok=True).repo_id)
    except _REASONS as error:
        raise InputError(
            f"push_to_hub: {name} cannot be made on the hub ({first_line(error)}); log in with `hf auth login`, give "
            "hub_model_id=USER/MODEL, or push_to_hub=false"
        ) from error


def upload(name: str, folder: Path) -> None:
    """Upload a model's folder, but for `LEFT_OUT`."""
    message = "Trained with pumer"
    try:
        HfApi().upload_folder(repo_id=name, folder_path=folder, ignore_patterns=LEFT_OUT, commit_message=message)
    except _REASONS as error:
        raise InputError(
            f"{folder} is trained but could not be uploaded to {name} ({first_line(error)}); "
            "the same command tries again"
        ) from error
