"""Promises are tested with figures: each test says what was asked and what it measured.

./dev test tests/promises         each fault at least once; this is what CI runs
./dev chaos                       the full bar: 1,000 kills and so on, half an hour on two cores
./dev chaos --seed 42             the same kills again (else other ones at each run)
./dev chaos -k chaos --kills 100  only this one, and shorter
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.promises.figures import PROMISES, Figure, table, write

FIGURES = pytest.StashKey[list[Figure]]()
SEED = pytest.StashKey[int]()

#: Seconds for one test of the full bar.
FULL_TIMEOUT = 1_800

Measure = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("promises")
    group.addoption("--full", action="store_true", help="the full bar instead of each fault once")
    group.addoption("--seed", type=int, help="repeat the random choices of an earlier run")
    group.addoption("--kills", type=int, help="kill so often; 20 by default, with --full 1,000")
    group.addoption("--figures", type=Path, metavar="FILE", help="write the figures as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = []
    full, seed = config.getoption("--full", False), config.getoption("--seed", None)
    if seed is None:  # what a change is tested with is the same for all; the full bar seeks
        seed = secrets.randbits(32) if full else 1
    config.stash[SEED] = seed
    hypothesis.settings.load_profile("seek" if full else "default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.processes)
            if config.getoption("--full", False):
                # What a test says of itself comes first.
                item.add_marker(pytest.mark.timeout(FULL_TIMEOUT))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    figures = config.stash[FIGURES]
    if not figures:
        return
    terminalreporter.section(f"what is promised (seed {config.stash[SEED]})")
    for line in table(figures):
        terminalreporter.write_line(line)
    if config.getoption("--figures", None):
        write(config.getoption("--figures"), figures, config.stash[SEED])


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the full bar is asked for (`./dev chaos`) rather than each fault once."""
    return bool(request.config.getoption("--full", False))


@pytest.fixture
def kills(request: pytest.FixtureRequest, full: bool) -> int:
    """How often the storm of P1 kills."""
    asked: int | None = request.config.getoption("--kills", None)
    return asked or (1_000 if full else 20)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random choices of this test, the same again with the same `--seed`."""
    seed = request.config.stash[SEED]
    print(f"seed {seed}")
    return random.Random(f"{seed} {request.node.name}")


@pytest.fixture
def measure(request: pytest.FixtureRequest) -> Iterator[Measure]:
    """Note figures: `measure("P2", "runs again after", 0.05, most=0.5, unit="s")`.

    All are noted before the first that does not hold fails the test.
    """
    found: list[Figure] = []

    def note(
        promise: str,
        what: str,
        measured: float,
        *,
        most: float | None = None,
        least: float | None = None,
        unit: str = "",
    ) -> None:
        assert promise in PROMISES
        bound = least if most is None else most
        assert bound is not None, "say what is asked: most= or least="
        figure = Figure(promise, what, bound, measured, unit, floor=most is None)
        found.append(figure)
        request.config.stash[FIGURES].append(figure)

    yield note
    broken = [figure.line() for figure in found if not figure.held]
    assert not broken, "\n".join(broken)
