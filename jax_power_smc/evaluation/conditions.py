"""What the result of an item depends on, and the digests of it that its record carries.

The fields of a config are of three kinds:

* the **scope** says which items there are: ``limit``, ``seeds``, and which samplers are listed. It
  may grow or shrink between two starts in one workdir;
* **free** fields (``FREE``) only affect how the work is done, and change no result;
* all others are **conditions**, together with what is not in the config: the model's files, the
  prompts as rendered, the key implementation, the algorithm. An item is kept only if all of its
  conditions are unchanged.

Every record holds a digest of each part of its conditions, so a record that does not belong is
recognized wherever it is read, and the part that differs can be named.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jax_power_smc.evaluation.records import Item, Record, item_of

# Increase this with every change that may alter the record of an item under the same config: draws,
# weights and their order, the derivation of keys, how answers are parsed and graded.
ALGORITHM = 1
SCOPE = ("limit", "seeds")
# Values shared by samplers count as part of each sampler that has them.
FREE = ("grading_processes", "limits", "mesh", "num_particles", "ramp_tokens", "ess_threshold")
TARGET = ("alpha", "length", "min_new_tokens", "top_k", "top_p", "stop", "max_new_tokens")
_ABSENT = "absent"
_DIGEST_BYTES = 6
# How many records an error names.
_NAMED = 3


def digest(value: Any) -> str:
    """A hash of a JSON value, as 12 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def as_json(value: Any) -> Any:
    """The value as a JSON file returns it, with lists for tuples."""
    return json.loads(json.dumps(value, allow_nan=False))


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(field, our value, their value) wherever two nested mappings differ."""
    # Compared as shown, because to Python 2 equals 2.0 and True equals 1.
    own, other = (
        {name: json.dumps(value, default=repr) for name, value in _flat(each).items()}
        for each in (ours, theirs)
    )
    found = ((n, own.get(n, _ABSENT), other.get(n, _ABSENT)) for n in sorted({*own, *other}))
    return [(name, a, b) for name, a, b in found if a != b]


def of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that are conditions; those of samplers without their labels."""
    fields = {name: config[name] for name in config if name not in (*SCOPE, *FREE)}
    samplers = {
        run: {name: value for name, value in settings.items() if name != "label"}
        for run, settings in config["samplers"].items()
    }
    return fields | {"samplers": samplers}


def config_differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """``differences`` in the conditions of two configs, in samplers that both of them list."""
    ours, theirs = of_config(ours), of_config(theirs)
    shared = ours["samplers"].keys() & theirs["samplers"].keys()
    for config in (ours, theirs):
        config["samplers"] = {run: config["samplers"][run] for run in shared}
    return differences(ours, theirs)


@dataclasses.dataclass(frozen=True)
class Conditions:
    """The conditions of every item of a job.

    Those of all items by part, and of samplers by run; by problem id, a digest of its text and
    reference answer, and one of its prompt's tokens.
    """

    common: Mapping[str, Any]
    samplers: Mapping[str, Any]
    problems: Mapping[str, str]
    renderings: Mapping[str, str]

    @functools.cached_property
    def _digests(self) -> tuple[dict[str, str], dict[str, str]]:
        common, samplers = (
            {name: digest(values) for name, values in each.items()}
            for each in (self.common, self.samplers)
        )
        return common, samplers

    def digests(self, item: Item) -> dict[str, str]:
        """Part -> digest, of one item; unknown parts are left out."""
        run, seed, problem = item
        common, samplers = self._digests
        own = {
            "sampler": samplers.get(run),
            "problem": self.problems.get(problem),
            "rendering": self.renderings.get(problem),
        }
        known = {part: value for part, value in own.items() if value is not None}
        return {**common, **known, "seed": digest([seed, problem])}

    def differing(self, record: Record) -> list[str]:
        """The parts in which a record's conditions differ from these, as far as these are known."""
        saved = record["digest"]
        return [p for p, value in self.digests(item_of(record)).items() if saved.get(p) != value]


@dataclasses.dataclass(frozen=True)
class Scope:
    """The items of a job: all combinations of these."""

    runs: Sequence[str]
    seeds: Sequence[int]
    problems: Sequence[str]

    @functools.cached_property
    def _sets(self) -> tuple[set[Any], ...]:
        return set(self.runs), set(self.seeds), set(self.problems)

    def __contains__(self, item: Item) -> bool:
        return all(part in allowed for part, allowed in zip(item, self._sets, strict=True))

    def __len__(self) -> int:
        return len(self.runs) * len(self.seeds) * len(self.problems)

    def missing(self, finished: Iterable[Item]) -> int:
        """How many of its items are not finished."""
        return len(self) - len({item for item in finished if item in self})


def checked(
    records: Iterable[Record], conditions: Conditions, scope: Scope, where: str
) -> Iterator[Record]:
    """The records within a scope; all records are checked.

    Raises:
      ValueError: at the end, if any record was made under other conditions; names some of them and
        the parts that differ.
    """
    refused: list[str] = []
    for record in records:
        item = item_of(record)
        if not isinstance(record.get("digest"), dict):
            raise ValueError(_of_earlier_version(where))
        if parts := conditions.differing(record):
            refused.append(f"{item[0]}, seed {item[1]}, {item[2]!r}: {' and '.join(parts)}")
        elif item in scope:
            yield record
    if refused:
        named = "; ".join(refused[:_NAMED])
        rest = len(refused) - _NAMED
        raise ValueError(
            f"{where} holds {len(refused)} record(s) made under other conditions than those of its "
            f"job ({named}{f'; and {rest} more' if rest > 0 else ''}); they cannot share one "
            "table, so start in a new workdir, or resume the job with --redo_damaged, which keeps "
            "them aside and does their items again."
        )


def conditions_of(saved: Mapping[str, Any]) -> Conditions:
    """The conditions in a workdir's config.json."""
    samplers = of_config(saved["config"])["samplers"]
    return Conditions(saved["conditions"], samplers, saved["problems"], saved["renderings"])


def scope_of(saved: Mapping[str, Any]) -> Scope:
    """The scope in a workdir's config.json, which is that of the latest start."""
    problems = list(saved["problems"])[: saved.get("num_problems")]
    return Scope(list(saved["labels"]), saved["config"]["seeds"], problems)


def check_version(saved: Mapping[str, Any], where: str) -> None:
    """Raises ValueError for the config.json of an early version, whose records have no digests."""
    if not {"conditions", "problems", "renderings"} <= saved.keys():
        raise ValueError(_of_earlier_version(where))


def _of_earlier_version(where: str) -> str:
    return (
        f"{where} was written by an earlier version of this package, whose records do not say "
        "which model and prompts they were made with, so start in a new workdir."
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        is_group = isinstance(value, Mapping) and value
        flat |= _flat(value, f"{prefix}{name}.") if is_group else {prefix + name: value}
    return flat
