"""The panel's half in the browser, on a page with nothing but a fake model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

pytest.importorskip("playwright", reason="pip install playwright")

from nbtasks.jupyter.rows import WORDS
from tests.browser.axe import violations
from tests.browser.page import NOW, Panel, panel_page, row

#: A kernel and a notebook as JupyterLab's widget manager has them; the widget is the model `ours`.
MANAGER = """(() => {
  const output = (id) => ({
    data: { "application/vnd.jupyter.widget-view+json": { model_id: id }, "text/plain": "live" },
    toJSON() { return { output_type: "display_data", metadata: {}, data: this.data } },
  });
  const list = (...items) => ({
    length: items.length,
    get: (k) => items[k],
    set: (k, item) => { items[k] = item },
  });
  const kernel = { id: "k", status: "idle", connectionStatus: "connected" };
  const metadata = window.metadata = {};
  const savers = new Set();
  window.save = () => { for (const saver of savers) saver(null, "started") };
  return { context: {
    sessionContext: { session: { kernel } },
    saveState: { connect: (call) => savers.add(call), disconnect: (call) => savers.delete(call) },
    model: {
      cells: list(
        { outputs: undefined },
        { outputs: list(output("other"), output("gone"), output("ours")) },
      ),
      getMetadata: (name) => metadata[name],
      setMetadata: (name, value) => { metadata[name] = value },
      deleteMetadata: (name) => { delete metadata[name] },
    },
  } };
})()"""

KERNEL = "model.widget_manager.context.sessionContext.session.kernel"

BUSY = {"workers": 2, "busy": 2, "queued": 7, "places": [[3, 4]]}


def every_state() -> list[dict[str, Any]]:
    """Return rows of which each says something else."""
    running = {"began": NOW - 19, "fraction": 0.63, "rate": 3.2, "done_at": NOW + 29.9}
    return [
        row(0, "running", name="train", args="(lr=0.1)", text="epoch 12/20", **running),
        row(1, "retrying", due=NOW + 60, attempt=2, attempts=6, error="ConnectionError: refused"),
        row(2, "scheduled", due=NOW + 3600, expires=NOW + 7200),
        row(3, "waiting"),
        row(4, "failed", error="ValueError: bad", where="cell [3], line 12", took=2.1, redo=True),
        row(5, "done", took=1.04),
        row(6, "cancelled", redo=True, parent=5),
        row(7, "expired", redo=True),
    ]


DETAIL: dict[str, Any] = {
    "call": "work(4, columns=['a', 'b'])",
    "facts": [["id", "00000004"], ["queue", "default"], ["worker", "worker 2"]],
    "attempts": [
        {"n": 1, "began": 100.0, "ended": 103.0, "worker": "", "how": "retry", "why": "refused"},
        {"n": 2, "began": 110.0, "ended": 112.0, "worker": "w", "how": "failed", "why": "bad"},
    ],
    "output": [["stdout", "reading\n"], ["stderr", "UserWarning: mixed\n"]],
    "traceback": "Traceback (most recent call last):\n  Cell In[3], line 12\nValueError: bad",
    "result": "{'rows': 1200}",
}


@pytest.fixture
def new_panel(browser) -> Iterator[Callable[..., Panel]]:
    """Make a panel on a page of its own; nothing may go wrong on it."""
    with ExitStack() as stack:
        panels = []

        def make(**options: Any) -> Panel:
            panel = Panel(stack.enter_context(panel_page(browser, **options)))
            panel.page.clock.install(time=NOW)
            panels.append(panel)
            return panel

        yield make
        assert [panel.errors for panel in panels] == [[] for _ in panels]


@pytest.fixture
def panel(new_panel) -> Panel:
    return new_panel()


# ----------------------------------------------------------------------------------------- truth


def test_every_state_is_told_in_words(panel, expect):
    panel.pause()
    panel.open(every_state(), rate=4.1, left=12)

    panel.tell(queue=BUSY)

    for position, words in enumerate(
        [
            ["running", "0:19", "63 %", "epoch 12/20", "3.2/s", "30 s left"],
            ["retrying", "attempt 2 of 6 in 1:00", "ConnectionError: refused"],
            ["scheduled", "starts in 1:00:00 (", "expires in 2:00:00"],
            ["waiting", "4th in the queue · all 2 workers busy"],
            ["failed", "2.1 s", "ValueError: bad", "(cell [3], line 12)"],
            ["done", "1.0 s"],
            ["cancelled"],
            ["expired"],
        ]
    ):
        for word in words:
            expect(panel.row(position)).to_contain_text(word)
    expect(panel.root).to_contain_text("8 tasks")
    expect(panel.root).to_contain_text("50 %4.1/s · about 12 s left")


def test_long_spans_are_told_in_days_and_far_times_with_their_year(panel, expect):
    panel.pause()
    panel.open(
        [row(0, "scheduled", due=NOW + 400 * 86_400), row(1, "running", began=NOW - 400_000)]
        + [row(k, "done", took=took) for k, took in enumerate([59.97, 119.7, 400_000], 2)]
    )

    expect(panel.row(0)).to_contain_text("starts in 400 d 0 h (26 Oct 2027 ")
    expect(panel.row(1)).to_contain_text("4 d 15 h")
    for position, took in enumerate(["1:00", "2:00", "4 d 15 h"], 2):
        expect(panel.row(position).locator(".nbtasks-time")).to_have_text(took)


def test_why_a_task_waits_goes_before_its_place_in_the_queue(panel, expect):
    panel.open([row(0, why="waits for 2 other tasks"), row(1), row(2)])
    expect(panel.row(1)).not_to_contain_text("queue")

    panel.tell(queue={"workers": 1, "busy": 1, "queued": 9, "places": [[0, 2], [1, 1]]})
    expect(panel.row(0)).to_contain_text("waits for 2 other tasks")
    expect(panel.row(0)).not_to_contain_text("queue")
    expect(panel.row(1)).to_contain_text("next in the queue · the only worker is busy")
    expect(panel.row(2)).to_contain_text("in the queue")

    panel.tell(queue={"workers": 0, "busy": 0, "queued": 9, "places": []})
    expect(panel.row(1)).to_contain_text("in the queue · no worker yet")


def test_text_of_a_task_is_drawn_and_never_run(panel, expect):
    evil = "<img src=x onerror=document.title='run'>"
    panel.open(
        [row(0, "failed", name=evil, args=f"({evil})", error=evil, where=evil), row(1, why=evil)]
    )

    fold = panel.unfold(0)
    panel.answer(
        0,
        call=evil,
        facts=[[evil, evil]],
        attempts=[{"n": 1, "began": None, "ended": None, "worker": evil, "how": evil, "why": evil}],
        output=[[evil, evil]],
        traceback=evil,
        result=evil,
    )

    expect(panel.row(0).locator(".nbtasks-name")).to_have_text(f"{evil}({evil})")
    expect(panel.row(1)).to_contain_text(evil)
    expect(fold.locator(".nbtasks-call")).to_have_text(evil)
    expect(panel.page.locator("img")).to_have_count(0)
    assert panel.page.title() == "A notebook"


@pytest.mark.parametrize("width", [400, 500, 690, 1000])
def test_a_long_error_hides_neither_the_countdown_nor_the_place_of_a_failure(new_panel, width):
    panel = new_panel(viewport={"width": width, "height": 700})
    error = "ConnectionError: " + "refused " * 30
    long = {"error": error, "text": error, "why": error, "attempt": 2, "attempts": 6}
    panel.open(
        [
            row(0, "retrying", due=NOW + 7, **long),
            row(1, "failed", where="cell [3], line 12", **{**long, "attempt": None}),
            row(2, "running", began=NOW, rate=3.2, done_at=NOW + 29, **{**long, "attempt": None}),
            row(3, "waiting", expires=NOW + 60, **long),
            row(4, "running", began=NOW, fraction=0.42, rate=15.0, done_at=NOW + 59.9),
        ]
    )

    for position, part in enumerate(["text", "aside", "aside", "aside", "aside"]):
        kept = panel.row(position).locator(f".nbtasks-{part}")
        assert kept.evaluate("(each) => each.scrollWidth <= each.clientWidth"), position
        assert kept.evaluate("(each) => each.getBoundingClientRect().width > 60"), position


@pytest.mark.parametrize("width", [300, 500, 1000])
def test_no_text_breaks_the_layout(new_panel, width):
    panel = new_panel(viewport={"width": width, "height": 700})
    texts = ["x" * 5000, "שלום עולם" * 40, "👩‍👩‍👧‍👦" * 90, "a\nb\r\n\tc" * 80, "\u202e\u200b" * 99]
    rows = [row(k, "failed", name=text, args=text, error=text) for k, text in enumerate(texts)]
    rows += [row(5, "running", began=1, fraction=0.5, text=texts[0], rate=3.2, done_at=1e11)]

    panel.open(rows, rate=4.1, left=12)
    panel.unfold(0)
    panel.answer(0, **{**DETAIL, "call": texts[0], "facts": [["queue", texts[0]]]})

    panel.page.wait_for_function("() => document.querySelector('.nbtasks-fold').offsetHeight > 200")
    wide = panel.page.evaluate(
        """() => [document.documentElement, ...document.querySelectorAll(
             ".nbtasks-panel, .nbtasks-list, .nbtasks-row, .nbtasks-line, .nbtasks-fold")]
           .filter((each) => each.scrollWidth > each.clientWidth + 1)
           .map((each) => each.className)"""
    )
    assert wide == []
    high = panel.root.locator(".nbtasks-line").evaluate_all(
        "(lines) => [...new Set(lines.map((line) => line.offsetHeight))]"
    )
    assert high == [50 if width < 660 else 28]


def test_a_gap_makes_the_page_ask_for_the_snapshot(panel, expect):
    panel.open([row(0), row(1)])
    panel.tell(row(0, "running"))
    assert not panel.sent("snapshot")

    panel.lose(row(1, "done"))
    panel.tell(row(0, "done"))
    panel.wait_for_sent("snapshot")
    expect(panel.row(1)).to_contain_text("waiting")
    panel.tell_all()

    expect(panel.row(1)).to_contain_text("done")
    assert len(panel.sent("snapshot")) == 1


def test_an_older_message_changes_nothing(panel, expect):
    panel.open([row(0)])
    panel.tell(row(0, "running"))
    panel.tell(row(0, "done"))

    panel.say({"kind": "rows", "seq": 1, "now": 0, "rows": [row(0, "running")], "total": {}})

    expect(panel.row(0)).to_contain_text("done")


def test_what_comes_before_there_is_a_view_is_not_lost(panel, expect):
    panel.open([row(0)])
    panel.page.evaluate("() => views[0]()")
    expect(panel.page.locator(".nbtasks-panel")).to_have_count(0)

    panel.tell(row(0, "running"), row(1, "done"))
    panel.page.evaluate("() => { add_view() }")

    expect(panel.row(0)).to_contain_text("running")
    expect(panel.row(1)).to_contain_text("done")


def test_views_of_one_widget_say_the_same_and_share_no_id(panel, expect):
    panel.open(every_state())
    panel.page.evaluate("() => { add_view() }")
    first, second = panel.page.locator(".nbtasks-panel").all()

    panel.tell(row(3, "running"))
    first.locator("button.nbtasks-cancel").first.click()

    expect(second.locator("[aria-posinset='4']")).to_contain_text("running")
    expect(second.locator("button.nbtasks-cancel").first).to_have_text("Cancelling")
    expect(panel.page.locator(".nbtasks-panel [id]")).to_have_count(0)


# ---------------------------------------------------------------------------------------- clocks


def test_clocks_tick_without_a_word_to_or_from_the_kernel(panel, expect):
    panel.pause()
    panel.open(every_state(), left=600)

    panel.page.clock.run_for(10_000)

    expect(panel.row(0)).to_contain_text("0:29")
    expect(panel.row(0)).to_contain_text("20 s left")
    expect(panel.row(1)).to_contain_text("attempt 2 of 6 in 0:50")
    expect(panel.row(2)).to_contain_text("starts in 59:50")
    expect(panel.row(2)).to_contain_text("expires in 1:59:50")
    expect(panel.root.locator(".nbtasks-head .nbtasks-time")).to_have_text("0:41")
    assert panel.page.evaluate("() => model.sent") == []


def test_a_clock_of_the_browser_that_is_wrong_does_no_harm(panel, expect):
    panel.page.clock.pause_at(NOW + 86_400)

    panel.open(every_state())

    expect(panel.row(1)).to_contain_text("attempt 2 of 6 in 1:00")
    expect(panel.row(0)).to_contain_text("0:19")


COUNT_TIMERS = """
window.timers = new Set();
for (const [start, stop] of [["setInterval", "clearInterval"], ["setTimeout", "clearTimeout"]]) {
  const begin = window[start], end = window[stop];
  window[start] = (call, after) => {
    const id = begin(() => { if (start === "setTimeout") timers.delete(id); call() }, after);
    timers.add(id);
    return id;
  };
  window[stop] = (id) => { timers.delete(id); end(id) };
}
"""


def test_a_panel_that_is_idle_or_out_of_sight_costs_nothing(panel):
    panel.page.add_init_script(COUNT_TIMERS)
    panel.open([row(0, "running", began=1.0), row(1)])
    assert panel.page.evaluate("() => timers.size") == 1

    panel.root.evaluate("(panel) => { panel.style.marginTop = '5000px' }")
    panel.page.wait_for_function("() => timers.size === 0")

    panel.root.evaluate("(panel) => { panel.style.marginTop = '0' }")
    panel.page.wait_for_function("() => timers.size === 1")
    panel.tell(row(0, "done"), row(1, "done"))
    panel.page.clock.run_for(3000)

    panel.page.wait_for_function("() => timers.size === 0")
    assert panel.page.evaluate("() => model.sent") == []


# ---------------------------------------------------------------------------------------- clicks


@pytest.mark.parametrize(
    ("position", "button", "kind", "pressed"),
    [
        (0, "Cancel", "cancel", "Cancelling"),
        (1, "Run now", "hasten", "Starting"),
        (2, "Run now", "hasten", "Starting"),
        (4, "Retry", "retry", "Retrying"),
        (7, "Retry", "retry", "Retrying"),
    ],
)
def test_a_click_is_sent_and_changes_nothing_but_its_button(
    panel, expect, position, button, kind, pressed
):
    panel.open(every_state())
    state = panel.row(position).get_attribute("data-state")

    panel.row(position).get_by_text(button, exact=True).click()

    assert panel.wait_for_sent(kind) == {"kind": kind, "rows": [position], "ask": 1}
    expect(panel.row(position)).to_contain_text(pressed)
    expect(panel.row(position)).to_have_attribute("data-state", state)
    panel.row(position).get_by_text(pressed).click(force=True)
    assert len(panel.sent(kind)) == 1


def test_only_what_applies_to_a_task_is_offered(panel, expect):
    panel.open(every_state())
    panel.tell(row(4, "failed"))

    offered = [panel.row(k).locator(".nbtasks-deeds").inner_text().split("\n") for k in range(8)]

    wait = ["Run now", "Cancel"]
    assert offered == [["Cancel"], wait, wait, ["Cancel"], [""], [""], ["Retry"], ["Retry"]]


def test_cancel_all_cancels_all_that_is_not_over(panel, expect):
    panel.open(every_state())

    panel.button("Cancel all").click()

    assert panel.wait_for_sent("cancel")["rows"] is None
    expect(panel.root.get_by_text("Cancelling")).to_have_count(5)
    panel.tell(*(row(k, "cancelled") for k in range(4)))
    expect(panel.root.get_by_text("Cancelling")).to_have_count(0)
    expect(panel.root.locator(".nbtasks-cancel-all")).to_be_hidden()


def test_a_kernel_that_does_not_hear_is_said_to_be_busy(panel, expect):
    panel.open(every_state())
    notice = panel.root.locator(".nbtasks-notice")
    expect(notice).to_be_hidden()

    panel.row(0).locator(".nbtasks-cancel").click()
    panel.wait_for_sent("cancel")
    panel.page.clock.run_for(1600)

    expect(notice).to_contain_text("The kernel is busy: cancel is queued")
    line = f"nbtasks cancel --terminate --dir /home/me/project/.nbtasks {panel.rows[0]['id']}"
    expect(notice.locator("code")).to_have_text(line)
    expect(panel.row(0)).to_contain_text("Cancel queued")
    panel.hear(panel.sent("cancel")[0])
    expect(notice).to_be_hidden()
    expect(panel.row(0)).to_contain_text("Cancelling")


def test_a_click_that_was_heard_and_led_to_nothing_can_be_repeated(panel, expect):
    panel.open([row(0, "running")])
    panel.row(0).locator(".nbtasks-cancel").click()
    panel.hear(panel.wait_for_sent("cancel"))

    panel.page.clock.run_for(10_100)
    panel.row(0).locator(".nbtasks-cancel").click()

    assert panel.wait_for_sent("cancel", 2)["ask"] == 2


def test_a_task_that_is_run_again_can_be_cancelled(panel, expect):
    panel.open([row(0, "failed", redo=True)])
    panel.button("Retry: work(0)").click()
    panel.hear(panel.wait_for_sent("retry"))

    panel.tell(row(0, "waiting"))

    expect(panel.row(0).locator(".nbtasks-deeds")).to_have_text("Cancel")


# --------------------------------------------------------------------------------------- silence


def test_a_kernel_that_is_gone_leaves_the_state_and_no_buttons(panel, expect):
    panel.open(every_state())
    panel.page.evaluate("() => model.fire('comm_live_update')")

    notice = panel.root.locator(".nbtasks-notice")
    expect(notice).to_contain_text("The kernel is gone. The tasks go on without it")
    ids = " ".join(panel.rows[k]["id"] for k in range(4))
    expect(notice.locator("code")).to_have_text(
        f"nbtasks cancel --terminate --dir /home/me/project/.nbtasks {ids}"
    )
    expect(panel.root.locator(".nbtasks-deeds button")).to_have_count(0)
    expect(panel.root.locator(".nbtasks-cancel-all")).to_be_hidden()
    shown = panel.row(0).inner_text()
    panel.page.clock.run_for(5000)
    assert panel.row(0).inner_text() == shown
    expect(panel.unfold(0)).to_contain_text("The kernel cannot be asked for more.")


def test_a_view_that_is_made_when_the_kernel_is_gone_says_so(panel, expect):
    panel.open([row(0, "running")])
    panel.page.evaluate(
        """() => {
          views[0]();
          document.getElementById("main").className = "jupyter-widgets-disconnected";
          add_view();
        }"""
    )

    expect(panel.root.locator(".nbtasks-notice")).to_contain_text("The kernel is gone")


def test_a_page_that_was_offline_takes_the_state_that_it_is_told(panel, expect):
    panel.open([row(0, "running")])
    panel.page.evaluate("() => model.fire('comm_live_update')")
    expect(panel.root.locator(".nbtasks-notice")).to_contain_text("The kernel is gone")

    snapshot = {"seq": 7, **panel.frame([row(0, "done"), row(1)])}
    panel.page.evaluate(
        """(snapshot) => {
          model.traits.snapshot = snapshot;
          model.fire("change:snapshot");
        }""",
        snapshot,
    )

    expect(panel.row(0)).to_contain_text("done")
    expect(panel.row(1)).to_contain_text("waiting")
    expect(panel.root.locator(".nbtasks-notice")).to_be_hidden()


@pytest.mark.parametrize(
    "change",
    [
        f"{KERNEL}.status = 'dead'",
        f"{KERNEL}.id = 'another'",
        f"{KERNEL.removesuffix('.kernel')} = null",
    ],
)
def test_a_kernel_that_died_is_noticed_without_a_message(panel, expect, change):
    panel.open(every_state(), manager=MANAGER)
    expect(panel.root.locator(".nbtasks-notice")).to_be_hidden()
    panel.page.clock.run_for(300)

    panel.page.evaluate(f"() => {{ {change} }}")

    panel.page.clock.run_for(300)
    expect(panel.root.locator(".nbtasks-notice")).to_contain_text("The kernel is gone")


def test_a_connection_that_comes_back_ends_the_silence(panel, expect):
    panel.open(every_state(), manager=MANAGER)
    panel.page.evaluate(f"() => {{ {KERNEL}.connectionStatus = 'connecting' }}")
    panel.page.clock.run_for(300)
    expect(panel.root.locator(".nbtasks-notice")).to_contain_text("No connection to the kernel")

    panel.page.evaluate(f"() => {{ {KERNEL}.connectionStatus = 'connected' }}")
    panel.page.clock.run_for(300)

    expect(panel.root.locator(".nbtasks-notice")).to_be_hidden()
    expect(panel.row(0).locator(".nbtasks-cancel")).to_be_visible()


STATE = "application/vnd.jupyter.widget-state+json"

OUTPUT = "(k) => model.widget_manager.context.model.cells.get(1).outputs.get(k).data"

FILED = f"() => metadata.widgets?.['{STATE}'].state"


def put_picture(panel) -> None:
    """Have the final picture take the panel's place in the notebook."""
    panel.say({"kind": "picture", "html": "<p>over</p>", "text": "over"})
    panel.page.wait_for_function(f"() => ({OUTPUT})(2)['text/plain'] === 'over'")


def test_a_notebook_that_is_saved_holds_the_panel_as_long_as_it_stands_there(panel):
    panel.open([row(0, "running"), row(1)], manager=MANAGER)
    others = {"theirs": {"state": {}}, "past": {"state": {"snapshot": {"saved": True}}}}
    panel.page.evaluate(
        "(state) => { metadata.widgets = state }", {STATE: {"state": others}, "more": 1}
    )

    panel.tell(row(1, "done"))
    panel.page.evaluate("() => save()")

    filed = panel.page.evaluate(FILED)
    assert set(filed) == {"theirs", "ours"}
    snapshot = filed["ours"]["state"]["snapshot"]
    assert [each["state"] for each in snapshot["rows"]] == ["running", "done"]
    assert snapshot["total"]["counts"] == {"running": 1, "done": 1}

    panel.tell(row(0, "done"))
    panel.page.evaluate("() => save()")
    over = panel.page.evaluate(FILED)["ours"]["state"]["snapshot"]
    assert over["total"]["counts"] == {"done": 2}

    put_picture(panel)
    panel.page.evaluate("() => save()")
    assert set(panel.page.evaluate(FILED)) == {"theirs"}
    assert panel.page.evaluate("() => metadata.widgets.more") == 1


def test_of_many_rows_the_file_holds_those_where_something_goes_on(panel):
    panel.open(many(1_000), manager=MANAGER)
    panel.page.evaluate("() => save()")

    snapshot = panel.page.evaluate(FILED)["ours"]["state"]["snapshot"]

    assert [each["i"] for each in snapshot["rows"]] == list(range(400, 600))
    assert snapshot["total"]["n"] == 1_000


def test_a_file_that_holds_no_panel_any_more_is_as_if_it_never_had(panel):
    panel.open([row(0, "running")], manager=MANAGER)
    panel.page.evaluate("() => save()")
    panel.tell(row(0, "done"))
    put_picture(panel)

    panel.page.evaluate("() => save()")

    assert panel.page.evaluate("() => metadata") == {}


def test_a_panel_from_a_file_says_how_things_stood_and_that_the_kernel_is_gone(panel, expect):
    panel.open(every_state(), manager=MANAGER)
    panel.page.evaluate("() => save()")
    snapshot = panel.page.evaluate(FILED)["ours"]["state"]["snapshot"]

    panel.page.evaluate("(snapshot) => { views[0](); open_panel(snapshot) }", snapshot)

    expect(panel.root.locator(".nbtasks-notice")).to_contain_text("The kernel is gone")
    expect(panel.row(0)).to_contain_text("epoch 12/20")
    expect(panel.root.locator(".nbtasks-deeds button")).to_have_count(0)
    shown = panel.root.inner_text()
    panel.page.clock.run_for(5000)
    assert panel.root.inner_text() == shown


def test_a_panel_that_is_over_does_not_care_for_the_kernel(panel, expect):
    panel.open([row(0, "done"), row(1, "done")], ended=NOW)
    panel.page.evaluate("() => model.fire('comm_live_update')")

    panel.page.clock.run_for(1000)

    expect(panel.root.locator(".nbtasks-notice")).to_be_hidden()


# ----------------------------------------------------------------------------- filters and a tree


def test_counts_are_filters(panel, expect):
    panel.open(every_state())
    failed = panel.button("1 failed")

    failed.click()
    expect(failed).to_have_attribute("aria-pressed", "true")
    expect(panel.root.locator(".nbtasks-row")).to_have_count(1)
    expect(panel.row(0)).to_contain_text("ValueError: bad")

    panel.button("1 done").click()
    expect(panel.root.locator(".nbtasks-row")).to_have_count(2)

    panel.tell(row(4, "running"))
    expect(panel.root.locator(".nbtasks-row")).to_have_count(1)
    panel.button("1 done").click()
    expect(panel.root).to_contain_text("None is in this state now.")

    panel.button("0 failed").click()
    expect(panel.root.locator(".nbtasks-row")).to_have_count(8)


def test_a_task_that_a_task_sent_is_below_it(panel, expect):
    panel.open([row(0), row(1), row(2, parent=0)])

    panel.tell(row(3, parent=2), row(4, parent=0), row(5, parent=77))

    names = panel.root.locator(".nbtasks-name")
    expect(names).to_have_text(["work(0)", "work(2)", "work(3)", "work(4)", "work(1)", "work(5)"])
    levels = panel.root.locator(".nbtasks-row").evaluate_all(
        "(rows) => rows.map((each) => each.getAttribute('aria-level'))"
    )
    assert levels == ["1", "2", "3", "2", "1", "1"]
    left = [each.bounding_box()["x"] for each in names.all()]
    assert left[0] < left[1] < left[2] > left[3] > left[4] == left[5]


# ------------------------------------------------------------------------------------- fold-outs


def test_a_row_folds_out_to_what_the_kernel_knows_of_it(panel, expect):
    panel.open(every_state())

    fold = panel.unfold(4)
    assert panel.wait_for_sent("detail") == {"kind": "detail", "i": 4}
    expect(fold).to_contain_text("Asking the kernel …")
    panel.answer(4, **DETAIL)

    expect(fold).not_to_contain_text("Asking")
    for text in (
        DETAIL["call"],
        DETAIL["traceback"],
        DETAIL["result"],
        "stderr UserWarning: mixed",
        "queuedefault",
        panel.rows[4]["id"],
    ):
        expect(fold).to_contain_text(text)
    attempts = fold.locator(".nbtasks-attempt")
    expect(attempts.nth(0)).to_contain_text("3.0 sretryrefused")
    expect(attempts.nth(1)).to_contain_text("2.0 sfailedbad · w")
    first, second = (each.bounding_box() for each in fold.locator(".nbtasks-track > i").all())
    assert first["x"] + first["width"] < second["x"]
    assert first["width"] > second["width"]
    below = panel.row(5).bounding_box()["y"] - panel.row(4).bounding_box()["y"]
    assert below > 200


def test_the_only_attempt_fills_its_line_however_short_it_was(panel):
    panel.open([row(0, "done", took=0.0002)])
    fold = panel.unfold(0)

    only = {"n": 1, "began": NOW, "ended": NOW + 0.0002, "worker": "", "how": "done", "why": ""}
    panel.answer(0, attempts=[only])

    mark = fold.locator(".nbtasks-track > i")
    assert mark.evaluate("(mark) => mark.offsetWidth === mark.parentElement.offsetWidth")


def test_an_open_row_is_asked_for_again_when_it_changes_but_not_too_often(panel, expect):
    panel.open([row(0, "running"), row(1, "running")])
    fold = panel.unfold(0)
    panel.answer(0, output=[["stdout", "one\n"]])
    expect(fold).to_contain_text("one")
    panel.page.clock.run_for(600)

    for number in range(8):
        panel.tell(row(0, "running", text=str(number)), row(1, "running", text=str(number)))
        panel.answer(0, output=[["stdout", f"{number}\n"]])
        panel.page.clock.run_for(100)

    asked = panel.sent("detail")
    assert {message["i"] for message in asked} == {0}
    assert 2 <= len(asked) <= 4
    panel.page.clock.run_for(1000)
    assert len(panel.sent("detail")) <= 5


def test_an_unanswered_fold_says_that_the_kernel_is_busy(panel, expect):
    panel.open([row(0, "running")])
    fold = panel.unfold(0)

    panel.page.clock.run_for(1600)

    expect(fold).to_contain_text("The kernel is busy; it answers as soon as")
    panel.answer(0, result="7")
    expect(fold).not_to_contain_text("busy")


def test_a_row_that_is_folded_in_is_forgotten(panel, expect):
    panel.open([row(0, "running"), row(1)])
    fold = panel.unfold(0)
    panel.answer(0, result="secret")
    expect(fold).to_contain_text("secret")

    panel.row(0).locator(".nbtasks-toggle").click()
    expect(fold).to_have_count(0)
    panel.answer(0, result="secret")
    panel.unfold(0)

    expect(panel.row(0)).not_to_contain_text("secret")
    assert len(panel.sent("detail")) == 2


def test_an_id_can_be_copied(new_panel, expect):
    panel = new_panel(permissions=["clipboard-read", "clipboard-write"])
    panel.open([row(0)])

    panel.unfold(0).get_by_role("button", name="Copy id").click()

    expect(panel.row(0)).to_contain_text("Copied")
    assert panel.page.evaluate("() => navigator.clipboard.readText()") == panel.rows[0]["id"]


# ------------------------------------------------------------------------------------ many rows


def many(number: int) -> list[dict[str, Any]]:
    return [
        row(k, "done", took=1.0)
        if k < number // 2
        else row(k, "running" if k < number // 2 + 4 else "waiting", began=1.0, fraction=0.5)
        for k in range(number)
    ]


def test_of_10_000_rows_only_those_in_sight_are_in_the_page(panel, expect):
    panel.open(many(10_000))

    expect(panel.row(5000)).to_contain_text("work(5000)")
    assert panel.root.locator(".nbtasks-row").count() < 40
    assert panel.row(5000).get_attribute("aria-setsize") == "10000"

    scroll = panel.root.locator(".nbtasks-list")
    scroll.evaluate("(list) => { list.scrollTop = list.scrollHeight }")
    expect(panel.row(9999)).to_contain_text("work(9999)")
    expect(panel.row(9999)).to_be_in_viewport()
    assert panel.root.locator(".nbtasks-row").count() < 40


def test_rows_beyond_those_that_were_sent_are_counted(panel, expect):
    panel.open([row(0, "done"), row(1)], n=12_000, open=11_999, counts={"done": 1, "waiting": 2})

    expect(panel.root).to_contain_text("12,000 tasks")
    expect(panel.root).to_contain_text("… and 11,998 more, counted above")


def test_a_filter_counts_what_was_not_sent_too(panel, expect):
    counts = {"done": 11_000, "failed": 999, "waiting": 1}
    panel.open([row(0, "done"), row(1, "failed")], n=12_000, open=1, counts=counts)

    panel.button("1 waiting").click()
    expect(panel.root).to_contain_text("… and 1 more, counted above")
    panel.button("999 failed").click()
    expect(panel.row(0)).to_contain_text("work(1)")
    expect(panel.root).to_contain_text("… and 999 more, counted above")


def test_the_line_for_a_terminal_says_how_many_it_is_for(panel, expect):
    panel.open(row(k) for k in range(1_200))
    notice = panel.root.locator(".nbtasks-notice")

    panel.button("Cancel all").click()
    panel.page.clock.run_for(2_000)
    expect(notice).to_contain_text("To stop 200 of the 1,200 at once, in a terminal:")
    panel.page.evaluate("() => model.fire('comm_live_update')")

    expect(notice).to_contain_text("To stop 200 of the 1,200, in a terminal:")
    assert notice.locator("code").inner_text().count("-4c4f-") == 200


#: What a page with many rows has to do: to open the panel (and say after how many milliseconds it
#: was painted), and to take rows that changed while the list is scrolled through.
STEPS = """(snapshot) => {
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  window.open_it = async () => {
    const began = performance.now();
    await open_panel(snapshot);
    await frame();
    return performance.now() - began;
  };
  window.change_it = async (k) => {
    const list = document.querySelector(".nbtasks-list");
    list.dispatchEvent(new Event("wheel"));  // the reader has taken over
    const { now, total, rows: all } = snapshot;
    const rows = all.slice(5000 + 20 * k, 5500 + 20 * k);
    const changed = rows.map((row) => ({ ...row, state: "running", fraction: k / 20 }));
    say({ kind: "rows", seq: k, now, total, rows: changed });
    list.scrollTop = k * 14_000;
    await frame();
  };
}"""


def heap(panel: Panel) -> float:
    """Return the megabytes of JavaScript that the page holds for good."""
    session = panel.page.context.new_cdp_session(panel.page)
    session.send("HeapProfiler.collectGarbage")
    used: float = session.send("Runtime.getHeapUsage")["usedSize"]
    session.detach()
    return used / 1e6


def test_10_000_rows_take_memory_once_however_often_they_change(panel, expect):
    panel.open(many(10_000))
    expect(panel.root.locator(".nbtasks-row").first).to_be_visible()
    scroller = panel.root.locator(".nbtasks-list")
    before = heap(panel)

    for turn in range(30):
        fraction = turn / 30
        changed = [row(i, "running", fraction=fraction) for i in range(0, 10_000, 20)]
        panel.tell(*changed)
        scroller.evaluate("(list, top) => { list.scrollTop = top }", turn * 9_000)
    panel.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => done()))")

    after = heap(panel)
    print(f"{before:.1f} MB with 10,000 rows, {after:.1f} MB after 15,000 changes")
    assert after < 20
    assert after - before < 5


def test_10_000_rows_are_painted_at_once_and_never_hold_the_page_up(browser):
    with panel_page(browser) as page:
        panel = Panel(page).open([row(0)])
        page.evaluate("() => views[0]()")
        snapshot = {"seq": 0, **panel.frame(many(10_000)), "words": WORDS, "cli": ""}
        page.evaluate(STEPS, snapshot)
        busy = BusyTime(page)

        painted = page.evaluate("() => open_it()")
        times = [busy.since_last()]
        for k in range(1, 21):
            page.evaluate("(k) => change_it(k)", k)
            times.append(busy.since_last())

    assert painted < 500
    assert max(times) < 100


class BusyTime:
    """Processor time of a page's thread: others that want the processor do not count."""

    def __init__(self, page: Any) -> None:
        self._devtools = page.context.new_cdp_session(page)
        self._devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
        self._last = 0.0
        self.since_last()

    def since_last(self) -> float:
        """Return the milliseconds since this was asked last."""
        metrics = self._devtools.send("Performance.getMetrics")["metrics"]
        total = 1000 * next(each["value"] for each in metrics if each["name"] == "TaskDuration")
        self._last, before = total, self._last
        return total - before


def test_the_page_does_not_grow_with_the_number_of_updates(panel, expect):
    panel.open(many(50))
    nodes = "() => document.getElementsByTagName('*').length"
    fold = panel.unfold(26)
    panel.answer(26, **DETAIL)
    expect(fold).to_contain_text("Traceback")
    before = panel.page.evaluate(nodes)

    panel.page.evaluate(
        """async ([row, total]) => {
          for (let k = 1; k <= 1000; k += 1) {
            say({ kind: "rows", seq: k, now: 0, total, rows: [{ ...row, text: String(k) }] });
            if (k % 100 === 0) await new Promise(requestAnimationFrame);
          }
        }""",
        [panel.rows[26], panel.frame([])["total"]],
    )

    expect(panel.row(26)).to_contain_text("1000")
    assert panel.page.evaluate(nodes) == before


def test_the_list_follows_what_goes_on_until_the_reader_takes_over(panel, expect):
    rows = many(200)
    panel.open(rows)
    expect(panel.row(100)).to_be_in_viewport()

    panel.tell(*(row(k, "done") for k in range(100, 150)))
    expect(panel.row(150)).to_be_in_viewport()

    panel.row(150).hover()
    panel.page.mouse.wheel(0, -100_000)
    expect(panel.row(0)).to_be_in_viewport()
    panel.tell(*(row(k, "done") for k in range(150, 160)))
    expect(panel.button("160 done")).to_be_visible()
    expect(panel.row(0)).to_be_in_viewport()


# -------------------------------------------------------------------------------------- keyboard


def test_all_is_reached_by_keyboard(panel, expect):
    panel.open(many(200))
    keys = panel.page.keyboard
    panel.root.locator(".nbtasks-cancel-all").focus()

    keys.press("Tab")
    focus = panel.page.locator(":focus")
    expect(focus).to_contain_text("work(97)")
    for key, name in [
        ("ArrowDown", "98"),
        ("ArrowUp", "97"),
        ("End", "199"),
        ("PageUp", "184"),
        ("PageDown", "199"),
        ("Home", "0"),
    ]:
        keys.press(key)
        expect(focus).to_have_text(f"work({name})")
        expect(focus).to_be_in_viewport()

    keys.press("Enter")
    expect(focus).to_have_attribute("aria-expanded", "true")
    keys.press("Tab")
    expect(focus).to_have_text("Copy id")
    keys.press("Shift+Tab")
    keys.press("Space")
    expect(focus).to_have_attribute("aria-expanded", "false")

    panel.row(0).evaluate("() => {}")
    keys.press("End")
    keys.press("Tab")
    expect(focus).to_have_text("Cancel")
    keys.press("Enter")
    assert panel.wait_for_sent("cancel")["rows"] == [199]


def test_focus_stays_where_it_is_whatever_happens_to_the_row(panel, expect):
    panel.open(many(200))
    panel.page.keyboard.press("Tab")
    panel.root.locator(".nbtasks-cancel-all").focus()
    panel.page.keyboard.press("Tab")
    panel.page.keyboard.press("End")
    panel.page.keyboard.press("Tab")
    focus = panel.page.locator(":focus")
    expect(focus).to_have_text("Cancel")

    panel.root.locator(".nbtasks-list").evaluate("(list) => { list.scrollTop = 0 }")
    expect(panel.row(0)).to_be_in_viewport()
    expect(focus).to_have_text("Cancel")

    panel.tell(row(199, "done"))
    expect(focus).to_have_text("work(199)")


def test_keys_do_not_reach_the_notebook_unless_they_have_a_modifier(panel):
    panel.open([row(0), row(1)])
    panel.page.evaluate(
        "() => { window.keys = []; document.addEventListener('keydown', (e) => keys.push(e.key)) }"
    )
    panel.row(0).locator(".nbtasks-toggle").focus()

    for key in ("d", "d", "Enter", "ArrowDown", "Control+s"):
        panel.page.keyboard.press(key)

    assert panel.page.evaluate("() => keys") == ["Control", "s"]


def test_ends_are_announced_and_ticks_are_not(panel, expect):
    panel.open([row(0, "running", name="train"), row(1, "running", name="load")])
    live = panel.root.get_by_role("status")

    panel.page.clock.run_for(5000)
    expect(live).to_have_text("")
    panel.tell(row(0, "failed", name="train"))
    panel.page.clock.run_for(2500)
    expect(live).to_have_text("train failed")
    panel.tell(row(1, "done", name="load"))
    panel.page.clock.run_for(2500)

    expect(live).to_have_text("load done, all 2 tasks are over")


# --------------------------------------------------------------------------------------- the end

NOTIFICATIONS = """
window.notes = [];
window.Notification = class {
  constructor(title, options) { notes.push([title, options.body]) }
  static permission = "default";
  static requestPermission = async () => (Notification.permission = "granted");
};
"""


def test_the_end_of_a_long_panel_is_notified_to_whoever_asked_for_it(panel, expect):
    panel.page.add_init_script(NOTIFICATIONS)
    panel.open([row(0, "running"), row(1, "running")])
    bell = panel.button("Notify me when it is over")
    expect(bell).to_have_attribute("aria-pressed", "false")

    bell.click()
    expect(bell).to_have_attribute("aria-pressed", "true")
    panel.tell(row(0, "failed"))
    panel.tell(row(1, "done"), ended=NOW)

    expect(bell).to_be_hidden()
    said = "1 done, 1 failed\nA notebook"
    assert panel.page.evaluate("() => notes") == [["All 2 tasks are over", said]]


def test_nobody_is_notified_who_did_not_ask_or_thought_better_of_it(panel, expect):
    panel.page.add_init_script(NOTIFICATIONS)
    panel.open([row(0, "running"), row(1, "running")])
    panel.tell(row(0, "done"), row(1, "done"), ended=NOW)

    panel.open([row(0, "running")])
    bell = panel.button("Notify me when it is over")
    for pressed in ("true", "false"):
        bell.click()
        expect(bell).to_have_attribute("aria-pressed", pressed)
    panel.tell(row(0, "done"), ended=NOW)

    expect(panel.row(0)).to_contain_text("done")
    assert panel.page.evaluate("() => notes") == []


def test_a_blocked_or_missing_notification_is_not_offered(panel, expect):
    panel.page.add_init_script(NOTIFICATIONS + "Notification.permission = 'denied'")
    panel.open([row(0)])
    bell = panel.root.locator(".nbtasks-bell")
    expect(bell).to_have_attribute("aria-disabled", "true")
    expect(bell).to_have_attribute("aria-label", "This browser blocks notifications")

    panel.page.add_init_script("delete window.Notification")
    panel.open([row(0)])
    expect(bell).to_be_hidden()


def test_a_notebook_that_was_away_at_the_end_gets_the_picture(panel, expect):
    panel.open([row(0, "done"), row(1, "failed")], manager=MANAGER)
    assert not panel.sent("picture")
    panel.page.clock.run_for(1100)
    panel.wait_for_sent("picture")

    put_picture(panel)

    picture = {"text/html": "<p>over</p>", "text/plain": "over"}
    assert panel.page.evaluate(OUTPUT, 2) == picture
    assert panel.page.evaluate(OUTPUT, 0)["text/plain"] == "live"
    assert panel.page.evaluate(OUTPUT, 1)["text/plain"] == "live"
    assert len(panel.sent("picture")) == 1


def test_a_panel_that_ends_in_time_or_outside_of_jupyter_asks_for_no_picture(panel, expect):
    panel.open([row(0, "running")], manager=MANAGER)
    panel.tell(row(0, "done"))
    expect(panel.row(0)).to_contain_text("done")
    panel.page.evaluate("() => views[0]()")  # as when the kernel has put the picture there
    panel.page.clock.run_for(2000)
    assert not panel.sent("picture")

    panel.open([row(0, "done")])
    panel.page.clock.run_for(2000)
    assert not panel.sent("picture")


# ---------------------------------------------------------------------------------- for everybody


@pytest.mark.parametrize(
    "look",
    [
        {"color_scheme": "light"},
        {"color_scheme": "dark"},
        {"forced_colors": "active"},
        {"contrast": "more"},
        {"color_scheme": "dark", "jupyter": "true"},
        {"color_scheme": "light", "jupyter": "false"},
        {"viewport": {"width": 300, "height": 700}},
    ],
    ids=str,
)
def test_axe_finds_nothing_in_any_state(new_panel, expect, look):
    jupyter = look.pop("jupyter", None) if (look := dict(look)) else None
    panel = new_panel(**look)
    panel.open(every_state(), rate=4.1, left=12)
    theme = f"document.body.dataset.jpThemeLight = '{jupyter}'"
    panel.page.evaluate(
        theme if jupyter else "document.body.removeAttribute('data-jp-theme-light')"
    )
    panel.tell(queue=BUSY)
    panel.unfold(4)
    panel.answer(4, **{**DETAIL, "traceback": "line\n" * 60})
    panel.button("1 done").click()
    panel.button("1 done").hover()
    panel.button("1 failed").click()
    expect(panel.root.locator(".nbtasks-row")).to_have_count(2)
    assert violations(panel.page, ".nbtasks-panel") == []

    panel.button("1 done").click()
    panel.button("1 failed").click()
    panel.row(0).locator(".nbtasks-cancel").click()
    panel.page.clock.run_for(1600)
    expect(panel.root.locator(".nbtasks-notice")).to_be_visible()
    assert violations(panel.page, ".nbtasks-panel") == []

    panel.page.evaluate("() => model.fire('comm_live_update')")
    expect(panel.root.locator(".nbtasks-notice")).to_contain_text("gone")
    assert violations(panel.page, ".nbtasks-panel") == []


def test_nothing_moves_for_whoever_does_not_like_it(new_panel):
    panel = new_panel(reduced_motion="reduce").open(every_state())

    moving = panel.root.evaluate(
        """(panel) => [...panel.querySelectorAll("*")].map((each) => getComputedStyle(each))
           .filter((style) => style.animationName !== "none" || style.transitionDuration !== "0s")
           .length"""
    )

    assert moving == 0
