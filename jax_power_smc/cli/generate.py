"""Answers one prompt.

python -m launch.generate --model=tiny-reasoner --prompt="..." --sampler=smc
"""

import dataclasses
from typing import Any

import numpy as np
from absl import flags

from jax_power_smc.cli.common import launch
from jax_power_smc.core import checks, prng
from jax_power_smc.core.files import json_line
from jax_power_smc.core.sanitize import on_one_line, visible
from jax_power_smc.engine import sample
from jax_power_smc.models.checkpoints.load import load
from jax_power_smc.samplers import (
    Ancestral,
    MetropolisHastings,
    PowerSMC,
    Sampler,
    WithoutReplacement,
)
from jax_power_smc.targets.power import PowerTarget

SAMPLERS = ("swor", "smc", "mh", "ancestral")
# Blocks of Metropolis-Hastings, as in the paper; short answers have fewer.
NUM_BLOCKS = 16


@dataclasses.dataclass(frozen=True)
class Options:
    """The values of the flags; see ``run`` for their meaning."""

    model: str
    prompt: str
    sampler: str
    num_particles: int
    alpha: float
    temperature: float
    ramp_tokens: int
    max_new_tokens: int
    seed: int
    chat: bool | None = None


def generate(options: Options) -> dict[str, Any]:
    """The answer with its weight, log Z_hat and timing.

    Raises:
      ValueError: for an invalid value, or a model that cannot be loaded.
    """
    checks.one_of("sampler", options.sampler, SAMPLERS)
    PowerTarget(alpha=options.alpha)  # before the model is read
    checks.integer("max_new_tokens", options.max_new_tokens, at_least=1)
    # All are made, so that an invalid value is refused whichever of them runs.
    samplers: dict[str, Sampler] = {
        "swor": WithoutReplacement(options.num_particles, ramp_tokens=options.ramp_tokens),
        "smc": PowerSMC(options.num_particles, ramp_tokens=options.ramp_tokens),
        "mh": MetropolisHastings(
            min(NUM_BLOCKS, options.max_new_tokens), num_chains=options.num_particles
        ),
        "ancestral": Ancestral(options.temperature, options.num_particles),
    }
    # Within 31 bits: JAX silently drops the upper bits of a seed.
    checks.integer("seed", options.seed, at_least=0)
    if not _is_unicode(options.prompt):
        raise ValueError("the prompt is not valid UTF-8 text.")
    lm = load(options.model)
    result = sample.sample(
        lm.model,
        lm.params,
        [lm.encode(options.prompt, chat=options.chat)],
        key=prng.seed_key(options.seed),
        target=PowerTarget(alpha=options.alpha, eos_ids=lm.eos_ids),
        sampler=samplers[options.sampler],
        max_new_tokens=options.max_new_tokens,
    )
    index = int(result.choice[0])
    evidence = float(np.asarray(result.log_evidence)[0])
    return {
        "text": result.texts(lm.tokenizer)[0][index],
        "finished": bool(result.finished[0, index]),
        "tokens": int(result.lengths[0, index]),
        "log_prob": float(result.log_probs[0, index]),
        "weight": float(np.exp(result.log_weights[0, index])),
        "log_evidence": evidence if np.isfinite(evidence) else None,
        "model_tokens": int(result.info.model_tokens[0]),
        "drawn_tokens": int(result.info.drawn_tokens[0]),
        "resampled": int(result.info.resampled[0].sum()),
        "failure": result.failures()[0],
        "seconds": result.info.seconds,
        "decided": lm.describe(options.chat),
        **dataclasses.asdict(options),
    }


def _is_unicode(text: str) -> bool:
    """False if it has surrogates, by which Python represents bytes that are not valid UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def main(values: Any) -> None:
    """Answers the prompt that the flags name."""
    names = [field.name for field in dataclasses.fields(Options)]
    given: dict[str, Any] = {name: values[name].value for name in names}
    answer = generate(Options(**given))
    if values.json:
        print(json_line(answer), end="")
        return
    print(visible(answer["text"]))
    print()
    if answer["failure"]:
        print(on_one_line(answer["failure"]))
    elif not answer["finished"]:
        print(f"The answer was cut at max_new_tokens, {answer['max_new_tokens']}.")
    evidence = answer["log_evidence"]
    print(
        f"log p {answer['log_prob']:.2f}   weight {answer['weight']:.3f}   "
        + (f"log Z_hat {evidence:.2f}   " if evidence is not None else "")
        + f"{answer['tokens']} tokens of {answer['drawn_tokens']} drawn, "
        + f"{answer['model_tokens']} through the model"
    )
    print(on_one_line(f"{answer['model']}: {answer['decided']}"))
    print("   ".join(f"{phase} {s:.2f} s" for phase, s in answer["seconds"].items()))


def run() -> None:
    """The command line."""
    flags.DEFINE_string(
        "model", "tiny-reasoner", "tiny-reasoner, a directory with a model, or a model of the hub."
    )
    flags.DEFINE_string("prompt", None, "The text to continue.")
    flags.DEFINE_bool("chat", None, "Whether to use the chat template; default: the model decides.")
    flags.DEFINE_string("sampler", "smc", f"One of {', '.join(SAMPLERS)}.")
    flags.DEFINE_integer(
        "num_particles", 16, "N; for mh the number of chains, for ancestral that of samples."
    )
    flags.DEFINE_float("alpha", 4.0, "Exponent of the power distribution, at least 1.")
    flags.DEFINE_float("temperature", 1.0, "For ancestral: 0 is greedy.")
    flags.DEFINE_integer("ramp_tokens", 0, "For smc, swor: tokens over which the exponent rises.")
    flags.DEFINE_integer("max_new_tokens", 512, "Longest answer, in tokens.")
    flags.DEFINE_integer("seed", 0, "Seed of all random numbers.")
    flags.DEFINE_bool("json", False, "Print one JSON object instead.")
    launch(main, required=["prompt"])
