"""The paper's cost model against the clock: Lemmas 1 to 3 (docs/math.md, eqs. 35 to 39).

The methods are interleaved, several rounds in one process, and only ratios of medians are compared.
The throughput gain s(N) is measured too, by plain decoding of N sequences at once, so that the test
is of the model's counting and not of a guess about the machine.
"""

from collections.abc import Callable, Sequence
from statistics import median

from jax_power_smc.benchmarks.records import Write
from jax_power_smc.core import prng
from jax_power_smc.engine import sample
from jax_power_smc.models.checkpoints.loaded_model import LoadedModel
from jax_power_smc.samplers import Ancestral, MetropolisHastings, PowerSMC, Sampler
from jax_power_smc.targets.power import PowerTarget
from jax_power_smc.theory import cost_model


def measure(
    lm: LoadedModel,
    prompt: Sequence[int],
    *,
    alpha: float,
    max_new_tokens: int,
    num_particles: int,
    num_blocks: int,
    moves_per_block: int,
    repeats: int,
    write: Write,
    progress: Callable[[str, int, int], None],
) -> None:
    """Tokens and seconds of Power-SMC and of both edits of Metropolis-Hastings, one prompt.

    Args:
      lm: the language model; without end tokens, so sequences never end.
      prompt: token ids.
      alpha: exponent.
      max_new_tokens: T.
      num_particles: N of Power-SMC.
      num_blocks, moves_per_block: B and M of Metropolis-Hastings.
      repeats: runs of each method.
      write: receives the figures.
      progress: called before every repetition.
    """
    n, t, b, m = num_particles, max_new_tokens, num_blocks, moves_per_block
    samplers: dict[str, Sampler] = {
        "one sequence": Ancestral(1 / alpha),
        "N sequences": Ancestral(1 / alpha, n),
        "smc": PowerSMC(n),
        "mh global": MetropolisHastings(b, m, "global"),
        "mh last_block": MetropolisHastings(b, m, "last_block"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    tokens: dict[str, list[int]] = {name: [] for name in samplers}
    for repeat in range(repeats + 1):
        progress("all methods, interleaved", repeat, repeats + 1)
        for name, sampler in samplers.items():
            result = sample.sample(
                lm.model,
                lm.params,
                [prompt],
                key=prng.seed_key(repeat),
                target=PowerTarget(alpha),
                sampler=sampler,
                max_new_tokens=t,
            )
            if repeat:  # the first one compiles
                # The lemmas do not count the prompt.
                seconds[name].append(result.info.seconds["decode"])
                tokens[name].append(int(result.info.model_tokens.sum()))
    about = {
        "max_new_tokens": t,
        "num_particles": n,
        "num_blocks": b,
        "moves_per_block": m,
        "repeats": repeats,
    }
    for name in samplers:
        write("seconds", median(seconds[name]), "s", method=name, **about)
        write("model_tokens", sum(tokens[name]) / repeats, "tokens", method=name, **about)
    gain = n * median(seconds["one sequence"]) / median(seconds["N sequences"])
    write("batched_gain", gain, "ratio", **about)
    write("lemma_tokens", cost_model.smc_tokens(t, n), "tokens", method="smc", **about)
    for edit in cost_model.EDITS:
        name = f"mh {edit}"
        write("lemma_tokens", cost_model.mh_tokens(t, b, m, edit), "tokens", method=name, **about)
        predicted = cost_model.wall_clock_ratio(n, b, m, edit, gain, num_tokens=t)
        measured = median(seconds[name]) / median(seconds["smc"])
        write("predicted_wall_ratio", predicted, "mh over smc", method=name, **about)
        write("measured_wall_ratio", measured, "mh over smc", method=name, **about)
        work = cost_model.work_ratio(n, b, m, edit, num_tokens=t)
        write("predicted_work_ratio", work, "smc over mh", method=name, **about)
        write(
            "measured_work_ratio",
            sum(tokens["smc"]) / sum(tokens[name]),
            "smc over mh",
            method=name,
            **about,
        )
