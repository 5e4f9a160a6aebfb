"""What is said of a worker's process that died, and of the task that it ran."""

from __future__ import annotations

from nbtasks.core.messages import Died, Policy
from nbtasks.core.tasks import Task


def describe_exit(died: Died) -> str:
    """Return what became of a process, for people."""
    memory = f" (peak memory {died.peak_memory / 1e6:.0f} MB)" if died.peak_memory else ""
    if died.why:
        return f"{died.why}{memory}"
    if died.code < 0:
        number = -died.code
        known = {6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM"}
        name = known.get(number, "a signal")
        hint = ", often a sign of too little memory" if number == 9 else ""
        return f"was killed by {name} ({number}){hint}{memory}"
    if died.code > 0:
        return f"exited with code {died.code}{memory}"
    # So says the next supervisor of a process that the former one took along.
    return f"ended with code 0, or with the whole cluster,{memory}"


def why_given_up(task: Task, policy: Policy) -> str:
    """Return why a task whose process died is not run again, for people."""
    if policy.retry_on_worker_lost or (policy.acks_late and policy.reject_on_worker_lost):
        return f"It was the {ordinal(task.deaths)} death; the task is given up."
    wanted = "reject_on_worker_lost" if policy.acks_late else "acks_late"
    return f"It was not run again, as it may be half done ({wanted}=True runs it again)."


def ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
