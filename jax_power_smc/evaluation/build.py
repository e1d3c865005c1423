"""What is built from the fields of a config: samplers, their labels in the table, the target."""

import collections
from typing import Any

from ml_collections import ConfigDict

from jax_power_smc.samplers import (
    Ancestral,
    MetropolisHastings,
    PowerSMC,
    Sampler,
    WithoutReplacement,
)
from jax_power_smc.targets.power import PowerTarget
from jax_power_smc.targets.stop_rules import StopBoxed, StopRule, StopString

# Kind of a sampler in a config -> its class.
KINDS: dict[str, type[Any]] = {
    "ancestral": Ancestral,
    "mh": MetropolisHastings,
    "smc": PowerSMC,
    "swor": WithoutReplacement,
}
# The fields of an entry of config.samplers beside those of its class.
OF_ENTRY = ("kind", "label")
BOXED = "boxed"


def samplers(config: ConfigDict) -> dict[str, Sampler]:
    """The samplers of a config, by name, in the order of the table.

    A ConfigDict does not keep the order in which it was filled, so the table has its own: plain
    decoding by falling temperature, then the samplers as in ``KINDS``.

    Raises:
      ValueError: for a value outside its range, naming the entry.
    """
    made: dict[str, Sampler] = {}
    for name, entry in config.samplers.items():
        values = {k: v for k, v in entry.to_dict().items() if k not in OF_ENTRY}
        try:
            made[name] = KINDS[entry.kind](**values)
        except ValueError as error:
            raise ValueError(f"config.samplers.{name}: {error}") from error
    return dict(sorted(made.items(), key=lambda item: _place(*item)))


def _place(name: str, sampler: Sampler) -> tuple[Any, ...]:
    """The sort key of the table."""
    kind = list(KINDS.values()).index(type(sampler))
    temperature = getattr(sampler, "temperature", 0.0)
    ramp = getattr(sampler, "ramp_tokens", 0)
    return kind, sampler.num_particles > 1 and kind == 0, -temperature, ramp, name


def target(config: ConfigDict, eos_ids: tuple[int, ...]) -> PowerTarget:
    """The target of every sampler.

    Raises:
      ValueError: for a value outside its range.
    """
    stop: StopRule | None = None
    if config.stop is not None:
        stop = StopBoxed() if config.stop == BOXED else StopString(config.stop)
    return PowerTarget(
        alpha=config.alpha,
        eos_ids=eos_ids,
        length=config.length,
        min_new_tokens=config.min_new_tokens,
        top_k=config.top_k,
        top_p=config.top_p,
        stop=stop,
    )


def labels(config: ConfigDict) -> dict[str, str]:
    """The labels of samplers in the table: as given, or else derived from what they do.

    Derived labels that are equal get the name of the entry appended.
    """
    own = {name: entry.get("label") for name, entry in config.samplers.items()}
    made = {name: own[name] or _derived_label(config, name) for name in own}
    count = collections.Counter(made.values())
    return {
        name: label if own[name] or count[label] == 1 else f"{label} ({name})"
        for name, label in made.items()
    }


def _derived_label(config: ConfigDict, name: str) -> str:
    entry = config.samplers[name]
    if entry.kind == "ancestral":
        return _ancestral_label(entry.get("temperature", 1.0), entry.get("num_samples", 1))
    titles = {"mh": "Metropolis-Hastings", "smc": "Power-SMC", "swor": "without replacement"}
    ramp = entry.get("ramp_tokens", 0)
    return titles.get(entry.kind, name) + (f", ramp {ramp}" if ramp else "")


def _ancestral_label(temperature: float, samples: int) -> str:
    if temperature == 0:
        what = "greedy"
    elif temperature < 1 and abs(1 / temperature - round(1 / temperature)) < 1e-9:
        what = f"temperature 1/{round(1 / temperature)}"
    else:
        what = f"temperature {temperature:g}"
    if samples == 1:
        return what
    return f"{samples} samples, {what}" if temperature == 0 else f"{samples} samples at {what}"
