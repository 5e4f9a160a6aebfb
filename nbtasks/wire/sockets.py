"""Sockets with every option set before they can do harm (RELIABILITY.md, rules 3, 4, 7)."""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import zmq

from nbtasks.exceptions import ClusterError
from nbtasks.wire.connection import (
    CONNECTION_FILE,
    SOCKET_FILE,
    Connection,
    check_directory,
    check_socket_path,
    read_connection,
    read_settings,
)
from nbtasks.wire.frames import PIECE, Buffer

log = logging.getLogger("nbtasks")

#: Milliseconds.
HANDSHAKE = 2_000
RECONNECT = 10
#: Bytes that encryption adds to a frame, and some to spare.
CURVE_ADDS = 64
#: Files that a broker may have open, connections included.
FILES = 65_536
#: One frame from the broker, bytes. (What goes to the broker is cut into `PIECE`s.)
MAX_FRAME = 8 * 1024**3
#: Messages of one peer that the broker lets lie; the rest waits where it came from.
PATIENCE = 1_000
#: Milliseconds between two signs of life of a client, and those without one after which the broker
#: lets go of the connection, and so of all that lies ready for it there: one that stands still
#: (Ctrl-Z) must not fill the broker's memory. It connects anew when it goes on.
SIGN = 1_000
SILENCE = 10_000
#: Payload frames from this size on (bytes) are sent without a copy.
ZERO_COPY = 64 * 1024
_OUR_OWN = re.compile(r"tcp://127\.0\.0\.1:\d+", re.ASCII)


def identity(role: str) -> bytes:
    """Return a name for one incarnation of a process: no two are the same."""
    return role[:1].encode() + secrets.token_bytes(15)


def has_ipc() -> bool:
    return bool(zmq.has("ipc"))


def allow_many() -> None:
    """Let this process have as many connections as the system allows, not as the shell does."""
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        wanted = FILES if most == resource.RLIM_INFINITY else min(FILES, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    except (ImportError, OSError, ValueError):  # not a system that counts them so
        pass


def endpoint(runtime: Path) -> str:
    """Return the address of the broker's ipc socket."""
    return f"ipc://{check_socket_path(runtime)}"


def _prepare(socket: zmq.Socket[bytes], linger: int) -> None:
    socket.setsockopt(zmq.LINGER, linger)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)


def router(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """Return the broker's socket, not yet bound."""
    socket = context.socket(zmq.ROUTER)
    _prepare(socket, linger=200)
    socket.setsockopt(zmq.RCVHWM, PATIENCE)
    socket.setsockopt(zmq.MAXMSGSIZE, PIECE + CURVE_ADDS)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    if sys.platform == "linux":
        # Refused by the kernel's word, whatever the mode of the socket's file.
        socket.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
    return socket


def dealer(
    context: zmq.Context[zmq.Socket[bytes]], runtime: Path, name: bytes
) -> zmq.Socket[bytes]:
    """Return a socket that is connecting to the cluster's broker, present or to come.

    Parameters
    ----------
    context
        The process' own context.
    runtime
        The cluster's runtime directory.
    name
        From `identity`.

    Raises
    ------
    ClusterError
        When the connection file names a place that is not on this machine, or never comes.
    """
    socket = _peer(context, name)
    try:
        _connect(socket, runtime)
    except BaseException:
        socket.close()
        raise
    return socket


def watched_dealer(
    context: zmq.Context[zmq.Socket[bytes]], runtime: Path, name: bytes, gives_signs: bool = False
) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """Return a `dealer`, and its monitor, which tells of connects and disconnects (`connected`).

    With `gives_signs` the broker closes the connection when the process stands still.
    """
    socket = _peer(context, name)
    if gives_signs:
        socket.setsockopt(zmq.HEARTBEAT_IVL, SIGN)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 0)  # a broker may stand still as long as it likes
        socket.setsockopt(zmq.HEARTBEAT_TTL, SILENCE)
    # The monitor comes first: a broker that is there already may welcome us before the next line.
    news = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
    monitor = socket.get_monitor_socket(news)
    try:
        _connect(socket, runtime)
    except BaseException:
        socket.disable_monitor()
        monitor.close(0)
        socket.close()
        raise
    return socket, monitor


def _peer(context: zmq.Context[zmq.Socket[bytes]], name: bytes) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    _prepare(socket, linger=500)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT)
    socket.setsockopt(zmq.ROUTING_ID, name)
    return socket


def _connect(socket: zmq.Socket[bytes], runtime: Path) -> None:
    check_directory(runtime)  # or we would tell our secrets to whoever has taken its place
    if transport(runtime) == "tcp":
        _connect_tcp(socket, _await_connection(runtime))
    else:
        socket.connect(endpoint(runtime))


def transport(runtime: Path) -> str:
    """Return the transport of the cluster there."""
    if not has_ipc():
        return "tcp"
    try:
        return read_settings(runtime).transport
    except FileNotFoundError:
        return "ipc"
    except ValueError:  # somebody has spoilt the file
        return "tcp" if tcp_connection(runtime) is not None else "ipc"


def _await_connection(runtime: Path, seconds: float = 10.0) -> Connection:
    deadline = time.monotonic() + seconds
    while (connection := read_connection(runtime)) is None:
        if time.monotonic() > deadline:
            raise ClusterError(
                f"No broker has written {runtime / CONNECTION_FILE} within {seconds:.0f} s. "
                f"It may have failed to start; its log is in {runtime / 'logs'}."
            )
        time.sleep(0.01)
    return connection


def _connect_tcp(socket: zmq.Socket[bytes], connection: Connection) -> None:
    # All of it: in `tcp://127.0.0.1:0;elsewhere:80` the first part is merely where we come from.
    if not _OUR_OWN.fullmatch(connection.endpoint):
        raise ClusterError(
            f"The connection file names {connection.endpoint}, which is not this machine. "
            f"nbtasks connects to its own machine only. Stop the cluster and start it again."
        )
    socket.curve_serverkey = connection.server_key.encode()
    socket.curve_publickey = connection.client_public.encode()
    socket.curve_secretkey = connection.client_secret.encode()
    socket.connect(connection.endpoint)


def has_moved(socket: zmq.Socket[bytes], runtime: Path) -> bool:
    """Whether the cluster's broker serves at another place than a socket connects to.

    Over tcp it may: after a crash its port can be somebody else's, and the next cluster takes any.
    """
    if transport(runtime) != "tcp":
        return address(socket) != endpoint(runtime) and (runtime / SOCKET_FILE).exists()
    connection = tcp_connection(runtime)
    return connection is not None and connection.endpoint != address(socket)


def address(socket: zmq.Socket[bytes]) -> str:
    """Return where a socket was connected to last."""
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


def follow(socket: zmq.Socket[bytes], runtime: Path) -> bool:
    """Connect a socket anew where the cluster's broker has moved; return whether it was.

    What the socket had not sent is gone then.
    """
    try:
        if not has_moved(socket, runtime):
            return False
        with suppress(zmq.ZMQError):
            socket.disconnect(address(socket))
        if zmq.has("curve"):
            socket.curve_server = False  # it speaks in clear again, should the next one use ipc
        _connect(socket, runtime)
    except (ClusterError, OSError) as error:  # whoever looks again may find a better place
        log.debug("cannot follow the broker of %s: %s", runtime, error)
        return False
    return True


class Bound(NamedTuple):
    """The broker's socket, and what its peers must know."""

    socket: zmq.Socket[bytes]
    endpoint: str
    server_key: str = ""
    client_public: str = ""
    client_secret: str = ""
    server_secret: str = ""
    #: Checks keys in a thread of its own; to be stopped before the context is.
    gatekeeper: Any = None


def bind(context: zmq.Context[zmq.Socket[bytes]], runtime: Path) -> Bound:
    """Return the broker's socket, bound where the settings say.

    Raises
    ------
    ClusterError
        When tcp is asked for (or all there is) and this libzmq has no CURVE to protect it.
    """
    if transport(runtime) != "tcp":
        return _bind_ipc(context, runtime)
    if not zmq.has("curve"):
        raise ClusterError(
            "This build of libzmq has no CURVE, and without it any program on this machine could "
            "use the cluster over tcp. Install pyzmq from PyPI (its wheels have CURVE)."
        )
    return _bind_tcp(context, tcp_connection(runtime))


def _bind_ipc(context: zmq.Context[zmq.Socket[bytes]], runtime: Path) -> Bound:
    path = check_socket_path(runtime)
    socket = router(context)
    try:
        path.unlink(missing_ok=True)
        socket.bind(endpoint(runtime))
        path.chmod(0o600)
    except (OSError, zmq.ZMQError) as error:
        socket.close()
        raise ClusterError(
            f"The broker cannot make its socket {path}: {error}. Something else may lie there, or "
            f"the disk does not know sockets. Move it away, or give another dir."
        ) from error
    return Bound(socket, endpoint(runtime))


def bind_again(socket: zmq.Socket[bytes], runtime: Path) -> None:
    """Make the file of an ipc socket again that somebody has removed; who is connected stays so."""
    socket.bind(endpoint(runtime))
    (runtime / SOCKET_FILE).chmod(0o600)


def _bind_tcp(context: zmq.Context[zmq.Socket[bytes]], former: Connection | None) -> Bound:
    from zmq.auth.thread import ThreadAuthenticator

    # The peers of a former broker keep their keys and their address.
    server_public, server_secret = _key_pair()
    client_public, client_secret = _key_pair()
    port = 0
    if former is not None:
        server_public, server_secret = former.server_key, former.server_secret
        client_public, client_secret = former.client_public, former.client_secret
        port = int(former.endpoint.rpartition(":")[2])
    gatekeeper = ThreadAuthenticator(context)
    gatekeeper.start()
    gatekeeper.configure_curve_callback("nbtasks", _Allowed({client_public.encode()}))
    socket = router(context)
    socket.setsockopt(zmq.ZAP_DOMAIN, b"nbtasks")
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    socket.curve_server = True
    socket.curve_publickey = server_public.encode()
    socket.curve_secretkey = server_secret.encode()
    try:
        socket.bind(f"tcp://127.0.0.1:{port or '*'}")
    except zmq.ZMQError:
        socket.bind("tcp://127.0.0.1:*")
    keys = server_public, client_public, client_secret, server_secret
    return Bound(socket, address(socket), *keys, gatekeeper)


def tcp_connection(runtime: Path) -> Connection | None:
    """Return what the last broker wrote, if it is an address over tcp with keys that fit."""
    found = read_connection(runtime)
    if found is None or not _OUR_OWN.fullmatch(found.endpoint):
        return None
    pairs = ((found.server_key, found.server_secret), (found.client_public, found.client_secret))
    try:
        fit = [zmq.curve_public(secret.encode()).decode() == public for public, secret in pairs]
    except (ValueError, zmq.ZMQError):  # no keys at all
        return None
    return found if all(fit) else None


def _key_pair() -> tuple[str, str]:
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


class _Allowed:
    """The public keys that may connect."""

    def __init__(self, keys: set[bytes]) -> None:
        self._keys = keys

    def callback(self, domain: str, key: bytes) -> bool:
        return key in self._keys


#: As plain numbers: to combine flags of an enum takes longer than to ask the socket.
_EVENTS: Final = int(zmq.EVENTS)
_READABLE: Final = int(zmq.POLLIN)


def must_copy(frames: Iterable[Buffer]) -> bool:
    """Return whether these payload frames are to be copied as they are sent.

    pyzmq needs a module, a thread and sockets of its own to send without: where there are no
    descriptors left for these, it would fail amid a message, and the rest be taken for the next.
    """
    if not any(len(frame) >= ZERO_COPY for frame in frames):
        return True
    try:
        _prepare_zero_copy()
    except (OSError, zmq.ZMQError):
        return True
    return False


@cache
def _prepare_zero_copy() -> None:
    zmq.Frame(b"\0", copy=False)


def has_news(socket: zmq.Socket[bytes]) -> bool:
    """Return whether a message can be read at once; cheaper than to try and fail."""
    return int(socket.getsockopt(_EVENTS)) & _READABLE != 0


def connected(monitor: zmq.Socket[bytes]) -> bool | None:
    """Read all that a monitor has to say; return whether the link is up, None for no news."""
    up: bool | None = None
    while monitor.poll(0):
        event, _address = monitor.recv_multipart()
        up = int.from_bytes(event[:2], sys.byteorder) == zmq.EVENT_HANDSHAKE_SUCCEEDED
    return up
