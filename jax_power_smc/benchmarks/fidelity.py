"""How close samplers come to the power distribution, measured by their evidence.

``KL(q_out || pi_alpha) <= log Z - E[log Z_hat]`` for the drawn sequence (docs/math.md, eq. 30), so
the gap log Z - E[log Z_hat] bounds a sampler's error given nothing but log Z. On Markov models log
Z is exact (``markov_models``). On language models it is unknown, and the gap is an estimate:
against the pooled evidence of a reference setting, which is itself low on average.

Metropolis-Hastings has no evidence; it can be judged by the mean log p of its output against that
of the power distribution, which is exact on Markov models. Its chains share their cuts within a
call, so its runs are not quite independent.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from jax_power_smc.benchmarks import markov_models
from jax_power_smc.benchmarks.records import Progress, Write
from jax_power_smc.core import prng
from jax_power_smc.engine import sample
from jax_power_smc.models.checkpoints.loaded_model import LoadedModel
from jax_power_smc.results.result import SampleResult
from jax_power_smc.samplers import MetropolisHastings, PowerSMC, Sampler, WithoutReplacement
from jax_power_smc.targets.power import PowerTarget
from jax_power_smc.theory import cost_model


@dataclasses.dataclass(frozen=True)
class Setting:
    """One sampler of the comparison.

    Attributes:
      name: "smc" (in the published order), "swor", or "mh": one chain with as many tokens as N
        particles take.
      num_particles: N.
      ramp_share: length of the exponent ramp as a share of T; 0 for none.
    """

    name: Literal["smc", "swor", "mh"]
    num_particles: int
    ramp_share: float = 0.0

    def sampler(self, horizon: int) -> Sampler:
        """The sampler for T tokens."""
        ramp = round(self.ramp_share * horizon)
        if self.name == "smc":
            return PowerSMC(self.num_particles, ramp_tokens=ramp, order="published")
        if self.name == "swor":
            return WithoutReplacement(self.num_particles, ramp_tokens=ramp, early_stop=0.0)
        blocks = min(MetropolisHastings().num_blocks, horizon)
        moves = cost_model.equal_cost_moves(self.num_particles, blocks, "global")
        return MetropolisHastings(blocks, moves, "global")


@dataclasses.dataclass(frozen=True)
class Questions:
    """Prompts for a language model, and what to sample for them.

    ``is_right`` tells whether the response to a prompt, given by its index, is correct.
    """

    texts: Sequence[str]
    target: PowerTarget
    max_new_tokens: int
    is_right: Callable[[int, str], bool] | None = None


def measure_markov_models(
    grid: Sequence[dict[str, Any]],
    settings: Sequence[Setting],
    *,
    vocab_size: int,
    alpha: float,
    runs: int,
    write: Write,
    progress: Progress,
) -> None:
    """Gap, standard deviation and mean log p of every setting on every Markov model.

    The grid holds the models as dicts with kind, horizon, entropy and seed; ``runs`` are the
    independent runs of each sampler on each of them. ``write`` receives the figures, and
    ``progress`` is called before every setting, and at the end.
    """
    prompt = [0]
    total, done = len(grid) * len(settings), 0
    for about_model in grid:
        horizon = about_model["horizon"]
        model, params = markov_models.make(
            vocab_size, horizon, about_model["entropy"], about_model["kind"], about_model["seed"]
        )
        exact = markov_models.exact_moments(model, params, prompt, alpha, horizon)
        write("exact_log_evidence", exact.log_evidence, "nats", **about_model, alpha=alpha)
        write("exact_mean_log_prob", exact.mean_log_prob, "nats", **about_model, alpha=alpha)
        for setting in settings:
            progress("Markov models", done, total, _title(about_model))
            done += 1
            result = sample.sample(
                model,
                params,
                [prompt] * runs,
                key=prng.seed_key(about_model["seed"]),
                target=PowerTarget(alpha),
                sampler=setting.sampler(horizon),
                max_new_tokens=horizon,
            )
            about = {**about_model, **dataclasses.asdict(setting), "alpha": alpha, "runs": runs}
            if setting.name != "mh":
                evidence = np.asarray(result.log_evidence, np.float64)
                write("gap", exact.log_evidence - evidence.mean(), "nats", **about)
                write("gap_error", _error(evidence), "nats", **about)
                write("sd_log_evidence", evidence.std(ddof=1), "nats", **about)
            _write_output(result, write, about)
    progress("Markov models", done, total)


def measure_model(
    lm: LoadedModel,
    name: str,
    questions: Questions,
    settings: Sequence[Setting],
    *,
    runs: int,
    write: Write,
    progress: Progress,
) -> None:
    """Evidence over prompts and runs, its standard deviation over runs, mean log p and accuracy.

    The estimated gap is that of ``evidence.kl_figure`` with the runs of a reference setting: the
    "swor" without a ramp and with the most particles; without such a setting there is no estimate.
    The reference lacks the mass that all its runs missed, so a gap may come out negative.

    Arguments are as for ``measure_markov_models``; ``runs`` are those of each prompt.
    """
    prompts = [lm.encode(text) for text in questions.texts]
    about = {
        "model": name,
        "prompts": len(prompts),
        "max_new_tokens": questions.max_new_tokens,
        "alpha": questions.target.alpha,
        "runs": runs,
    }
    found: dict[Setting, np.ndarray] = {}  # log Z_hat [P, R]
    for done, setting in enumerate(settings):
        progress(name, done, len(settings))
        result = sample.sample(
            lm.model,
            lm.params,
            [prompt for prompt in prompts for _ in range(runs)],
            key=prng.seed_key(0),
            target=questions.target,
            sampler=setting.sampler(questions.max_new_tokens),
            max_new_tokens=questions.max_new_tokens,
            tokenizer=lm.tokenizer,
        )
        labels = {**about, **dataclasses.asdict(setting)}
        if setting.name != "mh":
            found[setting] = np.asarray(result.log_evidence, np.float64).reshape(-1, runs)
            write("mean_log_evidence", found[setting].mean(), "nats", **labels)
            spread = found[setting].std(axis=1, ddof=1)
            write("sd_log_evidence", spread.mean(), "nats", **labels)
        _write_output(result, write, labels)
        if questions.is_right is not None:
            texts = [lm.tokenizer.decode(ids, skip_special_tokens=True) for ids in result.draw()]
            right = [questions.is_right(i // runs, text) for i, text in enumerate(texts)]
            write("accuracy", float(np.mean(right)), "share", **labels)
    progress(name, len(settings), len(settings))
    references = [s for s in found if s.name == "swor" and not s.ramp_share]
    if not references:
        return
    reference = found[max(references, key=lambda s: s.num_particles)]
    log_z = np.logaddexp.reduce(reference, axis=1) - np.log(runs)  # [P]
    for setting, evidence in found.items():
        labels = {**about, **dataclasses.asdict(setting)}
        write("estimated_gap", (log_z - evidence.mean(axis=1)).mean(), "nats", **labels)


def _title(about_model: dict[str, Any]) -> str:
    return (
        f"{about_model['kind']} model, T {about_model['horizon']}, {about_model['entropy']} nats, "
        f"seed {about_model['seed']}"
    )


def _write_output(result: SampleResult, write: Write, about: dict[str, Any]) -> None:
    """Figures that every sampler has: those of the drawn sequences, and their cost."""
    log_probs = np.asarray(result.log_probs, np.float64)
    drawn = np.take_along_axis(log_probs, np.asarray(result.choice)[:, None], axis=1)
    lengths = np.take_along_axis(
        np.asarray(result.lengths), np.asarray(result.choice)[:, None], axis=1
    )
    write("mean_log_prob", drawn.mean(), "nats", **about)
    write("mean_length", lengths.mean(), "tokens", **about)
    write("model_tokens", np.asarray(result.info.model_tokens).mean(), "tokens", **about)


def _error(evidence: np.ndarray) -> float:
    """Standard error of the mean."""
    return float(evidence.std(ddof=1) / np.sqrt(len(evidence)))
