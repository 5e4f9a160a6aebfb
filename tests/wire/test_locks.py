"""Locks between processes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from nbtasks.wire import locks


def test_lock_that_cannot_be_signed_on_a_full_disk_is_let_go(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = short_path / "lock"
    with monkeypatch.context() as patch:
        patch.setattr(locks.os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            locks.acquire(path)
    assert not locks.is_held(path)

    descriptor = locks.acquire(path)

    assert descriptor is not None
    os.close(descriptor)


@pytest.mark.parametrize("moment", ["flock", "ftruncate", "lseek", "write"])
def test_lock_is_let_go_by_who_is_interrupted_while_taking_it(
    short_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    module = locks.fcntl if moment == "flock" else locks.os
    really = getattr(module, moment)

    def interrupted(*args: Any) -> None:
        really(*args)
        raise KeyboardInterrupt

    path = short_path / "lock"
    with monkeypatch.context() as patch:
        patch.setattr(module, moment, interrupted)
        with pytest.raises(KeyboardInterrupt):
            locks.acquire(path)

    assert not locks.is_held(path)
