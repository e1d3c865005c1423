"""Trains a tiny reasoner and exports it in Hugging Face format.

    python -m launch.train --config=configs/train_tiny_reasoner.py --workdir=DIR

DIR holds config.json (the config of the run), tokenizer/, checkpoints/ (the last two),
metrics.jsonl and export/ (the current model). When started again with the same config, a run
resumes from its latest checkpoint, and ends with the same parameters as an uninterrupted run.
"""

import contextlib
import dataclasses
import importlib.metadata
import math
import os
import pathlib
import platform
import time
from typing import Any

import jax
import optax
import orbax.checkpoint as ocp
from absl import flags
from ml_collections import ConfigDict, config_flags
from tokenizers import Tokenizer

from jax_power_smc.cli.common import StopRequest, launch, stop_on_signals
from jax_power_smc.cli.progress import TrainingProgress
from jax_power_smc.core import checks
from jax_power_smc.core.files import json_line, parse_json, write_bytes_whole, write_json
from jax_power_smc.core.types import Params
from jax_power_smc.evaluation import conditions
from jax_power_smc.models.checkpoints.safetensors_io import save_pretrained
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.tiny_reasoner import batches, training
from jax_power_smc.tiny_reasoner.tokenizer import (
    END_ID,
    MIN_VOCAB_SIZE,
    TOKENIZER_FILE,
    corpus,
    save_tokenizer,
    train_tokenizer,
)

# Fields that do not affect what is learned; they may change when a run resumes.
FREE_FIELDS = ("log_every", "valid_every", "checkpoint_every", "export_dir")
# The fields that the launcher itself reads: integers of at least 1, and the others.
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
    """A run's progress so far, over all its starts; part of its checkpoints.

    Tokens are without padding; the loss is the mean since the last line of metrics.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float | None = None
    valid_loss: float | None = None


class Workspace:
    """The files of a run, in a directory that is created if it does not exist."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.root = pathlib.Path(directory).expanduser().absolute()
        self.root.mkdir(parents=True, exist_ok=True)
        self.metrics = self.root / "metrics.jsonl"
        self.export = self.root / "export"
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self.root / "checkpoints", options=options)

    def claim(self, config: dict[str, Any]) -> None:
        """Writes the config of a new run, or checks that a resumed one has the same.

        Raises:
          ValueError: if fields differ, with the name of each.
        """
        path = self.root / "config.json"
        if path.is_file():
            try:
                before = parse_json(path.read_text(encoding="utf-8"))
                differences = conditions.differences(conditions.as_json(config), before)
            except (ValueError, AttributeError) as error:
                raise ValueError(f"{path} is not a config in JSON ({error}).") from error
            changes = [
                f"{name} was {was} and is now {now}"
                for name, now, was in differences
                if name not in FREE_FIELDS
            ]
            if changes:
                raise ValueError(
                    f"{self.root} holds a run with another config: {'; '.join(changes)}. "
                    "Use another workdir, or the old values to resume."
                )
        write_json(path, config)

    def tokenizer(self, config: ConfigDict) -> Tokenizer:
        """The run's tokenizer, which is trained the first time."""
        directory = self.root / "tokenizer"
        if not (directory / TOKENIZER_FILE).is_file():
            texts = corpus(config.tokenizer_problems, config.seed)
            save_tokenizer(train_tokenizer(texts, config.vocab_size), directory)
        return Tokenizer.from_file(str(directory / TOKENIZER_FILE))

    def save(self, state: training.TrainState, totals: Totals) -> None:
        """Saves a checkpoint, unless there is one for this step."""
        if self._manager.latest_step() == totals.step:
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_by_name(state)),
            totals=ocp.args.JsonSave(dataclasses.asdict(totals)),
        )
        self._manager.save(totals.step, args=items)

    def restore(self, fresh: training.TrainState) -> tuple[training.TrainState, Totals]:
        """The latest checkpoint, or else ``fresh``; removes the metrics of later steps."""
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
        # In the order of the state's own leaves; the restored dictionary is sorted by name.
        leaves = [items["state"][name] for name in arrays]
        self._cut_metrics(step)
        return jax.tree.unflatten(jax.tree.structure(fresh), leaves), Totals(**items["totals"])

    def log(self, totals: Totals) -> None:
        """Appends a line of metrics."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json_line(dataclasses.asdict(totals)))

    def close(self) -> None:
        """Waits for checkpoints that are being written."""
        self._manager.close()

    def _cut_metrics(self, step: int) -> None:
        if not self.metrics.is_file():
            return
        kept = []
        with open(self.metrics, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    # A killed run may leave an incomplete line.
                    if line.endswith("\n") and parse_json(line)["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"line {number} of {self.metrics} is not as this program writes it "
                        f"({error}); remove it."
                    ) from error
        write_bytes_whole(self.metrics, "".join(kept).encode())


def train(config: ConfigDict, workdir: str | os.PathLike[str]) -> Totals:
    """Trains to the end, or until SIGTERM or Ctrl-C; saves and exports the model either way.

    Returns the run's totals; ``step`` is less than ``config.steps`` if the run was stopped.

    Raises:
      ValueError: if the config is invalid or differs from that of the run in the workdir; at the
        first step whose loss is not finite, which is not saved.
      OSError: if the workdir cannot be written.
    """
    data, optimizer_config, model = _check(config)  # before anything is written
    work = Workspace(workdir)
    try:
        work.claim(config.to_dict())
        tokenizer = work.tokenizer(config)
        model = dataclasses.replace(model, vocab_size=tokenizer.get_vocab_size())
        optimizer = training.make_optimizer(optimizer_config)
        state, totals = work.restore(training.init_state(model, optimizer, config.seed))
        loop = _TrainingLoop(config, data, model, tokenizer, optimizer, work)
        with stop_on_signals() as stop:
            return loop.run(state, totals, stop)
    finally:
        work.close()


class _TrainingLoop:
    """The loop over the steps, with logging, validation, checkpoints and exports."""

    def __init__(
        self,
        config: ConfigDict,
        data: batches.DataConfig,
        model: TransformerConfig,
        tokenizer: Tokenizer,
        optimizer: optax.GradientTransformation,
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

    def run(self, state: training.TrainState, totals: Totals, stop: StopRequest) -> Totals:
        """Takes the remaining steps."""
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
                    # Waits for the previous step, so that at most two are in flight.
                    _check_finite("training loss", losses[-1], totals.step)
                losses.append(loss)
                totals.step += 1
                totals.tokens += int((batch.inputs != END_ID).sum())

                # Read once per step: a request that arrives while the lines below run is
                # honoured after the next step, which then gets a checkpoint of its own.
                stopping = bool(stop)
                done = totals.step == config.steps or stopping
                save = done or totals.step % config.checkpoint_every == 0
                validate = done or totals.step % config.valid_every == 0
                log = validate or save or totals.step % config.log_every == 0
                if log:
                    _check_finite("training loss", loss, totals.step)
                if validate or save:
                    # A finite loss can still update the parameters to values that are not.
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
            # Again, because the run may have been killed between its last checkpoint and export.
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
    """Checks the whole config, and returns the parts that the training functions take."""
    kinds = (batches.DataConfig, training.OptimizerConfig)
    parts = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    missing = sorted((parts | set(_COUNTS) | set(_OTHERS)) - set(config))
    if missing:
        raise ValueError(f"the config lacks {', '.join(missing)}.")
    for name in _COUNTS:
        checks.integer(f"config.{name}", config[name], at_least=1)
    checks.integer("config.vocab_size", config.vocab_size, at_least=MIN_VOCAB_SIZE)
    checks.one_of("config.compute_dtype", config.compute_dtype, training.COMPUTE_DTYPES)
    try:
        model = TransformerConfig(vocab_size=config.vocab_size, **config.model.to_dict())
    except (TypeError, AttributeError) as error:  # a missing or an unknown field
        raise ValueError(f"config.model does not describe a model ({error}).") from error
    if config.max_tokens > model.max_positions:
        raise ValueError(
            f"config.max_tokens is {config.max_tokens}, more than config.model.max_positions, "
            f"which is {model.max_positions}."
        )
    return _pick(batches.DataConfig, config), _pick(training.OptimizerConfig, config), model


def _pick(kind: Any, config: ConfigDict) -> Any:
    return kind(**{field.name: config[field.name] for field in dataclasses.fields(kind)})


@jax.jit
def _sum(params: Params) -> jax.Array:
    return sum(leaf.sum() for leaf in jax.tree.leaves(params))


def _check_finite(what: str, value: jax.Array | float, step: int) -> None:
    if not math.isfinite(number := float(value)):
        raise ValueError(
            f"the {what} is {number} at step {step}; lower config.learning_rate and use another "
            "workdir."
        )


def _by_name(state: training.TrainState) -> dict[str, jax.Array]:
    """The arrays by their path, so that checkpoints do not depend on classes of libraries."""
    return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(state)}


def main(values: Any) -> None:
    """Trains as the flags of ``run`` say, and prints where the model is."""
    config, workdir = flags.FLAGS.config, flags.FLAGS.workdir
    totals = train(config, workdir)
    if totals.step < config.steps:
        print(
            f"Stopped after step {totals.step} of {config.steps}; run the same command to resume."
        )
    else:
        directory = config.export_dir or os.path.join(workdir, "export")
        print(f"Trained {totals.step} steps; the model is in {directory}.")


def run() -> None:
    """The command line."""
    config_flags.DEFINE_config_file(
        "config", None, "A training config, such as configs/train_tiny_reasoner.py."
    )
    flags.DEFINE_string("workdir", None, "Directory for checkpoints, metrics and the model.")
    launch(main, required=["config", "workdir"])
