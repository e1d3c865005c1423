"""Programs in which one token was changed, and whether they pass their tests by plain execution."""

import io
import json
import subprocess
import sys
import tokenize

SWAPPED = {
    **{"+": "-", "-": "+", "*": "+", "/": "*", "//": "*", "%": "//", "**": "*"},
    **{"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "+=": "-="},
    **{"and": "or", "or": "and", "True": "False", "False": "True", "min": "max", "max": "min"},
    **{"append": "remove", "any": "all", "all": "any", "lower": "upper"},
}
# Each program in a process of its own, which has no limits but on its resources.
PLAIN = """
import json, os, resource, sys
programs, test, entry_point = json.load(sys.stdin)
for code in programs:
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
        resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        names = {"__name__": "solution"}
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            exec(code, names)
            exec(test, names)
            names["check"](names[entry_point])
        except BaseException:
            os._exit(1)
        os._exit(0)
    print(os.waitpid(child, 0)[1])
"""


def mutants(code, below):
    """The code with one token changed, in each place below a line."""
    lines = code.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        new = SWAPPED.get(token.string)
        if token.type == tokenize.NUMBER and token.string.isdecimal():
            new = str(int(token.string) + 1)
        (row, start), (_, end) = token.start, token.end
        if new is not None and row > below:
            line = lines[row - 1]
            changed = line[:start] + new + line[end:]
            yield "\n".join([*lines[: row - 1], changed, *lines[row:]])


def plain_verdicts(programs, test, entry_point):
    """Of each, True, False, or None if it did not end within a second of CPU time."""
    job = json.dumps([programs, test, entry_point])
    command = [sys.executable, "-I", "-S", "-c", PLAIN]
    done = subprocess.run(command, input=job, capture_output=True, text=True, check=True)
    # Ended by a signal: for the CPU's time.
    return [{"0": True, "256": False}.get(line) for line in done.stdout.split()]
