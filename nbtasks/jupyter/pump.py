"""Let clicks reach Python while a cell waits for a task.

    page ──▶ shell channel ──▶ stream ──▶ arrived() ──▶ the kernel's queue ──▶ should_handle()
                                             │         (behind the cell that runs)    │
                                             ▼                                        ▼
                     a wait of ours ──▶ _clicks ──▶ handler ──▶ _done ─────────▶ passed over

While a cell runs, the kernel's event loop stands still, and what the page sends lies unread. So the
main thread reads the stream itself, each few hundredths of a second that it waits for a task. (In
`await result` the loop goes on; it is only the kernel that takes up nothing else.)

Whatever is read goes into the kernel's queue at once and in order, as if nobody had looked at it:
queued cells run, or are aborted after an error, exactly as always, and nothing is held back that an
interrupt could lose. Messages of comms (a click is one) are noted in passing. A wait runs these
ahead of their turn; when that comes, `should_handle`, ipykernel's own place for messages that are
not to be handled, lets the kernel pass over what is done.

All that is touched of ipykernel is in here, and looked for once: where a part is missing, `reason`
says so and waits are as they would be without us.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import signal
import sys
import time
from types import FrameType
from typing import Any, Final

from nbtasks.client import waiting

log = logging.getLogger("nbtasks.jupyter")

#: Seconds between two looks at the stream: many short waits in a row look no more often.
APART: Final = waiting.PULSE / 2

#: Seconds that the handler of a click may take before an interrupt no longer waits for its end.
GRACE: Final = 0.2

#: What is run ahead of its turn. A page that is reloaded asks which comms there are, and shows none
#: until it is told.
COMMS: Final = frozenset({"comm_open", "comm_msg", "comm_close", "comm_info_request"})

#: What IPython tells those who want to know where a cell begins and ends. Comms tell it, too: in
#: the midst of a cell, matplotlib would show and close the figure that the cell is working on.
EXECUTION: Final = ("pre_execute", "post_execute")


class Held:
    """While this holds, an interrupt waits; then it takes its course.

    pyzmq reads the parts of a message one by one: an interrupt in between would leave half of it.

    Parameters
    ----------
    longest
        Seconds after which an interrupt does not wait any more.
    """

    def __init__(self, longest: float = math.inf) -> None:
        self._end = time.monotonic() + longest
        self._came = False
        self._usual = signal.getsignal(signal.SIGINT)

    def __enter__(self) -> None:
        signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if callable(self._usual) and time.monotonic() > self._end:
            self._usual(number, frame)
        else:
            self._came = True

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._usual)
        if self._came:
            signal.raise_signal(signal.SIGINT)


def shell_stream(kernel: Any) -> Any:
    """Return the stream from which the main thread takes the requests that it is to handle."""
    thread = getattr(kernel, "shell_channel_thread", None)
    if thread is None:  # ipykernel 6
        return kernel.shell_stream
    return thread.manager.get_shell_channel_to_subshell_pair(None).to_stream


def answers_go_to(kernel: Any) -> Any:
    """Return where the main thread writes its answers to requests."""
    thread = getattr(kernel, "shell_channel_thread", None)
    if thread is None:
        return kernel.shell_stream
    return thread.manager.get_subshell_to_shell_channel_socket(None)


def run_out(handling: Any) -> None:
    """Run a handler that is a coroutine, though it has nothing to wait for, to its end."""
    if asyncio.iscoroutine(handling):
        with contextlib.suppress(StopIteration):
            handling.send(None)
            handling.close()
            raise RuntimeError(f"{handling} waits for something")


def send_replies_by_the_stream(kernel: Any) -> None:
    """Let ipykernel 7.1 to 7.3 answer as 7.4 does, so that no request is left lying.

    These write answers past the stream that reads the same socket. Who writes takes away the sign
    that something has come: a click that arrives meanwhile is not seen, nor is anything after it.
    """
    thread = getattr(kernel, "shell_channel_thread", None)
    if thread is not None and hasattr(thread.manager, "_shell_socket"):
        thread.manager._shell_socket = kernel.shell_stream


class Pump:
    """Runs what comms receive while the main thread waits.

    Parameters
    ----------
    shell
        The IPython of this process.

    Raises
    ------
    AttributeError, LookupError, TypeError
        When its kernel is not built as those that are known.
    """

    def __init__(self, shell: Any) -> None:
        self._kernel = kernel = shell.kernel
        self._events = shell.events
        self._loop: asyncio.AbstractEventLoop = kernel.io_loop.asyncio_loop
        self._stream = shell_stream(kernel)
        self._answers = answers_go_to(kernel)
        self._take = self._stream._recv_callback
        if not callable(self._take) or not callable(self._stream.flush):
            raise TypeError("nobody listens to its shell stream")
        self._handlers = {kind: kernel.shell_handlers[kind] for kind in COMMS}
        self._may_handle = kernel.should_handle
        self._say = kernel._publish_status
        contextvars.Context().run(self._request)  # ipykernel 7.0 has none for threads
        #: id → comm message that the kernel has not come to yet, in order of arrival.
        self._clicks: dict[str, tuple[Any, dict[str, Any]]] = {}
        #: Ids of comm messages in the kernel's queue that are done.
        self._done: set[str] = set()
        self._next = 0.0
        self._busy = False

    def start(self) -> None:
        send_replies_by_the_stream(self._kernel)
        self._kernel.should_handle = self.should_handle
        self._stream.on_recv(self.arrived, copy=False)
        waiting.between_waits = self.look

    def stop(self) -> None:
        """Leave the kernel alone. `should_handle` stays: what is done may be in the queue."""
        waiting.between_waits = None
        self._stream.on_recv(self._take, copy=False)

    # -------------------------------------------------------------------- called by the kernel

    def arrived(self, frames: Any) -> Any:
        """Hand a message on that has come from the page; note it if it is a comm's."""
        try:
            session = self._kernel.session
            idents, parts = session.feed_identities(frames, copy=False)
            # Without its content: a session takes a message as read only once.
            message = session.deserialize(parts, content=False, copy=False)
            if message["msg_type"] in COMMS:
                message["content"] = session.unpack(message["content"])
                self._clicks[message["msg_id"]] = idents, message
                if waiting.awaited:  # the loop is free, but not the kernel: it is amid a cell
                    self._loop.call_later(waiting.PULSE, self.look)
        except Exception:  # the kernel will say what is wrong with it
            log.debug("a message that cannot be read", exc_info=True)
        return self._take(frames)

    def should_handle(self, stream: Any, message: Any, idents: Any) -> Any:
        """Say whether a message is still to be handled, now that its turn has come."""
        number = message["header"]["msg_id"]
        self._clicks.pop(number, None)
        if number in self._done:
            self._done.remove(number)
            return False
        return self._may_handle(stream, message, idents)

    # ------------------------------------------------------------ called by whoever waits

    def look(self) -> None:
        """Run what has come for comms. In the main thread, between two waits."""
        if self._busy or time.monotonic() < self._next or not self._stands_still():
            return
        try:
            self._busy = True
            with Held():
                self._stream.flush()
            while self._clicks:
                with Held(GRACE):
                    contextvars.copy_context().run(self._run_first)
        finally:
            self._busy = False
            self._next = time.monotonic() + APART

    def _stands_still(self) -> bool:
        """Say whether it is the kernel's loop that this wait holds up, and not another."""
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False
        return here and signal.getsignal(signal.SIGINT) is not None

    def _run_first(self) -> None:
        """Handle the oldest message as the kernel would, amid a cell that knows nothing of it.

        In a copy of the cell's context. What is outside of it is put back as the cell has left it.
        """
        number, (idents, message) = next(iter(self._clicks.items()))
        del self._clicks[number]
        self._done.add(number)
        outer_idents, outer = contextvars.Context().run(self._request)
        callbacks = self._events.callbacks
        try:
            self._kernel.set_parent(idents, message, "shell")
            self._say("busy", "shell", message)
            self._events.callbacks = {**callbacks, **{event: [] for event in EXECUTION}}
            run_out(self._handlers[message["msg_type"]](self._answers, idents, message))
        except Exception:
            log.exception("The handler of a %s failed.", message["msg_type"])
        finally:
            with Held():
                self._events.callbacks = callbacks
                for stream in filter(None, (sys.stdout, sys.stderr)):
                    stream.flush()
                self._kernel.set_parent(outer_idents, outer, "shell")
                self._say("idle", "shell", message)
                self._say("busy", "shell", outer)  # the cell goes on

    def _request(self) -> tuple[Any, Any]:
        """Return whose request runs now, and the request.

        In an empty context, where the kernel knows of none, these are what it tells threads.
        """
        return self._kernel._parent_ident["shell"], self._kernel.get_parent("shell")


# ------------------------------------------------------------------------------ one in a process

_pump: Pump | None = None
_reason = "nbtasks is not loaded into a kernel"


def install(shell: Any) -> None:
    """Let clicks reach the handlers of this IPython while a cell waits for a task.

    Where that cannot be, nothing is changed, and `reason` says why.
    """
    kernel = getattr(shell, "kernel", None)
    if kernel is None:
        return
    if hasattr(kernel, "io_loop"):
        _install(shell)
    else:  # it is only starting, and its configuration has us loaded
        _install_later(shell)


def _install(shell: Any) -> None:
    global _pump, _reason
    try:
        _pump = _pump or Pump(shell)
        _pump.start()
    except (AttributeError, LookupError, TypeError) as error:
        _pump = None
        version = sys.modules["ipykernel"].__version__
        _reason = f"ipykernel {version} is not built like those that are known"
        log.info("Clicks wait until a cell is over: %s (%r).", _reason, error)
    else:
        _reason = ""


def _install_later(shell: Any) -> None:
    """Install the pump when the first cell begins."""

    def install_now(info: object = None) -> None:
        shell.events.unregister("pre_run_cell", install_now)
        _install(shell)

    shell.events.register("pre_run_cell", install_now)


def uninstall() -> None:
    """Let messages come as they always did."""
    global _reason
    if _pump is not None:
        _pump.stop()
        _reason = "nbtasks is not loaded"


def reason() -> str:
    """Return why clicks have to wait until a cell is over; empty where they do not."""
    return _reason
