"""What a record keeps of a result that was made by hand."""

import math
import types

import numpy as np
import pytest

from jax_power_smc.evaluation import records
from jax_power_smc.report import ancestry_tree
from jax_power_smc.tasks.base import Problem


def result(parent, tokens):
    """Two rows that are returned as they are."""
    count, cap = parent.shape[1], parent.shape[0]
    info = types.SimpleNamespace(
        particle_index=np.arange(count)[None],
        ess=np.ones((1, cap)),
        forks=np.zeros((1, cap), int),
        parent=parent[None],
        loops=np.zeros((1, count), bool),
        very_short=np.zeros((1, count), bool),
        **{
            name: np.zeros(1)
            for name in (
                "distinct_roots",
                "coalescence",
                "unfinished_mass",
                "dropped_mass",
                "acceptance_rate",
                "model_tokens",
                "drawn_tokens",
                "preempted",
            )
        },
    )
    return types.SimpleNamespace(
        info=info,
        choice=np.array([0]),
        log_evidence=np.array([np.nan]),
        finished=np.ones((1, count), bool),
        log_probs=np.zeros((1, count)),
        log_weights=np.full((1, count), -np.log(count)),
        sequences=lambda: [tokens],
        texts=lambda tokenizer: [["text"] * count],
        failures=lambda: [None],
    )


def test_copies_made_after_the_longest_that_is_left_had_ended_are_known():
    # Row 0 ends after two tokens. Row 1 goes on, and at step 4 gives way to a copy of row 0.
    parent = np.tile(np.arange(2), (6, 1))
    parent[4, 1] = 0
    problem = Problem(id="a", prompt="question", gold="1")
    record = records.ungraded_record(
        {}, "smc", 0, problem, 1, "question", result(parent, [[5, 6], [5, 6]]), None
    )
    assert record["info"]["moves"] == [[4, 1, 0]]
    assert len(record["info"]["ess"]) == 2
    (tree,) = ancestry_tree.forest(ancestry_tree.paths(record), [0, 1])
    assert tree.particles == [0, 1] and tree.end == 2


def test_weights_sum_to_one_and_dead_particles_have_none():
    def record(*raw):
        logs = [math.log(weight) if weight else None for weight in raw]
        return {"particles": [{"log_weight": log_weight} for log_weight in logs]}

    assert records.weights(record(0.2, 0.0, 0.6)) == pytest.approx([0.25, 0.0, 0.75])
    assert records.weights(record(0.0)) == [0.0]
    assert records.weights(record()) == []
