"""The page: what is on it, and that no text of a model can do anything there."""

import html.parser
import json
import re

import numpy as np
import pytest

from jax_power_smc.report import outputs, page
from jax_power_smc.report.job_status import status_of
from jax_power_smc.report.load import read_problems, read_report
from tests.report import workdirs

PROBLEMS = tuple("abcd")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{7*7}}{% raw %}",
    "]]>--></pre></details></table></title></style>",
    "$\\frac{",
    "&lt;b&gt;",
    "a\0b",
    "half \ud800",
    "turn\u202eed",
)
SHOWN = (*HOSTILE[:7], "a<U+0000>b", "half <U+D800>", "turn<U+202E>ed")
# Elements without an end.
VOID = {"meta", "link", "img", "br", "hr", "input", "col"}


class Reader(html.parser.HTMLParser):
    """Elements, attributes and text of a page; fails if elements are not closed in order."""

    def __init__(self, content):
        super().__init__()
        self.open, self.elements, self.words, self.style = [], [], [], []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.style if self.open and self.open[-1] == "style" else self.words).append(data)

    @property
    def text(self):
        return "".join(self.words)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def render(workdir, problems=None, picture=None):
    data = read_report(workdir)
    pictures = [] if picture is None else [picture]
    sections = [
        page.ProblemSection(outputs.problem_in_full(records, data.labels), pictures)
        for records in read_problems(data, problems or outputs.most_contested(data)).values()
    ]
    return page.render(data, status_of(data), pictures, sections)


def check_is_safe(content):
    """No script, nothing from elsewhere, no dangling link, valid UTF-8; returns its reader."""
    assert content.encode().decode() == content
    reader = Reader(content)
    assert not {"script", "iframe", "object", "embed", "base", "form", "svg"} & {
        tag for tag, _ in reader.elements
    }
    ids = [attrs["id"] for _, attrs in reader.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in reader.elements:
        assert not [name for name in attrs if name.startswith("on")]
        for name in {"src", "href", "action", "data", "poster", "background"} & set(attrs):
            assert attrs[name].startswith(("data:", "#"))
            if attrs[name].startswith("#"):
                assert attrs[name][1:] in ids
        assert attrs.get("aria-labelledby", ids[0]) in ids
    policies = [a["content"] for a in reader.all("meta") if "http-equiv" in a]
    assert policies == [POLICY]
    assert not re.search(r"url\(|@import|expression", "".join(reader.style))
    assert all(attrs["alt"] for attrs in reader.all("img"))
    return reader


@pytest.fixture(scope="module")
def config():
    return workdirs.default_config()


@pytest.fixture(scope="module")
def records(config):
    return workdirs.every_item(np.random.default_rng(0), config, PROBLEMS)


@pytest.fixture(scope="module")
def workdir(config, records, tmp_path_factory):
    return workdirs.write(tmp_path_factory.mktemp("job"), config, records, PROBLEMS)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A job all of whose texts are bad."""
    config = workdirs.default_config()
    everything = " ".join(HOSTILE)
    config.model = everything
    config.samplers.smc.label = everything
    config.samplers.plain.label = HOSTILE[0]
    rng = np.random.default_rng(0)
    records = workdirs.every_item(rng, config, HOSTILE)
    for number, each in enumerate(records):
        each |= {"prompt": everything, "gold": everything}
        for row, particle in enumerate(each["particles"]):
            particle |= {"text": everything, "parsed": HOSTILE[(number + row) % len(HOSTILE)]}
            particle |= {"note": everything} if row == 1 else {"loop": True}
        if number % 7 == 0:
            each["failure"] = everything
    made = workdirs.write(tmp_path_factory.mktemp("hostile"), config, records, HOSTILE)
    held = json.loads((made / "config.json").read_text())
    held |= {"device": everything, "started": everything, "versions": {everything: everything}}
    (made / "config.json").write_text(json.dumps(held))
    return made


def test_what_the_page_is_about(workdir):
    reader = check_is_safe(render(workdir))
    for text in ("tiny-reasoner", "finished: 24 items", workdirs.DEVICE, "jax_power_smc 0.1.0"):
        assert text in reader.text
    assert json.loads((workdir / "config.json").read_text())["hash"] in reader.text
    assert "p^4, at most 2,048 new tokens" in reader.text
    assert "No item failed" in reader.text and '"num_blocks": 4' in reader.text


def test_figures_are_those_of_the_summary(workdir, config, records):
    content = render(workdir)
    summary = workdirs.summary_of(config, records, PROBLEMS)
    for row in summary["rows"]:
        value, ends = 100 * row["accuracy"], [100 * end for end in row["ci95"]]
        assert f">{value:.1f}</span><small>[{ends[0]:.1f}, {ends[1]:.1f}]</small>" in content
    shown = re.findall(
        r"([▲▼]?) ?([+-]?[\d.]+)</span><small>\[([^,]+), ([^\]]+)\]</small>", content
    )
    expected = {
        (f"{100 * pair['difference']:+.1f}", *(f"{100 * end:+.1f}" for end in pair["ci95"]))
        for pair in summary["comparisons"]
    }
    zero = {"+0.0": "0.0", "-0.0": "0.0"}
    expected = {tuple(zero.get(text, text) for text in pair) for pair in expected}
    assert expected <= {pair[1:] for pair in shown}
    for sign, _, low, high in shown:
        clear = (float(low) > 0 and low.startswith("+")) or float(high) < 0
        assert bool(sign) == clear


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("bubblewrap", "ran isolated, by bubblewrap"),
        ("none", "ran without isolation (code_isolation=none)"),
    ],
)
def test_how_code_was_isolated_is_said(kind, said, config, records, tmp_path):
    config = config.copy_and_resolve_references()
    config.update(allow_code_execution=True, code_isolation=kind)
    assert said in check_is_safe(render(workdirs.write(tmp_path, config, records, PROBLEMS))).text


def test_a_job_without_code_says_nothing_of_isolation(workdir):
    assert "Code written by the model" not in check_is_safe(render(workdir)).text


def test_pictures_are_in_the_page(workdir):
    picture = page.Picture("A <title>", "What & how.", b"\x89PNG")
    reader = check_is_safe(render(workdir, picture=picture))
    images = reader.all("img")
    assert {image["src"] for image in images} == {"data:image/png;base64,iVBORw=="}
    assert {image["alt"] for image in images} == {"A <title>"} and len(images) == 4
    assert "What & how." in reader.text


def test_problems_are_shown_in_full(workdir, records):
    content = render(workdir, ["c"])
    reader = check_is_safe(content)
    assert "Problem c" in reader.text and "What is c?" in reader.text
    assert "Problem a" not in reader.text
    one = next(each for each in records if (each["run"], each["id"]) == ("smc", "c"))
    for particle in one["particles"]:
        assert f"log p {particle['log_prob']:.2f}" in reader.text
        assert particle["text"] in reader.text
    number = sum(each["id"] == "c" for each in records)
    assert reader.text.count("drawn") >= number


def test_marks_are_not_by_colour_alone(workdir, records):
    text = check_is_safe(render(workdir)).text
    assert "✓ right" in text and "✗ wrong" in text


def test_degenerate_outputs_and_failures_are_named(config, records, tmp_path):
    changed = json.loads(json.dumps(records))
    smc = [each for each in changed if each["run"] == "smc"]
    for particle in smc[0]["particles"]:
        particle |= {"loop": True, "finished": False}
    smc[1]["failure"] = "the weights are not finite."
    smc[2]["particles"][0] |= {"note": "took longer than 10 s"}
    reader = check_is_safe(render(workdirs.write(tmp_path, config, changed, PROBLEMS)))
    text = " ".join(" ".join(reader.words).split())
    assert "Power-SMC 3 33.3 0.0 33.3 a (100%)" in text
    assert "Power-SMC 1 the weights are not finite. b" in text
    assert "Power-SMC 1 took longer than 10 s c" in text
    assert "Items that failed: Power-SMC 1" in text and "No item failed" not in text


def test_texts_of_models_and_data_do_nothing(hostile):
    content = render(hostile, HOSTILE, page.Picture(HOSTILE[1], HOSTILE[0], b"x"))
    reader = check_is_safe(content)
    for text in SHOWN:
        assert text in reader.text
    assert "49" not in [word.strip() for word in reader.words]
    assert "\0" not in content and "\u202e" not in content
    # Both in the title and in every place where a label stands.
    assert content.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 50


def test_a_long_line_is_cut(config, records, tmp_path):
    changed = json.loads(json.dumps(records))
    for each in changed:
        for particle in each["particles"]:
            particle["text"] = "y" * 100_000 + "the end"
    content = render(workdirs.write(tmp_path, config, changed, PROBLEMS), ["a"])
    assert "characters are left out here" in content and "the end" in content
    assert len(content) < 500_000


def test_an_unfinished_job_says_so(config, records, tmp_path):
    some = [each for each in records if each["run"] in ("plain", "smc") and each["id"] != "d"]
    reader = check_is_safe(render(workdirs.write(tmp_path, config, some[:5])))
    assert "This job is not finished: 5 items so far." in reader.text
    assert "3 seen so far" in reader.text and "2 problems" in reader.text
    assert "without replacement" not in reader.text.split("Config")[0]


def test_a_job_without_a_table_is_shown_without_it(records, tmp_path):
    several = workdirs.default_config()
    several.seeds = (0, 1)
    reader = check_is_safe(render(workdirs.write(tmp_path, several, records[:2])))
    assert "No run has finished a problem with all its seeds yet" in reader.text
    assert "Problem a" in reader.text


def test_the_problems_of_a_run_of_one_particle(tmp_path):
    config = workdirs.default_config(1)
    del config.samplers["many"]
    made = workdirs.every_item(np.random.default_rng(0), config, ["only"])
    reader = check_is_safe(render(workdirs.write(tmp_path, config, made, ["only"])))
    assert "Problem only" in reader.text and "Comparisons" in reader.text


def test_an_address_is_escaped(workdir):
    picture = page.Picture("t", "c", bytes(range(256)))
    assert re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", picture.source)
