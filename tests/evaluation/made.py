"""Records that no job made, as small as they may be."""

from jax_power_smc.core.prng import prompt_id


def particle(**changes):
    """One with a single token, and all of the weight."""
    made = {
        "tokens": [1],
        "text": "1",
        "finished": True,
        "log_prob": -1.5,
        "log_weight": 0.0,
        "loop": False,
        "very_short": False,
        "row": 0,
        "parsed": "1",
        "correct": True,
        "correct_string": True,
        "note": None,
    }
    return made | changes


def info(**changes):
    """Of one step."""
    made = {
        "ess": [1.0],
        "forks": [0],
        "moves": [],
        "distinct_roots": 1,
        "coalescence": 1,
        "unfinished_mass": 0.0,
        "dropped_mass": None,
        "acceptance_rate": None,
        "model_tokens": 1,
        "drawn_tokens": 1,
        "preempted": 0,
    }
    return made | changes


def record(seed=0, id="a", run="smc", **changes):
    """The record of one item, without digests."""
    made = {
        "digest": {},
        "run": run,
        "seed": seed,
        "id": id,
        "prompt_id": prompt_id(id),
        "prompt": "What is one?",
        "gold": 1,
        "rendered": "What is one?",
        "failure": None,
        "log_evidence": -2.5,
        "choice": 0,
        "particles": [particle()],
        "info": info(),
        "seconds": {"compile": 0.5, "prefill": 0.01, "decode": 0.1},
    }
    return made | changes
