"""Datasets of the Hugging Face hub, read by the optional ``datasets`` library."""

import pathlib

from jax_power_smc.core.deadline import within
from jax_power_smc.models.checkpoints.hub import HUB_SECONDS, is_hub_id
from jax_power_smc.tasks.records import SUFFIXES, Record, numbered


class UnavailableError(ValueError):
    """The data is on the hub and cannot be read here and now."""


def is_hub_dataset(name: str) -> bool:
    """Whether a name means a dataset of the hub: owner/name, not a file, without a file suffix."""
    return is_hub_id(name) and not name.endswith(SUFFIXES) and not pathlib.Path(name).exists()


def hub_records(
    name: str, config: str | None, split: str, limit: int | None, seconds: float = HUB_SECONDS
) -> list[Record]:
    """The first ``limit`` records, or all, of a split of the data set owner/name.

    ``config`` is one of its configurations, or None if it has only one; ``seconds`` is how long the
    library may take.

    Raises:
      UnavailableError: if the library is not installed or cannot get the dataset.
    """
    try:
        import datasets
    except ImportError as error:
        raise UnavailableError(
            f"dataset {name!r} is on the hub, and the library that reads it is not installed; "
            "either pip install 'jax-power-smc[datasets]', or set config.data to a file."
        ) from error
    try:
        dataset = within(
            seconds, "the library", lambda: datasets.load_dataset(name, config, split=split)
        )
    except Exception as error:  # many types: offline, gated, no such split, a corrupt cache
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnavailableError(
            f"dataset {name!r} ({config or 'default'}, {split}) cannot be loaded from the hub "
            f"({reason.rstrip('.')}); config.data can be a file instead."
        ) from error
    size = len(dataset) if limit is None else min(limit, len(dataset))
    return numbered((dataset[i] for i in range(size)), name)
