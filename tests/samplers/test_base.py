"""What samplers share: their settings as a pytree, what they say of themselves, and particles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc import Ancestral, MetropolisHastings, PowerSMC, WithoutReplacement
from jax_power_smc.samplers import Kernel, Sampler, base

SAMPLERS = [
    PowerSMC(4, ess_threshold=0.7, ramp_tokens=3),
    PowerSMC(4, order="published", proposal_temperature=0.8),
    WithoutReplacement(4, early_stop=0),
    Ancestral(0.5, num_samples=4),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_a_kernel_is_a_pytree_of_its_numbers(sampler):
    numbers, structure = jax.tree.flatten(sampler)
    assert jax.tree.unflatten(structure, numbers) == sampler
    traced = sampler.traced()
    assert type(traced) is type(sampler)
    for name, value in vars(sampler).items():
        found = getattr(traced, name)
        if name in sampler.STATIC or value is None:
            assert found == value
        else:
            assert found.shape == () and float(found) == pytest.approx(value)
    assert {x.dtype for x in jax.tree.leaves(traced)} <= {jnp.dtype("int32"), jnp.dtype("float32")}


def test_numbers_share_a_program_and_static_fields_do_not():
    def structure(*args, **options):
        return jax.tree.structure(PowerSMC(*args, **options).traced())

    assert structure(4) == structure(4, ess_threshold=1, ramp_tokens=7, check_every=2)
    assert structure(4) != structure(5) and structure(4) != structure(4, order="published")
    # An integer for a real number is the same real number.
    leaves = [jax.tree.leaves(Ancestral(x).traced()) for x in (1, 1.0)]
    assert [x.dtype for x in leaves[0]] == [x.dtype for x in leaves[1]]


def test_what_samplers_say_of_themselves():
    for sampler in SAMPLERS:
        assert isinstance(sampler, Sampler) and isinstance(sampler, Kernel)
        assert not sampler.runs_as_chains and sampler.num_particles == 4
        sampler.check(max_new_tokens=1)
    assert [sampler.has_evidence for sampler in SAMPLERS] == [True, True, True, False]
    assert [sampler.token_temperature(4.0) for sampler in SAMPLERS] == [0.25, 0.8, 0.25, 0.5]
    chains = MetropolisHastings(num_blocks=8, num_chains=3)
    assert isinstance(chains, Sampler) and chains.runs_as_chains and not chains.has_evidence
    assert chains.num_particles == 3 and chains.token_temperature(4.0) == 0.25
    chains.check(max_new_tokens=8)
    with pytest.raises(ValueError, match="num_blocks is 8"):
        chains.check(max_new_tokens=7)


def test_particles_reorder_and_extend():
    particles = base.start(3, jnp.float32)._replace(
        log_prob=jnp.array([-1.0, -2.0, -3.0]),
        ended=jnp.array([False, False, True]),
        length=jnp.array([2, 2, 1], jnp.int32),
    )
    particles = base.reorder(particles, jnp.array([1, 1, 2], jnp.int32))
    assert particles.log_prob.tolist() == [-2.0, -2.0, -3.0]
    active, ends = ~particles.ended, jnp.array([False, True, True])
    particles = base.extend(particles, jnp.full((3,), -0.5), active, ends)
    assert particles.log_prob.tolist() == [-2.5, -2.5, -3.0]
    assert particles.ended.tolist() == [False, True, True]
    assert particles.finished.tolist() == [False, True, False]
    assert particles.length.tolist() == [3, 3, 1] and int(particles.drawn) == 2


def test_final_weights_are_normalised_and_the_choice_follows_them():
    log_weight = jnp.log(jnp.array([0.1, 0.0, 0.3]))
    final = base.final_weights(log_weight, jnp.float32(-2.0), jnp.float32(0.2))
    np.testing.assert_allclose(jnp.exp(final.log_weight), [0.25, 0.0, 0.75], rtol=1e-6)
    assert float(final.log_evidence) == pytest.approx(-2.0 + np.log(0.4))
    assert int(final.choice) == 0 and final.particle_index.tolist() == [0, 1, 2]
    index = jnp.array([2, -1, 0], jnp.int32)
    final = base.final_weights(log_weight, jnp.float32(0.0), jnp.float32(0.3), index)
    assert int(final.choice) == 2 and final.particle_index.tolist() == index.tolist()
