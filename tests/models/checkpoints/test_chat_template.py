"""Chat templates as programs from strangers: what they may take, and where they may lie."""

import json
import os
import threading
import time

import pytest

import jax_power_smc as psmc
from jax_power_smc.models.checkpoints import chat_template
from jax_power_smc.models.checkpoints.chat_template import TemplateError, render
from jax_power_smc.models.transformer.config import CheckpointError
from tests.models import small
from tests.models.checkpoints.test_loaded_model import TURNS, model_directory

ASK = [{"role": "user", "content": "?"}]
# Much more than a template needs; what hangs is only waited for.
SECONDS = 3.0

HANGS = {
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
    "{% endfor %}",
    "a power": "{{ 10 ** (10 ** 9) }}",
    "a long string searched": "{{ ('a' * 10**6 + 'b') in ('a' * 2 * 10**6) }}" * 10**4,
}
GROWS = {
    "multiplication": "{{ 'x' * 10**10 }}",
    "a list": "{{ [0] * 10**10 }}",
    "a filter": "{{ 'x' | center(10**10) }}",
    "a format": "{{ '%010000000000d' % 1 }}",
    "a method": "{{ '{:10000000000}'.format(1) }}",
    "replacing": "{{ ('x' * 10**6) | replace('x', 'x' * 10**6) }}",
    "doubling": "{% set ns = namespace(x='x') %}{% for i in range(99) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}",
}
WRITES = {
    "multiplication": "{{ 'x' * 10**8 }}",
    "a loop": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "a filter": "{{ 'x' | center(10**8) }}",
}


def rendered(template, **options):
    return render(template, ASK, {}, **{"seconds": SECONDS, "characters": 10**6} | options)


@pytest.mark.parametrize("name", HANGS)
def test_a_template_that_hangs_is_stopped(name):
    start = time.monotonic()
    with pytest.raises(TemplateError, match=r"^took longer than 3 s$"):
        rendered(HANGS[name])
    assert time.monotonic() - start < 60  # on a busy machine, with the start of the process
    assert rendered("{{ messages[0].content }}") == "?"


@pytest.mark.parametrize("name", GROWS)
def test_a_template_that_takes_all_memory_is_stopped(name):
    with pytest.raises(TemplateError, match=r"too much memory|MemoryError|OverflowError|Too many"):
        rendered(GROWS[name], seconds=60.0)
    assert rendered("{{ messages[0].content }}", seconds=60.0) == "?"


@pytest.mark.parametrize("name", WRITES)
def test_a_template_that_writes_too_much_is_stopped(name):
    with pytest.raises(TemplateError, match=r"^it writes more than 1000000 characters$"):
        rendered(WRITES[name], seconds=60.0)


def test_nesting_that_ends_a_parser_is_an_error_too():
    for template in ("{% if 1 %}" * 10**4, "{{ " + "-" * 10**5 + "1 }}", "{{ " + "(" * 10**5):
        with pytest.raises(TemplateError):
            rendered(template, seconds=60.0)


def test_threads_share_the_process():
    texts, errors = [], []

    def ask(number):
        try:
            texts.append(rendered(f"{number} {{{{ messages[0].content }}}}", seconds=60.0))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and sorted(texts) == [f"{i} ?" for i in range(8)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore")
def test_a_fork_has_a_process_of_its_own():
    assert rendered("before", seconds=60.0) == "before"
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, rendered("in the child", seconds=60.0).encode())
        for renderer in list(chat_template._renderers.values()):
            renderer._close()
        os._exit(0)
    os.close(writing)
    with open(reading) as answer:
        assert answer.read() == "in the child"
    os.waitpid(child, 0)
    assert rendered("after", seconds=60.0) == "after"


# --- Through the model ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "part"),
    [
        (HANGS["nested ranges"], "took longer than 0.5 s"),
        (WRITES["a loop"], "it writes more than 4194304 characters"),
        ("{{ raise_exception('Only. Fools!') }}", "TemplateError: Only. Fools!"),
        ("{{ nothing.x }}", "UndefinedError: 'nothing' is undefined"),
        ("{% if %}", "TemplateSyntaxError: "),
    ],
)
def test_a_models_template(tmp_path, template, part):
    lm = psmc.load(model_directory(tmp_path, template, (3, 1)))
    object.__setattr__(lm, "template_seconds", 0.5 if "range" in template[:40] else 30.0)
    with pytest.raises(ValueError) as error:
        lm.encode("what")
    assert str(error.value).startswith(f"the chat template in {tmp_path} cannot render a prompt (")
    assert part in str(error.value) and str(error.value).endswith("; chat=False bypasses it.")
    assert lm.is_chat  # it shows nothing else


def test_without_chat_the_template_is_not_even_parsed(tmp_path, monkeypatch):
    def never(*args, **options):
        raise AssertionError("it was rendered")

    lm = psmc.load(model_directory(tmp_path, "{% if %}", (3, 1)))
    monkeypatch.setattr(chat_template, "render", never)
    assert lm.encode("what", chat=False) == [4]
    assert lm.describe(chat=False).startswith("base model")


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_templates/default.jinja"])
def test_a_template_elsewhere_is_refused(tmp_path, name):
    model, secret = tmp_path / "model", tmp_path / "secret"
    secret.write_text("{{ 'secret' }}")
    model_directory(model, TURNS, (3, 1))
    (model / "chat_template.jinja").unlink(missing_ok=True)
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).symlink_to(secret)
    with pytest.raises(CheckpointError) as error:
        psmc.load(model)
    small.assert_one_sentence(error, model, name, "leads out of that directory")
    (model / name).unlink()
    (model / "inside").write_text("ask {{ messages[0].content }}")
    (model / name).symlink_to(model / "inside")
    lm = psmc.load(model)
    if name == "chat_template.jinja":
        assert lm.encode("what", chat=True) == [0, 4]


def test_templates_in_a_list(tmp_path):
    model_directory(tmp_path, TURNS, (3, 1))
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": "other", "template": "ask"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="cannot render a prompt"):
        psmc.load(tmp_path).encode("what", chat=True)
    settings["chat_template"] += [{"name": "default", "template": "ask what"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert psmc.load(tmp_path).encode("what", chat=True) == [0, 4]


def test_a_thread_that_ends_takes_no_template_of_another_with_it(monkeypatch):
    monkeypatch.setattr(chat_template, "_renderers", {})
    limits = {"seconds": 60.0, "characters": 100}
    first, later = threading.Event(), threading.Event()

    def start_and_end():
        render("first", [], {}, **limits)
        first.set()
        later.wait(10)

    thread = threading.Thread(target=start_and_end)
    thread.start()
    assert first.wait(60)
    threading.Timer(0.1, later.set).start()
    loop = "{% for i in range(99999) %}{% for j in range(200) %}{% endfor %}{% endfor %}second"
    assert render(loop, [], {}, **limits) == "second"
    thread.join()
