"""The order of the folders: what each may import, read from the source."""

import ast
import graphlib
import re

import pytest

from tests.paths import ROOT

PACKAGE = ROOT / "jax_power_smc"
# Bottom up: a folder imports only itself and the folders above it in this list.
ORDER = [
    "core",
    "smc",
    "targets",
    "samplers",
    "results",
    "models",
    "engine",
    "theory",
    "tiny_reasoner",
    "tasks",
    "grading",
    "evaluation",
    "report",
    "benchmarks",
    "cli",
]
# Models stand beside the line: they know nothing of samplers or engine.
ONLY = {"models": {"core"}}


def modules():
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
    }


def imports(path, known):
    """Modules of the package that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                if below in known:
                    yield below
                elif node.module in known:
                    yield node.module
                elif f"{node.module}.__init__" in known:
                    yield f"{node.module}.__init__"


@pytest.fixture(scope="module")
def graph():
    known = modules()
    return {name: set(imports(path, known)) for name, path in known.items()}


def folder(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 2 else None


def test_every_folder_is_in_the_order():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders == set(ORDER)


def test_folders_import_only_those_above_them(graph):
    wrong = []
    for module, imported in graph.items():
        own = folder(module)
        if own is None:  # the public surface
            continue
        allowed = ONLY.get(own, set(ORDER[: ORDER.index(own)])) | {own}
        wrong += [f"{module} imports {other}" for other in imported if folder(other) not in allowed]
    assert not wrong


def test_no_modules_import_each_other(graph):
    inner = {module: others for module, others in graph.items() if folder(module)}
    graphlib.TopologicalSorter(inner).prepare()


def test_nothing_private_of_jax_is_imported():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith("jax._src")], path


def test_every_module_has_a_test_file(graph):
    missing = []
    for module in graph:
        parts = module.split(".")[1:]
        if parts[-1] == "__init__" or module in UNTESTED:
            continue
        if not (ROOT / "tests" / "/".join(parts[:-1]) / f"test_{parts[-1]}.py").exists():
            missing.append(module)
    assert not missing


def test_exceptions_are_still_needed(graph):
    """Every entry of UNTESTED is a module without a test file, and the tests it names exist."""
    for module, place in UNTESTED.items():
        assert module in graph, module
        parts = module.split(".")[1:]
        assert not (ROOT / "tests" / "/".join(parts[:-1]) / f"test_{parts[-1]}.py").exists(), module
        for path in re.findall(r"tests/[\w/]+(?:\.py)?", place):
            assert (ROOT / path).exists(), f"{module}: {place}"


# Modules without a test file of their own, and where they are tested instead.
UNTESTED: dict[str, str] = {
    "jax_power_smc.benchmarks.against_torch": "tests/cli/test_benchmark_speed.py",
    "jax_power_smc.benchmarks.fidelity": "tests/cli/test_benchmark.py",
    "jax_power_smc.benchmarks.plots": "tests/benchmarks/test_tables.py",
    "jax_power_smc.benchmarks.records": "tests/cli/test_benchmark.py",
    "jax_power_smc.benchmarks.row_latency": "tests/cli/test_benchmark_rows.py",
    "jax_power_smc.benchmarks.row_throughput": "tests/cli/test_benchmark_rows.py",
    "jax_power_smc.cli.evaluate_start": "tests/cli/test_evaluate.py",
    "jax_power_smc.core.subprocesses": "tests/grading/test_pool.py",
    "jax_power_smc.core.types": "only names of types",
    "jax_power_smc.core.worker_process": "tests/grading/test_pool.py",
    "jax_power_smc.engine.batching": "tests/engine/test_reference.py",
    "jax_power_smc.engine.collect": "tests/engine/test_sample.py",
    "jax_power_smc.engine.device_rows": "tests/engine/test_sample.py",
    "jax_power_smc.engine.mh_chains": "tests/samplers/test_metropolis_hastings.py",
    "jax_power_smc.engine.mh_step": "tests/samplers/test_metropolis_hastings.py",
    "jax_power_smc.engine.request": "tests/engine/test_engine.py",
    "jax_power_smc.engine.slot_plan": "tests/engine/test_engine.py",
    "jax_power_smc.engine.state": "tests/engine/test_reference.py",
    "jax_power_smc.engine.stats": "tests/engine/test_step.py",
    "jax_power_smc.engine.stream": "tests/engine/test_engine.py",
    "jax_power_smc.engine.table_size": "tests/engine/test_engine.py",
    "jax_power_smc.engine.target_batch": "tests/engine/test_engine.py",
    "jax_power_smc.engine.validation": "tests/engine/test_sample.py",
    "jax_power_smc.evidence": "tests/results",
    "jax_power_smc.grading.base": "tests/grading/test_factory.py",
    "jax_power_smc.grading.inline": "tests/grading/test_factory.py",
    "jax_power_smc.grading.references": "tests/grading/test_factory.py",
    "jax_power_smc.grading.spelling": "tests/grading/test_math_answer.py",
    "jax_power_smc.grading.thinking": "tests/grading/test_factory.py",
    "jax_power_smc.models.adapters.plain": "tests/models/adapters/test_adapters.py",
    "jax_power_smc.models.adapters.validation": "tests/models/adapters/test_adapters.py",
    "jax_power_smc.models.checkpoints.hf_rope": "tests/models/checkpoints/test_hf_config.py",
    "jax_power_smc.models.checkpoints.hub_child": "tests/models/checkpoints/test_hub.py",
    "jax_power_smc.models.transformer.families": "tests/models/checkpoints/test_hf_config.py",
    "jax_power_smc.models.transformer.layers": "tests/models/transformer/test_transformer.py",
    "jax_power_smc.models.transformer.precision": "tests/models/transformer/test_transformer.py",
    "jax_power_smc.plain": "tests/engine/test_reference.py",
    "jax_power_smc.targets.regex_nfa": "tests/targets/test_regex_dfa.py",
    "jax_power_smc.tasks.aime": "tests/tasks/test_dataset.py",
    "jax_power_smc.tasks.base": "tests/tasks/test_load.py",
    "jax_power_smc.tasks.gpqa": "tests/tasks/test_dataset.py",
    "jax_power_smc.tasks.gsm8k": "tests/tasks/test_dataset.py",
    "jax_power_smc.tasks.hub_data": "tests/tasks/test_load.py",
    "jax_power_smc.tasks.humaneval": "tests/tasks/test_dataset.py",
    "jax_power_smc.tasks.jsonl": "tests/tasks/test_dataset.py",
    "jax_power_smc.tasks.math500": "tests/tasks/test_dataset.py",
}
