"""The cost of a sample in model work and time, by the cost model of arXiv 2602.10273.

The unit is one token of one sequence through the model (docs/math.md, "Cost model"). The prompt is
not counted, sequences never end, and one draw is one token. N particles, T generated tokens;
Metropolis-Hastings grows the sequence in B blocks of T/B tokens and makes M moves after each; a
move cuts the sequence at r and redraws everything from r on. All costs of Metropolis-Hastings are
expectations over the cuts, exact for every T that B divides (no large-T approximation), and do not
depend on whether moves are accepted.

In arguments, ``num_particles`` is N, ``num_tokens`` T, ``num_blocks`` B, ``moves_per_block`` M (0
or more), ``edit`` "global" or "last_block", and ``gain`` the batched gain s(N). A value outside its
range, or a B that does not divide T, is a ValueError.
"""

from typing import Literal

from jax_power_smc.core import checks
from jax_power_smc.theory.roofline import Device as Device
from jax_power_smc.theory.roofline import ModelCost as ModelCost
from jax_power_smc.theory.roofline import batched_gain as batched_gain
from jax_power_smc.theory.roofline import step_seconds as step_seconds

Edit = Literal["global", "last_block"]
EDITS: tuple[Edit, ...] = ("global", "last_block")


# --- work: the three lemmas ---


def smc_tokens(num_tokens: int, num_particles: int) -> float:
    """Tokens of one Power-SMC run: ``C_SMC = N T`` (Lemma 1; docs/math.md, eq. 35)."""
    num_tokens = checks.integer("num_tokens", num_tokens, at_least=1)
    num_particles = checks.integer("num_particles", num_particles, at_least=1)
    return float(num_particles * num_tokens)


def mh_tokens(num_tokens: int, num_blocks: int, moves_per_block: int, edit: Edit) -> float:
    """Expected tokens of one Metropolis-Hastings chain (Lemmas 2 and 3; docs/math.md, eqs. 36, 37).

    Growth costs T in total. With "global" edits the cut in block b is uniform in 1..h, where
    h = b T/B is the length of the prefix, and a move draws h - r + 1 tokens, (h + 1)/2 on average;
    with "last_block" edits the same holds with h = T/B. Summed over M moves in each of B blocks:

        global (Lemma 2)       T (1 + M (B + 1)/4) + M B/2
        last block (Lemma 3)   T (1 + M/2) + M B/2
    """
    num_blocks, moves_per_block = _chain(num_blocks, moves_per_block, edit)
    num_tokens = _horizon(num_tokens, num_blocks)
    per_token = _mh_tokens_per_token(num_blocks, moves_per_block, edit)
    return num_tokens * per_token + moves_per_block * num_blocks / 2


def equal_cost_moves(num_particles: int, num_blocks: int, edit: Edit) -> int:
    """The M at which a chain costs about as much as N particles: Lemma 1 = Lemma 2 or 3.

    In the limit of long sequences, ``M = (N - 1) 4/(B + 1)`` for "global" and ``2 (N - 1)`` for
    "last_block", rounded.
    """
    num_particles = checks.integer("num_particles", num_particles, at_least=1)
    num_blocks, _ = _chain(num_blocks, 1, edit)
    return round((num_particles - 1) / (_mh_tokens_per_token(num_blocks, 1, edit) - 1))


# --- the corollary: both methods compared ---


def work_ratio(
    num_particles: int,
    num_blocks: int,
    moves_per_block: int,
    edit: Edit,
    num_tokens: int | None = None,
) -> float:
    """``C_SMC / C_MH``, the model work of SMC over that of the chain (docs/math.md, eq. 38).

    ``N / (1 + M (B + 1)/4)`` for "global", ``N / (1 + M/2)`` for "last_block", by Lemmas 1 to 3.
    This is the limit of long sequences, without ``num_tokens``; at finite T the chain's last term
    adds M B/(2T) to the denominator.
    """
    num_particles = checks.integer("num_particles", num_particles, at_least=1)
    num_blocks, moves_per_block = _chain(num_blocks, moves_per_block, edit)
    chain = _mh_tokens_per_token(num_blocks, moves_per_block, edit)
    if num_tokens is not None:
        chain += moves_per_block * num_blocks / (2 * _horizon(num_tokens, num_blocks))
    return num_particles / chain


def wall_clock_ratio(
    num_particles: int,
    num_blocks: int,
    moves_per_block: int,
    edit: Edit,
    gain: float,
    num_tokens: int | None = None,
) -> float:
    """The time of the chain over that of SMC: above 1, SMC is faster (docs/math.md, eq. 38).

    ``(1 + M (B + 1)/4) s(N)/N`` for "global", ``(1 + M/2) s(N)/N`` for "last_block": SMC advances N
    sequences at once and has the batched gain; the chain decodes one token at a time and has none.
    """
    gain = checks.number("gain", gain, above=0)
    return gain / work_ratio(num_particles, num_blocks, moves_per_block, edit, num_tokens)


def smc_seconds(token_seconds: float, num_tokens: int, num_particles: int, gain: float) -> float:
    """Wall clock of one Power-SMC run: ``t(1) T N / s(N)`` (docs/math.md, eq. 35).

    ``token_seconds`` is t(1), for one token of a single sequence.
    """
    seconds = checks.number("token_seconds", token_seconds, above=0)
    gain = checks.number("gain", gain, above=0)
    return seconds * smc_tokens(num_tokens, num_particles) / gain


# --- shared terms and checks ---


def _mh_tokens_per_token(num_blocks: int, moves_per_block: int, edit: Edit) -> float:
    """The chain's cost per generated token, without the constant M B/2."""
    half_moves = moves_per_block / 2
    return 1 + half_moves * ((num_blocks + 1) / 2 if edit == "global" else 1)


def _chain(num_blocks: int, moves_per_block: int, edit: str) -> tuple[int, int]:
    checks.one_of("edit", edit, EDITS)
    return (
        checks.integer("num_blocks", num_blocks, at_least=1),
        checks.integer("moves_per_block", moves_per_block, at_least=0),
    )


def _horizon(num_tokens: int, num_blocks: int) -> int:
    num_tokens = checks.integer("num_tokens", num_tokens, at_least=1)
    if num_tokens % num_blocks:
        raise ValueError(
            f"num_tokens is {num_tokens} and num_blocks {num_blocks}; "
            "the first must be a multiple of the second."
        )
    return num_tokens
