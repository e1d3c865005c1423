"""Runs a benchmark and writes its figures as JSON lines.

python -m launch.benchmark --config=configs/fidelity.py --workdir=DIR
"""

import itertools
import pathlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from jax_power_smc.benchmarks import fidelity, markov_models, plots, records, tables
from jax_power_smc.cli import benchmark_compiled, benchmark_rows, benchmark_speed
from jax_power_smc.cli.common import launch
from jax_power_smc.core import checks
from jax_power_smc.core.progress import ProgressDisplay
from jax_power_smc.evaluation.config_fields import Check, each, integer, number
from jax_power_smc.models.checkpoints.load import load
from jax_power_smc.models.checkpoints.loaded_model import LoadedModel
from jax_power_smc.report.tables import print_tables
from jax_power_smc.targets.power import PowerTarget
from jax_power_smc.tiny_reasoner import problems


def _not_blank(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {value!r}; it must be non-empty text.")


# Every field of the fidelity benchmark with its check.
_FIDELITY_FIELDS: dict[str, Check] = {
    "alpha": lambda name, value: PowerTarget(value),
    **dict.fromkeys(("runs", "model_runs"), integer(2)),
    **dict.fromkeys(("vocab_size", "prompts", "max_new_tokens", "text_max_new_tokens"), integer(1)),
    **dict.fromkeys(("kinds", "entropies"), checks.listed),  # see markov_models.check
    "horizons": each(integer(1)),
    "seeds": checks.seeds,
    **dict.fromkeys(("smc_ramps", "swor_ramps"), each(number(at_least=0, at_most=1))),
    **{
        f"{prefix}{name}_particles": each(integer(1))
        for prefix in ("", "model_")
        for name in ("smc", "swor", "mh")
    },
    **dict.fromkeys(("models", "text_models", "texts"), each(_not_blank)),
}


_Run = Callable[[ConfigDict, pathlib.Path], pathlib.Path]


def benchmark(config: ConfigDict, workdir: str) -> pathlib.Path:
    """Runs the benchmark that the config names; returns the file with its figures.

    Raises:
      ValueError: for a missing field or an invalid value, before any work.
      OSError: if the workdir cannot be written.
    """
    checks.one_of("config.benchmark", config.get("benchmark"), _BENCHMARKS)
    run, fields = _BENCHMARKS[config.benchmark]
    if missing := [name for name in fields if name not in config]:
        raise ValueError(f"the config lacks {', '.join(missing)}.")
    return run(config, pathlib.Path(workdir).expanduser())


def _fidelity(config: ConfigDict, root: pathlib.Path) -> pathlib.Path:
    for name, check in _FIDELITY_FIELDS.items():
        check(f"config.{name}", config[name])
    if config.text_models and not config.texts:
        raise ValueError("config.texts is empty; config.text_models needs texts to continue.")
    for kind, entropy in itertools.product(config.kinds, config.entropies):
        markov_models.check(config.vocab_size, entropy, kind)
    grid = [
        {"kind": kind, "horizon": horizon, "entropy": entropy, "seed": seed}
        for kind, horizon, entropy, seed in itertools.product(
            config.kinds, config.horizons, config.entropies, config.seeds
        )
    ]
    questions = _questions(config)
    with (
        records.new_file(root, "fidelity.jsonl") as (path, write),
        ProgressDisplay(seconds_between_lines=15.0) as progress,
    ):
        fidelity.measure_markov_models(
            grid,
            _settings(config, ""),
            vocab_size=config.vocab_size,
            alpha=config.alpha,
            runs=config.runs,
            write=write,
            progress=progress.update,
        )
        for name, (lm, asked) in questions.items():
            fidelity.measure_model(
                lm,
                name,
                asked,
                _settings(config, "model_"),
                runs=config.model_runs,
                write=write,
                progress=progress.update,
            )
    print(f"The figures: {path}")
    print_tables(tables.fidelity(records.read(path)))
    if grid:
        plots.fidelity(path, root / "fidelity.png")
        print(f"The picture: {root / 'fidelity.png'}")
    return path


def _check_positions(
    name: str, lm: LoadedModel, prompts: Sequence[Sequence[int]], new_tokens: int
) -> None:
    """Raises ValueError if prompt and continuation exceed the model's context."""
    longest, limit = max(map(len, prompts)), lm.model.max_positions
    if longest + new_tokens > limit:
        raise ValueError(
            f"{name} is {new_tokens}; with prompts of up to {longest} tokens it must be at most "
            f"{limit - longest}, since the model has {limit} positions."
        )


def _settings(config: ConfigDict, prefix: str) -> list[fidelity.Setting]:
    """All settings from the fields that begin with a prefix: "" (Markov models) or "model_"."""
    smc, swor, mh = (config[f"{prefix}{name}_particles"] for name in ("smc", "swor", "mh"))
    return [
        *(fidelity.Setting("smc", n, ramp) for n in smc for ramp in config.smc_ramps),
        *(fidelity.Setting("swor", n, ramp) for n in swor for ramp in config.swor_ramps),
        *(fidelity.Setting("mh", n) for n in mh),
    ]


def _questions(config: ConfigDict) -> dict[str, tuple[LoadedModel, fidelity.Questions]]:
    """name -> the model and its prompts."""
    listed = list(problems.problems("test", config.prompts))

    def is_right(index: int, response: str) -> bool:
        return problems.parse_answer(response) == listed[index].answer

    asked = {}
    for name in config.models:
        lm = load(name)
        target = PowerTarget(config.alpha, lm.eos_ids)
        texts = [problem.question for problem in listed]
        questions = fidelity.Questions(texts, target, config.max_new_tokens, is_right)
        prompts = [lm.encode(text) for text in texts]
        _check_positions("config.max_new_tokens", lm, prompts, config.max_new_tokens)
        asked[pathlib.Path(name).name] = (lm, questions)
    for name in config.text_models:
        if not pathlib.Path(name).is_dir():
            print(f"{name} does not exist and is left out.")
            continue
        # Without end tokens: otherwise the power distribution would end a story at once.
        questions = fidelity.Questions(
            config.texts, PowerTarget(config.alpha), config.text_max_new_tokens
        )
        lm = load(name)
        prompts = [lm.encode(text) for text in config.texts]
        _check_positions("config.text_max_new_tokens", lm, prompts, config.text_max_new_tokens)
        asked[pathlib.Path(name).name] = (lm, questions)
    return asked


# name -> what runs it, and the fields of its config
_BENCHMARKS: dict[str, tuple[_Run, Collection[str]]] = {
    "fidelity": (_fidelity, _FIDELITY_FIELDS),
    "speed": (benchmark_speed.run, benchmark_speed.FIELDS),
    "rows": (benchmark_rows.run, benchmark_rows.FIELDS),
    "compiled": (benchmark_compiled.run, benchmark_compiled.FIELDS),
}


def main(values: Any) -> None:
    """Runs the launcher with the flags that ``run`` defined."""
    benchmark(values.config, values.workdir)


def run() -> None:
    """The command line."""
    config_flags.DEFINE_config_file(
        "config", None, "A benchmark config, such as configs/fidelity.py."
    )
    flags.DEFINE_string("workdir", "runs/benchmark", "Directory for the figures and pictures.")
    launch(main, required=["config"])
