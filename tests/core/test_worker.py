"""The worker process: what it imports, and where it finds the package."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

from jax_power_smc.core import worker
from tests.paths import ROOT

PROGRAM = """
import sys
import jax_power_smc.grading.math_answer, jax_power_smc.core.worker
import jax_power_smc.models.checkpoints.template_rendering
print(sorted(name for name in sys.modules if name.split(".")[0] in ("jax", "jaxlib", "numpy")))
"""


def test_a_worker_imports_no_jax():
    environment = {**os.environ, "PYTHONPATH": os.fspath(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_the_package_is_found_wherever_the_parent_found_it(tmp_path):
    # A copy that is neither installed nor on the path, as in the parent's working directory.
    source = pathlib.Path(worker.__file__).parents[1]
    for name in ("__init__.py", "core"):
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy
        (tmp_path / "jax_power_smc").mkdir(exist_ok=True)
        copy(source / name, tmp_path / "jax_power_smc" / name)
    script = tmp_path / "jax_power_smc/core/worker.py"
    script.with_name("only_here.py").write_text("def double(x): return 2 * x")
    command = [sys.executable, "-P", os.fspath(script), "jax_power_smc.core.only_here"]
    command += ["10", str(2**31), str(os.getpid())]
    job = json.dumps({"function": "double", "x": 7})
    environment = {name: x for name, x in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, input=job + "\n", env=environment, capture_output=True, text=True, check=True
    )
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"result": "ready"},
        {"result": 14},
    ]
