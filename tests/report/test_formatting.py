"""Figures as text."""

import pytest

from jax_power_smc.report import formatting


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: formatting.percent(0.6625), "66.2"),
        (lambda: formatting.percent(1.0), "100.0"),
        (lambda: formatting.percent(-1e-9), "0.0"),
        (lambda: formatting.percent(None), formatting.NONE),
        (lambda: formatting.percent(0.66, 0), "66"),
        (lambda: formatting.interval([0.0, 0.0458], formatting.percent), "[0.0, 4.6]"),
        (lambda: formatting.share(0.0), "0.0"),
        (lambda: formatting.share(1e-5), "< 0.1"),
        (lambda: formatting.share(0.99999), "> 99.9"),
        (lambda: formatting.share(1.0 - 1e-8), "100.0"),
        (lambda: formatting.share(0.5), "50.0"),
        (lambda: formatting.points(0.0875), "+8.8"),
        (lambda: formatting.points(-0.05), "-5.0"),
        (lambda: formatting.points(-1e-9), "0.0"),
        (lambda: formatting.interval([-0.05, 3.7e-9], formatting.points), "[-5.0, 0.0]"),
        (lambda: formatting.count(0), "0"),
        (lambda: formatting.count(9.44), "9.4"),
        (lambda: formatting.count(12345.6), "12,346"),
        (lambda: formatting.three_digits(0.031136), "0.0311"),
        (lambda: formatting.three_digits(3.2141), "3.21"),
        (lambda: formatting.three_digits(18.69), "18.7"),
        (lambda: formatting.three_digits(1239.9), "1,240"),
        (lambda: formatting.three_digits(0.0), "0"),
        (lambda: formatting.three_digits(1e-9), "0.000000"),
        (lambda: formatting.three_digits(None), formatting.NONE),
        (lambda: formatting.seconds(0), "0 s"),
        (lambda: formatting.seconds(0.42), "0.42 s"),
        (lambda: formatting.seconds(49.6), "50 s"),
        (lambda: formatting.seconds(720), "12 min"),
        (lambda: formatting.seconds(12_000), "3 h 20 min"),
    ],
)
def test_figures(call, text):
    assert call() == text
