"""Which job a workdir belongs to: config.json, which says what its records were made with.

The first start writes it, under a lock, before any work. A later start under other conditions is
refused; one with another scope is accepted, and the file then has the new scope.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from jax_power_smc.core.files import parse_json
from jax_power_smc.evaluation import conditions, store
from jax_power_smc.evaluation.conditions import digest

CONFIG = "config.json"
_LOCK = ".lock"
_CLAIMS = "claims"
# What the first start decides for all later ones; the rest is that of the latest start.
_FIRST = ("date", "started", "device", "versions", "commit")
# Under which the conditions hold the digests of the model's files.
_FILES = "model.files."


@contextlib.contextmanager
def locked(workdir: epath.Path) -> Iterator[None]:
    """Inside, no other job may work in this workdir, which is made if it does not exist.

    A remote workdir cannot be locked; see ``claim``.

    Raises:
      ValueError: if another job is running there.
      OSError: if it cannot be written.
    """
    if store.is_remote(workdir):
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / _LOCK, "ab") as file:
        store.lock(file, workdir)
        yield


def claim(workdir: epath.Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Claims the workdir for a job, unless it has it already; returns the content of config.json.

    To be called within ``locked``. If several jobs with different conditions start in a remote
    workdir at the same time, at most one of them is accepted.

    Args:
      workdir: local or remote.
      wanted: the content of config.json, see ``cli.evaluate_start.about``; its "start" is added to
        the list of "starts".

    Raises:
      ValueError: if the workdir belongs to other conditions; names the fields that differ.
      OSError: if it cannot be written.
    """
    made: dict[str, Any] = conditions.as_json(dict(wanted))
    started = [made.pop("start")] if "start" in made else []
    own = hash_of(made)
    saved = read_config(workdir)
    if saved is None:
        if strays := store.record_files(workdir):
            raise ValueError(
                f"{os.fspath(workdir)} holds {os.fspath(strays[0])} and no {CONFIG} that says what "
                "it is; choose another workdir."
            )
        workdir.mkdir(parents=True, exist_ok=True)
        if store.is_remote(workdir):
            _claim_remote(workdir, own)
    else:
        check_same(workdir, wanted, saved)
        made |= {name: saved[name] for name in _FIRST if name in saved}
        for name in ("problems", "renderings"):
            # Those of this start come first: ``conditions.scope_of`` counts them.
            made[name] |= {x: v for x, v in saved[name].items() if x not in made[name]}
        started = [*saved["starts"], *started]
    # The hash and the config come first, where people look.
    made = {"hash": own, "config": made["config"]} | made | {"hash": own, "starts": started}
    if made != saved:
        store.write_json(workdir / CONFIG, made)
    return made


def check_same(workdir: epath.Path, wanted: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raises ValueError if the conditions of a start differ from those of the workdir.

    ``wanted`` has the config and, if the model is known already, "conditions" and "commit".
    """
    where = os.fspath(workdir)
    conditions.check_version(saved, where)
    changed = conditions.config_differences(conditions.as_json(wanted["config"]), saved["config"])
    if not changed and "conditions" in wanted:
        own = conditions.as_json(wanted["conditions"])
        changed = conditions.differences(own, saved["conditions"])
    files = [name.removeprefix(_FILES) for name, *_ in changed if name.startswith(_FILES)]
    if files:
        commits = [str(each.get("commit")) for each in (saved, wanted)]
        moved = f" (commit {commits[0]} then, {commits[1]} now)" if len(set(commits)) > 1 else ""
        raise ValueError(
            f"{where} holds the records of another model{moved}: its {' and '.join(files)} "
            "changed since the first start; restore them, or choose another workdir."
        )
    if changed:
        named = "; ".join(f"{name} is {own}, there it is {other}" for name, own, other in changed)
        raise ValueError(
            f"{where} holds the records of another config: {named}; use that config, or "
            "choose another workdir."
        )
    check_hash(workdir, saved)


def check_hash(workdir: epath.Path, saved: Mapping[str, Any]) -> None:
    """Raises ValueError if config.json was changed after a job wrote it."""
    if saved["hash"] != hash_of(saved):
        raise ValueError(
            f"{os.fspath(workdir / CONFIG)} is damaged: its hash is {saved['hash']}, and that of "
            f"what it holds {hash_of(saved)}."
        )


def hash_of(saved: Mapping[str, Any]) -> str:
    """The hash of a config and of the conditions outside it."""
    return digest([conditions.as_json(saved["config"]), saved["conditions"]])


def read_config(workdir: epath.Path) -> dict[str, Any] | None:
    """What ``claim`` wrote, or None if the workdir has not been claimed.

    Raises:
      ValueError: if the file is damaged.
    """
    path = workdir / CONFIG
    if not path.exists():
        return None
    try:
        saved = parse_json(path.read_text())
        saved["config"].keys(), saved["hash"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{os.fspath(path)} is not what a job wrote ({error}).") from error
    return saved


def _claim_remote(workdir: epath.Path, own: str) -> None:
    """Registers this job first and then looks for others, so that two are never both accepted.

    If two start at the same moment, both may be refused.
    """
    claims = workdir / _CLAIMS
    claims.mkdir(parents=True, exist_ok=True)
    (claims / own).write_text(own)
    others = sorted(path.name for path in claims.iterdir() if path.name != own)
    if others:
        (claims / own).unlink()
        raise ValueError(
            f"a job of another config ({others[0]}) has just started in {os.fspath(workdir)}; "
            "choose another workdir."
        )
