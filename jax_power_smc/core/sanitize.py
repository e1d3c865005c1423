"""Makes text of models and data sets safe to display.

Some characters change how the text around them is displayed, or cannot be encoded: control
characters, marks that reverse the direction of text, unpaired surrogates. They are replaced by
their code points. Markup is left as it is: escaping it is up to the caller, who knows the format.
"""

import re
from collections.abc import Iterable
from typing import Any

# Control characters except tab and newline; invisible marks except the joiners that emoji and some
# scripts need; other line separators; direction marks and overrides; surrogates; tags.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """The text with each such character as, for instance, <U+202E>, and \\n for line ends."""
    return _HIDDEN.sub(lambda found: f"<U+{ord(found[0]):04X}>", text.replace("\r\n", "\n"))


def on_one_line(text: str) -> str:
    """The same with every stretch of white space as one space."""
    return " ".join(visible(text).split())


class VisibleStream:
    """A text stream through which everything is written as ``visible`` has it.

    ``as_is`` is the stream below, for what moves the cursor on purpose and takes care of the text
    in it.
    """

    def __init__(self, as_is: Any) -> None:
        self.as_is = as_is

    def write(self, text: str) -> int:
        """As that of the stream below."""
        written: int = self.as_is.write(visible(text))
        return written

    def writelines(self, lines: Iterable[str]) -> None:
        """As that of the stream below."""
        self.as_is.writelines(map(visible, lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.as_is, name)


def as_is(stream: Any) -> Any:
    """The stream below a ``VisibleStream``; any other stream itself."""
    return stream.as_is if isinstance(stream, VisibleStream) else stream
