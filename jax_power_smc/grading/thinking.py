"""What a reasoning model writes between <think> and </think> is never its answer."""

import re

# Also the spellings of other models: <thinking>, <thought>, <reasoning>, [THINK].
_NAME = r"(?:think|thinking|thought|reasoning)"
_OPEN = re.compile(rf"(?i:<{_NAME}>)|\[THINK\]")
_CLOSE = re.compile(rf"(?i:</{_NAME}>)|\[/THINK\]")


def without_thinking(response: str) -> str:
    """The response without its reasoning.

    A template may have written <think> already, so a tag that closes needs none that opens: what
    stands before it is dropped. A response that was cut while the model reasoned ends there.
    """
    kept, depth, at = "", 0, 0
    tags = [(found.start(), found.end(), 1) for found in _OPEN.finditer(response)]
    tags += [(found.start(), found.end(), -1) for found in _CLOSE.finditer(response)]
    for start, end, step in sorted(tags):
        if depth == 0:
            # Before a tag that closes nothing, all was reasoning.
            kept = kept + response[at:start] if step > 0 else ""
        # Models name the tag while they reason; one that closes ends it all the same.
        depth, at = (1, end) if step > 0 else (0, end)
    return kept if depth else kept + response[at:]
