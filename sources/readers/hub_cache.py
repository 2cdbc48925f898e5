"""Datasets that were downloaded into the hub's cache, for runs without a network (HF_HUB_OFFLINE)."""

from pathlib import Path

from huggingface_hub import constants, errors, snapshot_download

from sources.readers.endpoint import explain
from sources.source import SourceError


def is_offline() -> bool:
    return constants.HF_HUB_OFFLINE


def cached_folder(dataset: str, revision: str | None) -> Path:
    """Return the folder of a downloaded dataset, in hub layout and named after its commit; raises SourceError.

    `revision` is a commit, a branch or a tag; None means the main branch as it was downloaded last.
    """
    try:
        return Path(snapshot_download(dataset, repo_type="dataset", revision=revision, local_files_only=True))
    except errors.LocalEntryNotFoundError as error:  # also where a download was interrupted
        raise not_downloaded(dataset) from error
    except ValueError as error:
        raise explain(error, dataset) from error


def not_downloaded(dataset: str) -> SourceError:
    """The error for a dataset of which the cache has nothing, or too little."""
    return SourceError(
        f"HF_HUB_OFFLINE is set, and {dataset} is not in the cache, or not whole; unset it, or download the dataset "
        f"first (hf download --repo-type dataset {dataset})"
    )
