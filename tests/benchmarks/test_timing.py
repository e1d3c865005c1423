"""Interleaved variants, and ratios of pairs."""

from jax_power_smc.benchmarks import timing


def test_variants_are_interleaved_and_the_first_round_does_not_count():
    order, titles = [], []
    # The machine is slower in every round; the second variant always takes three times as long.
    slow = {"a": iter([99, 1, 2, 8]), "b": iter([99, 3, 6, 24])}

    def variant(name):
        def run():
            order.append(name)
            return next(slow[name])

        return run

    seconds = timing.interleaved("x", {n: variant(n) for n in "ab"}, 3, lambda *a: titles.append(a))
    assert order == list("abababab")
    assert titles == [("x", i, 8) for i in range(9)]
    assert (seconds.median("a"), seconds.median("b")) == (2, 6)
    assert seconds.ratio("b", "a") == 3


def test_bandwidth_is_that_of_memory():
    assert 1e8 < timing.copy_bandwidth(2**22, 3) < 1e13


def test_ratios_are_medians_of_pairs():
    seconds = timing.Seconds({"a": [1.0, 10.0, 2.0], "b": [2.0, 10.0, 8.0]})
    assert seconds.ratio("b", "a") == 2.0
