"""Chat templates that print today's date, made to print a fixed one."""

import datetime
import re

_CLOCK = "strftime_now"
# What may follow the percent sign in ``strftime``; a minus in between drops a leading zero.
_DIRECTIVES = "aAbBcdDeFgGhHIjmMnprRStTuUVwWxXyYzZ"
_PADDED = "dHIjmMSUWy"


def with_date(template: str, date: datetime.date) -> str:
    """The template with its own clock, which stands at midnight of ``date``.

    The library that renders templates passes them a ``strftime_now`` that reads the real clock and
    cannot be replaced by a caller; but a macro of that name takes precedence. A template that does
    not ask for the time is returned unchanged.
    """
    if not re.search(rf"\b{_CLOCK}\b", template):
        return template
    known = {f"%-{x}": date.strftime(f"%-{x}") for x in _PADDED}
    known |= {f"%{x}": date.strftime(f"%{x}") for x in _DIRECTIVES}
    steps = "".join(f" | replace({name!r}, {value!r})" for name, value in known.items())
    macro = f"{{% macro {_CLOCK}(format) %}}{{{{ format{steps} | replace('%%', '%') }}}}"
    # The renderer drops the newline after a block, so the template still begins as it did.
    return f"{macro}{{% endmacro %}}\n{template}"
