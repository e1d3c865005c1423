"""What a reasoning model writes between <think> and </think> is never its answer."""

import re

# Also the spellings of other models: <thinking>, <thought>, <reasoning>, [THINK].
_NAME = r"(?:think|thinking|thought|reasoning)"
_OPEN = re.compile(rf"(?i:<{_NAME}>)|\[THINK\]")
_CLOSE = re.compile(rf"(?i:</{_NAME}>)|\[/THINK\]")


def strip_thinking(response: str) -> str:
    """Removes the reasoning from a response.

    The chat template may already have written <think>, so a closing tag needs no opening one:
    everything before it is dropped. A response that was cut off inside its reasoning ends there.
    """
    kept, depth, at = "", 0, 0
    tags = [(found.start(), found.end(), 1) for found in _OPEN.finditer(response)]
    tags += [(found.start(), found.end(), -1) for found in _CLOSE.finditer(response)]
    for start, end, step in sorted(tags):
        if depth == 0:
            # Everything before an unmatched closing tag was reasoning.
            kept = kept + response[at:start] if step > 0 else ""
        # Models mention the tag while they reason, so one closing tag ends all open ones.
        depth, at = (1, end) if step > 0 else (0, end)
    return kept if depth else kept + response[at:]
