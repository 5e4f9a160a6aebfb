"""Notebooks in a real JupyterLab or Notebook 7 in a real Chromium, gone when the tests are over."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import short_directory

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.browser.jupyterlab import Notebook, Server

HERE = Path(__file__).parent

Opener = Callable[..., "Notebook"]

#: Room for all of a test's cells: a panel out of sight does not draw.
VIEWPORT = {"width": 1100, "height": 1600}

_numbers = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all that is in this folder; a conftest is handed the other folders' tests as well."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A Chromium for all tests of this folder; there can be one Playwright at a time."""
    chromium = pytest.importorskip("tests.browser.chromium", exc_type=ImportError)
    if not chromium.chromium():
        pytest.skip("no Chromium: install it, or name it in the variable CHROMIUM")
    with chromium.running() as browser:
        yield browser


@pytest.fixture(scope="package")
def server(browser: Browser) -> Iterator[Server]:
    from tests.browser.jupyterlab import Server

    with short_directory() as path, Server(path) as server:
        yield server


@pytest.fixture
def expect(browser: Browser) -> Any:
    """Playwright's assertions, which wait for what they assert."""
    from playwright.sync_api import expect

    expect.set_options(timeout=30_000)
    return expect


@contextlib.contextmanager
def folder_of(server: Server) -> Iterator[Path]:
    """Make a folder of the server's; its kernels and its cluster end with the `with` block."""
    path = server.root / str(next(_numbers))
    path.mkdir()
    try:
        yield path
    finally:
        server.end_kernels()
        server.stop_cluster(path)


@contextlib.contextmanager
def opener(server: Server, browser: Browser, folder: Path) -> Iterator[Opener]:
    """Yield what writes a notebook of some cells and opens it; its console must stay clean."""
    from tests.browser import chromium
    from tests.browser.jupyterlab import Notebook, write_notebook

    with chromium.page(browser, viewport=VIEWPORT) as page:
        notebook = Notebook(page)

        def open_it(
            *cells: str, kernel: str = "python3", app: str = "lab", name: str = "test.ipynb"
        ) -> Notebook:
            if cells:
                write_notebook(folder / name, *cells, kernel=kernel)
            notebook.open(server.url(folder / name, app))
            return notebook

        yield open_it

    assert not notebook.errors


@pytest.fixture
def folder(_no_process_left: None, server: Server) -> Iterator[Path]:
    """A folder for the notebook of one test."""
    with folder_of(server) as path:
        yield path


@pytest.fixture
def open_notebook(server: Server, browser: Browser, folder: Path) -> Iterator[Opener]:
    """Open a notebook of the cells that are given; with none, the one that the folder has."""
    with opener(server, browser, folder) as open_it:
        yield open_it
