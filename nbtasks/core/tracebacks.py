"""What the text of a traceback says, for those who show one line of it."""

from __future__ import annotations

import re

#: Between two tracebacks of a chain; the last one is that of the exception itself.
_CHAIN = re.compile(
    r"^(?:During handling of the above exception, another exception occurred|"
    r"The above exception was the direct cause of the following exception):\n\n"
    r"(?=Traceback \(|  \+ Exception Group Traceback \()",
    re.MULTILINE,
)


def error_in(text: str) -> str:
    r"""Return the line of a traceback's text that names the exception and begins its message.

    That is rarely the last line: a message may have many lines, and notes follow it.

    Examples
    --------
    >>> error_in("Traceback (most recent call last):\n  File ...\nValueError: no rows\nin a.csv\n")
    'ValueError: no rows'
    """
    lines: list[str] = _CHAIN.split(text.strip("\n"))[-1].split("\n")
    for place, line in enumerate(lines):
        line = line.removeprefix("  | ").rstrip()  # of an exception group
        if not line or line[0].isspace() or line.startswith("Traceback ("):
            continue
        if line.endswith(":"):  # numpy.testing's messages begin with an empty line
            line = f"{line} {next(filter(None, map(str.strip, lines[place + 1 :])), '')}".rstrip()
        return line
    return ""
