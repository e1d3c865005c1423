"""Downloads a model from the hub, in a process that ``hub`` can end.

The hub's library waits for every answer as long as some byte of it comes now and then, and cannot
be interrupted. This file is run as a program and imports nothing of the package. It reads one JSON
object from stdin and writes one per line to stdout: {"ready": true} before it asks the hub;
{"cache": ...}, the model's folder in the cache, once the hub has answered; then {"directory": ...}.
Or instead of one of the latter, why not: {"unreached": ...}, {"error": ...}, {"no_id": true} or
{"no_revision": true}. It ends if stdin does.
"""

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Answers the question on stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # for whatever the library prints

    def say(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    _answer(json.loads(sys.stdin.readline()), say)


def _answer(asked: dict[str, Any], say: Callable[..., None]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError, RevisionNotFoundError
    from huggingface_hub.file_download import repo_folder_name

    # Of what arrives, what is less than this is not on the disk, where the parent sees progress.
    constants.DOWNLOAD_CHUNK_SIZE = 2**20
    say(ready=True)
    name, revision = asked["name"], asked["revision"]
    try:
        # Asked first, because the download asks the same without a time limit.
        HfApi().model_info(name, revision=revision, timeout=asked["timeout"])
    except HFValidationError:
        return say(no_id=True)
    except RevisionNotFoundError:
        return say(no_revision=True)
    # Of many types, some from an HTTP library that changes with the hub library's version.
    except Exception as failure:
        return say(unreached=_reason(failure))
    folder = repo_folder_name(repo_id=name, repo_type="model")
    say(cache=os.path.join(constants.HF_HUB_CACHE, folder))
    try:
        say(directory=download(name, revision, asked["patterns"], asked["ignored"]))
    except Exception as error:  # as above
        say(error=first_sentence(error))


def download(
    name: str, revision: str | None, patterns: list[str], ignored: list[str], **options: Any
) -> str:
    """The directory with the files that match, of which those not in the cache are downloaded."""
    from huggingface_hub import snapshot_download

    return snapshot_download(
        name,
        revision=revision,
        etag_timeout=TIMEOUT,
        allow_patterns=patterns,
        ignore_patterns=ignored,
        **options,
    )


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _reason(failure: Exception) -> str:
    """Why the hub did not serve a model."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(failure, GatedRepoError):
        return "the hub serves it only to those who accepted its terms and set HF_TOKEN"
    if isinstance(failure, RepositoryNotFoundError):
        return "the hub has no such model, or shows it only with its owner's HF_TOKEN"
    return f"the hub cannot be reached ({first_sentence(failure)})"


def first_sentence(error: Exception) -> str:
    """The beginning of an error's message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.split(r"[.!?](?= |$)", text)[0]


# Seconds within which the hub must begin to answer.
TIMEOUT = 5.0

if __name__ == "__main__":
    main()
    os._exit(0)  # without waiting for threads of the library
