"""What the documentation names exists: files, folders, modules, names, flags and make targets."""

import functools
import importlib
import inspect
import re

import pytest

import jax_power_smc as psmc
from tests.paths import ROOT
from tests.test_architecture import ORDER

PACKAGE = ROOT / "jax_power_smc"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "launch/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FILE = re.compile(r"(?<![\w/.-])((?:[\w.*-]+/)*[\w*-]+\.(?:py|sh|sbatch|md|cfg|toml|jsonl))\b")
FOLDER = re.compile(r"(?<![\w/.-])((?:[\w-]+/)+)(?![\w.*])")
# What a job, a build or a reader writes, and placeholders.
NOT_OURS = re.compile(r"^(runs/|site/|records|set-aside|NAME|.*/NAME)")
OWNERS = {
    "result": psmc.SampleResult,
    "info": psmc.SampleInfo,
    "engine": psmc.Engine,
    "stream": psmc.Stream,
    "lm": psmc.LoadedModel,
}


@functools.cache
def source():
    """All words of the code that is not documentation."""
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *ROOT.glob("configs/*.py")]
    files += [*(ROOT / "launch").iterdir(), ROOT / "Makefile", ROOT / "setup.cfg"]
    return set(re.findall(r"\w+", "\n".join(f.read_text("utf-8") for f in files if f.is_file())))


def inline_code(text):
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def code(text):
    """Inline code and fenced blocks."""
    return [*inline_code(text), *re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)]


def found(name, page):
    """Whether a path leads somewhere from the root, the package or the page; a bare name may be
    that of a file in any folder."""
    if "/" not in name:
        return name in file_names()
    for base in (ROOT, PACKAGE, page.parent):
        if any(base.glob(name)) if "*" in name else (base / name).exists():
            return True
    return False


@functools.cache
def file_names():
    folders = (PACKAGE, ROOT / "tests", ROOT / "configs", ROOT / "launch", ROOT / "docs")
    return {path.name for folder in folders for path in folder.rglob("*")} | {
        path.name for path in ROOT.iterdir()
    }


def test_the_makefile_names_files_that_exist():
    """And CI, the packaging and the hooks."""
    for file in ("Makefile", "setup.cfg", ".ci/run", ".pre-commit-config.yaml", "mkdocs.yml"):
        text = re.sub(r"\.venv/\S*|\$\(BIN\)/\S*|runs/\S*", "", (ROOT / file).read_text("utf-8"))
        # Pages that the build makes of notebooks.
        text = re.sub(r"(notebooks/\w+)\.md", r"\1.py", text)
        text = re.sub(r"exclude_docs:.*?\n\n", "", text, flags=re.DOTALL)
        bases = {"mkdocs.yml": ROOT / "docs"}
        for name in FILE.findall(text):
            base = bases.get(file, ROOT)
            assert (base / name).exists() or (ROOT / name).exists() or "*" in name, (file, name)


def test_the_picture_has_every_folder():
    picture = (ROOT / "docs/architecture.md").read_text("utf-8").split("```")[1]
    for folder in ORDER:
        assert re.search(rf"(^|\s){folder}/", picture), folder


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request):
    return request.param


def test_files_and_folders_exist(page):
    text = re.sub(r"\w+://\S+|`?--\w+=\S+", "", page.read_text("utf-8"))
    names = FILE.findall(text) + [n for span in code(text) for n in FOLDER.findall(span)]
    assert [n for n in names if not NOT_OURS.match(n) and not found(n, page)] == []


def test_names_of_the_package_resolve(page):
    text = "\n".join(code(page.read_text("utf-8")))
    for name in re.findall(r"\bjax_power_smc((?:\.\w+)+)", text):
        resolve("jax_power_smc", name[1:].split("."))
    for name in re.findall(r"\bpsmc((?:\.(?!NAME)\w+)+)", text):
        value = psmc
        for part in name[1:].split("."):
            value = getattr(value, part)
    for name in re.findall(r"\blaunch\.([a-z]\w*)", text):
        assert (ROOT / "launch" / f"{name}.py").exists(), name


def resolve(module, parts):
    value = importlib.import_module(module)
    for part in parts:
        try:
            value = getattr(value, part)
        except AttributeError:
            value = importlib.import_module(f"{value.__name__}.{part}")


def test_attributes_of_results_and_engines_exist(page):
    for span in inline_code(page.read_text("utf-8")):
        for owner, name in re.findall(r"(?<!/)\b(\w+)\.(?!py\b)(\w+)", span):
            if owner in OWNERS and not hasattr(OWNERS[owner], name):
                assert re.search(rf"\b(self\.)?{name}(:| =)", inspect.getsource(OWNERS[owner])), (
                    span
                )


def test_identifiers_are_those_of_the_code(page):
    """snake_case and CamelCase words in backticks occur in the code."""
    words = set()
    for span in inline_code(page.read_text("utf-8")):
        if not re.search(r"[/\s$]|\.\w{2,4}$", span):
            words.update(re.findall(r"\b(?:[a-z]+(?:_[a-z0-9]+)+|(?:[A-Z][a-z0-9]+){2,})\b", span))
    unknown = words - source() - {"trust_remote_code"}
    assert not unknown


def test_flags_and_make_targets_exist(page):
    text = page.read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"(?:`|^)make ([a-z][\w-]*)", text, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for field in re.findall(r"\bconfig\.([a-z]\w*)", "\n".join(code(text))):
        assert field in source(), field
    for span in inline_code(text):
        for flag in re.findall(r"(?<![\w-])--(?:no)?([a-z]+(?:_[a-z]+)*)\b(?!-)", span):
            assert flag in source() or f"no{flag}" in source(), flag
