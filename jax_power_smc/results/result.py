"""The result of sampling: all particles with their weights, and the answers read off them."""

import dataclasses
import json
import math
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.lib import format as npy

from jax_power_smc.core import checks
from jax_power_smc.core.files import parse_json
from jax_power_smc.core.types import Tokenizer
from jax_power_smc.targets.power import PowerTarget
from jax_power_smc.targets.stop_rules import STOP_RULES

Array = jax.Array | np.ndarray
PHASES = ("compile", "prefill", "decode")
# Format of saved results; increased when a new version could not read the old files.
FORMAT = 3
# Bytes of the arrays of a saved result: of about 2700 prompts, with 64 particles of 2048 tokens.
LARGEST = 2**32


@dataclasses.dataclass(frozen=True)
class SampleInfo:
    """Observations made while sampling.

    Attributes:
      ess: [P, T], effective sample size when it was checked (N at steps that did not run).
      resampled: [P, T] bool.
      forks: [P, T] int32, particles that were copied from another one.
      parent: [P, T, M] int32, the genealogy: the particle whose tokens before t each particle
        continued at t. M is N, or more for a sampler with a finished pool.
      particle_index: [P, N] int32, each returned particle's index in the population [M]; -1 for an
        unused one.
      distinct_roots: [P] int32, distinct first tokens among the particles of positive weight.
      coalescence: [P] int32, number of first steps that all final particles of positive weight
        share; 0 if they descend from different particles of the first step. All steps if there is
        only one particle.
      unfinished_mass: [P], weight of the particles that reached the cap unfinished.
      loops: [P, N] bool, the output ends in a block of tokens repeated over and over.
      very_short: [P, N] bool, finished after at most ``diagnostics.SHORT_TOKENS`` tokens.
      bad_logits: [P] bool, the model returned a NaN, +inf or only -inf at some step.
      dropped_mass: [P], share of the evidence that an early stop may have left out; the bound is
        exact for alpha >= 1, since no continuation can add mass.
      acceptance_rate: [P], accepted share of the Metropolis-Hastings moves that redrew anything;
        NaN if there was none, and for other samplers.
      model_tokens: [P] int32, tokens through the model: each distinct prefix once.
      drawn_tokens: [P] int32, tokens drawn over all particles.
      num_rows: [P, T] int32, distinct prefixes that run on after each step: rows of the model.
      copies: [P] int32, rows that were copied.
      preempted: [P] int32, how often the prompt gave its rows back to earlier ones.
      seconds: of the whole call, by phase: "compile", "prefill", "decode" (``engine.timing``).
    """

    ess: np.ndarray
    resampled: np.ndarray
    forks: np.ndarray
    parent: np.ndarray
    particle_index: np.ndarray
    distinct_roots: np.ndarray
    coalescence: np.ndarray
    unfinished_mass: np.ndarray
    loops: np.ndarray
    very_short: np.ndarray
    bad_logits: np.ndarray
    dropped_mass: np.ndarray
    acceptance_rate: np.ndarray
    model_tokens: np.ndarray
    drawn_tokens: np.ndarray
    num_rows: np.ndarray
    copies: np.ndarray
    preempted: np.ndarray
    seconds: dict[str, float]


@dataclasses.dataclass(frozen=True)
class SampleResult:
    """The particles of P prompts.

    The arrays are JAX arrays, except in results of a stream: these are NumPy arrays in host memory,
    since reading a device array would wait until the device has finished its queued work.

    Attributes:
      tokens: [P, N, T] int32, pad (0) after the end.
      lengths: [P, N] int32, generated tokens, the end token included.
      finished: [P, N] bool, ended by an end token or the stop rule.
      log_probs: [P, N], log p(y|x) at temperature 1.
      token_log_probs: [P, N, T], that of each token; 0 after the end.
      log_weights: [P, N], normalised; -inf for weight zero.
      log_evidence: [P], log Z_hat; NaN if the sampler has none; -inf for a prompt whose target
        excludes everything that was tried.
      choice: [P] int32, the drawn particle.
      target: the declared target.
      info: observations per step, particle and prompt.
    """

    tokens: Array
    lengths: Array
    finished: Array
    log_probs: Array
    token_log_probs: Array
    log_weights: Array
    log_evidence: Array
    choice: Array
    target: PowerTarget
    info: SampleInfo

    def one(self, index: int) -> "SampleResult":
        """The result of a single prompt, P = 1, in host memory.

        The seconds remain those of the whole call.

        Raises:
          IndexError: unless the index lies in [0, P).
          ValueError: for an index that is not an integer.
        """
        index = checks.index("index", index, self.tokens.shape[0])
        own = slice(index, index + 1)
        part: dict[str, Any] = {name: np.asarray(getattr(self, name))[own] for name in _ARRAYS}
        info = {name: getattr(self.info, name)[own] for name in _INFO_ARRAYS}
        return dataclasses.replace(self, **part, info=dataclasses.replace(self.info, **info))

    def on_device(self) -> "SampleResult":
        """This result with JAX arrays."""
        arrays: dict[str, Any] = _put({name: getattr(self, name) for name in _ARRAYS})
        return dataclasses.replace(self, **arrays)

    # --- one answer per prompt ---

    def draw(self) -> list[list[int]]:
        """Each prompt's drawn sequence, approximately a sample from the target."""
        return self._sequences_at(np.asarray(self.choice))

    def best(self) -> list[list[int]]:
        """Each prompt's sequence of highest log p among those of positive weight."""
        return self._sequences_at(self.best_index())

    def best_index(self) -> np.ndarray:
        """[P], index of the particle of highest log p among those of positive weight."""
        usable = np.where(np.isfinite(self.log_weights), self.log_probs, -np.inf)
        return np.argmax(usable, axis=1)

    def vote(self, answers: Sequence[Sequence[Any]]) -> list[Any]:
        """Each prompt's answer of largest total weight.

        Args:
          answers: [P][N] hashable answers; None stands for no answer and does not count.

        Returns:
          [P] answers; None where no particle has one. Ties go to the first answer in order.

        Raises:
          ValueError: if the shape is not [P][N], or an answer is not hashable.
        """
        weights = np.exp(np.asarray(self.log_weights, np.float64))
        num_prompts, num_particles = weights.shape
        # A string is one answer, not a list of letters.
        listings = filter(_is_listing, answers) if _is_listing(answers) else ()
        given = [list(part) for part in listings]
        if [len(of_prompt) for of_prompt in given] != [num_particles] * num_prompts:
            raise ValueError(
                f"answers must be {num_prompts} lists, one per prompt, of {num_particles} answers, "
                "one per particle."
            )
        winners = []
        for of_prompt, weight in zip(given, weights, strict=True):
            total: dict[Any, float] = {}
            for answer, w in zip(of_prompt, weight, strict=True):
                if answer is not None and w > 0:
                    try:
                        total[answer] = total.get(answer, 0.0) + float(w)
                    except TypeError:
                        raise ValueError(
                            f"answers has {answer!r}; every answer must be hashable."
                        ) from None
            winners.append(max(total, key=lambda a: total[a]) if total else None)
        return winners

    def sequences(self) -> list[list[list[int]]]:
        """[P][N] token lists without padding."""
        tokens, lengths = np.asarray(self.tokens), np.asarray(self.lengths)
        return [_trimmed(*of_prompt) for of_prompt in zip(tokens, lengths, strict=True)]

    def texts(self, tokenizer: Tokenizer) -> list[list[str]]:
        """[P][N] texts without special tokens."""
        return [
            [tokenizer.decode(ids, skip_special_tokens=True) for ids in of_prompt]
            for of_prompt in self.sequences()
        ]

    def failures(self) -> list[str | None]:
        """[P], a sentence for each prompt whose result is invalid, else None.

        A result is invalid if the model's logits are, or if no particle has positive weight.
        """
        broken = (
            "the model returned invalid logits (NaN, +inf, or -inf for every token): check its "
            "parameters and dtype."
        )
        nothing = (
            "all particles have weight zero: the declared target allows no token to continue with "
            "(its top_k, top_p, min_new_tokens and length exclude every sequence that was tried)."
        )
        alive = np.any(np.isfinite(np.asarray(self.log_weights)), axis=1)
        states = zip(self.info.bad_logits, alive, strict=True)
        return [broken if bad else None if ok else nothing for bad, ok in states]

    # --- files ---

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one .npz file."""
        arrays: dict[str, Any] = {name: np.asarray(getattr(self, name)) for name in _ARRAYS}
        info = {f"info_{name}": getattr(self.info, name) for name in _INFO_ARRAYS}
        target, seconds = _target_to_json(self.target), self.info.seconds
        meta = {"format": FORMAT, "target": target, "seconds": seconds}
        text = np.array(json.dumps(meta, allow_nan=False))
        with open(path, "wb") as file:
            np.savez_compressed(file, **arrays, **info, meta=text)

    @classmethod
    def load(cls, path: str | os.PathLike[str], most_bytes: int = LARGEST) -> "SampleResult":
        """Reads what ``save`` wrote, without unpickling anything.

        Args:
          path: of the file.
          most_bytes: the largest size of all its arrays; the file is compressed.

        Raises:
          ValueError: for a file that is not a saved result, is damaged or larger, or has an unknown
            format.
          OSError: if the file cannot be read.
        """
        if not isinstance(path, str | os.PathLike):
            raise ValueError(f"path is {path!r}; it must be the path of a file.")
        try:
            with open(path, "rb") as file:
                _check_sizes(file, most_bytes)
                file.seek(0)
                with np.load(file, allow_pickle=False) as entries:
                    return _from_entries(entries)
        except OSError:
            raise
        except Exception as error:  # whatever zip, zlib, NumPy and JSON raise for damaged bytes
            why = str(error) if isinstance(error, _MisfitError) else type(error).__name__
            raise ValueError(
                f"{os.fspath(path)} is not a saved SampleResult of this version, or it is damaged "
                f"({why})."
            ) from error

    def _sequences_at(self, index: np.ndarray) -> list[list[int]]:
        """[P], the sequence of one particle per prompt."""
        chosen = np.arange(len(index)), index
        return _trimmed(np.asarray(self.tokens)[chosen], np.asarray(self.lengths)[chosen])


# The axes and the kind of dtype of every array.
_ARRAYS = {
    "tokens": ("PNT", np.integer),
    "lengths": ("PN", np.integer),
    "finished": ("PN", np.bool_),
    "log_probs": ("PN", np.floating),
    "token_log_probs": ("PNT", np.floating),
    "log_weights": ("PN", np.floating),
    "log_evidence": ("P", np.floating),
    "choice": ("P", np.integer),
}
_INFO_ARRAYS = {
    "ess": ("PT", np.floating),
    "resampled": ("PT", np.bool_),
    "forks": ("PT", np.integer),
    "parent": ("PTM", np.integer),
    "particle_index": ("PN", np.integer),
    "distinct_roots": ("P", np.integer),
    "coalescence": ("P", np.integer),
    "unfinished_mass": ("P", np.floating),
    "loops": ("PN", np.bool_),
    "very_short": ("PN", np.bool_),
    "bad_logits": ("P", np.bool_),
    "dropped_mass": ("P", np.floating),
    "acceptance_rate": ("P", np.floating),
    "model_tokens": ("P", np.integer),
    "drawn_tokens": ("P", np.integer),
    "num_rows": ("PT", np.integer),
    "copies": ("P", np.integer),
    "preempted": ("P", np.integer),
}


def concatenate(results: Sequence[SampleResult], order: np.ndarray) -> SampleResult:
    """Joins batches along the prompts, in host memory, and then applies ``order``."""

    def join(parts: Sequence[Any]) -> np.ndarray:
        return np.concatenate([np.asarray(part) for part in parts])[order]

    arrays = {name: join([getattr(r, name) for r in results]) for name in _ARRAYS}
    info = SampleInfo(
        **{name: join([getattr(r.info, name) for r in results]) for name in _INFO_ARRAYS},
        seconds={phase: sum(r.info.seconds[phase] for r in results) for phase in PHASES},
    )
    return SampleResult(**arrays, target=results[0].target, info=info)


def _trimmed(tokens: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    """tokens [K, T] without what follows each length [K]."""
    return [ids[:length].tolist() for ids, length in zip(tokens, lengths, strict=True)]


def _put(arrays: Mapping[str, Array]) -> dict[str, jax.Array]:
    """As JAX arrays; JAX_DEBUG_NANS must not object to a NaN evidence, which is intended."""
    with jax.debug_nans(False):
        return {name: jnp.asarray(x) for name, x in arrays.items()}


def _is_listing(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes)


# --- Files ---


class _MisfitError(ValueError):
    """A readable file whose contents are wrong."""


def _check_sizes(file: IO[bytes], most: int) -> None:
    """Raises _MisfitError if the arrays are too large together, or not as large as they say."""
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    with zipfile.ZipFile(file) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > most:
            raise _MisfitError(f"it unpacks to {size} bytes; most_bytes is {most}")
        for entry in archive.infolist():
            with archive.open(entry) as array:
                shape, _, dtype = readers[npy.read_magic(array)](array)
                size = array.tell() + math.prod(shape) * dtype.itemsize
                if size != entry.file_size and not dtype.hasobject:  # which is refused later
                    raise _MisfitError(f"{entry.filename} is not as large as its shape {shape}")


def _from_entries(entries: Mapping[str, Any]) -> SampleResult:
    """The result, from a file's entries."""
    known = _ARRAYS | {f"info_{name}": kind for name, kind in _INFO_ARRAYS.items()}
    if "meta" not in entries:
        raise _MisfitError("it has no entry meta")
    meta = parse_json(str(entries["meta"]))
    form = meta.get("format", 1)  # the first files have no number
    if form not in (1, 2, FORMAT):
        raise _MisfitError(f"its format is {form!r} and this version reads up to {FORMAT}")
    if form == 1 and "info_rows" in entries:
        entries = {**entries, "info_particle_index": entries["info_rows"]}
    if form < 3 and "tokens" in entries and "info_model_tokens" in entries:
        entries = {**_without_rows(entries), **entries}
    if absent := [name for name in known if name not in entries]:
        raise _MisfitError(f"it has no {', '.join(absent)}")
    arrays = {name: np.asarray(entries[name]) for name in known}
    sizes: dict[str, int] = {}
    for name, (axes, kind) in known.items():
        x = arrays[name]
        fits = x.ndim == len(axes) and np.issubdtype(x.dtype, kind)
        if not fits or any(sizes.setdefault(a, n) != n for a, n in zip(axes, x.shape, strict=True)):
            raise _MisfitError(f"its {name} is {x.dtype}{list(x.shape)}, which does not fit")
    lengths, choice = arrays["lengths"], arrays["choice"]
    if lengths.size and not 0 <= lengths.min() <= lengths.max() <= sizes["T"]:
        raise _MisfitError(f"its lengths do not lie in [0, {sizes['T']}]")
    if choice.size and not 0 <= choice.min() <= choice.max() < sizes["N"]:
        raise _MisfitError(f"its choice does not lie in [0, {sizes['N']})")
    seconds = {phase: float(meta["seconds"][phase]) for phase in PHASES}
    return SampleResult(
        **_put({name: arrays[name] for name in _ARRAYS}),
        target=_target_from_json(meta["target"]),
        info=SampleInfo(**{n: arrays[f"info_{n}"] for n in _INFO_ARRAYS}, seconds=seconds),
    )


def _without_rows(entries: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What files of the engine that had a row per particle do not have."""
    tokens, drawn = np.asarray(entries["tokens"]), np.asarray(entries["info_model_tokens"])
    return {
        "token_log_probs": np.full(tokens.shape, np.nan, np.float32),
        "info_drawn_tokens": drawn,
        "info_num_rows": np.zeros(tokens.shape[::2], np.int32),
        "info_copies": np.zeros(drawn.shape, np.int32),
        "info_preempted": np.zeros(drawn.shape, np.int32),
    }


def _target_to_json(target: PowerTarget) -> dict[str, Any]:
    fields = dataclasses.asdict(target)
    if target.stop is not None:
        fields["stop"] = {"rule": type(target.stop).__name__, **fields["stop"]}
    return fields


def _target_from_json(fields: dict[str, Any]) -> PowerTarget:
    stop = fields.pop("stop", None)
    if stop is not None:
        stop = STOP_RULES[stop.pop("rule")](**stop)
    return PowerTarget(**fields, stop=stop)
