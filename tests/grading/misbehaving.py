"""Functions for workers in tests: they return results, and go wrong in every way."""

import os
import signal
import time


def judge(gold, response):
    """Does what the response says."""
    do, _, argument = response.partition(" ")
    if do == "hang":
        time.sleep(60)
    elif do == "spin":  # deep in C, where no Python code can interrupt it
        10 ** (10**9)
    elif do == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif do == "hog":
        bytearray(10**13)
    elif do == "raise":
        raise KeyError(argument)
    elif do == "print":
        print("noise", flush=True)
    elif do == "sleep":
        time.sleep(float(argument))
    correct = response == gold
    return {"parsed": response, "correct": correct, "correct_string": correct}


def merge(answers):
    """Merges answers with the same first letter; hangs when told to."""
    if any(answer.startswith("merge-hang") for answer, _ in answers):
        time.sleep(60)
    return {answer: answer[0] for answer, _ in answers}
