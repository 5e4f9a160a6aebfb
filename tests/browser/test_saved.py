"""A notebook that was saved after all its tasks had ended, wherever it is opened again."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests.browser import chromium
from tests.browser.conftest import folder_of, opener

ROOT = Path(__file__).parents[2]

CELLS = (
    """\
%load_ext nbtasks
import nbtasks
from nbtasks import task

_ = nbtasks.start(workers=2)
""",
    """\
@task(bind=True, autoretry_for=(ConnectionError,), retry_backoff=False, default_retry_delay=0.1)
def fetch(self, url):
    if self.request.retries < 2:
        raise ConnectionError("refused")
    return {"url": url}

@task
def load(name):
    print("opening", name)
    rows = {"a.csv": 1200}
    return rows[name]

img = "<img src=x onerror=document.title='broken'>"

@task(name=img)
def evil(said):
    if said == "say it":
        return img
    raise ValueError(said)
""",
    """\
load.delay("a.csv")
load.delay("b.csv")
fetch.delay("http://example.org")
load.apply_async(("late",), countdown=3600).revoke()
evil.delay(img)
_ = evil.delay("say it")
""",
    "load.delay('a.csv').get()",
)

#: Those of them that send tasks.
SENDING = (2, 3)

#: What each line must say, in all that shows a saved notebook.
LINES = (
    "✓ load('a.csv') done",
    "✕ load('b.csv') failed",
    "KeyError: 'b.csv' (cell [2], line 11)",
    "✓ fetch('http://example.org') done",
    "after 3 attempts",
    "⊘ load('late') cancelled",
    "ValueError: <img src=x onerror=document.title='broken'>",
    "✓ <img src=x onerror=document.title='broken'>('say it') done",
    "\"<img src=x onerror=document.title='broken'>\"",
)

#: What folds out under lines.
FOLDED = {
    "load('b.csv')": ("opening b.csv", "return rows[name]", "KeyError: 'b.csv'"),
    "fetch(": ("retry", "ConnectionError: refused"),
}


@pytest.fixture(scope="module")
def saved(server, browser, tmp_path_factory) -> Path:
    """A notebook that JupyterLab has saved; nothing of what it started runs any more."""
    with folder_of(server) as folder, opener(server, browser, folder) as open_it:
        notebook = open_it(*CELLS)
        for index in range(len(CELLS)):
            notebook.run(index)
            if index in SENDING:
                notebook.cell(index).locator(".nbtasks-static").wait_for()
        notebook.save()
    return folder / "test.ipynb"


@pytest.fixture
def reopen(saved, server, browser):
    """Open the saved notebook once more."""
    try:
        with opener(server, browser, saved.parent) as open_it:
            yield open_it
    finally:
        server.end_kernels()


def words(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def assert_tells_all(cell, expect) -> None:
    expect(cell.locator(".nbtasks-static")).to_be_visible()
    said = words(cell.locator(".nbtasks-static").inner_text())
    for line in LINES:
        assert line in said


def assert_folds_out(cell, expect) -> None:
    for name, texts in FOLDED.items():
        line = cell.locator("details").filter(has=cell.page.locator("summary", has_text=name))
        for text in texts:
            expect(line.get_by_text(text).last).to_be_hidden()
        line.locator("summary").click()
        for text in texts:
            expect(line.get_by_text(text).last).to_be_visible()


def test_the_file_holds_html_and_text_and_nothing_that_needs_a_kernel(saved):
    notebook = nbformat.read(saved, as_version=4)

    (output,) = notebook.cells[2].outputs
    assert set(output.data) == {"text/html", "text/plain"}
    assert "widgets" not in notebook.metadata


@pytest.mark.parametrize("app", ["lab", "notebook"])
def test_reopened_by_its_author_it_shows_the_same(app, reopen, expect):
    notebook = reopen(app=app)

    assert_tells_all(notebook.cell(2), expect)
    expect(notebook.cell(2).locator(".row").first).to_have_css("display", "grid")
    assert_folds_out(notebook.cell(2), expect)


def test_reopened_by_somebody_who_does_not_trust_it_it_shows_the_same(reopen, saved, expect):
    changed = saved.read_text().replace("load.delay('a.csv').get()", "1 + 1")
    saved.with_name("changed.ipynb").write_text(changed)

    notebook = reopen(name="changed.ipynb")

    expect(notebook.cell(2).locator(".nbtasks-static style")).to_have_count(0)
    assert_tells_all(notebook.cell(2), expect)
    assert_folds_out(notebook.cell(2), expect)


def test_converted_to_html_it_shows_the_same_without_any_script(saved, browser, expect, tmp_path):
    convert = [sys.executable, "-m", "nbconvert", "--to", "html", "--output-dir", tmp_path]
    subprocess.run([*convert, saved], check=True, capture_output=True)

    with chromium.page(browser, java_script_enabled=False) as page:
        page.goto((tmp_path / "test.html").as_uri(), wait_until="domcontentloaded")
        cell = page.locator(".jp-Cell").nth(2)

        assert_tells_all(cell, expect)
        assert_folds_out(cell, expect)


def test_where_styles_are_taken_away_it_shows_the_same(saved, browser, expect):
    html = nbformat.read(saved, as_version=4).cells[2].outputs[0].data["text/html"]
    bare = re.sub(r"(?s)<style>.*?</style>| style=\"[^\"]*\"", "", html)

    with chromium.page(browser, java_script_enabled=False) as page:
        page.set_content(bare)

        assert_tells_all(page.locator("body"), expect)
        assert_folds_out(page.locator("body"), expect)


def test_nbval_finds_the_same_when_it_runs_it_again(saved, server):
    strict = ["--nbval", "--nbval-sanitize-with", ROOT / "tests" / "nbval_sanitize.cfg"]
    strict += ["--nbval-current-env", "-p", "no:cacheprovider"]

    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *strict, saved],
        **{"cwd": saved.parent, "env": server.environment, "capture_output": True, "text": True},
        check=False,
    )
    server.stop_cluster(saved.parent)

    assert ran.returncode == 0, ran.stdout
