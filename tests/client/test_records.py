"""What a process keeps of tasks that ended lately."""

from __future__ import annotations

import pytest

from nbtasks.client.record import Record
from nbtasks.client.records import RECENT_BYTES, Records
from nbtasks.core.messages import Event


@pytest.mark.parametrize(
    "said",
    [
        Event("", 1, 0.0, "output", "stdout", text="x" * 1_000_000),
        Event("", 1, 0.0, "state", "PROGRESS", body=b"x" * 1_000_000),
        Event("", 1, 0.0, "state", "RETRY", traceback="x" * 1_000_000),
    ],
    ids=["output", "meta", "traceback"],
)
def test_what_ended_tasks_have_said_is_kept_within_bounds(said):
    records = Records()
    for number in range(100):
        record = Record(str(number))
        for event in (said, Event("", 2, 0.0, "state", "SUCCESS", final=True)):
            record.note(event)
        records.settle(record)

    assert 0 < len(records.recent) <= RECENT_BYTES // 1_000_000
    assert str(number) in records.recent
