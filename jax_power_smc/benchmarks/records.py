"""One measured figure as one JSON line."""

import datetime
import os
import platform
from collections.abc import Callable
from typing import Any, TextIO

import jax

from jax_power_smc.core.files import json_line

# Writes one figure: (metric, value, unit, settings).
Write = Callable[..., None]


def writer(file: TextIO) -> Write:
    """A function that appends one line per figure and echoes nothing.

    Every line holds metric, value (null if not finite), unit, the device, the date (of the start)
    and the settings.
    """
    device, date = device_name(), datetime.date.today().isoformat()

    def write(metric: str, value: float, unit: str, **settings: Any) -> None:
        about = {"device": device, "date": date, **settings}
        line = {"metric": metric, "value": float(value), "unit": unit, **about}
        file.write(json_line(line))
        file.flush()

    return write


def device_name() -> str:
    """Kind and number of the devices, with the processor's cores on a CPU."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"cpu {platform.machine()}, {os.cpu_count()} cores"
    return f"{len(jax.devices())} x {device.device_kind}"
