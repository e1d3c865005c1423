"""Renders chat templates, the way the ``transformers`` library does.

A template is a program from whoever made the checkpoint. Jinja's sandbox keeps it from files and
from Python's internals, but lets it loop and allocate without end, so this module runs in a worker
process (see ``chat_template``). For a quick start it imports neither JAX nor ``transformers``.
"""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import ext, nodes, parser, runtime, sandbox

# Characters of a template's own error that are passed on.
_MOST_SHOWN = 200


def render(
    template: str,
    turns: Sequence[Mapping[str, str]],
    variables: Mapping[str, Any],
    date: str | None,
    most: int,
) -> dict[str, str]:
    """The text of a conversation, {"text": ...}, or {"error": ...} if the template has none for it.

    Args:
      template: its source.
      turns: the messages, with "role" and "content".
      variables: what else the template sees.
      date: today's, for templates that print it, as YYYY-MM-DD; None for the clock's.
      most: characters that the text may have.
    """
    pieces: list[str] = []
    size = 0
    try:
        compiled = _environment(date).from_string(template)
        everything = {"messages": turns, "tools": None, "documents": None, **variables}
        for piece in compiled.generate(**everything):
            size += len(piece)
            if size > most:
                return {"error": f"it writes more than {most} characters"}
            pieces.append(piece)
        text = "".join(pieces)
        text.encode()  # half a character, which a template can write, is no text
    except MemoryError:
        raise
    except Exception as error:  # a template may raise anything
        reason = str(error)[: 2 * _MOST_SHOWN]
        reason = " ".join(reason.split())[:_MOST_SHOWN].rstrip(".")
        return {"error": f"{type(error).__name__}: {reason}"}
    return {"text": text}


class _Generation(ext.Extension):
    """The tags around what the model wrote; without training, what is between them."""

    tags = {"generation"}  # noqa: RUF012, as in the base class

    def parse(self, parser: parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_written")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _written(self, caller: runtime.Macro) -> str:
        return str(caller())


@functools.lru_cache(maxsize=4)
def _environment(date: str | None) -> jinja2.Environment:
    made = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals |= {
        "raise_exception": _raise,
        "strftime_now": functools.partial(_strftime, date),
        "dict": lambda *args, **values: dict(*args, **values),
    }
    return made


def _raise(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime(date: str | None, form: str) -> str:
    now = datetime.datetime.now() if date is None else datetime.datetime.fromisoformat(date)
    return now.strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own would escape what has a meaning in HTML.
    options: dict[str, Any] = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
