"""All pictures of an evaluation, from its records on the disk."""

import json
import warnings

from etils import epath

from jax_power_smc.core.prng import prompt_id
from jax_power_smc.evaluation import claim
from jax_power_smc.evaluation.conditions import conditions_of
from jax_power_smc.report import load, plots
from tests.report.plotted import HOSTILE, ancestral, particle, row, smc, summary, swor

SAMPLERS = {"t1": ancestral(), "smc": smc(2), "swor": swor(2)}


def write(directory, labels, with_summary=True):
    """Three runs of two problems; the answers are not to be trusted."""
    names = ("$a", "\ud800b")
    about = {
        "config": {"samplers": SAMPLERS, "seeds": [0]},
        "conditions": {},
        "problems": dict.fromkeys(names, "x"),
        "renderings": dict.fromkeys(names, "x"),
        "labels": labels,
        "device": "cpu",
    }
    about["hash"] = claim.hash_of(about)
    (directory / "config.json").write_text(json.dumps(about))
    judged = {
        "log_prob": -1.0,
        "correct_string": False,
        "note": None,
        "loop": False,
        "very_short": False,
        "text": "",
    }
    lines = []
    for run in SAMPLERS:
        for place, name in enumerate(names):
            size = 1 if run == "t1" else 2
            made = [particle(i, 3 + i, 1 / size, parsed=HOSTILE[i], **judged) for i in range(size)]
            steps = 2 + size
            info = {
                "ess": [1.5] * steps,
                "forks": [0] * steps,
                "moves": [] if size == 1 else [[2, 1, 0]],
                "distinct_roots": 1,
                "coalescence": 2,
                "unfinished_mass": 0.0,
                "dropped_mass": 0.0,
                "acceptance_rate": None,
                "model_tokens": 9,
            }
            lines.append(
                {
                    "run": run,
                    "seed": 0,
                    "id": name,
                    "prompt_id": prompt_id(name),
                    "prompt": "",
                    "gold": 1,
                    "rendered": "",
                    "digest": conditions_of(about).digests((run, 0, name)),
                    "failure": None,
                    "choice": 0,
                    "log_evidence": None if run == "t1" else -3.0 - place,
                    "particles": made,
                    "info": info,
                    "seconds": {"compile": 1.0, "prefill": 1.0, "decode": 1.0},
                }
            )
    (directory / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if with_summary:
        rows = [row(run, 0.5, 1.0 + place) for place, run in enumerate(SAMPLERS)]
        passed = [{"run": "smc", "k": k, "value": 0.5, "ci95": [0.2, 0.8]} for k in (1, 2)]
        (directory / "summary.json").write_text(json.dumps(summary(rows, passed)))
    return epath.Path(directory)


def test_all_pictures_of_an_evaluation(tmp_path):
    labels = dict(zip(SAMPLERS, HOSTILE, strict=False))
    workdir = write(tmp_path, labels)
    report = load.read_report(workdir)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = plots.figures(report)
        full = load.read_problems(report, ["$a", "\ud800b"])
        for records in full.values():
            made += plots.genealogy(records, report.labels)
        pictures = [plots.to_png(plot.figure) for plot in made]
    names = [plot.name for plot in made]
    assert names[:6] == ["accuracy", "pass_at_k", "gap", "steps", "lengths", "diversity"]
    assert len(set(names)) == len(names) == 10
    assert all(name.startswith("genealogy-s") for name in names[6:])
    assert all(1000 < len(picture) < 150_000 for picture in pictures)
    assert all(plot.title and plot.caption.endswith(".") for plot in made)


def test_a_job_that_has_no_summary_yet(tmp_path):
    report = load.read_report(write(tmp_path, {run: run for run in SAMPLERS}, with_summary=False))
    names = [plot.name for plot in plots.figures(report)]
    assert names == ["gap", "steps", "lengths", "diversity"]


def test_pictures_leave_no_trace_in_pyplot(tmp_path):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    plots.figures(load.read_report(write(tmp_path, {run: run for run in SAMPLERS})))
    assert pyplot.get_fignums() == before
