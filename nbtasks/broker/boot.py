"""Which run of the machine this is: its boot clock means nothing in another one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Return the name of this run of the machine, or nothing where there is none."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return _boot_id_of_mac() if sys.platform == "darwin" else ""


def _boot_id_of_mac() -> str:
    import subprocess

    command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
