"""Text of models and data sets, made safe to look at.

Some characters change how the text around them is shown, or cannot be written at all: controls,
marks of direction that turn a line around, halves of surrogate pairs. They are shown by their
numbers instead. Markup is not touched here: that is for whoever knows which markup it is.
"""

import re

# Controls but tab and newline; invisible marks but the joiners that emoji and some scripts need;
# other separators of lines; marks and overrides of direction; surrogates; tags.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """The text with every such character as <U+202E>; ends of lines are newlines."""
    return _HIDDEN.sub(lambda found: f"<U+{ord(found[0]):04X}>", text.replace("\r\n", "\n"))


def on_one_line(text: str) -> str:
    """The same, with a space for every run of white space."""
    return " ".join(visible(text).split())
