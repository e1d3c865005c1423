"""Measured figures as JSON lines."""

import contextlib
import datetime
import json
import os
import pathlib
import platform
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jax_power_smc.core.files import json_line, keep_older

# Writes one figure: (metric, value, unit, **settings).
Write = Callable[..., None]
# Shows how far a measurement is, see ``core.progress``: (stage, done, total, optionally a text).
Progress = Callable[..., None]


@contextlib.contextmanager
def new_file(root: pathlib.Path, name: str) -> Iterator[tuple[pathlib.Path, Write]]:
    """A new file in a directory, and a function that appends one line per figure.

    An older file of that name is renamed. Every line holds metric, value (null if not finite),
    unit, device, the date of the start, and the settings.
    """
    device, date = device_name(), datetime.date.today().isoformat()
    root.mkdir(parents=True, exist_ok=True)
    path = root / name
    keep_older(path)
    with open(path, "w", encoding="utf-8") as file:

        def write(metric: str, value: float, unit: str, **settings: Any) -> None:
            about = {"device": device, "date": date, **settings}
            file.write(json_line({"metric": metric, "value": float(value), "unit": unit, **about}))
            file.flush()

        yield path, write


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The figures of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def device_name() -> str:
    """Number and kind of the devices; on a CPU, its architecture and number of cores."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"cpu {platform.machine()}, {os.cpu_count()} cores"
    return f"{len(jax.devices())} x {device.device_kind}"
