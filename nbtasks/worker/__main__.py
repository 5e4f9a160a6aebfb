"""`python -m nbtasks.worker RUNTIME NAME [QUEUE ...]`: one worker, until told to go."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main(runtime: str, name: str, *queues: str) -> int:
    os.umask(0o077)  # until `work.become_main`

    import faulthandler

    if sys.version_info >= (3, 14):
        # The frames of C come last, and would be all that the last words have room for.
        faulthandler.enable(c_stack=False)
    else:
        faulthandler.enable()

    from nbtasks.wire.connection import Settings, read_settings
    from nbtasks.worker import work

    place = Path(runtime)
    try:
        settings = read_settings(place)
    except FileNotFoundError:
        settings = Settings(data=runtime, workers=1)
    if accepted := settings.extra.get("accept_content"):
        from nbtasks.wire import payloads

        payloads.accept(accepted)
    return work.serve(place, name, queues, settings)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
