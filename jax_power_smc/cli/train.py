"""Trains a tiny reasoner and exports it in Hugging Face format.

    python -m launch.train --config=configs/train_tiny_reasoner.py --workdir=DIR

DIR holds config.json (what the run was started with), tokenizer/, checkpoints/ (the last two),
metrics.jsonl and export/, the current model. Started again with the same config it continues
from the latest checkpoint and ends with the parameters of an undisturbed run.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import time
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import app, flags
from ml_collections import ConfigDict, config_flags
from tokenizers import Tokenizer

from jax_power_smc.cli.common import StopRequest, launch, stop_on_signals
from jax_power_smc.cli.progress import TrainingProgress
from jax_power_smc.core.files import json_line, write_json
from jax_power_smc.models.checkpoints.checkpoint import save_pretrained
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.tiny_reasoner import batches, training
from jax_power_smc.tiny_reasoner.tokenizer import (
    END_ID,
    SMALLEST_VOCABULARY,
    TOKENIZER_FILE,
    corpus,
    save_tokenizer,
    train_tokenizer,
)

# Fields that do not change what is learned, so that a continued run may differ in them.
FREE_FIELDS = ("log_every", "valid_every", "checkpoint_every", "export_dir")
# The fields that the launcher itself reads: numbers of at least 1, and the others.
_COUNTS = (
    "steps",
    "log_every",
    "valid_every",
    "checkpoint_every",
    "valid_examples",
    "tokenizer_problems",
)
_OTHERS = ("compute_dtype", "export_dir", "model", "seed", "vocab_size")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "tokenizers", "orbax-checkpoint")


@dataclasses.dataclass
class Totals:
    """What a run has used so far; kept in its checkpoints.

    Attributes:
      step: steps taken.
      tokens: tokens through the model, without padding.
      seconds: time spent, over all starts.
      loss: mean training loss since the last line of metrics.
      valid_loss: the last held-out loss.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float | None = None
    valid_loss: float | None = None


class Workspace:
    """The files of a run.

    Args:
      directory: the workdir; made if it is not there.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.root = pathlib.Path(directory).expanduser().absolute()
        self.root.mkdir(parents=True, exist_ok=True)
        self.metrics = self.root / "metrics.jsonl"
        self.export = self.root / "export"
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self.root / "checkpoints", options=options)

    def agree_on(self, config: dict[str, Any]) -> None:
        """Writes the config of a new run, or checks that a continued one has the same.

        Raises:
          ValueError: naming every field that differs.
        """
        path = self.root / "config.json"
        if path.is_file():
            try:
                before = _flatten(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, AttributeError) as error:
                raise ValueError(f"{path} is not a config in JSON ({error}).") from error
            # Tuples are lists in the file.
            now = _flatten(json.loads(json.dumps(config, allow_nan=False)))
            changes = [
                f"{name} was {before.get(name)!r} and is now {now.get(name)!r}"
                for name in sorted(before.keys() | now.keys())
                if before.get(name) != now.get(name) and name not in FREE_FIELDS
            ]
            if changes:
                raise ValueError(
                    f"{self.root} holds a run with another config: {'; '.join(changes)}. "
                    "Use another workdir, or the old values to continue."
                )
        write_json(path, config)

    def tokenizer(self, config: ConfigDict) -> Tokenizer:
        """The tokenizer of the run, trained the first time."""
        directory = self.root / "tokenizer"
        if not (directory / TOKENIZER_FILE).is_file():
            texts = corpus(config.tokenizer_problems, config.seed)
            save_tokenizer(train_tokenizer(texts, config.vocab_size), directory)
        return Tokenizer.from_file(str(directory / TOKENIZER_FILE))

    def save(self, state: training.TrainState, totals: Totals) -> None:
        """Saves a checkpoint; one that exists for this step is left as it is."""
        if self._manager.latest_step() == totals.step:
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_by_name(state)),
            totals=ocp.args.JsonSave(dataclasses.asdict(totals)),
        )
        self._manager.save(totals.step, args=items)

    def restore(self, fresh: training.TrainState) -> tuple[training.TrainState, Totals]:
        """The latest checkpoint, or ``fresh`` at step 0; cuts the metrics off behind it."""
        step = self._manager.latest_step()
        if step is None:
            self.metrics.unlink(missing_ok=True)
            return fresh, Totals()
        arrays = _by_name(fresh)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, arrays)
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), totals=ocp.args.JsonRestore()
            ),
        )
        # In the order of the state's own leaves; a tree of names comes back sorted.
        leaves = [items["state"][name] for name in arrays]
        self._cut_metrics(step)
        return jax.tree.unflatten(jax.tree.structure(fresh), leaves), Totals(**items["totals"])

    def log(self, totals: Totals) -> None:
        """Appends a line of metrics."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json_line(dataclasses.asdict(totals)))

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()

    def _cut_metrics(self, step: int) -> None:
        if not self.metrics.is_file():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines(keepends=True):
            # A killed run may leave half a line.
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        self.metrics.write_text("".join(kept), encoding="utf-8")


def train(config: ConfigDict, workdir: str | os.PathLike[str]) -> Totals:
    """Trains to the end, or until SIGTERM or Ctrl-C, and saves and exports either way.

    Args:
      config: as in configs/train_tiny_reasoner.py.
      workdir: where everything is kept.

    Returns:
      What was done so far; ``step`` is less than ``config.steps`` if the run was stopped.

    Raises:
      ValueError: if the config has a value that cannot be, or differs from that of the run that
        the workdir holds; at the first step whose loss is not finite, which nothing is kept of.
      OSError: if the workdir cannot be written.
    """
    data, optimizer_config, model = _check(config)  # before anything is written
    work = Workspace(workdir)
    try:
        work.agree_on(config.to_dict())
        tokenizer = work.tokenizer(config)
        model = dataclasses.replace(model, vocab_size=tokenizer.get_vocab_size())
        optimizer = training.make_optimizer(optimizer_config)
        state, totals = work.restore(training.init_state(model, optimizer, config.seed))
        run = _Run(config, data, model, tokenizer, optimizer, work)
        with stop_on_signals() as stop:
            return run.steps(state, totals, stop)
    finally:
        work.close()


class _Run:
    """The loop over the steps, with what happens between them."""

    def __init__(
        self,
        config: ConfigDict,
        data: batches.DataConfig,
        model: TransformerConfig,
        tokenizer: Tokenizer,
        optimizer: Any,
        work: Workspace,
    ) -> None:
        self._config, self._data, self._model = config, data, model
        self._tokenizer, self._work = tokenizer, work
        self._step = training.make_train_step(model, optimizer, config.compute_dtype)
        self._evaluate = training.make_evaluate(model, config.compute_dtype)
        held_out = dataclasses.replace(
            data, pool_batches=-(-config.valid_examples // data.batch_size)
        )
        self._valid = batches.make_pool(tokenizer, held_out, pool=0, split="valid")

    def steps(self, state: training.TrainState, totals: Totals, stop: StopRequest) -> Totals:
        """Takes the steps that are left."""
        config = self._config
        stream = batches.stream_batches(self._tokenizer, self._data, totals.step)
        losses: list[jax.Array] = []
        clock = time.monotonic()
        stopping = False
        with contextlib.closing(stream), TrainingProgress(config.steps, totals.step) as progress:
            while totals.step < config.steps and not stopping:
                batch = next(stream)
                state, loss = self._step(state, batch)
                if losses:
                    # Waits for it: at most two steps are in flight.
                    _check_finite("training loss", losses[-1], totals.step)
                losses.append(loss)
                totals.step += 1
                totals.tokens += int((batch.inputs != END_ID).sum())

                # Looked at once per step: a request that comes while the lines below run
                # is met after the next step, with a checkpoint of its own.
                stopping = bool(stop)
                done = totals.step == config.steps or stopping
                save = done or totals.step % config.checkpoint_every == 0
                validate = done or totals.step % config.valid_every == 0
                log = validate or save or totals.step % config.log_every == 0
                if log:
                    _check_finite("training loss", loss, totals.step)
                if validate or save:
                    # What a finite loss makes of the parameters need not be finite.
                    _check_finite("sum of the parameters", _sum(state.params), totals.step)
                if validate:
                    totals.valid_loss = self._evaluate(state.params, self._valid)
                    _check_finite("held-out loss", totals.valid_loss, totals.step)
                if log:
                    totals.loss = sum(map(float, losses)) / len(losses)
                    losses.clear()
                    now = time.monotonic()
                    totals.seconds += now - clock
                    clock = now
                    self._work.log(totals)
                    progress.report(totals.step, totals.tokens, totals.loss, totals.valid_loss)
                if save:
                    self._work.save(state, totals)
                    self._export(self._work.export, state, totals)
        if totals.step == config.steps:
            # Again, because a run may be killed between its last checkpoint and its export.
            self._export(self._work.export, state, totals)
            if config.export_dir:
                self._export(pathlib.Path(config.export_dir).expanduser(), state, totals)
        return totals

    def _export(self, directory: pathlib.Path, state: training.TrainState, totals: Totals) -> None:
        save_tokenizer(self._tokenizer, directory)
        record = {
            "config": {k: v for k, v in self._config.to_dict().items() if k != "export_dir"},
            **dataclasses.asdict(totals),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            "device": jax.devices()[0].device_kind,
            "versions": {"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in _PACKAGES},
        }
        write_json(directory / "training.json", record)
        save_pretrained(directory, self._model, state.params, eos_ids=(END_ID,))


def _check(
    config: ConfigDict,
) -> tuple[batches.DataConfig, training.OptimizerConfig, TransformerConfig]:
    """The parts of the config that the training functions take, after checking the rest."""
    kinds = (batches.DataConfig, training.OptimizerConfig)
    parts = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    missing = sorted((parts | set(_COUNTS) | set(_OTHERS)) - set(config))
    if missing:
        raise ValueError(f"the config lacks {', '.join(missing)}.")
    for name in _COUNTS:
        if config[name] < 1:
            raise ValueError(f"config.{name} is {config[name]}; it must be at least 1.")
    if config.vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(
            f"config.vocab_size is {config.vocab_size}; it must be at least {SMALLEST_VOCABULARY}."
        )
    try:
        model = TransformerConfig(vocab_size=config.vocab_size, **config.model.to_dict())
    except (TypeError, AttributeError) as error:  # a field that is missing or not known
        raise ValueError(f"config.model does not describe a model ({error}).") from error
    if config.max_tokens > model.max_positions:
        raise ValueError(
            f"config.max_tokens is {config.max_tokens}, more than config.model.max_positions, "
            f"which is {model.max_positions}."
        )
    if config.compute_dtype not in training.COMPUTE_DTYPES:
        raise ValueError(
            f"config.compute_dtype is {config.compute_dtype!r}; allowed are "
            f"{', '.join(training.COMPUTE_DTYPES)}."
        )
    return _pick(batches.DataConfig, config), _pick(training.OptimizerConfig, config), model


def _pick(kind: Any, config: ConfigDict) -> Any:
    return kind(**{field.name: config[field.name] for field in dataclasses.fields(kind)})


@jax.jit
def _sum(params: Any) -> jax.Array:
    return sum(leaf.sum() for leaf in jax.tree.leaves(params))


def _check_finite(what: str, value: jax.Array | float, step: int) -> None:
    """Raises ValueError unless the number is finite."""
    if not math.isfinite(number := float(value)):
        raise ValueError(
            f"the {what} is {number} at step {step}; lower config.learning_rate and use another "
            "workdir."
        )


def _by_name(state: training.TrainState) -> dict[str, jax.Array]:
    """The arrays by their path; the plain form does not tie checkpoints to library classes."""
    return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(state)}


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def main(argv: Sequence[str]) -> None:
    """Runs the launcher with the flags that ``run`` defined."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    config, workdir = flags.FLAGS.config, flags.FLAGS.workdir
    totals = train(config, workdir)
    if totals.step < config.steps:
        print(
            f"Stopped after step {totals.step} of {config.steps}; run the same command to continue."
        )
    else:
        place = config.export_dir or os.path.join(workdir, "export")
        print(f"Trained {totals.step} steps; the model is in {place}.")


def run() -> None:
    """The command line."""
    config_flags.DEFINE_config_file(
        "config", None, "A training config, such as configs/train_tiny_reasoner.py."
    )
    flags.DEFINE_string("workdir", None, "Directory for checkpoints, metrics and the model.")
    flags.mark_flags_as_required(["config", "workdir"])
    launch(main)
