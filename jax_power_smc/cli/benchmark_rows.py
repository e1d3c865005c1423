"""The benchmark of what rows cost (``configs/rows.py``)."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from jax_power_smc.benchmarks import (
    baseline,
    decode_worker,
    records,
    row_bench,
    row_fit,
    row_latency,
    row_throughput,
    tables,
    torch_baseline,
)
from jax_power_smc.benchmarks.decode_worker import Subject
from jax_power_smc.benchmarks.row_bench import PLAIN, Bench
from jax_power_smc.benchmarks.speed import random_prompt
from jax_power_smc.core import checks
from jax_power_smc.core.progress import ProgressDisplay
from jax_power_smc.evaluation.config_fields import Check, each, elsewhere, integer, number, text
from jax_power_smc.models.checkpoints.load import load
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import TransformerLM
from jax_power_smc.report.tables import print_tables
from jax_power_smc.targets.power import PowerTarget
from jax_power_smc.tiny_reasoner import problems

# Steps and prompt in which a model's logits are sharpened.
SHARP_STEPS, SHARP_PROMPT = 128, 32


def _baseline(name: str, value: Any) -> None:
    if value:
        baseline.check(value)


_COUNT, _COUNTS = integer(1), each(integer(1))
_NAMES = each(text("a name"))
# section -> its fields, each with its check
SECTIONS: dict[str, dict[str, Check]] = {
    "throughput": {
        **dict.fromkeys(("prompts", "smc", "swor", "baseline_smc"), _COUNTS),
        **dict.fromkeys(("slots", "max_new_tokens"), _COUNT),
        "mass_floors": each(number(at_least=0, below=1)),
    },
    "latency": {
        **dict.fromkeys(("prompts", "num_particles", "steps", "answer_tokens"), _COUNT),
        "sharpened": _NAMES,
    },
    "stories": {
        "particles": _COUNTS,
        **dict.fromkeys(("keys", "slots", "max_new_tokens"), _COUNT),
    },
    "flat": {
        "models": _NAMES,
        **dict.fromkeys(("particles", "rows", "prompt_tokens"), _COUNTS),
        **dict.fromkeys(("max_new_tokens", "repeats", "warmup_tokens"), _COUNT),
    },
    "torch": {
        **dict.fromkeys(("num_particles", "prompts", "peer_prompts", "max_new_tokens"), _COUNT),
        "sharpened": _NAMES,
    },
    "fit": {
        **dict.fromkeys(("num_particles", "prompts", "max_new_tokens"), _COUNT),
        "prompt_tokens": _COUNT,
        "memory": integer(1, at_most=None),
        "sharpened": _NAMES,
        "shape": elsewhere,
    },
}
_FIELDS: dict[str, Check] = {
    "sections": each(lambda name, value: checks.one_of(name, value, SECTIONS)),
    "alpha": lambda name, value: PowerTarget(value),
    "repeats": _COUNT,
    "baseline": _baseline,
    "reasoner": text("a model"),
    "stories_model": text("a model"),
    "texts": each(text("a text")),
    "models": elsewhere,
}
FIELDS = (*_FIELDS, *SECTIONS)


def run(config: ConfigDict, root: pathlib.Path) -> pathlib.Path:
    """Measures the sections in the config; returns the file with the figures."""
    shapes = _check(config)
    with contextlib.ExitStack() as stack:
        path, write = stack.enter_context(records.new_file(root, "rows.jsonl"))
        progress = stack.enter_context(ProgressDisplay(seconds_between_lines=15.0))
        bench = Bench(config.alpha, config.repeats, write, progress.update)
        if config.baseline:
            there = stack.enter_context(baseline.started(config.baseline))
            bench = dataclasses.replace(bench, baseline=there)
        else:
            print("config.baseline names no checkout; what is compared with one is left out.")
        job = _Job(config, bench, shapes)
        for section in config.sections:
            getattr(job, section)(**config[section])
    print_tables(tables.rows(records.read(path)))
    print(f"The figures: {path}")
    return path


class _Job:
    """The sections by name: each finds its models and prompts, and measures them."""

    def __init__(
        self, config: ConfigDict, bench: Bench, shapes: Mapping[str, dict[str, int]]
    ) -> None:
        self._config, self._bench, self._shapes = config, bench, shapes
        self._sharp: dict[tuple[str, int], Subject] = {}

    def throughput(
        self,
        prompts: Any,
        smc: Any,
        swor: Any,
        mass_floors: Any,
        baseline_smc: Any,
        slots: int,
        max_new_tokens: int,
    ) -> None:
        samplers = [row_bench.smc(num) for num in smc]
        samplers += [row_bench.swor(num, floor) for num in swor for floor in mass_floors]
        there = [PLAIN, *map(row_bench.smc, baseline_smc)]
        for count in prompts:
            row_throughput.throughput(
                self._bench,
                {"name": self._config.reasoner},
                self._questions(count),
                samplers,
                there,
                slots,
                max_new_tokens,
            )

    def latency(
        self,
        prompts: int,
        num_particles: int,
        steps: int,
        answer_tokens: int,
        sharpened: Any,
    ) -> None:
        name, bench = self._config.reasoner, self._bench
        reasoner, asked = decode_worker.load({"name": name}), self._questions(prompts)
        row_latency.latency(bench, name, reasoner, asked, num_particles, steps, answer_tokens)
        for name, subject in self._sharpened(sharpened, num_particles):
            asked = [self._random(subject)]
            row_latency.latency(bench, name, subject, asked, num_particles, steps, None)

    def stories(self, **fields: Any) -> None:
        for name, subject, prompts in self._stories():
            row_latency.stories(self._bench, name, subject, prompts, **fields)

    def flat(self, models: Any, repeats: int, **fields: Any) -> None:
        bench = dataclasses.replace(self._bench, repeats=repeats)
        for name in models:
            row_throughput.flat(bench, name, self._spec(name), **fields)

    def torch(
        self, prompts: int, max_new_tokens: int, sharpened: Any, num_particles: int, **fields: Any
    ) -> None:
        if not torch_baseline.available():
            print("PyTorch is not installed; left out: torch.")
            return
        name, questions = self._config.reasoner, self._questions(prompts)
        jobs = [(name, decode_worker.load({"name": name}), questions, max_new_tokens)]
        for name, subject in self._sharpened(sharpened, num_particles):
            jobs.append((name, subject, [self._random(subject)] * prompts, SHARP_STEPS))
        for name, subject, asked, cap in jobs:
            row_latency.against_torch(
                self._bench,
                name,
                subject,
                asked,
                num_particles=num_particles,
                max_new_tokens=cap,
                **fields,
            )

    def fit(self, sharpened: Any, prompts: int, shape: Any, **fields: Any) -> None:
        planned = TransformerConfig(
            **shape, tied_embeddings=False, max_positions=_positions(fields)
        )
        for name, subject, texts in self._stories():
            # Longer than what it was trained for; what counts is how its rows come and go.
            model: Any = subject.model
            config = dataclasses.replace(model.config, max_positions=planned.max_positions)
            longer = subject._replace(model=TransformerLM(config, model.dtype))
            asked = texts[:prompts]
            row_fit.fit(self._bench, name, longer, asked, shape=planned, **fields)
        for name, subject in self._sharpened(sharpened, fields["num_particles"]):
            asked = [self._random(subject)] * prompts
            row_fit.fit(self._bench, name, subject, asked, shape=planned, **fields)

    # --- Models and prompts ---

    def _spec(self, name: str) -> row_bench.Spec:
        return {"shape": self._shapes[name], "dtype": "float32"}

    def _questions(self, count: int) -> list[list[int]]:
        lm = load(self._config.reasoner)
        return [list(lm.encode(problem.question)) for problem in problems.problems("test", count)]

    def _stories(self) -> Iterator[tuple[str, Subject, list[list[int]]]]:
        """The model of stories with its prompts, if it is there."""
        directory = self._config.stories_model
        if not pathlib.Path(directory).is_dir():
            print(f"{directory} does not exist and is left out.")
            return
        lm = load(directory)
        prompts = [list(lm.encode(text)) for text in self._config.texts]
        yield pathlib.Path(directory).name, Subject(lm.model, lm.params), prompts

    def _random(self, subject: Subject) -> list[int]:
        return random_prompt(subject.model.vocab_size, SHARP_PROMPT)

    def _sharpened(self, names: Any, num_particles: int) -> Iterator[tuple[str, Subject]]:
        """Models whose logits are sharp at so many particles; the factor is searched once."""
        for name in names:
            if (name, num_particles) not in self._sharp:
                flat = decode_worker.load(self._spec(name))
                self._sharp[name, num_particles] = row_bench.sharpened(
                    self._bench, name, flat, num_particles, SHARP_PROMPT, SHARP_STEPS
                )
            yield name, self._sharp[name, num_particles]


def _check(config: ConfigDict) -> dict[str, dict[str, int]]:
    """The shapes of the models, with room for every section.

    Raises:
      ValueError: for an invalid value, before anything is made or written.
    """
    for name, check in _FIELDS.items():
        check(f"config.{name}", config[name])
    longest = 1
    for section in config.sections:
        fields = config[section]
        if missing := [name for name in SECTIONS[section] if name not in fields]:
            raise ValueError(f"config.{section} lacks {', '.join(missing)}.")
        for name, check in SECTIONS[section].items():
            check(f"config.{section}.{name}", fields[name])
        for name in (*fields.get("models", ()), *fields.get("sharpened", ())):
            checks.one_of(f"config.{section}", name, config.models)
        longest = max(longest, _positions(fields))
    shapes = {name: {**shape, "max_positions": longest} for name, shape in config.models.items()}
    named = {f"models.{name}": shape for name, shape in shapes.items()}
    for name, shape in {**named, "fit.shape": dict(config.fit.shape)}.items():
        try:
            TransformerConfig(**shape)
        except TypeError as error:
            raise ValueError(f"config.{name} cannot be read: {error}.") from error
    return shapes


def _positions(fields: Any) -> int:
    """Positions that the prompts and caps of a section's random models need, and some to spare."""
    lengths = fields.get("prompt_tokens", SHARP_PROMPT)
    prompt = max(lengths) if isinstance(lengths, tuple | list) else lengths
    caps = (SHARP_STEPS, fields.get("max_new_tokens", 1), fields.get("steps", 1))
    return int(max(prompt, SHARP_PROMPT) + max(caps))
