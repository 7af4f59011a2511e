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
    """Make a repository, "user/model" or "model" for one's own, unless it is there; returns its full name.

    It comes before any work, so that a missing login or permission shows. `private` None leaves it to the account.
    """
    try:
        return str(HfApi().create_repo(name, private=private, exist_ok=True).repo_id)
    except _REASONS as error:
        remedy = "log in with `hf auth login`, give hub_model_id=USER/MODEL, or push_to_hub=false"
        raise InputError(f"push_to_hub: {name} cannot be made on the hub ({first_line(error)}); {remedy}") from error


def upload(name: str, folder: Path) -> None:
    """Upload a model's folder, but for `LEFT_OUT`."""
    message = "Trained with pumer"
    try:
        HfApi().upload_folder(repo_id=name, folder_path=folder, ignore_patterns=LEFT_OUT, commit_message=message)
    except _REASONS as error:
        reason = f"could not be uploaded to {name} ({first_line(error)})"
        raise InputError(f"{folder} is trained but {reason}; the same command tries again") from error
