"""For ``make docs``: formulas become MathML, notebooks become pages, and shapes stay shapes.

So the built site needs no script from elsewhere, and the Markdown reads the same in the repository.
"""

import html
import pathlib
import re
from typing import Any

import griffe
import latex2mathml.converter
from mkdocs.structure.files import File, Files

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_TAG = re.compile(r"\\tag\{(\d+)\}")
_NOTEBOOK = re.compile(r"\]\((notebooks/\w+)\.py\)")
# Links to what is in the repository and not in the site.
_OUTSIDE = re.compile(r"\[([^]]+)\]\(\.\./[^)\s]+\)")
_NOTEBOOKS = pathlib.Path(__file__).resolve().parent / "notebooks"


class EscapeShapes(griffe.Extension):
    """Keeps the shape ``[P][N]`` of a docstring from being read as a link."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every object that is documented."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("][", "]\\[")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Adds a page for every notebook."""
    for script in sorted(_NOTEBOOKS.glob("*.py")):
        page = f"notebooks/{script.stem}.md"
        files.append(File.generated(config, page, content=notebook(script.read_text("utf-8"))))
    return files


def notebook(script: str) -> str:
    """A script with ``# %%`` cells as Markdown."""
    parts = []
    for cell in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        kind, _, body = cell.partition("\n")
        if "[markdown]" in kind:
            parts.append(re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE))
        else:
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to notebooks lead to their pages; what is outside the site is named without a link."""
    return _OUTSIDE.sub(r"\1", _NOTEBOOK.sub(r"](\1.md)", markdown))


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, with their numbers beside them."""

    def formula(found: re.Match[str]) -> str:
        tex = html.unescape(found[3]).strip()
        number = _TAG.search(tex)
        display = "block" if found[1] == "div" else "inline"
        made = latex2mathml.converter.convert(_TAG.sub("", tex), display=display)
        if number is None:
            return made
        return (
            f'<div id="eq-{number[1]}" style="display:flex;align-items:center">'
            f'<div style="flex:1">{made}</div><div>({number[1]})</div></div>'
        )

    return _FORMULA.sub(formula, content)
