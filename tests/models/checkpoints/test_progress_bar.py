"""The bar: on a terminal only, and for large checkpoints only unless asked for."""

import io
import sys

import pytest

from jax_power_smc.models.checkpoints.progress_bar import LARGE, loading_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "total", "show", "drawn"),
    [
        (Terminal, LARGE + 1, None, True),
        (Terminal, LARGE, None, False),
        (Terminal, 10, True, True),
        (Terminal, LARGE + 1, False, False),
        (io.StringIO, LARGE + 1, True, False),
    ],
)
def test_when_it_is_drawn(monkeypatch, stream, total, show, drawn):
    stderr = stream()
    monkeypatch.setattr(sys, "stderr", stderr)
    with loading_bar(total, show) as advance:
        advance(total - 3)
        advance(3)
    assert ("loading" in stderr.getvalue()) == drawn
    if drawn:
        done = stderr.getvalue()
        assert "268.4/268.4" in done or "10/10 bytes" in done or "256.0/256.0" in done
