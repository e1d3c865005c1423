"""Chat templates that tell today's date, told another one."""

import datetime
import re

_CLOCK = "strftime_now"
# What may follow the per cent sign in ``strftime``; a minus between them leaves out a leading zero.
_DIRECTIVES = "aAbBcdDeFgGhHIjmMnprRStTuUVwWxXyYzZ"
_PADDED = "dHIjmMSUWy"


def dated(template: str, date: datetime.date) -> str:
    """The template with a clock of its own that stands at the beginning of a day.

    The library that renders templates gives them ``strftime_now`` of the real clock, and takes no
    function in its place; but a macro of that name goes before it.

    Args:
      template: in Jinja's language; one that does not ask the time comes back as it is.
      date: the day.
    """
    if not re.search(rf"\b{_CLOCK}\b", template):
        return template
    known = {f"%-{x}": date.strftime(f"%-{x}") for x in _PADDED}
    known |= {f"%{x}": date.strftime(f"%{x}") for x in _DIRECTIVES}
    steps = "".join(f" | replace({name!r}, {value!r})" for name, value in known.items())
    macro = f"{{% macro {_CLOCK}(format) %}}{{{{ format{steps} | replace('%%', '%') }}}}"
    # The end of the line is dropped by the renderer, so that the template begins as it did.
    return f"{macro}{{% endmacro %}}\n{template}"
