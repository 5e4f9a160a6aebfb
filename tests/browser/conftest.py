"""A notebook in a real JupyterLab in a real Chromium, gone when the test is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all that is in this folder; a conftest is handed the other folders' tests as well."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture
def server(_no_process_left: None, short_path: Path) -> Iterator:
    jupyterlab = pytest.importorskip("tests.browser.jupyterlab", exc_type=ImportError)
    if not jupyterlab.chromium():
        pytest.skip("no Chromium: install it, or name it in the variable CHROMIUM")
    with jupyterlab.Server(short_path) as server:
        yield server


@pytest.fixture
def open_notebook(server, tmp_path: Path) -> Iterator[Callable]:
    """Write a notebook of these cells and open it; its console must stay free of errors."""
    from tests.browser.jupyterlab import Notebook, browser_page, write_notebook

    with browser_page(tmp_path / "profile") as page:
        notebook = Notebook(page)

        def open_it(*cells: str) -> Notebook:
            write_notebook(server.root / "test.ipynb", *cells)
            notebook.open(server.url("test.ipynb"))
            return notebook

        yield open_it

    assert not notebook.errors
