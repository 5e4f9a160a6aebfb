"""Play a notebook in a terminal: run its cells for real, one after the other, and end.

    python notebooks/play.py notebooks/01_quickstart.ipynb

The cells run in this very process, in IPython, on a broker and workers of their own that are gone
at the end. What a cell shows live in JupyterLab is shown live here, as text.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import tempfile
import textwrap
from pathlib import Path

import nbformat
import psutil

#: How a terminal shows code, headings and small print; nothing where it is no terminal.
STYLES = {"bold": "\033[1m", "dim": "\033[2m", "off": "\033[0m"}
if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
    STYLES = dict.fromkeys(STYLES, "")


def styled(style: str, text: str) -> str:
    return f"{STYLES[style]}{text}{STYLES['off']}"


def tell(markdown: str) -> None:
    """Print the text of a markdown cell."""
    for paragraph in re.split(r"\n\s*\n", markdown.strip()):
        if paragraph.startswith("#"):
            print("\n" + styled("bold", paragraph.lstrip("# ")))
        elif re.match(r"[-*|>]|\d+\.|```", paragraph):
            print("\n" + paragraph)
        else:
            print("\n" + textwrap.fill(paragraph, 88))


def play(notebook: nbformat.NotebookNode) -> bool:
    """Run the cells; return whether each did what it should."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config({"HistoryManager": {"enabled": False}})
    colors = "linux" if STYLES["off"] else "nocolor"
    shell = InteractiveShell.instance(config=config, colors=colors)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            tell(cell.source)
        elif cell.cell_type == "code" and cell.source.strip():
            prompt = f"In [{shell.execution_count}]: "
            code = textwrap.indent(cell.source, " " * len(prompt)).lstrip()
            print("\n" + styled("dim", prompt + code), flush=True)
            result = shell.run_cell(cell.source, store_history=True)
            meant = "raises-exception" in cell.metadata.get("tags", ())
            if not result.success and not meant:
                return False
    return True


def end_cluster() -> list[int]:
    """Stop what the notebook has started; return the processes that would not go."""
    import nbtasks

    processes = psutil.Process().children(recursive=True)
    if nbtasks.current_cluster() is not None:
        nbtasks.shutdown()
    else:  # one that is ending by itself, or one that never came to work
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
    _, left = psutil.wait_procs(processes, timeout=10)
    return [process.pid for process in left]


def main() -> int:
    if len(sys.argv) != 2:
        sys.exit("Which notebook? python notebooks/play.py notebooks/01_quickstart.ipynb")
    # Told to end, it ends what it has started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    path = Path(sys.argv[1]).resolve()
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory(prefix="nbt-") as scratch:
        # A cluster of its own: one that this notebook has in JupyterLab goes on undisturbed.
        os.environ.update(JUPYTER_RUNTIME_DIR=f"{scratch}/r", JUPYTER_DATA_DIR=f"{scratch}/d")
        os.environ.update(IPYTHONDIR=f"{scratch}/i")
        os.chdir(path.parent)
        try:
            good = play(notebook)
        finally:
            left = end_cluster()
    print()
    if not good:
        print("A cell failed; the notebook was not played to its end.")
    if left:
        print(f"Still running: {left}")
    if good and not left:
        print("That was the whole notebook, and nothing is left running.")
        print("Open it live, with panels and buttons: ./dev lab")
    return 0 if good and not left else 1


if __name__ == "__main__":
    sys.exit(main())
