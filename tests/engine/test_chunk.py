"""What a chunk shows of the rows: who has some, who waits, and what a prompt resumes from."""

import numpy as np
import pytest

from jax_power_smc.engine.chunk import Chunk
from jax_power_smc.engine.programs import Snapshot
from jax_power_smc.engine.request import ActiveRequest
from jax_power_smc.engine.state import Draw, PromptState
from jax_power_smc.engine.step import Record
from jax_power_smc.samplers import Particles
from jax_power_smc.targets.power import PowerTarget

# Two devices with two slots each and R = 4; 4 stands for no row. Slot 1 has no rows, slot 3 stalls.
ROW_OF = np.array([[0, 0, 1], [4, 4, 4], [2, 4, 2], [0, 1, 0]], np.int32)
STALLED = np.array([False, True, False, True])


@pytest.fixture
def chunk():
    each, one = np.zeros((4, 3)), np.zeros(4)
    particles = Particles(
        log_weight=np.full((4, 3), np.log(1 / 3)),
        log_prob=each,
        **dict.fromkeys(("ended", "finished"), each.astype(bool)),
        length=each,
        **dict.fromkeys(("log_evidence", "exponent", "drawn", "dropped"), one),
    )
    draw = Draw(
        parent=np.array([[0, 1, 2]] * 3 + [[1, 0, 0]], np.int32),
        token=np.array([[5, 6, 7]] * 4, np.int32),
        active=np.ones((4, 3), bool),
        log_prob=each,
        **dict.fromkeys(("ess", "resampled", "bad_logits"), one),
    )
    snapshot = Snapshot(
        prompts=PromptState(particles, ROW_OF, one, STALLED, draw),
        running=np.array([True, True, False, True]),
        stuck=np.array([False, True]),
        stop_state=np.arange(12, dtype=np.int32).reshape(4, 3),
        **dict.fromkeys(
            ("num_ticks", "in_use", "longest", "spoiled", "row_steps", "stalls"), one[:2]
        ),
    )
    return Chunk([None] * 4, None, snapshot, 4, 4, np.zeros(2, np.int32), 0)


def test_prompts_with_rows_and_those_that_wait(chunk):
    assert chunk.has_rows.tolist() == [True, False, True, True]
    assert chunk.stalled == 1  # slot 1 waits for all its rows, not for more
    assert chunk.stuck(2) == [[3]]  # slot 2 is done


def test_rows_that_are_left_when_a_prompt_gives_its_own_back(chunk):
    nobody = np.zeros(4, bool)
    assert chunk.rows_in_use(nobody, 2).tolist() == [2, 3]
    assert chunk.rows_in_use(np.arange(4) == 3, 2).tolist() == [2, 1]


def test_a_stalled_prompt_needs_a_row_for_each_prefix_to_come(chunk):
    # Its particles continue rows 1, 0 and 0 with three tokens.
    assert chunk.rows_needed(3) == 3
    chunk.snapshot.prompts.draw.token[3] = [5, 6, 6]
    assert chunk.rows_needed(3) == 2
    chunk.snapshot.prompts.particles.ended[3, 0] = True
    assert chunk.rows_needed(3) == 1


class Pending:
    """Records of one prompt: particle 2 branched off particle 0 in the second step."""

    def of(self, slot):
        assert slot == 0
        shape = (2, 3)
        one = np.zeros(2)
        return Record(
            step=np.arange(2, dtype=np.int32),
            parent=np.array([[0, 1, 2], [0, 1, 0]], np.int32),
            token=np.array([[8, 8, 9], [1, 1, 2]], np.int32),
            log_prob=np.zeros(shape),
            active=np.ones(shape, bool),
            **dict.fromkeys(("ess", "resampled", "bad_logits", "num_rows", "copies"), one),
        )


def test_a_prompt_resumes_from_its_distinct_prefixes(chunk):
    request = ActiveRequest([3, 4], 0, PowerTarget(2.0), 8, pieces=[(Pending(), 0)])
    suspended = chunk.suspended(request, 0)
    assert suspended.state.row_of.tolist() == [0, 0, 1] and suspended.needs == 2
    (first, ids, state), (second, others, last) = suspended.prefixes
    assert first.tolist() == [True, True, False] and ids.tolist() == [3, 4, 8, 1] and state == 0
    assert second.tolist() == [False, False, True] and others.tolist() == [3, 4, 8, 2] and last == 2
    assert ids.dtype == np.int32
