"""A record: everything known about one finished item, as one line of JSON.

An item is one problem, sampled by one run of a config with one seed. Its record has

    digest          part -> digest of what the result depends on, see ``conditions``
    run             name of the sampler in the config, such as "smc"
    seed, id        the seed and the problem's id; run, seed and id identify the item
    prompt_id       the integer that its random numbers are derived from
    prompt, gold    the problem's text and reference answer
    rendered        the prompt as the model read it: its tokens as text, special ones included
    failure         why the result is meaningless, or null
    log_evidence    log Z_hat, or null if the sampler does not estimate it
    choice          index of the drawn particle in ``particles``, or null if there are none
    particles       one object for each particle in use (swor may have fewer than N):
        tokens, text, finished, log_prob
        log_weight  normalised; null for weight zero
        loop        the output ends in a block that repeats again and again
        very_short  it ended after a token or two
        parsed, correct, correct_string, note     see ``grading.base.Verdict``
        row         its index in the genealogy at the last step
    info
        ess, forks  per step, up to the last step of the longest particle
        moves       the genealogy: [step, row, parent] wherever a row continues another row's past;
                    all other rows continue their own. Of all steps, even those after the end of
                    the longest particle that is left
        distinct_roots, coalescence, unfinished_mass, dropped_mass, acceptance_rate, model_tokens,
        drawn_tokens, preempted
                    see ``SampleInfo``. (Records of the engine that had a row per particle have no
                    drawn_tokens: their model_tokens are that.)
    seconds         by phase, spent by the run since its previous record: many items share a device,
                    so only sums over items are meaningful

Numbers that are not finite are null.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_power_smc.core.types import Tokenizer
from jax_power_smc.results.result import SampleResult
from jax_power_smc.tasks.base import Problem

Record = dict[str, Any]
Item = tuple[str, int, str]
# Digits kept of the effective sample size.
_ESS_DIGITS = 2


def item_of(record: Record) -> Item:
    """The item of a record: (run, seed, problem id)."""
    return record["run"], record["seed"], record["id"]


def ungraded_record(
    digests: Mapping[str, str],
    run: str,
    seed: int,
    problem: Problem,
    prompt_id: int,
    rendered: str,
    result: SampleResult,
    tokenizer: Tokenizer,
) -> Record:
    """The record of one prompt's result, P = 1, without verdicts and seconds."""
    used = np.flatnonzero(result.info.particle_index[0] >= 0).tolist()
    particles = _particles(result, tokenizer, used)
    choice = int(result.choice[0])
    (failure,) = result.failures()
    steps = max((len(p["tokens"]) for p in particles), default=0)
    info = result.info
    return {
        "digest": dict(digests),
        "run": run,
        "seed": seed,
        "id": problem.id,
        "prompt_id": prompt_id,
        "prompt": problem.prompt,
        "gold": problem.gold,
        "rendered": rendered,
        "failure": failure,
        "log_evidence": finite(result.log_evidence[0]),
        "choice": used.index(choice) if choice in used else None,
        "particles": particles,
        "info": {
            "ess": [round(float(x), _ESS_DIGITS) for x in info.ess[0, :steps]],
            "forks": info.forks[0, :steps].tolist(),
            # All steps: a long particle may have been replaced by copies of one that had ended.
            "moves": moves(info.parent[0]),
            "distinct_roots": int(info.distinct_roots[0]),
            "coalescence": int(info.coalescence[0]),
            "unfinished_mass": finite(info.unfinished_mass[0]),
            "dropped_mass": finite(info.dropped_mass[0]),
            "acceptance_rate": finite(info.acceptance_rate[0]),
            "model_tokens": int(info.model_tokens[0]),
            "drawn_tokens": int(info.drawn_tokens[0]),
            "preempted": int(info.preempted[0]),
        },
    }


def weights(record: Record) -> list[float]:
    """The weights of all particles, which sum to 1; all zero if the result is meaningless."""
    log_weights = [particle["log_weight"] for particle in record["particles"]]
    raw = [0.0 if log_weight is None else math.exp(log_weight) for log_weight in log_weights]
    total = math.fsum(raw)
    return [weight / total for weight in raw] if total > 0 else raw


def moves(parent: np.ndarray) -> list[list[int]]:
    """[step, row, parent] wherever a row of the genealogy [T, M] is not its own parent."""
    step, row = np.nonzero(parent != np.arange(parent.shape[1], dtype=parent.dtype))
    return np.stack([step, row, parent[step, row]], axis=1).tolist()


def finite(value: Any) -> float | None:
    """The number, or None if it is not finite, which JSON cannot express."""
    number = float(value)
    return number if math.isfinite(number) else None


def _particles(result: SampleResult, tokenizer: Tokenizer, used: Sequence[int]) -> list[Record]:
    tokens, texts = result.sequences()[0], result.texts(tokenizer)[0]
    finished = np.asarray(result.finished[0])
    log_probs, log_weights = np.asarray(result.log_probs[0]), np.asarray(result.log_weights[0])
    return [
        {
            "tokens": tokens[i],
            "text": texts[i],
            "finished": bool(finished[i]),
            "log_prob": finite(log_probs[i]),
            "log_weight": finite(log_weights[i]),
            "loop": bool(result.info.loops[0, i]),
            "very_short": bool(result.info.very_short[0, i]),
            "row": int(result.info.particle_index[0, i]),
        }
        for i in used
    ]
