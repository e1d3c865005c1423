"""Whether all processes of a job were started alike; checked before any of them does any work."""

import json
from collections.abc import Mapping
from typing import Any

from jax_power_smc.core.process_group import ProcessGroup
from jax_power_smc.evaluation.conditions import differences

# How many differing fields of a process an error names.
_NAMED = 8


def agree(processes: ProcessGroup, name: str, facts: Mapping[str, Any]) -> None:
    """Compares the facts of every process with those of process 0.

    Args:
      processes: of the job; each of them calls this at the same point.
      name: of the point.
      facts: nested names and values; values that JSON cannot express are compared by their repr.

    Raises:
      ValueError: in all processes, if any two differ; names the processes and the fields.
    """
    said = processes.gather(name, json.dumps(facts, default=repr))
    first, *others = [json.loads(each) for each in said]
    found = []
    for index, own in enumerate(others, start=1):
        changed = [
            f"{field} {ours} (process 0: {its})" for field, ours, its in differences(own, first)
        ]
        if changed:
            rest = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
            found.append(f"process {index} has {', '.join(changed[:_NAMED])}{rest}")
    if found:
        raise ValueError(f"the processes of this run do not agree: {'; '.join(found)}.")
