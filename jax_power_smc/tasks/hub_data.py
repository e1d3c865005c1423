"""Data sets of the Hugging Face hub, through the ``datasets`` library, which is optional."""

import pathlib

from jax_power_smc.models.checkpoints.hub import is_hub_id
from jax_power_smc.tasks.records import SUFFIXES, Record, numbered


class UnavailableError(ValueError):
    """The data is on the hub, and cannot be had here and now."""


def is_hub_dataset(name: str) -> bool:
    """Whether a name means a data set of the hub: owner/name, neither a file nor with a suffix."""
    return is_hub_id(name) and not name.endswith(SUFFIXES) and not pathlib.Path(name).exists()


def hub_records(name: str, config: str | None, split: str, limit: int | None) -> list[Record]:
    """The rows of one split.

    Args:
      name: owner/name.
      config: which of its configurations, or None if there is one only.
      split: name of the split on the hub.
      limit: the first so many rows, or None for all.

    Raises:
      UnavailableError: if the library is not installed, or it cannot get the data set.
    """
    try:
        import datasets
    except ImportError as error:
        raise UnavailableError(
            f"data set {name!r} is on the hub, and the library that reads it is not installed; "
            "either pip install 'jax-power-smc[datasets]', or let config.data name a file."
        ) from error
    try:
        table = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # of many kinds: offline, gated, no such split, a broken cache
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnavailableError(
            f"data set {name!r} ({config or 'default'}, {split}) cannot be had from the hub "
            f"({reason.rstrip('.')}); config.data may name a file instead."
        ) from error
    size = len(table) if limit is None else min(limit, len(table))
    return numbered((table[i] for i in range(size)), name)
