"""One sentence with the value and what is allowed, for every bad value."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc import Ancestral, MetropolisHastings, PowerSMC, PowerTarget, WithoutReplacement
from jax_power_smc.core import checks, prng

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [3, 100, np.int32(3), np.uint8(7), np.array(4), jnp.uint8(5)])
def test_integers_in_range_pass(value):
    passed = checks.integer("n", value, at_least=3)
    assert type(passed) is int and passed == value


@pytest.mark.parametrize(
    "value", [2, -1, 3.0, True, "3", None, NAN, np.float32(4), np.True_, np.array([3])]
)
def test_other_integers_are_refused(value):
    with pytest.raises(ValueError) as error:
        checks.integer("n", value, at_least=3)
    assert str(error.value) == f"n is {value!r}; it must be an integer of at least 3."


@pytest.mark.parametrize("value", [0, 0.5, 1, np.float32(1), np.int64(0), jnp.bfloat16(0.5)])
def test_numbers_in_range_pass(value):
    passed = checks.number("x", value, at_least=0, at_most=1)
    assert type(passed) in (int, float) and passed == value


@pytest.mark.parametrize("value", [-1e-9, 1.0001, True, "0", None, np.nan, INF, -INF])
def test_other_numbers_are_refused(value):
    with pytest.raises(ValueError) as error:
        checks.number("x", value, at_least=0, at_most=1)
    message = str(error.value)
    assert message.startswith(f"x is {value!r}; ") and message.count(".") <= 1 + repr(value).count(
        "."
    )
    assert "at least 0 and at most 1" in message


def test_strict_bound():
    checks.number("x", 1e-9, above=0)
    with pytest.raises(ValueError, match=r"x is 0; .*greater than 0"):
        checks.number("x", 0, above=0)


@pytest.mark.parametrize("value", [INF, NAN])
def test_the_message_says_finite(value):
    with pytest.raises(ValueError, match="finite"):
        checks.number("x", value, at_least=0)


def test_names():
    checks.one_of("kind", "b", ("a", "b"))
    for value in ("c", "", None, 3, ["a"]):
        with pytest.raises(ValueError, match=r"^kind is .*; allowed are a, b\.$"):
            checks.one_of("kind", value, ("a", "b"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_particles": 0}, "num_particles is 0; .*at least 1"),
        ({"num_particles": True}, "num_particles is True; .*integer"),
        ({"num_particles": 4.0}, r"num_particles is 4\.0; .*integer"),
        ({"ess_threshold": -0.1}, r"ess_threshold is -0\.1; .*at least 0 and at most 1"),
        ({"ess_threshold": 1.1}, r"ess_threshold is 1\.1; .*at least 0 and at most 1"),
        ({"ess_threshold": NAN}, "ess_threshold is nan"),
        ({"ess_threshold": True}, "ess_threshold is True"),
        ({"resampling": "killing"}, "resampling is 'killing'; allowed are systematic, stratified"),
        ({"resampling": None}, "resampling is None; allowed are"),
        ({"ramp_tokens": -1}, "ramp_tokens is -1; .*at least 0"),
        ({"ramp_tokens": 1.5}, r"ramp_tokens is 1\.5; .*integer"),
        ({"check_every": 0}, "check_every is 0; .*at least 1"),
        ({"check_every": False}, "check_every is False; .*integer"),
        ({"order": "adaptive"}, "order is 'adaptive'; allowed are adapted, published"),
        ({"proposal_temperature": 0.5}, r'temperature is 0\.5 .*order="published"'),
        ({"proposal_temperature": 0.0, "order": "published"}, "at least 1e-06"),
        ({"proposal_temperature": INF, "order": "published"}, "proposal_temperature is inf"),
    ],
    ids=str,
)
def test_power_smc_refuses_bad_values(change, message):
    with pytest.raises(ValueError, match=message):
        PowerSMC(**{"num_particles": 4, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -0.1}, r"temperature is -0\.1; .*at least 0"),
        ({"temperature": INF}, "temperature is inf"),
        ({"temperature": True}, "temperature is True"),
        ({"num_samples": 0}, "num_samples is 0; .*at least 1"),
        ({"num_samples": True}, "num_samples is True; .*integer"),
    ],
    ids=str,
)
def test_ancestral_refuses_bad_values(change, message):
    with pytest.raises(ValueError, match=message):
        Ancestral(**change)


@pytest.mark.parametrize("name", ["ramp_tokens", "check_every"])
def test_more_steps_than_an_int32_holds_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 2147483648"):
        PowerSMC(4, **{name: 2**31}).traced()


@pytest.mark.parametrize("values", [(0,), [3, 1], (2**31 - 1, 0)])
def test_seeds_that_differ_pass(values):
    checks.seeds("s", values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((), r"s is \(\); at least one seed is needed"),
        (0, "s is 0; it must be a tuple of integers"),
        (None, "s is None; it must be a tuple"),
        ("01", "s is '01'; it must be a tuple"),
        ((0, 1, 0), r"s is \(0, 1, 0\); they must differ"),
        ((0, 0.5), r"s\[1\] is 0.5; it must be an integer"),
        ((True,), r"s\[0\] is True; it must be an integer"),
        (("0",), r"s\[0\] is '0'; it must be an integer"),
        ((-1,), r"s\[0\] is -1; it must be an integer of at least 0"),
        # JAX would take this for seed 0.
        ((0, 2**32), r"s\[1\] is 4294967296; it must be an integer of at most"),
    ],
)
def test_invalid_seeds_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        checks.seeds("s", values)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_other_implementations_are_refused_by_name(impl):
    with pytest.raises(ValueError, match=f'implementation {impl}, .*impl="threefry2x32"'):
        checks.key(jax.random.key(0, impl=impl))


def test_keys_of_seeds_do_not_depend_on_the_default():
    with jax.default_prng_impl("unsafe_rbg"):
        key = prng.seed_key(3)
        with pytest.raises(ValueError, match="unsafe_rbg"):
            checks.key(jax.random.key(3))
    assert checks.key(key) == jax.random.key(3)


def test_a_key_committed_to_a_device_is_uncommitted():
    key = jax.device_put(jax.random.key(3), jax.devices()[1])
    assert not checks.key(key).committed and checks.key(key) == jax.random.key(3)


def test_a_deleted_key_is_refused():
    key = jax.device_put(jax.random.key(3), jax.devices()[1])
    key.delete()
    with pytest.raises(ValueError, match="deleted or donated"):
        checks.key(key)


@pytest.mark.parametrize(
    "prompt",
    [[1, 2], (1, 2), np.array([1, 2], np.uint8), jnp.array([1, 2]), [jnp.int32(1), np.uint8(2)]],
)
def test_prompts_are_copied(prompt):
    own = checks.prompt(0, prompt, 5)
    assert own.dtype == np.int32 and own.tolist() == [1, 2]
    assert not (isinstance(prompt, np.ndarray) and np.shares_memory(own, prompt))


def test_targets_and_samplers_hold_plain_python_numbers():
    target = PowerTarget(
        jnp.float32(2), np.array([1, 0], np.uint8), top_k=jnp.int32(3), top_p=np.float32(0.5)
    )
    assert target == PowerTarget(2.0, (0, 1), top_k=3, top_p=0.5)
    for one, other in (
        (PowerSMC(np.int64(4), jnp.float32(0.5)), PowerSMC(4, 0.5)),
        (Ancestral(jnp.float32(1), np.uint8(2)), Ancestral(1.0, 2)),
        (WithoutReplacement(jnp.int32(4), np.int8(2)), WithoutReplacement(4, 2)),
        (MetropolisHastings(np.uint8(2), jnp.int32(1)), MetropolisHastings(2, 1)),
    ):
        assert one == other and hash(one) == hash(other)
        values = dataclasses.asdict(one).values()
        assert {type(value) for value in values} <= {int, float, str, type(None)}
