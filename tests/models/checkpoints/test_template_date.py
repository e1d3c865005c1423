"""Templates that print the date print the given one and are otherwise unchanged."""

import datetime

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from jax_power_smc.models.checkpoints.template_date import _DIRECTIVES, _PADDED, with_date
from tests.models import small

DAY = datetime.date(2026, 8, 1)


@pytest.fixture
def render(tmp_path):
    small.save_tokenizer(tmp_path, 20)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)

    def render(template):
        turns = [{"role": "user", "content": "?"}]
        return tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)

    return render


@pytest.mark.parametrize(
    "template",
    [
        "Today: {{ strftime_now('%d %b %Y') }}",
        # As in Llama 3.2 and Granite.
        "{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
        "        {%- set date_string = strftime_now('%d %b %Y') %}\n    {%- endif %}\n"
        "{%- endif %}\n{{- 'Today Date: ' + date_string + '\\n\\n' }}",
        "{%- set day = strftime_now('%B %d, %Y') %}{% for m in messages %}{{ day }}{% endfor %}",
        "\n  {% if strftime_now('%Y') | int > 2000 %}\nA{% endif %}\n",
        "{% macro header() %}{{ strftime_now('%A %-d/%m/%y, 100%%') }}{% endmacro %}{{ header() }}",
        *(f"{{{{ strftime_now('%{x}') }}}}" for x in _DIRECTIVES),
        *(f"{{{{ strftime_now('%-{x}') }}}}" for x in _PADDED),
    ],
)
def test_it_says_what_the_clock_would_have_said_on_that_day(template, render, monkeypatch):
    told = render(with_date(template, DAY))

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(DAY.year, DAY.month, DAY.day)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    assert told == render(template)


def test_a_template_that_does_not_ask_is_left_alone():
    assert with_date("{{ messages[0]['content'] }}", DAY) == "{{ messages[0]['content'] }}"
