"""Templates are rendered as ``transformers`` renders them, and their errors are one sentence."""

import datetime

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from jax_power_smc.models.checkpoints.template_rendering import render
from tests.models import small
from tests.paths import SHARED

DAY = datetime.date(2026, 8, 1)
TURNS = [{"role": "user", "content": "Why?\n"}, {"role": "assistant", "content": "<b>So.</b>"}]


@pytest.fixture
def reference(tmp_path):
    small.save_tokenizer(tmp_path, 20)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path, bos_token="<s>")

    def render(template, **options):
        return tokenizer.apply_chat_template(
            TURNS, chat_template=template, tokenize=False, **options
        )

    render.variables = dict(tokenizer.special_tokens_map)
    return render


# What published templates use: Llama 3.2, Qwen, Mistral, Gemma, DeepSeek, Granite.
TEMPLATES = [
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m.content | trim }}\n{% endfor %}",
    "\n  {% for m in messages %}\n    {{- m['content'] + '\\n' }}\n  {% endfor %}\n",
    "{%- set ns = namespace(found=false, n=0) -%}{%- for m in messages[::-1] -%}"
    "{%- set ns.n = loop.index0 -%}{%- set ns.found = true -%}{%- endfor -%}{{ ns.n }}",
    "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ {'b': 1, 'a': '<é>'} | tojson }}",
    "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':'), ensure_ascii=true) }}",
    "{% for m in messages %}{% generation %}{% set x = m.role %}{{ x }}{% endgeneration %}"
    "{{ x is defined }}{% endfor %}",
    "{% macro turn(m) %}<{{ m.role }}>{% endmacro %}{% for m in messages %}{{ turn(m) }}"
    "{% endfor %}",
    "{{ tools is none }}{{ documents is none }}{{ tools is defined }}{{ add_generation_prompt }}",
    "{{ dict(a=1, **{'b': 2}) }}{{ range(3) | list }}{{ 'a\nb'.split('\n') | join('|') }}",
    "{{ messages[0]['content'].startswith('W') }}{{ messages | selectattr('role', 'equalto', "
    "'user') | list | length }}{{ '%s-%s' | format(1, 'x') }}{{ undefined_name }}",
    "{{ '&<' }}{{ '&<' | e }}{% if messages is iterable and messages is not string %}i{% endif %}",
    "{% set content = messages[1].content %}{% if '</b>' in content %}{{ content.split('</b>')[0] "
    "}}{% endif %}{{ raise_exception is defined }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("add", [False, True])
def test_as_the_reference_does(template, add, reference):
    variables = reference.variables | {"add_generation_prompt": add}
    expected = reference(template, add_generation_prompt=add)
    assert render(template, TURNS, variables, None, 10**6) == {"text": expected}


@pytest.mark.skipif(not (SHARED / "tokenizers").is_dir(), reason=f"{SHARED}/tokenizers is absent")
def test_a_published_template(reference):
    published = PreTrainedTokenizerFast.from_pretrained(SHARED / "tokenizers" / "qwen2.5")
    template = published.chat_template
    expected = published.apply_chat_template(TURNS, tokenize=False)
    variables = {**published.special_tokens_map, "add_generation_prompt": False}
    assert render(template, TURNS, variables, None, 10**6) == {"text": expected}


@pytest.mark.parametrize(
    "template",
    [
        "Today: {{ strftime_now('%d %b %Y') }}",
        # As in Llama 3.2 and Granite.
        "{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
        "        {%- set date_string = strftime_now('%d %b %Y') %}\n    {%- endif %}\n"
        "{%- endif %}\n{{- 'Today Date: ' + date_string + '\\n\\n' }}",
        "\n  {% if strftime_now('%Y') | int > 2000 %}\nA{% endif %}\n",
        "{% macro header() %}{{ strftime_now('%A %-d/%m/%y, 100%%') }}{% endmacro %}{{ header() }}",
        *(f"{{{{ strftime_now('%{x}') }}}}" for x in "aAbBcdHIjmMpSUwWxXyYzZ"),
    ],
)
def test_it_says_what_the_clock_would_have_said_on_that_day(template, reference, monkeypatch):
    told = render(template, TURNS, reference.variables, DAY.isoformat(), 10**6)

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(DAY.year, DAY.month, DAY.day)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    assert told == {"text": reference(template)}


def test_without_a_date_it_is_the_clocks():
    said = render("{{ strftime_now('%Y-%m-%d') }}", TURNS, {}, None, 10**6)
    today = datetime.date.today()
    assert said["text"] in {str(today), str(today - datetime.timedelta(1))}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('No\n  system role!') }}", "TemplateError: No system role!"),
        ("{{ nothing.attribute }}", "UndefinedError: 'nothing' is undefined"),
        ("{% if %}", "TemplateSyntaxError: "),
        ("{{ messages[0].content + 1 }}", "TypeError: "),
        ("{{ ''.__class__.__mro__ }}", "SecurityError: "),
        ("{{ messages.append(1) }}", "SecurityError: "),
        ("{% include 'other' %}", "TypeError: "),
        ("{{ '\\ud800' }}", "UnicodeEncodeError: "),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError: "),
        ("{{ " + "[" * 5000 + "]" * 5000 + " }}", "RecursionError: "),
        ("{{ raise_exception('x' * 10**6) }}", "TemplateError: xxx"),
        ("{% for i in range(10**6) %}{% endfor %}", "OverflowError: Range too big"),
        ("x" * 101, "it writes more than 100 characters"),
        ("{% for i in range(99) %}{{ 'xx' }}{% endfor %}", "it writes more than 100 characters"),
    ],
)
def test_what_a_template_may_not_do_is_one_line(template, message):
    said = render(template, TURNS, {}, None, 100)
    assert list(said) == ["error"] and said["error"].startswith(message)
    assert "\n" not in said["error"] and len(said["error"]) < 300


def test_the_longest_text():
    assert render("x" * 100, TURNS, {}, None, 100) == {"text": "x" * 100}
