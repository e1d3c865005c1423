"""Checkpoints from the Hugging Face hub, found in the library's cache or downloaded to it.

The library's own environment variables apply: HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT and
HF_HUB_OFFLINE.
"""

import pathlib
import re
from collections.abc import Sequence

from jax_power_smc.models.checkpoints.fingerprint import METADATA_FILES
from jax_power_smc.models.checkpoints.safetensors_index import INDEX
from jax_power_smc.models.transformer.config import CheckpointError

# What a model is loaded from: no pickles, no code, no copies in subfolders. Exact names, because
# offline a cached model is refused if it lacks a file that these match.
SMALL = (*METADATA_FILES, INDEX)
ALL = (*SMALL, "*.safetensors")
IGNORED = ("*/*", "consolidated*")
# Not read if tokenizer_config.json has an added_tokens_decoder.
_OLD = ("special_tokens_map.json", "added_tokens.json")
# Seconds within which the hub must begin to answer.
TIMEOUT = 5.0

_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)


def is_hub_id(name: str) -> bool:
    """Whether a name looks like owner/model."""
    return _ID.fullmatch(name) is not None


def fetch(name: str, revision: str | None = None, patterns: Sequence[str] = ALL) -> pathlib.Path:
    """The directory with a model's files, named after their commit; downloads what is not cached.

    If the hub does not answer, only the cache is used.

    Args:
      name: owner/model.
      revision: a branch, tag or commit; None is the main branch.
      patterns: for the names of the files: ``ALL``, or ``SMALL`` for all but the weights, or
        ``SMALL`` with the names of the weight files.

    Raises:
      CheckpointError: if there is no such model or revision, if it is not in the cache and the hub
        cannot be reached, or if the download fails.
    """
    # Imported here and below: it takes half a second, and local models do not need it.
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        # Asked first, because the download asks the same without a time limit.
        HfApi().model_info(name, revision=revision, timeout=TIMEOUT)
    except HFValidationError as error:
        raise CheckpointError(
            f"model {name!r} is neither a directory nor a possible hub id."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"the hub's model {name!r} has no revision {revision!r}.") from error
    # Of many types, some from an HTTP library that changes with the hub library's version.
    except Exception as failure:
        try:
            return _from_cache(name, revision, patterns)
        except LocalEntryNotFoundError as error:
            version = f" at revision {revision!r}" if revision else ""
            raise CheckpointError(
                f"model {name!r}{version} is neither a directory nor fully in the hub's cache, and "
                f"{_reason(failure)}."
            ) from error
    try:
        return _download(name, revision, patterns)
    except Exception as error:  # as above
        raise CheckpointError(
            f"the download of model {name!r} failed ({_first_sentence(error)})."
        ) from error


def cached(name: str, file: str, revision: str | None = None) -> pathlib.Path | None:
    """Where one file of a model lies in the cache, or None; the hub is not contacted."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file, revision=revision)
    # The cache may also record that there is no such file.
    return pathlib.Path(found) if isinstance(found, str) else None


def _from_cache(name: str, revision: str | None, patterns: Sequence[str]) -> pathlib.Path:
    """The directory in the cache, if it has every file that the model is loaded from."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return _download(name, revision, patterns, local_files_only=True)
    except LocalEntryNotFoundError as error:
        settings = pathlib.Path(getattr(error, "snapshot_path", ""), "tokenizer_config.json")
        if not settings.is_file() or '"added_tokens_decoder"' not in settings.read_text("utf-8"):
            raise
        needed = [pattern for pattern in patterns if pattern not in _OLD]
        return _download(name, revision, needed, local_files_only=True)


def _download(
    name: str, revision: str | None, patterns: Sequence[str], local_files_only: bool = False
) -> pathlib.Path:
    from huggingface_hub import snapshot_download

    directory = snapshot_download(
        name,
        revision=revision,
        etag_timeout=TIMEOUT,
        local_files_only=local_files_only,
        allow_patterns=list(patterns),
        ignore_patterns=list(IGNORED),
    )
    return pathlib.Path(directory)


def _reason(failure: Exception) -> str:
    """Why the hub did not serve a model."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(failure, GatedRepoError):
        return "the hub serves it only to those who accepted its terms and set HF_TOKEN"
    if isinstance(failure, RepositoryNotFoundError):
        return "the hub has no such model, or shows it only with its owner's HF_TOKEN"
    return f"the hub cannot be reached ({_first_sentence(failure)})"


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return re.split(r"[.!?](?= |$)", text)[0]
