"""Whether bubblewrap works here, for tests of code that is run."""

import pathlib

import pytest

from jax_power_smc.grading import isolation


def _why_not():
    try:
        isolation.check(isolation.BUBBLEWRAP)
    except ValueError as error:
        return str(error)
    return None


_WHY_NOT = _why_not()
# CI fails where it does not work (make isolation), because these are skipped then.
needs_bubblewrap = pytest.mark.skipif(_WHY_NOT is not None, reason=str(_WHY_NOT))
# For tests of what does not depend on it.
HERE = isolation.NONE if _WHY_NOT else isolation.BUBBLEWRAP
# Isolated code finds an empty /tmp, but for Python where that is installed below it.
IN_TMP = {
    pathlib.Path(path).parts[2]
    for path in (*isolation.libraries(), isolation.interpreter()[0])
    if path.startswith("/tmp/")
}
