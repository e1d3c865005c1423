"""Baselines in PyTorch with the same weights: ``generate``, and Power-SMC in a Python loop.

``generate`` of ``transformers`` is the usual way to sample. ``power_smc`` is a careful
implementation of Algorithm 1 of arXiv 2602.10273 on top of that library, with one forward pass per
token from a Python loop. Both run on the CPU with torch's default number of threads.

PyTorch is not a dependency of this package. It is imported where it is used; functions that need it
raise ValueError if it is not installed.

Letters: S prompt length, N sequences or particles, T generated tokens, V vocabulary.
"""

import importlib.util
import inspect
import math
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from jax_power_smc.core import checks
from jax_power_smc.models.checkpoints import safetensors_io
from jax_power_smc.models.transformer.transformer import TransformerLM

# New tokens of the warm-up run.
WARM_UP_TOKENS = 3


class Timing(NamedTuple):
    """Seconds of one run.

    The prefill lasts until the logits of the first new token; decoding is the rest, T draws and
    the T - 1 forward passes between them.
    """

    prefill: float
    decode: float
    tokens: int

    @property
    def total(self) -> float:
        return self.prefill + self.decode

    @property
    def per_token(self) -> float:
        """Seconds of decoding for each of the steps, whatever N is."""
        return self.decode / self.tokens


class Generated(NamedTuple):
    """A run of ``generate``: tokens [N, T] int64 without the prompt, time without the warm-up."""

    tokens: np.ndarray
    timing: Timing


class PowerParticles(NamedTuple):
    """A run of ``power_smc``; tokens and timing as in ``Generated``.

    ``log_weights`` are [N] float32, normalised; ``resamplings`` counts the steps that resampled.
    """

    tokens: np.ndarray
    log_weights: np.ndarray
    log_evidence: float
    resamplings: int
    timing: Timing


def available() -> bool:
    """Whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def describe() -> dict[str, Any]:
    """Versions of ``torch`` and ``transformers``, and the number of threads of torch."""
    torch = _import_torch()
    import transformers

    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }


def to_torch(model: TransformerLM, params: nnx.State) -> Any:
    """The same model as a ``LlamaForCausalLM`` or ``Qwen2ForCausalLM``, without end tokens.

    The weights pass through a checkpoint in a temporary directory, as ``psmc.load`` reads it. The
    torch model has our dtype, is in eval mode without gradients, and uses torch's fused attention
    ("sdpa").
    """
    torch = _import_torch()
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()

    with tempfile.TemporaryDirectory() as directory:
        safetensors_io.save_pretrained(directory, model.config, params, eos_ids=())
        theirs = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=getattr(torch, model.dtype.name),
            attn_implementation="sdpa",
            local_files_only=True,
        )
    theirs.generation_config = GenerationConfig(pad_token_id=0)
    return theirs.eval().requires_grad_(False)


def generate(
    torch_model: Any,
    prompt_ids: Sequence[int],
    num_sequences: int,
    max_new_tokens: int,
    *,
    seed: int = 0,
) -> Generated:
    """Sampling at temperature 1 by the ``generate`` method of ``transformers``.

    Args:
      torch_model: from ``to_torch``.
      prompt_ids: [S] token ids.
      num_sequences: N, drawn as one batch.
      max_new_tokens: T, the exact length of every sequence.
      seed: of torch's global generator, which ``generate`` uses.

    Raises:
      ValueError: for an invalid value.
    """
    torch = _import_torch()
    _check(prompt_ids, "num_sequences", num_sequences, max_new_tokens)
    prompt = torch.tensor([list(prompt_ids)])

    def run(new_tokens: int) -> Generated:
        first_logits: list[float] = []

        def after_prefill(*_: Any) -> None:
            first_logits.append(time.perf_counter())
            hook.remove()

        hook = torch_model.register_forward_hook(after_prefill)
        start = time.perf_counter()
        try:
            output = torch_model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=num_sequences,
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
            )
        finally:
            hook.remove()
        end = time.perf_counter()
        timing = Timing(first_logits[0] - start, end - first_logits[0], new_tokens)
        return Generated(output[:, prompt.shape[1] :].numpy(), timing)

    run(min(max_new_tokens, WARM_UP_TOKENS))
    torch.manual_seed(seed)
    return run(max_new_tokens)


def power_smc(
    torch_model: Any,
    prompt_ids: Sequence[int],
    num_particles: int,
    alpha: float,
    max_new_tokens: int,
    *,
    ess_threshold: float = 0.5,
    seed: int = 0,
    preallocate: bool = True,
    warm_up: bool = True,
    eos_ids: Sequence[int] = (),
) -> PowerParticles:
    """Power-SMC in a Python loop, in the order weigh, resample, draw.

    The prompt is processed once, and its keys and values are repeated for the particles. Every step
    is one forward pass with all N; resampling is systematic and reorders the cache. Tokens are
    drawn by inverting the cumulative sum, which is much faster on a CPU than ``torch.multinomial``.

    Args:
      torch_model: from ``to_torch``.
      prompt_ids: [S] token ids.
      num_particles: N.
      alpha: exponent.
      max_new_tokens: T, the exact length of every particle that does not end.
      ess_threshold: kappa; resample when ESS < kappa N.
      seed: of the draws.
      preallocate: whether keys and values are written into arrays of their final length, of which
        resampling copies only the parts that differ between particles. False for the library's
        ``DynamicCache``, which copies everything at every token and again when resampling.
      warm_up: whether to generate a few tokens before the measurement.
      eos_ids: tokens that end a particle, whose weight then stays as it is and whose tokens are the
        first of these. The loop ends when all have ended.

    Raises:
      ValueError: for an invalid value.
    """
    torch = _import_torch()
    _check(prompt_ids, "num_particles", num_particles, max_new_tokens)
    checks.number("alpha", alpha, above=0)
    checks.number("ess_threshold", ess_threshold, at_least=0, at_most=1)
    n = num_particles
    # The keyword was renamed within the releases that we support.
    renamed = "cache" in inspect.signature(torch_model.forward).parameters
    keyword = "cache" if renamed else "past_key_values"
    points = torch.arange(n)
    # The ESS of equal weights is N up to rounding, and must not trigger resampling.
    threshold = ess_threshold * n * (1 - 1e-5)

    def run(num_tokens: int) -> PowerParticles:
        generator = torch.Generator().manual_seed(seed)
        start = time.perf_counter()
        output = torch_model(torch.tensor([list(prompt_ids)]), use_cache=True, logits_to_keep=1)
        cache = getattr(output, keyword)
        if preallocate:
            cache = _preallocated(torch, cache, n, num_tokens - 1)
        else:
            cache.batch_repeat_interleave(n)
        logits = output.logits[:, -1].expand(n, -1)
        prefilled = time.perf_counter()

        tokens = torch.empty((n, num_tokens), dtype=torch.int64)
        log_weight = torch.full((n,), -math.log(n))
        log_evidence = torch.zeros(())
        ended = torch.zeros((n,), dtype=torch.bool)
        ends, resamplings, steps = torch.tensor(list(eos_ids)), 0, 0
        for t in range(num_tokens):
            if eos_ids and ended.all():
                tokens[:, t:] = ends[0]
                break
            if t:
                fed = tokens[:, t - 1 : t]
                output = torch_model(fed, use_cache=True, logits_to_keep=1, **{keyword: cache})
                logits = output.logits[:, -1]
            scaled = torch.log_softmax(logits.float(), dim=-1).mul_(alpha)
            log_sum = torch.logsumexp(scaled, dim=-1)
            log_weight = log_weight + log_sum.masked_fill(ended, 0.0)
            total = torch.logsumexp(log_weight, dim=0)
            log_weight = log_weight - total
            log_evidence = log_evidence + total
            proposal = scaled.sub_(log_sum[:, None]).exp_()
            weight = log_weight.exp()
            if 1 / weight.square().sum().item() < threshold:
                offset = torch.rand(1, generator=generator)
                parent = _invert(torch, weight[None], ((points + offset) / n)[None])[0]
                cache.reorder_cache(parent)
                tokens = tokens.index_select(0, parent)
                proposal = proposal.index_select(0, parent)
                log_weight = torch.full((n,), -math.log(n))
                ended = ended[parent]
                resamplings += 1
            uniforms = torch.rand((n, 1), generator=generator)
            drawn = _invert(torch, proposal, uniforms)[:, 0]
            if eos_ids:
                drawn = torch.where(ended, ends[0], drawn)
                ended = ended | torch.isin(drawn, ends)
            tokens[:, t] = drawn
            steps += 1
        timing = Timing(prefilled - start, time.perf_counter() - prefilled, steps)
        return PowerParticles(
            tokens.numpy(), log_weight.numpy(), log_evidence.item(), resamplings, timing
        )

    with torch.inference_mode():
        if warm_up:
            run(min(max_new_tokens, WARM_UP_TOKENS))
        return run(max_new_tokens)


def _invert(torch: Any, weights: Any, uniforms: Any) -> Any:
    """weights [M, V], uniform numbers [M, K] -> indices [M, K], drawn in proportion to weight."""
    cumulative = torch.cumsum(weights, dim=-1)
    total = cumulative[:, -1:]
    # A product that is rounded up to the total would point beyond the last index.
    below = torch.minimum(uniforms * total, total * (1 - 2**-23))
    return torch.searchsorted(cumulative, below, right=True)


def _preallocated(torch: Any, prompt: Any, n: int, capacity: int) -> Any:
    """A cache of n rows that hold the prompt, with room for ``capacity`` more tokens."""
    from transformers.cache_utils import Cache, DynamicLayer

    class Layer(DynamicLayer):
        """Keys and values are views of longer arrays, into which new ones are written."""

        def __init__(self, source: Any) -> None:
            super().__init__()
            self.lazy_initialization(source.keys, source.values)
            self.prompt_length = self.length = source.keys.shape[2]
            self.buffers = [self._repeated(source.keys), self._repeated(source.values)]
            self._show()

        def update(
            self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any
        ) -> tuple[Any, Any]:
            end = self.length + key_states.shape[2]
            for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
                buffer[:, :, self.length : end] = new
            self.length = end
            self._show()
            return self.keys, self.values

        def reorder_cache(self, beam_idx: Any) -> None:
            moved = (beam_idx != torch.arange(n)).nonzero()[:, 0]
            for buffer in self.buffers:
                own = buffer[:, :, self.prompt_length : self.length]
                own[moved] = own[beam_idx[moved]]

        def _repeated(self, rows: Any) -> Any:
            _, heads, length, size = rows.shape
            buffer = torch.empty((n, heads, length + capacity, size), dtype=rows.dtype)
            buffer[:, :, :length] = rows
            return buffer

        def _show(self) -> None:
            self.keys, self.values = (buffer[:, :, : self.length] for buffer in self.buffers)

    return Cache(layers=[Layer(layer) for layer in prompt.layers])


def _check(prompt: Sequence[int], count: str, number: int, max_new_tokens: int) -> None:
    if len(prompt) == 0:
        raise ValueError("prompt_ids is empty; at least one token is needed.")
    checks.integer(count, number, at_least=1)
    checks.integer("max_new_tokens", max_new_tokens, at_least=1)


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            "the comparison with PyTorch needs the package torch, which is not installed here."
        ) from error
    return torch
