"""Stores for the tests of what is in them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nbtasks.broker.store import Store


@pytest.fixture
def path(short_path: Path) -> Path:
    return short_path / "store.sqlite"


@pytest.fixture
def opened() -> Iterator[Callable[..., Store]]:
    """Open stores that are closed when the test ends."""
    with contextlib.ExitStack() as stack:

        def open_store(path: Path, durability: str = "normal") -> Store:
            store = Store(path, durability)
            stack.callback(store.close)
            return store

        yield open_store


@pytest.fixture
def store(path: Path, opened: Callable[..., Store]) -> Store:
    return opened(path)
