"""The rotary settings of a ``config.json``, wherever its schema puts them."""

from typing import Any, NamedTuple

from jax_power_smc.core import checks
from jax_power_smc.models.transformer.config import (
    CheckpointError,
    TransformerConfig,
    UnsupportedModelError,
)
from jax_power_smc.models.transformer.families import Family
from jax_power_smc.models.transformer.limits import LIMITS, ROPE_LIMITS, Limit
from jax_power_smc.models.transformer.rope import RopeScaling

_FULL, _WINDOW = "full_attention", "sliding_attention"
_ORIGINAL = "original_max_position_embeddings"
_FACTOR = ROPE_LIMITS["factor"]


class Ropes(NamedTuple):
    """Rotary settings; fields as in ``TransformerConfig``, ``theta`` not checked yet."""

    theta: Any
    scaling: RopeScaling | None
    local_theta: float | None


def read_ropes(raw: dict[str, Any], family: Family, source: str) -> Ropes:
    """Reads the rotary settings of a ``config.json`` with its family's defaults.

    Error messages refer to it as ``source``.

    Raises:
      CheckpointError: for invalid values.
      UnsupportedModelError: for a kind of scaling that is not implemented.
    """
    groups = []
    local: dict[str, Any] = {}
    for name in ("rope_parameters", "rope_scaling"):
        value = raw.get(name) or {}
        if not isinstance(value, dict):
            raise CheckpointError(
                f"{source} has {name} {checks.shown(value)}; it must be an object or null."
            )
        if any(isinstance(x, dict) for x in value.values()):
            if family.local_theta is None or not set(value) <= {_FULL, _WINDOW}:
                # Read as one set, they would silently select the default theta.
                raise UnsupportedModelError(
                    f"{source} asks for {name} by layer type (in this family only one set for all "
                    "layers is implemented)."
                )
            local = value.get(_WINDOW) or {}
            value = value.get(_FULL) or {}
        groups.append(value)
    groups.append({"rope_theta": raw.get("rope_theta")})

    kinds = [group.get("rope_type") or group.get("type") or "default" for group in groups]
    kind = next((kind for kind in kinds if kind != "default"), "default")
    local_kind = local.get("rope_type") or "default"
    factors = [group.get("partial_rotary_factor") for group in (*groups, local, raw)]
    known = ("default", *_READERS)
    refusals = {
        f"rope_type {checks.shown(kind)} (only {', '.join(map(repr, known))} are implemented)": kind
        not in known,
        f"rope_type {checks.shown(local_kind)} in layers with a window (only 'default' is "
        "implemented)": local_kind != "default",
        "a partial_rotary_factor (only 1 is implemented)": any(x not in (None, 1) for x in factors),
    }
    refused = [text for text, present in refusals.items() if present]
    if refused:
        raise UnsupportedModelError(f"{source} asks for {' and '.join(refused)}.")

    theta = next((x["rope_theta"] for x in groups if x.get("rope_theta") is not None), family.theta)
    scaling = None
    if kind != "default":
        settings = groups[kinds.index(kind)]
        # The one entry that the reference looks for outside these settings first.
        original = {_ORIGINAL: raw[_ORIGINAL]} if _ORIGINAL in raw else {}
        scaling = _READERS[kind](_Settings({**raw, **settings, **original}, source))
    local_theta = None
    if family.local_theta is not None:
        given = (local.get("rope_theta"), raw.get("rope_local_base_freq"), family.local_theta)
        local_theta, limit = next(x for x in given if x is not None), LIMITS["local_rope_theta"]
        if not limit.holds(local_theta):
            raise CheckpointError(
                f"{source} has rope_theta {checks.shown(local_theta)} in layers with a window; it "
                f"must be {limit}."
            )
        local_theta = float(local_theta)
    return Ropes(theta, scaling, local_theta)


def write_ropes(config: TransformerConfig) -> dict[str, Any]:
    """The rotary entries of config.json, in the old schema; the inverse of ``read_ropes``."""
    made: dict[str, Any] = {"rope_theta": config.rope_theta}
    if config.local_rope_theta is not None:
        made["rope_local_base_freq"] = config.local_rope_theta
    scaling = config.rope_scaling
    if scaling is None:
        return made
    settings: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        settings[_ORIGINAL] = scaling.original_positions
    if scaling.kind == "llama3":
        settings |= {"low_freq_factor": scaling.low_factor, "high_freq_factor": scaling.high_factor}
    if scaling.kind == "longrope":
        made[_ORIGINAL] = scaling.original_positions
        settings |= {
            "short_factor": list(scaling.short_factors),
            "long_factor": list(scaling.long_factors),
        }
        if scaling.attention_factor is not None:
            settings["attention_factor"] = scaling.attention_factor
    return {**made, "rope_scaling": settings}


class _Settings:
    """The settings of a rotary scaling, checked as they are read."""

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self.values, self.source = values, source

    def _refuse(self, name: str, value: Any, wanted: str) -> CheckpointError:
        shown = checks.shown(value)
        return CheckpointError(f"{self.source} has a rotary {name} {shown}; it must be {wanted}.")

    def number(self, name: str, limit: Limit) -> float:
        value = self.values.get(name)
        if not limit.holds(value):
            raise self._refuse(name, value, str(limit))
        return float(value)  # type: ignore[arg-type]

    def numbers(self, name: str, limit: Limit) -> tuple[float, ...]:
        values = self.values.get(name)
        if not isinstance(values, list) or not all(map(limit.holds, values)):
            raise self._refuse(name, values, f"a list, each of it {limit}")
        return tuple(map(float, values))

    def original(self) -> int:
        """The context length of pretraining."""
        value = self.values.get(_ORIGINAL, self.values["max_position_embeddings"])
        if not ROPE_LIMITS["original_positions"].holds(value):
            raise self._refuse(_ORIGINAL, value, str(ROPE_LIMITS["original_positions"]))
        return int(value)


def _linear(settings: _Settings) -> RopeScaling:
    return RopeScaling("linear", factor=settings.number("factor", _FACTOR))


def _llama3(settings: _Settings) -> RopeScaling:
    low, high = (
        settings.number(f"{each}_freq_factor", ROPE_LIMITS[f"{each}_factor"])
        for each in ("low", "high")
    )
    if low >= high:
        raise CheckpointError(
            f"{settings.source} has a rotary low_freq_factor {low!r}; it must be less than "
            f"high_freq_factor, which is {high!r}."
        )
    return RopeScaling(
        "llama3",
        factor=settings.number("factor", _FACTOR),
        original_positions=settings.original(),
        low_factor=low,
        high_factor=high,
    )


def _longrope(settings: _Settings) -> RopeScaling:
    original = settings.original()
    given = settings.values.get("factor") is not None
    stretch = settings.number("max_position_embeddings", LIMITS["max_positions"]) / original
    has_multiplier = settings.values.get("attention_factor") is not None
    return RopeScaling(
        "longrope",
        factor=settings.number("factor", _FACTOR) if given else stretch,
        original_positions=original,
        short_factors=settings.numbers("short_factor", _FACTOR),
        long_factors=settings.numbers("long_factor", _FACTOR),
        attention_factor=settings.number("attention_factor", _FACTOR) if has_multiplier else None,
    )


# "su" is what the first checkpoints call "longrope".
_READERS = {"linear": _linear, "llama3": _llama3, "longrope": _longrope, "su": _longrope}
