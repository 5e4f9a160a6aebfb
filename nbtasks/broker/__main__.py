"""`python -m nbtasks.broker RUNTIME`: one broker, until its supervisor is gone or SIGTERM."""

from __future__ import annotations

import contextlib
import os
import sys


def main(runtime: str) -> int:
    from nbtasks.wire.parent import die_with_parent

    os.umask(0o077)
    parent = die_with_parent()

    import logging
    from pathlib import Path

    from nbtasks.broker import server
    from nbtasks.exceptions import ClusterError, StoreCorrupt
    from nbtasks.wire import sockets
    from nbtasks.wire.connection import EXIT_BUSY, EXIT_CONFIG, FAILED_FILE, read_settings

    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO)
    sockets.allow_many()
    place = Path(runtime)

    def give_up(error: ClusterError) -> int:
        """Leave the reason for whoever waits for us, or comes later."""
        logging.getLogger("nbtasks.broker").error("%s", error)
        with contextlib.suppress(OSError):
            (place / FAILED_FILE).write_text(str(error))
        return EXIT_CONFIG

    try:
        held = server.lock(place)
    except ClusterError as error:  # but the one that serves is in order
        logging.getLogger("nbtasks.broker").error("%s", error)
        return EXIT_BUSY
    try:
        broker = server.Server(place, read_settings(place), parent)
    except ClusterError as error:
        return give_up(error)
    (place / FAILED_FILE).unlink(missing_ok=True)
    broker.obey_signals()
    try:
        broker.serve()
    except StoreCorrupt as error:
        return give_up(error)
    finally:
        broker.close()
        os.close(held)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
