"""Figures as text."""

import pytest

from jax_power_smc.report import numbers


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: numbers.percent(0.6625), "66.2"),
        (lambda: numbers.percent(1.0), "100.0"),
        (lambda: numbers.percent(-1e-9), "0.0"),
        (lambda: numbers.percent(None), numbers.NONE),
        (lambda: numbers.percent(0.66, 0), "66"),
        (lambda: numbers.percent_interval([0.0, 0.0458]), "[0.0, 4.6]"),
        (lambda: numbers.share(0.0), "0.0"),
        (lambda: numbers.share(1e-5), "< 0.1"),
        (lambda: numbers.share(0.99999), "> 99.9"),
        (lambda: numbers.share(1.0 - 1e-8), "100.0"),
        (lambda: numbers.share(0.5), "50.0"),
        (lambda: numbers.points(0.0875), "+8.8"),
        (lambda: numbers.points(-0.05), "-5.0"),
        (lambda: numbers.points(-1e-9), "0.0"),
        (lambda: numbers.points_interval([-0.05, 3.7e-9]), "[-5.0, 0.0]"),
        (lambda: numbers.count(0), "0"),
        (lambda: numbers.count(9.44), "9.4"),
        (lambda: numbers.count(12345.6), "12,346"),
        (lambda: numbers.three_digits(0.031136), "0.0311"),
        (lambda: numbers.three_digits(3.2141), "3.21"),
        (lambda: numbers.three_digits(18.69), "18.7"),
        (lambda: numbers.three_digits(1239.9), "1,240"),
        (lambda: numbers.three_digits(0.0), "0"),
        (lambda: numbers.three_digits(1e-9), "0.000000"),
        (lambda: numbers.three_digits(None), numbers.NONE),
        (lambda: numbers.seconds(0), "0 s"),
        (lambda: numbers.seconds(0.42), "0.42 s"),
        (lambda: numbers.seconds(49.6), "50 s"),
        (lambda: numbers.seconds(720), "12 min"),
        (lambda: numbers.seconds(12_000), "3 h 20 min"),
    ],
)
def test_figures(call, text):
    assert call() == text
