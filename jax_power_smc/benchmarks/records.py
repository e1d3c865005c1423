"""Measured figures as JSON lines."""

import datetime
import json
import os
import pathlib
import platform
from collections.abc import Callable
from typing import Any, TextIO

import jax

from jax_power_smc.core.files import json_line

# Writes one figure: (metric, value, unit, **settings).
Write = Callable[..., None]


def writer(file: TextIO) -> Write:
    """A function that appends one line per figure to a file.

    Every line holds metric, value (null if not finite), unit, device, the date of the start, and
    the settings.
    """
    device, date = device_name(), datetime.date.today().isoformat()

    def write(metric: str, value: float, unit: str, **settings: Any) -> None:
        about = {"device": device, "date": date, **settings}
        line = {"metric": metric, "value": float(value), "unit": unit, **about}
        file.write(json_line(line))
        file.flush()

    return write


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The figures of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def device_name() -> str:
    """Number and kind of the devices; on a CPU, its architecture and number of cores."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"cpu {platform.machine()}, {os.cpu_count()} cores"
    return f"{len(jax.devices())} x {device.device_kind}"
