"""Everything that can be wrong with a config is one sentence that names the field."""

import re

import pytest
from ml_collections import ConfigDict

from jax_power_smc.evaluation import job_config
from jax_power_smc.evaluation.config_fields import FIELDS, check_fields
from jax_power_smc.evaluation.job_config import check


def paper(**changes):
    """A good config with values of any type, as a config file may hold them."""
    config = job_config.paper("owner/name", "qwen2", "math500")
    return ConfigDict(config.to_dict() | changes)


def with_samplers(**samplers):
    return paper(samplers=samplers)


def test_the_defaults_lack_samplers_only():
    config = job_config.default()
    with pytest.raises(
        ValueError, match=r"config.samplers is {}; it must be a ConfigDict with at least one entry"
    ):
        check(config)
    job_config.paper_samplers(config)
    check(config)


def test_every_field_says_what_it_is_and_its_default_passes_its_check():
    check_fields(job_config.default())
    for field in FIELDS.values():
        for each in field.values() if isinstance(field, dict) else [field]:
            assert each.doc and callable(each.check)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (3, "config.mesh is 3; it must be a ConfigDict"),
        ({"scope": "global"}, "config.mesh has scope; it must have scope, model"),
        ({"scope": "all", "model": 1}, "config.mesh.scope is 'all'; allowed are process, global"),
        ({"scope": "global", "model": 0}, "config.mesh.model is 0; it must be an integer of at"),
    ],
)
def test_nested_fields(mesh, message):
    with pytest.raises(ValueError, match=message):
        check(paper(mesh=mesh))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("data_megabytes", value) for value in (0, 1.5, 10**7, "200")),
        *(("hub_seconds", value) for value in (0, -1.0, 1e300, float("nan"))),
        ("tokenizer_seconds", 0),
        ("template_seconds", True),
    ],
)
def test_limits_are_checked(name, value):
    config = paper()
    with config.unlocked():
        config.limits = {**config.limits, name: value}
    with pytest.raises(
        ValueError, match=re.escape(f"config.limits.{name} is {value!r}; it must be")
    ):
        check(config)


def test_programs_run_only_if_that_is_allowed():
    config = paper(task="humaneval")
    with pytest.raises(ValueError, match=r"config.allow_code_execution is False; the humaneval"):
        check(config)
    config.allow_code_execution = True
    check(config)


@pytest.mark.parametrize("name", job_config.default())
def test_every_field_must_be_there(name):
    config = paper()
    del config[name]
    with pytest.raises(ValueError, match=f"the config lacks {name}\\."):
        check(config)


def test_what_is_no_field_is_named():
    with pytest.raises(ValueError, match=r"the config has bogus, other; allowed are .*alpha, "):
        check(paper(bogus=1, other=2))


INTEGERS = ("problem_seed", "few_shot", "max_new_tokens", "num_particles", "ramp_tokens")
OPTIONAL = ("limit", "max_positions", "grading_processes", "slots")


@pytest.mark.parametrize("name", INTEGERS + OPTIONAL)
@pytest.mark.parametrize("value", ["3", 2.0, True, -1, 2**31])
def test_integers(name, value):
    with pytest.raises(
        ValueError, match=f"config.{name} is {value!r}; it must be an integer of at"
    ):
        check(paper(**{name: value}))


@pytest.mark.parametrize("name", [*OPTIONAL, "max_new_tokens", "num_particles"])
def test_zero_is_too_few(name):
    with pytest.raises(
        ValueError, match=f"config.{name} is 0; it must be an integer of at least 1"
    ):
        check(paper(**{name: 0}))


@pytest.mark.parametrize("name", INTEGERS)
def test_only_some_may_be_none(name):
    with pytest.raises(ValueError, match=f"config.{name} is None; it must be an integer"):
        check(paper(**{name: None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 5}, "config.model is 5; it must be a name or a directory"),
        ({"model": None}, "config.model is None; it must be a name"),
        ({"model": ""}, "config.model is ''; it must be a name"),
        ({"architecture": "bert"}, "config.architecture is 'bert'; allowed are llama, "),
        ({"dtype": "float64"}, "config.dtype is 'float64'; allowed are float32, bfloat16, float16"),
        ({"revision": 3}, "config.revision is 3; it must be a name, or None"),
        ({"chat": "yes"}, "config.chat is 'yes'; it must be True, False or None"),
        ({"dry_run": 1}, "config.dry_run is 1; it must be True or False"),
        ({"allow_code_execution": "no"}, "config.allow_code_execution is 'no'; it must be True or"),
        ({"code_isolation": "jail"}, "config.code_isolation is 'jail'; allowed are bubblewrap, no"),
        ({"grading_seconds": 0}, "config.grading_seconds is 0; it must be a finite number greater"),
        ({"fields": "id"}, "config.fields is 'id'; it must be a ConfigDict"),
        ({"task": "mmlu"}, "config.task is 'mmlu'; allowed are math500, "),
        ({"split": "dev"}, "config.split is 'dev'; allowed are test"),
        ({"alpha": 0.5}, "config.alpha is 0.5; it must be a finite number of at least 1"),
        ({"alpha": 0.0}, "config.alpha is 0.0; it must be a finite number of at least 1"),
        ({"alpha": "4"}, "config.alpha is '4'; it must be a finite number"),
        ({"alpha": None}, "config.alpha is None; it must be a finite number"),
        ({"length": "short"}, "config.length is 'short'; allowed are stopped, forced_eos"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "config.min_new_tokens is 9; it must not exc"),
        ({"top_k": 0}, "config.top_k is 0; it must be an integer of at least 1"),
        (
            {"top_p": 1.5},
            "config.top_p is 1.5; it must be a finite number greater than 0 and at most 1",
        ),
        ({"stop": ""}, "config.stop is ''; it must be None, 'boxed' or a text"),
        ({"stop": 5}, "config.stop is 5; it must be None, 'boxed' or a text"),
        ({"ess_threshold": 1.5}, "config.ess_threshold is 1.5; it must be a finite number"),
        ({"seeds": 0}, "config.seeds is 0; it must be a tuple of integers"),
        ({"seeds": "01"}, "config.seeds is '01'; it must be a tuple"),
        ({"seeds": ()}, "at least one seed is needed"),
        ({"seeds": (0.5,)}, r"config.seeds\[0\] is 0.5; it must be an integer"),
        ({"seeds": (2**32,)}, r"config.seeds\[0\] is 4294967296; it must be an integer of at most"),
        ({"seeds": (1, 1)}, r"config.seeds is \(1, 1\); they must differ"),
        ({"samplers": 3}, "config.samplers is 3; it must be a ConfigDict"),
        (
            {"max_new_tokens": 8},
            "config.samplers.mh: num_blocks is 16; it must not exceed max_new_",
        ),
    ],
)
def test_values(changes, message):
    with pytest.raises(ValueError, match=message):
        check(paper(**changes))


SMC = {"kind": "smc", "num_particles": 4}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (5, "config.samplers.x must be a ConfigDict with a kind"),
        ({"num_particles": 4}, "config.samplers.x must be a ConfigDict with a kind"),
        (
            {"kind": "beam"},
            "config.samplers.x.kind is 'beam'; allowed are ancestral, mh, smc, swor",
        ),
        ({"kind": "smc"}, "config.samplers.x lacks num_particles"),
        (SMC | {"n": 4}, "config.samplers.x has n; allowed are kind, label, num_particles, ess_th"),
        (SMC | {"label": ""}, "config.samplers.x.label is ''; it must be None or a text"),
        (
            SMC | {"num_particles": 0},
            "config.samplers.x: num_particles is 0; it must be an integer",
        ),
        (SMC | {"order": "random"}, "config.samplers.x: order is 'random'; allowed are adapted"),
    ],
)
def test_entries_of_samplers(entry, message):
    with pytest.raises(ValueError, match=message):
        check(with_samplers(x=entry))


def test_labels_in_the_table_are_different():
    one, other = SMC | {"label": "it"}, SMC | {"num_particles": 8, "label": "it"}
    with pytest.raises(ValueError, match=r"samplers.a and config.samplers.b are both called 'it'"):
        check(with_samplers(a=one, b=other))
    check(with_samplers(a=one, b=other | {"label": "that"}))


@pytest.mark.parametrize("changes", [{"num_particles": 1}, {"ramp_tokens": 0}, {"alpha": 1.0}])
def test_entries_that_come_to_the_same_are_told_apart_by_name(changes):
    config = with_samplers(a=SMC, b=SMC | {"num_particles": 8}, c=SMC | {"label": "it"})
    config.update(changes)
    check(config)
    labels = job_config.labels(config)
    assert len(set(labels.values())) == 3 and labels["c"] == "it"
    assert labels["a"].endswith(" (a)") and labels["b"].endswith(" (b)")
