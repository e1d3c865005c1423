"""Workdirs of evaluations that never ran: records with made-up particles, quick to write."""

import json
import math

import numpy as np
from etils import epath

from jax_power_smc.core.prng import prompt_id
from jax_power_smc.evaluation import claim, job_config, store
from jax_power_smc.evaluation.conditions import conditions_of, digest
from jax_power_smc.evaluation.records import item_of
from jax_power_smc.evaluation.scores import read
from jax_power_smc.evaluation.summary import Run, summarize

DEVICE = "a device"


def default_config(num_particles=4):
    """Plain decoding, low temperature, several samples, and the samplers of the paper."""
    config = job_config.default()
    config.num_particles = num_particles
    config.samplers = {
        "plain": job_config.entry("ancestral", temperature=1.0),
        "low": job_config.entry("ancestral", temperature=0.25),
        "many": job_config.entry("ancestral", temperature=1.0, num_samples=num_particles),
        "mh": job_config.entry("mh", num_blocks=4, moves_per_block=1),
        "smc": job_config.entry("smc", num_particles=num_particles),
        "swor": job_config.entry("swor", num_particles=num_particles),
    }
    return config


def runs_of(config):
    """The runs of a config, in the order of the table."""
    return [
        Run(name, job_config.labels(config)[name], sampler)
        for name, sampler in job_config.samplers(config).items()
    ]


def particle(rng, row, length, **changes):
    """One that may be right or wrong; without its weight."""
    answer = int(rng.integers(3))
    made = {
        "tokens": rng.integers(200, size=length).tolist(),
        "text": f"First we count,\nthen we add: {answer}",
        "finished": True,
        "log_prob": float(-10 * rng.random()),
        "log_weight": None,
        "loop": False,
        "very_short": False,
        "row": row,
        "parsed": str(answer),
        "correct": answer == 1,
        "correct_string": answer == 1,
        "note": None,
    }
    return made | changes


def record(rng, run, seed, name, length=6, particles=None, **changes):
    """The record of an item; ``particles`` may be some that are ready but for their weights."""
    count = run.sampler.num_particles
    if particles is None:
        particles = [particle(rng, row, length) for row in range(count)]
    weights = rng.dirichlet(np.ones(count)) if run.has_weights else np.full(count, 1 / count)
    for each, weight in zip(particles, weights, strict=True):
        each["log_weight"] = math.log(weight)
    steps = max(len(each["tokens"]) for each in particles)
    moves = [[2, 1, 0], [4, 0, 1]] if run.has_weights and count > 1 and steps > 4 else []
    made = {
        "rendered": f"What is {name}?",
        "run": run.name,
        "seed": seed,
        "id": name,
        "prompt_id": prompt_id(name),
        "prompt": f"What is {name}?",
        "gold": 1,
        "failure": None,
        "log_evidence": float(rng.normal()) if run.has_weights else None,
        "choice": int(rng.choice(count, p=weights)),
        "particles": particles,
        "info": {
            "ess": (1 + rng.random(steps) * (count - 1)).round(2).tolist(),
            "forks": [sum(step == t for step, _, _ in moves) for t in range(steps)],
            "moves": moves,
            "distinct_roots": 1,
            "coalescence": 0,
            "unfinished_mass": 0.0,
            "dropped_mass": 0.0,
            "acceptance_rate": 0.5,
            "model_tokens": sum(len(each["tokens"]) for each in particles),
        },
        "seconds": {"compile": 0.5, "prefill": 0.01, "decode": 0.1 * count},
    }
    return made | changes


def every_item(rng, config, problems):
    """A record for every problem, run and seed."""
    return [
        record(rng, run, seed, name)
        for run in runs_of(config)
        for name in problems
        for seed in config.seeds
    ]


def write(directory, config, records, problems=None):
    """Makes a workdir.

    Args:
      directory: of it; made.
      config: of the job.
      records: what is finished.
      problems: ids of all problems, for a finished job; None for an unfinished one, which
        has no summary.

    Returns:
      Its path.
    """
    workdir = epath.Path(directory)
    runs = runs_of(config)
    names = list(dict.fromkeys([*(problems or ()), *(each["id"] for each in records)]))
    grading = {"kind": "code" if config.allow_code_execution else "reasoner"}
    about = {
        "config": config.to_dict(),
        "conditions": {
            "algorithm": 1,
            "model": {"files": {}},
            "grading": grading | {"code_isolation": config.code_isolation},
        },
        "chat": False,
        "decided": "base prompts, no BOS, eos ids 0",
        "date": "2026-11-30",
        "commit": None,
        "labels": {run.name: run.label for run in runs},
        "device": DEVICE,
        "versions": {"jax_power_smc": "0.1.0", "jax": "0.10.2"},
        "problems": {name: digest(name) for name in names},
        "renderings": {name: digest([name]) for name in names},
    }
    made = conditions_of(claim.claim(workdir, about))
    with open(workdir / "records.jsonl", "w") as file:
        for each in records:
            own = {"digest": made.digests(item_of(each))}
            file.write(json.dumps(own | each, allow_nan=False) + "\n")
    if problems is not None:
        store.write_json(workdir / "summary.json", summary_of(config, records, problems))
    return workdir


def summary_of(config, records, problems):
    """What a job writes at its end."""
    readings = [read(each) for each in records]
    seeds = list(config.seeds)
    return summarize(readings, runs_of(config), problems, seeds, config.alpha, DEVICE)
