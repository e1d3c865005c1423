import re
import subprocess
import sys

import pytest

from tests.paths import ROOT

SCRIPT = ROOT / "docs" / "tables.py"

sys.path.insert(0, str(SCRIPT.parent))
import tables  # noqa: E402

sys.path.remove(str(SCRIPT.parent))


def test_pages_hold_the_figures_of_the_records():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_table_is_in_some_page():
    used = set()
    for page in tables.pages():
        used.update(re.findall(r"<!-- table: (\w+) -->", page.read_text("utf-8")))
    assert used == set(tables.TABLES)


def test_a_stale_figure_is_replaced():
    text = "<!-- table: cost_model -->\n\n| stale |\n\n<!-- end -->\nprose\n"
    filled = tables.fill(text)
    assert "stale" not in filled and "| Power-SMC, N = 16 | 4,096 | 4,096 |" in filled
    assert filled.endswith("<!-- end -->\nprose\n") and tables.fill(filled) == filled


def test_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match="there is no table 'nonsense'"):
        tables.fill("<!-- table: nonsense -->\n<!-- end -->")


def test_figures_are_never_guessed():
    records = [{"metric": "a", "value": 1}, {"metric": "a", "value": 2}]
    with pytest.raises(ValueError, match="2 records have"):
        tables.only(records, metric="a")
    with pytest.raises(ValueError, match="0 records have"):
        tables.only(records, metric="b")


def test_links_between_pages_lead_somewhere():
    pages = {page: page.read_text("utf-8") for page in tables.pages()}
    for page, text in pages.items():
        text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"\w+:", target):
                continue
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            assert file.exists(), f"{page.name} links to {target}"
            if anchor and file.suffix == ".md":
                assert anchor in _anchors(file.read_text("utf-8")), f"{page.name}: {target}"


def _anchors(text):
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_equations_are_numbered_in_order():
    text = (ROOT / "docs" / "math.md").read_text("utf-8")
    tags = [int(n) for n in re.findall(r"\\tag\{(\d+)\}", text)]
    assert tags == list(range(1, len(tags) + 1))
    cited = {int(n) for n in re.findall(r"\beqs?\. (\d+)", text)}
    assert cited <= set(tags)
