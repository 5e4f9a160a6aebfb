"""The README shows only what works: its tour is run, and each `# → value` is what comes back."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[2]

#: Put before the tour: how a line with an arrow is checked.
CHECK = """
def _came_back(value, promised):
    assert repr(value) == promised, f"the README says {promised}, came back {value!r}"
"""


def tour() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def as_check(match: re.Match[str]) -> str:
    return f"_came_back(({match[1]}), {match[2]!r})"


def test_the_tour_gives_what_the_readme_says(tmp_path):
    arrow = re.compile(r"^(\S.*?) +# → (.*)$", flags=re.MULTILINE)
    cells = [CHECK, *(arrow.sub(as_check, cell) for cell in tour())]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, tmp_path / "tour.ipynb")

    answer = subprocess.run(
        [sys.executable, ROOT / "notebooks" / "play.py", tmp_path / "tour.ipynb"],
        capture_output=True,
        env={**os.environ, "NO_COLOR": "1"},
        text=True,
        timeout=110,
    )

    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "_came_back" in "".join(cells[1:])
