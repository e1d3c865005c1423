"""Refuses to compute in a forked process: JAX's threads exist only in the one that was forked.

Whatever waits for them there hangs forever. JAX does not tell whether it was used before a fork,
so what uses its devices in this package says so here first. (Where a program has used JAX by
itself, and this package only after the fork, nothing can be noticed.)
"""

import os

_user: int | None = None


def refuse_forked() -> None:
    """To be called before devices are used.

    Raises:
      RuntimeError: if this process was forked after this package had used JAX's devices.
    """
    global _user
    own = os.getpid()
    if _user is None:
        _user = own
    elif _user != own:
        raise RuntimeError(
            "this process was forked from one in which JAX was in use; JAX's threads do not exist "
            "here, so it would wait forever; start processes with "
            'multiprocessing.get_context("spawn"), or fork before JAX is used.'
        )
