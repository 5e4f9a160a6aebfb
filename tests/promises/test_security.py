"""Connecting means owning the account: who else gets in, and what others see."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import pickletools
import random
import re
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import zmq

import nbtasks
from nbtasks.client.client import Client
from nbtasks.core.messages import WORDS, Ask, Define, Hasten, Hello, Policy, Submit
from nbtasks.exceptions import BrokerUnavailable, ClusterError
from nbtasks.wire import sockets
from nbtasks.wire.connection import (
    CONNECTION_FILE,
    SEGMENTS,
    SOCKET_FILE,
    SUPERVISOR_LOCK,
    Connection,
    Settings,
    prepare_directory,
    read_connection,
    write_connection,
    write_settings,
)
from nbtasks.wire.frames import pack
from tests.living import SOON, eventually, family, kill, lives, run, said
from tests.promises.conftest import Measure
from tests.promises.faults import frozen
from tests.promises.peers import (
    DEFINE,
    GREETING,
    KINDS,
    PYTHON,
    Broker,
    Innocent,
    Peer,
    a_call,
    build,
    claim,
    nonsense,
    raw,
    serving,
)

MakeCluster = Callable[..., nbtasks.Cluster]

#: A user who is nobody here: no account is needed to be one.
STRANGER = 54_321

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")


@nbtasks.task
def add(x: int, y: int) -> int:
    return x + y


@nbtasks.task
def environment(secret: str) -> dict[str, str]:
    print("heard")
    return dict(os.environ)


@nbtasks.task
def size(data: bytes) -> bytes:
    return data


@nbtasks.task(time_limit=0.5)
def sleep_long() -> None:
    time.sleep(60)


# ------------------------------------------------------------------------ P18: what others may see


def test_no_file_is_open_to_others_even_under_a_careless_umask(
    short_path: Path, measure: Measure
) -> None:
    code = """
        import os, sys
        os.umask(0)
        import nbtasks

        cluster = nbtasks.start(workers=2, dir=sys.argv[1])

        @nbtasks.task
        def big(data):
            print("heard")
            return data

        assert len(big.delay(bytes(3_000_000)).get(timeout=30)) == 3_000_000
    """
    directory = short_path / "on" / "the" / "way" / "c"
    said(run(code, directory))

    with nbtasks.connect(directory):
        paths = [directory, *directory.rglob("*")]
        assert len(paths) > 8
        assert any(path.parent.name == SEGMENTS for path in paths)
        open_ones = [path for path in paths if is_open(path, 0o077)]
        open_ones += [path for path in directory.parents[:3] if is_open(path, 0o022)]
    measure("P18", "files open to others, made under umask 000", len(open_ones), most=0)
    assert open_ones == []


def is_open(path: Path, to: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return bool(path.lstat().st_mode & to)
    return False


def test_nothing_listens_on_the_network(make_cluster: MakeCluster, measure: Measure) -> None:
    cluster = make_cluster()
    add.delay(1, 2).get(timeout=SOON)

    tcp, abstract = 0, 0
    for pid in [*family(cluster), os.getpid()]:
        process = psutil.Process(pid)
        tcp += sum(c.status == "LISTEN" for c in process.net_connections("inet"))
        abstract += sum(str(c.laddr).startswith("@") for c in process.net_connections("unix"))

    measure("P18", "TCP listeners", tcp, most=0)
    measure("P18", "abstract sockets", abstract, most=0)


#: Tries everything that a user can: to read each file, and to connect by bytes and by ZeroMQ.
BURGLAR = """
    import json, os, pathlib, platform, socket, sys
    import zmq
    from nbtasks.core.messages import Hello
    from nbtasks.wire.frames import pack

    directory, uid = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    read = []
    for path in directory.rglob("*"):
        try:
            path.read_bytes()
        except OSError:
            continue
        read.append(path.name)

    greeted = 0
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            try:
                connection.connect(str(directory / "broker.sock"))
                connection.sendall(bytes.fromhex(sys.argv[3]))
                greeted += bool(connection.recv(1))
            except OSError:
                pass

    context = zmq.Context()
    peer = context.socket(zmq.DEALER)
    peer.linger = 0
    monitor = peer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    peer.connect(f"ipc://{directory}/broker.sock")
    hello = Hello("client", "burglar", os.getpid(), platform.python_version())
    peer.send_multipart(pack(b"", [hello]))
    entered = bool(monitor.poll(1_000)) + bool(peer.poll(1_000))
    print(json.dumps([len(read), greeted, entered]))
    os._exit(0)
"""


@needs_root
def test_another_user_gets_nothing_though_all_doors_are_open(
    make_cluster: MakeCluster, measure: Measure
) -> None:
    cluster = make_cluster()
    secret = size.delay(os.urandom(1_000_000))
    secret.get(timeout=SOON)
    folders = [cluster.dir / name for name in FOLDERS]
    for folder in (*cluster.dir.parents[:1], cluster.dir, *folders):
        folder.chmod(0o777)
    assert len(list(folders[-1].iterdir())) == 1
    (cluster.dir / SOCKET_FILE).chmod(0o777)

    def burgle(uid: int) -> list[int]:
        return list(json.loads(said(run(BURGLAR, cluster.dir, uid, GREETING.hex()))))

    read, greeted, entered = burgle(STRANGER)
    assert all(burgle(0)), "the burglar cannot even enter its own house: nothing was tried"

    measure("P18", "connections of another user, directory and socket 0777", greeted, most=0)
    measure("P18", "handshakes of another user over ZeroMQ", entered, most=0)
    measure("P18", "files read by another user in an open directory", read, most=0)
    assert add.delay(1, 2).get(timeout=SOON) == 3


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks into /proc")
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_no_secret_in_process_lists_environments_or_logs(
    make_cluster: MakeCluster, transport: str, measure: Measure
) -> None:
    secret = f"sesame-{os.urandom(8).hex()}"
    cluster = make_cluster(transport=transport)
    variables = environment.delay(secret).get(timeout=SOON)
    with pytest.raises(TypeError):
        environment.delay(secret, nonsense=secret)
    kill(cluster.worker_pids()[0])
    environment.delay(secret).get(timeout=SOON)
    connection = read_connection(cluster.dir)
    assert connection is not None
    keys = [connection.server_key, connection.server_secret, connection.client_secret]
    secrets = [secret, connection.instance, *filter(None, [*keys, connection.client_public])]
    assert len(secrets) == (6 if transport == "tcp" else 2)

    places = {f"log {path.name}": path.read_text() for path in (cluster.dir / "logs").iterdir()}
    places["a task's environment"] = "\n".join(variables.values())
    for pid in family(cluster):
        for what in ("cmdline", "environ"):
            places[f"{what} of {pid}"] = Path(f"/proc/{pid}/{what}").read_text()
    leaks = [place for place, text in places.items() if any(word in text for word in secrets)]

    assert len(places) > 8
    measure("P18", f"places that tell a secret ({transport})", len(leaks), most=0)
    assert leaks == []


# ------------------------------------------------------------------------------ P18: squatted paths


def squat_with_a_link(path: Path) -> None:
    path.symlink_to(path.parent)


def squat_with_a_folder(path: Path) -> None:
    path.mkdir()


def squat_with_a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(str(path))


def squat_with_a_file(path: Path) -> None:
    path.write_text("")


def squat_as_another_user(path: Path) -> None:
    path.write_text("")
    os.chown(path, STRANGER, STRANGER)


FOLDERS = ("logs", "cells", SEGMENTS)
FILES = ("settings.json", "connection.json", "store.sqlite", SUPERVISOR_LOCK, "broker.lock")


@pytest.mark.parametrize(
    ("name", "squat"),
    [
        *[(name, squat_with_a_link) for name in (*FILES, SOCKET_FILE, *FOLDERS)],
        *[(name, squat_with_a_folder) for name in (*FILES, SOCKET_FILE)],
        *[(name, squat_with_a_socket) for name in FILES],
        *[(name, squat_with_a_file) for name in (SOCKET_FILE, *FOLDERS)],
        *[
            pytest.param(name, squat_as_another_user, marks=needs_root)
            for name in (*FILES, *FOLDERS, "failed.txt", "start.lock")
        ],
    ],
)
def test_a_squatted_name_is_refused_with_its_path(
    short_path: Path, name: str, squat: Callable[[Path], None]
) -> None:
    directory = prepare_directory(short_path / "c")
    squat(directory / name)

    with pytest.raises(ClusterError, match=rf"(?s){re.escape(str(directory / name))}.*another dir"):
        nbtasks.start(workers=1, dir=directory)

    assert {path.name for path in directory.iterdir()} <= {name, "start.lock"}


def test_a_link_to_nowhere_is_not_followed(short_path: Path) -> None:
    directory = prepare_directory(short_path / "c")
    (directory / "store.sqlite").symlink_to(short_path / "elsewhere")

    with pytest.raises(ClusterError, match=r"store\.sqlite is in the way"):
        nbtasks.start(workers=1, dir=directory)

    assert not (short_path / "elsewhere").exists()


@needs_root
def test_a_directory_below_one_that_somebody_else_made_in_tmp_is_refused(short_path: Path) -> None:
    short_path.chmod(0o1777)  # as /tmp is
    theirs = short_path / "nbtasks-1000"
    theirs.mkdir()
    os.chown(theirs, STRANGER, STRANGER)

    with pytest.raises(ClusterError, match=rf"{theirs} belongs to user {STRANGER}"):
        nbtasks.start(workers=1, dir=theirs / "nbtasks" / "x")


@needs_root
@pytest.mark.parametrize("what", ["", SOCKET_FILE, SUPERVISOR_LOCK])
def test_a_client_does_not_speak_into_a_place_that_was_taken(
    make_cluster: MakeCluster, what: str
) -> None:
    cluster = make_cluster(workers=1)
    cluster.close()
    os.chown(cluster.dir / what, STRANGER, STRANGER)

    try:
        with pytest.raises(ClusterError, match=f"belongs to user {STRANGER}"):
            nbtasks.connect(cluster.dir)
    finally:
        os.chown(cluster.dir / what, 0, 0)


# --------------------------------------------------------------------- P18: stale connection files


def test_a_number_of_a_dead_supervisor_that_lives_again_is_not_trusted(
    make_cluster: MakeCluster, measure: Measure
) -> None:
    cluster = make_cluster(workers=0)
    client = Client(cluster.dir)
    record = client.submit(a_call(), (), DEFINE, confirm=True)
    connection = read_connection(cluster.dir)
    assert connection is not None
    cluster.close()  # which would start it again
    kill(connection.supervisor_pid)
    eventually(lambda: not lives(connection.broker_pid))
    mine = msgspec.structs.replace(connection, supervisor_pid=os.getpid(), broker_pid=os.getpid())
    write_connection(cluster.dir, mine)

    began = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        client.wait([record], 60)
    took = time.monotonic() - began
    client.close()

    what = "a connection file with the pid of another process is seen through"
    measure("P18", what, took, most=2, unit="s")


def test_a_broker_that_is_not_the_files_is_told_nothing(short_path: Path, measure: Measure) -> None:
    with serving(short_path / "c") as broker:
        connection = read_connection(broker.runtime)
        assert connection is not None
        # Another cluster's place by now, or the broker would write its own file again.
        (broker.runtime / SUPERVISOR_LOCK).write_text("")
        write_connection(broker.runtime, msgspec.structs.replace(connection, instance="00" * 8))

        with pytest.raises(BrokerUnavailable):
            Client(broker.runtime, connect_timeout=1.0)

        write_connection(broker.runtime, connection)
        with Innocent(broker) as innocent:
            tasks = innocent.ask("status")["phases"]["queued"]
    measure("P18", "tasks told to a broker that is not the connection file's", tasks - 1, most=0)


# ----------------------------------------------------------------------------------- P18: over tcp


@pytest.fixture
def tcp(short_path: Path) -> Iterator[Broker]:
    with serving(short_path / "c", transport="tcp") as broker:
        yield broker


def test_a_whole_cluster_works_over_tcp(make_cluster: MakeCluster, measure: Measure) -> None:
    cluster = make_cluster(transport="tcp")
    assert re.fullmatch(r"tcp://127\.0\.0\.1:\d+", cluster.endpoint)

    assert add.delay(1, 2).get(timeout=SOON) == 3
    data = os.urandom(3_000_000)
    assert size.delay(data).get(timeout=SOON) == data
    with pytest.raises(nbtasks.exceptions.TimeLimitExceeded):  # the supervisor is told to kill
        sleep_long.delay().get(timeout=SOON)

    endpoint, instance = cluster.endpoint, cluster.client.instance
    waiting = [add.apply_async((number, 1), countdown=1) for number in range(20)]
    assert cluster.client.flush(SOON)
    kill(cluster.broker_pid)
    assert [result.get(timeout=SOON) for result in waiting] == list(range(1, 21))
    assert cluster.client.instance != instance
    assert cluster.endpoint == endpoint

    listening = {
        connection.laddr.ip
        for pid in family(cluster)
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == "LISTEN"
    }
    measure(
        "P18",
        "tcp: addresses other than 127.0.0.1 listened on",
        len(listening - {"127.0.0.1"}),
        most=0,
    )
    assert listening == {"127.0.0.1"}
    assert stat.S_IMODE((cluster.dir / CONNECTION_FILE).stat().st_mode) == 0o600


def keys_of(broker: Broker) -> dict[str, bytes]:
    connection = read_connection(broker.runtime)
    assert connection is not None
    return {
        "curve_serverkey": connection.server_key.encode(),
        "curve_publickey": connection.client_public.encode(),
        "curve_secretkey": connection.client_secret.encode(),
    }


def test_broker_that_finds_its_port_taken_is_found_where_it_is(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(transport="tcp", workers=1)
    former = cluster.endpoint
    waiting = add.apply_async((1, 2), countdown=1, confirm=True)

    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with frozen(cluster.supervisor_pid):
            kill(cluster.broker_pid)
            eventually(lambda: bound(squatter, int(former.rpartition(":")[2])))

        assert waiting.get(timeout=SOON) == 3
        assert add.delay(2, 3).get(timeout=SOON) == 5
        assert cluster.endpoint != former


def bound(taker: socket.socket, port: int) -> bool:
    with contextlib.suppress(OSError):  # the former owner is not quite gone
        taker.bind(("127.0.0.1", port))
        taker.listen()
        return True
    return False


@pytest.mark.parametrize(
    ("endpoint", "key"), [("tcp://127.0.0.1:abc", "k" * 40), ("tcp://127.0.0.1:99999", "short")]
)
def test_what_is_no_address_is_replaced_by_one(
    short_path: Path, make_cluster: MakeCluster, endpoint: str, key: str
) -> None:
    place = short_path / "nb"
    place.mkdir(mode=0o700)
    keys = dict.fromkeys(("server_key", "server_secret", "client_public", "client_secret"), key)
    write_connection(
        place,
        Connection(
            instance="00", endpoint=endpoint, broker_pid=1, supervisor_pid=1, started_at=0.0, **keys
        ),
    )

    make_cluster(dir=place, transport="tcp", workers=1)

    assert add.delay(1, 2).get(timeout=SOON) == 3


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_cluster_that_others_have_started_anew_is_found(
    make_cluster: MakeCluster, transport
) -> None:
    cluster = make_cluster(transport="tcp", workers=1)
    waiting = add.apply_async((1, 2), countdown=3_600, confirm=True)

    said(run(START_ANEW, cluster.dir, transport))
    cluster.client.tell(Hasten((waiting.id,)))

    assert waiting.get(timeout=SOON) == 3
    assert add.delay(2, 3).get(timeout=SOON) == 5


START_ANEW = """
import sys
import nbtasks

nbtasks.connect(dir=sys.argv[1]).shutdown()
nbtasks.start(dir=sys.argv[1], transport=sys.argv[2], workers=1)
"""


def test_over_tcp_only_the_clusters_own_keys_open(tcp: Broker, measure: Measure) -> None:
    ours = keys_of(tcp)
    public, secret = zmq.curve_keypair()
    other_public, _ = zmq.curve_keypair()
    wrong: list[dict[str, bytes]] = [
        {},
        {**ours, "curve_publickey": public, "curve_secretkey": secret},
        {**ours, "curve_publickey": public},
        {**ours, "curve_secretkey": secret},
        {**ours, "curve_serverkey": other_public},
        {"plain_username": b"client", "plain_password": b"x"},
    ]

    entered = 0
    for keys in wrong:
        with Peer(tcp, **keys) as peer:
            peer.send(*pack(b"", [Hello("client", "thief", os.getpid(), PYTHON)]))
            entered += peer.gets_in(0.5) or bool(peer.hear(0.1))
    with Peer(tcp, **ours) as peer:
        assert peer.introduce("client").gets_in()

    measure("P18", "tcp: connections with no key, an unknown or a wrong one", entered, most=0)


def test_without_its_gatekeeper_the_broker_lets_nobody_in(
    short_path: Path, measure: Measure
) -> None:
    runtime = prepare_directory(short_path / "c")
    write_settings(runtime, Settings(data=str(runtime), workers=0, transport="tcp"))
    context: zmq.Context[Any] = zmq.Context()
    bound = sockets.bind(context, runtime)
    bound.gatekeeper.stop()
    peer = context.socket(zmq.DEALER)
    peer.curve_serverkey = bound.server_key.encode()
    peer.curve_publickey = bound.client_public.encode()
    peer.curve_secretkey = bound.client_secret.encode()
    monitor = peer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    peer.connect(bound.endpoint)

    entered = bool(monitor.poll(1_500))

    peer.disable_monitor()
    for each in (monitor, peer, bound.socket):
        each.close(0)
    context.term()
    measure("P18", "tcp: connections while nobody checks keys", entered, most=0)


def test_bytes_of_another_user_over_tcp_cost_nothing(tcp: Broker, measure: Measure) -> None:
    greeting = GREETING.replace(b"NULL\0", b"CURVE")
    before = tcp.peak()
    for flags in (0, 4):
        for length in (2 * 10**10, 4 * 10**9, 10**8):
            with raw(tcp) as connection:
                connection.sendall(greeting + claim(length, flags))
                with contextlib.suppress(OSError):
                    for _ in range(300):
                        connection.sendall(bytes(1_000_000))

    with Innocent(tcp) as innocent:
        assert innocent.missing() == 0
    growth = (tcp.peak() - before) / 1e6
    measure("P20", "tcp: growth by bytes of others", growth, most=64, unit="MB")


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://192.0.2.1:5555",
        "tcp://0.0.0.0:5555",
        "tcp://localhost.example:5555",
        "tcp://127.0.0.1.example:5555",
        "tcp://127.0.0.1:0;192.0.2.1:5555",
        "tcp://127.0.0.1:5555\n",
        "tcp://*:5555",
        "ipc:///tmp/elsewhere",
        "",
    ],
)
def test_a_file_that_names_another_machine_is_not_followed(tcp: Broker, endpoint: str) -> None:
    connection = read_connection(tcp.runtime)
    assert connection is not None
    # Another cluster's place by now, or the broker would write its own file again.
    client = Client(tcp.runtime)
    (tcp.runtime / SUPERVISOR_LOCK).write_text("")
    client.settle()
    client.close()
    write_connection(tcp.runtime, msgspec.structs.replace(connection, endpoint=endpoint))

    with pytest.raises(ClusterError, match="not this machine"):
        Client(tcp.runtime)


def test_another_host_cannot_be_asked_for(short_path: Path) -> None:
    for transport in ("tcp://0.0.0.0:5555", "tcp://192.0.2.1:5555", "0.0.0.0"):
        with pytest.raises(nbtasks.exceptions.ImproperlyConfigured, match="transport"):
            nbtasks.start(dir=short_path / "c", transport=transport)


@pytest.mark.parametrize("lacking", [("curve",), ("curve", "ipc")])
def test_without_curve_there_is_no_tcp(
    short_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: tuple[str, ...]
) -> None:
    runtime = prepare_directory(short_path / "c")
    asked = "ipc" if "ipc" in lacking else "tcp"  # without ipc, tcp is all there is
    write_settings(runtime, Settings(data=str(runtime), workers=0, transport=asked))
    monkeypatch.setattr(zmq, "has", lambda feature: feature not in lacking)
    context: zmq.Context[Any] = zmq.Context()

    with pytest.raises(ClusterError, match=r"no CURVE.*pyzmq"):
        sockets.bind(context, runtime)

    context.term()


# --------------------------------------------------------------- P19: the broker never unpickles

#: Makes each process of ours write down what is loaded from a pickle, and by whom.
WATCH = """
import os, sys
def watch(event, args, who=next((w for w in sys.orig_argv if w.startswith("nbtasks.")), "other")):
    if event == "pickle.find_class":
        descriptor = os.open({ledger!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, (" ".join([who, *map(str, args)]) + "\\n").encode())
        os.close(descriptor)
sys.addaudithook(watch)
"""


def lines(ledger: Path) -> list[str]:
    return ledger.read_text().splitlines() if ledger.exists() else []


def test_workers_and_clients_unpickle_and_no_broker_or_supervisor_does(
    short_path: Path, monkeypatch: pytest.MonkeyPatch, make_cluster: MakeCluster, measure: Measure
) -> None:
    ledger = short_path / "ledger"
    (short_path / "sitecustomize.py").write_text(WATCH.format(ledger=str(ledger)))
    monkeypatch.setenv("PYTHONPATH", str(short_path))
    cluster = make_cluster()
    results = [add.apply_async((number, 1), countdown=0.2) for number in range(20)]
    kill(cluster.broker_pid)
    assert [result.get(timeout=SOON) for result in results] == list(range(1, 21))

    who = [line.split()[0] for line in lines(ledger)]

    assert "nbtasks.worker" in who, "nobody was watched"
    loads = who.count("nbtasks.broker") + who.count("nbtasks.supervisor")
    measure("P19", "loads of user bytes in broker and supervisor", loads, most=0)


class Bomb:
    """Makes a directory where it is loaded."""

    def __init__(self, crater: Path) -> None:
        self.crater = str(crater)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.crater,)

    def as_bytes(self) -> bytes:
        return pickletools.optimize(pickle.dumps(self, 2))

    def as_text(self) -> str:
        return pickle.dumps(self, 0).decode("ascii")


@pytest.fixture
def bomb(short_path: Path) -> Bomb:
    """A bomb that is known to go off."""
    crater = short_path / "x"
    made = Bomb(crater)
    for payload in (made.as_bytes(), made.as_text().encode()):
        pickle.loads(payload)
        crater.rmdir()
    assert len(made.as_bytes()) <= 64, "as a digest it would be refused for its length"
    return made


def bombed(bomb: Bomb, rng: random.Random) -> Callable[[type, str], Any]:
    """Return a leaf that puts a bomb wherever there is room for text or bytes."""
    sense = nonsense(rng, [])

    def leaf(kind: type, name: str) -> Any:
        if kind is str and name not in ("signal", "python", "what"):
            return bomb.as_text()
        if kind is bytes:
            return bomb.as_bytes()
        if kind is dict:
            return {name: bomb.as_bytes() for name in ("id", "key", "value", "state")}
        return 1 if kind is int and "which" in name else sense(kind, name)

    return leaf


def test_a_bomb_in_every_field_of_every_message_does_not_go_off(
    short_path: Path, bomb: Bomb, rng: random.Random, measure: Measure
) -> None:
    ledger = short_path / "ledger"
    leaf, sent = bombed(bomb, rng), 0
    payload = bomb.as_bytes()
    with serving(short_path / "c", before=WATCH.format(ledger=str(ledger))) as broker:
        for role, words in WORDS.items():
            for kind in KINDS:
                with Peer(broker) as peer:
                    peer.introduce(role, name=f"{role} {kind.__name__} {bomb.as_text()}")
                    if kind in words:
                        peer.say(build(kind, leaf))
                        sent += 1
                    peer.say(*bombs_that_are_taken(bomb), buffers=(payload, payload))
                    peer.hear(0.2)
        with Peer(broker) as client:
            client.introduce("client")
            ask_everything(client, bomb)
            broker.stop()
        broker.start()
        with Peer(broker) as client:
            client.introduce("client")
            ask_everything(client, bomb)
        kept = store_holds(broker.runtime / "store.sqlite", payload)

    assert sent > 20
    assert kept, "no bomb was ever taken in"
    assert not Path(bomb.crater).exists()
    measure("P19", "bombs in messages that went off", len(lines(ledger)), most=0)


def bombs_that_are_taken(bomb: Bomb) -> list[Any]:
    """Return a function and a call that a broker has no reason to refuse."""
    digest = bomb.as_bytes()
    define = Define(digest, bomb.as_text(), Policy(), bomb.as_bytes(), 1)
    call = a_call(bomb.as_bytes(), id=bomb.as_text(), frames=1, summary=bomb.as_text())
    call = msgspec.structs.replace(call, definition=digest, name=bomb.as_text())
    return [define, Submit(1, (call,), again=True, urgent=True)]


def ask_everything(client: Peer, bomb: Bomb) -> None:
    questions = {
        "status": {},
        "list": {"state": bomb.as_text()},
        "show": {"id": bomb.as_text()},
        "children": {"id": bomb.as_text()},
        "outlook": {"ids": [bomb.as_text()], "parents": [bomb.as_text()]},
        "put": {"key": bomb.as_text(), "value": bomb.as_bytes()},
        "peek": {"key": bomb.as_text()},
        "take": {"key": bomb.as_text()},
        "recent": {},
        bomb.as_text(): {},
    }
    for number, (what, args) in enumerate(questions.items()):
        client.say(Ask(number, what, args))
    heard: list[Any] = []
    while len(heard) < len(questions):
        heard += [word for word in client.hear() if type(word).__name__ == "Answer"]


def store_holds(path: Path, data: bytes) -> bool:
    files = [path, path.with_name(f"{path.name}-wal")]
    return any(data in file.read_bytes() for file in files if file.exists())


#: Opens a store as a broker does, in turn with each column's values replaced by a bomb.
TAMPER = """
import json, os, shutil, sqlite3, sys
from pathlib import Path
{watch}
from nbtasks.broker.server import Server
from nbtasks.core.messages import Ask
from nbtasks.wire.connection import Settings, now, prepare_directory, write_settings

original, scratch = map(Path, sys.argv[1:3])
blob, text = map(bytes.fromhex, sys.argv[3:])
database = sqlite3.connect(original)
columns = [
    (table, column, kind)
    for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    for _, column, kind, *_ in database.execute(f"PRAGMA table_info({{table}})")
    if kind in ("TEXT", "BLOB")
]
database.close()
ends, kept = {{}}, []
for number, (table, column, kind) in enumerate(columns):
    place = prepare_directory(scratch / str(number))
    shutil.copy(original, place / "store.sqlite")
    database = sqlite3.connect(place / "store.sqlite")
    value = blob if kind == "BLOB" else text.decode()
    database.execute(f"UPDATE OR IGNORE {{table}} SET {{column}} = ?", (value,))
    database.commit()
    database.close()
    settings = Settings(data=str(place), workers=0)
    write_settings(place, settings)
    try:
        server = Server(place, settings)
    except Exception as error:
        ends[f"{{table}}.{{column}}"] = type(error).__name__
        kept.append(error)  # with all that hangs on it: it was not made to be collected
        continue
    for what in ("status", "list"):
        server.questions.answer(Ask(1, what), now())
    for state in server.store.counts():
        server.questions.answer(Ask(1, "list", {{"state": state}}), now())
    server.close()
    ends[f"{{table}}.{{column}}"] = "served"
print(json.dumps(ends), flush=True)
os._exit(0)
"""


def test_a_bomb_in_every_column_of_the_store_does_not_go_off(
    short_path: Path, bomb: Bomb, measure: Measure
) -> None:
    with serving(short_path / "c") as broker, Peer(broker) as client:
        client.introduce("client")
        client.say(DEFINE[0], *bombs_that_are_taken(bomb), buffers=(b"frame", b"frame"))
        client.hear()
        ask_everything(client, bomb)
    ledger = short_path / "ledger"
    code = TAMPER.format(watch=WATCH.format(ledger=str(ledger)))
    words = [bomb.as_bytes().hex(), bomb.as_text().encode().hex()]

    ends = json.loads(said(run(code, short_path / "c" / "store.sqlite", short_path / "s", *words)))

    assert len(ends) > 10
    assert set(ends.values()) <= {"served", "StoreCorrupt"}
    assert not Path(bomb.crater).exists()
    measure("P19", "bombs in rows of the store that went off", len(lines(ledger)), most=0)
