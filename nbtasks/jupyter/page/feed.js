// The panel under a cell: one plain ES module in six files, which `widget.py` joins in this order:
// feed, view, row, words, elements, notebook. No build step.
//
//   kernel ──snapshot trait──▶ Feed ──▶ View (one for each place where the widget is shown)
//          ──numbered rows───▶   │        ├─ Line: one row in sight; the others are only numbers
//          ◀─clicks, questions───┴────────└─ Fold: what is below an open row
//
// The feed listens in initialize(), before any view exists: what comes between the first message and
// the first view is not lost. Each message carries whole rows, so applying one twice does no harm;
// a gap in the numbers makes the feed ask for the snapshot. A view draws at most once a frame, only
// what is in sight, and only while it is in sight itself; clocks tick in the page, without the kernel.
// A click changes nothing here but its button: the row changes when the kernel says so.
// All text is set as text, never as HTML.

/**
 * @typedef {object} Row  As `nbtasks/jupyter/rows.py` paints it; times are seconds since the epoch.
 * @property {number} i  Place in the panel.
 * @property {string} id
 * @property {string} name
 * @property {string} args
 * @property {string} state  Key of `words`.
 * @property {boolean} final
 * @property {number} [due]  When it starts, or starts again.
 * @property {number} [expires]
 * @property {number} [began]
 * @property {number} [took]  Seconds that the run took.
 * @property {number | null} [fraction]  0 to 1.
 * @property {number} [rate]  Units of its own progress per second.
 * @property {number} [done_at]  When it is likely to end.
 * @property {string} [text]
 * @property {string} [error]
 * @property {string} [where]  The place in the notebook's own code where it failed.
 * @property {string} [why]  What it waits for, if not for a worker.
 * @property {number} [attempt]
 * @property {number | null} [attempts]
 * @property {number} [parent]  Row of the task that sent it.
 * @property {boolean} [redo]  It can be run again.
 *
 * @typedef {object} Total
 * @property {number} n
 * @property {number} open
 * @property {Record<string, number>} counts
 * @property {number} began
 * @property {number | null} ended
 * @property {number | null} [rate]  Ends per second.
 * @property {number | null} [left]  Seconds.
 *
 * @typedef {{workers: number, busy: number, queued: number, places: [number, number][]}} Queue
 *
 * @typedef {object} Attempt
 * @property {number} n
 * @property {number | null} began
 * @property {number | null} ended
 * @property {string} worker
 * @property {string} how
 * @property {string} why
 *
 * @typedef {object} Detail
 * @property {string} call
 * @property {[string, string][]} facts  Label, text.
 * @property {Attempt[]} attempts
 * @property {[string, string][]} output  Stream, text.
 * @property {string} traceback
 * @property {string} result
 *
 * @typedef {"cancel" | "hasten" | "retry"} Kind
 * @typedef {{kind: Kind, rows: Set<number>, all: boolean, heard: boolean, late: boolean}} Ask
 */

/** Milliseconds between two looks at the clock. */
const TICK = 250;

/** Milliseconds after which an unanswered click or question is said to wait for the kernel. */
const PATIENCE = 1500;

/** Milliseconds after which a click that was heard, and changed nothing, may be repeated. */
const OBLIVION = 10_000;

/** Milliseconds between two questions about the same open row, and between two announcements. */
const PAUSE = { detail: 500, speech: 2000 };

/** Milliseconds for which the kernel may take its time to put the picture in a panel's place. */
const GRACE = 1000;

/** Rows drawn above and below those in sight. */
const SPARE = 6;

/** Ids in a line for the terminal: a shell does not take them without end. */
const MOST_IDS = 200;

/** Open panels, and rows of each, that are kept in the file of a notebook that is saved. */
const KEPT = { panels: 20, rows: 200 };

const VIEW_MIME = "application/vnd.jupyter.widget-view+json";
const STATE_MIME = "application/vnd.jupyter.widget-state+json";

const OVER = ["done", "failed", "expired", "cancelled"];

/**
 * Paths of the symbols, in a box of 16 by 16, drawn as lines.
 * @type {Record<string, string>}
 */
const ICONS = {
  running: "M8 2.5a5.5 5.5 0 1 1-5.5 5.5",
  retrying: "M13 8a5 5 0 1 1-1.6-3.7M13 2.2v3h-3",
  waiting: "M8 3a5 5 0 1 0 0 10a5 5 0 1 0 0-10",
  scheduled: "M8 2.8a5.2 5.2 0 1 0 0 10.4a5.2 5.2 0 1 0 0-10.4M8 5.2v3l2 1.4",
  done: "M3 8.6l3.2 3.2L13 4.8",
  failed: "M4 4l8 8M12 4l-8 8",
  expired: "M8 3a5 5 0 1 0 0 10a5 5 0 1 0 0-10M4.6 4.6l6.8 6.8",
  cancelled: "M8 3a5 5 0 1 0 0 10a5 5 0 1 0 0-10M4.6 4.6l6.8 6.8",
  fold: "M6 4.2l3.8 3.8L6 11.8",
  bell: "M4 11.5V7.2a4 4 0 0 1 8 0v4.3M2.8 11.5h10.4M6.8 13.6h2.4",
};

/**
 * What can be done with a task: its button, before and after it was pressed, and when it applies.
 * @type {Record<Kind, {rest: string, pressed: string, applies: (row: Row) => boolean}>}
 */
const DEEDS = {
  retry: { rest: "Retry", pressed: "Retrying", applies: (row) => Boolean(row.redo) },
  hasten: {
    rest: "Run now",
    pressed: "Starting",
    applies: (row) => row.state === "scheduled" || row.state === "retrying",
  },
  cancel: { rest: "Cancel", pressed: "Cancelling", applies: (row) => !row.final },
};
const KINDS = /** @type {Kind[]} */ (Object.keys(DEEDS));

/** What the kernel said, and what it was asked; all views of one widget share it. */
class Feed {
  constructor() {
    /** @type {Map<number, Row>} */
    this.rows = new Map();
    /** @type {Total} */
    this.total = { n: 0, open: 0, counts: {}, began: 0, ended: null };
    /** @type {Queue | null} */
    this.queue = null;
    /** @type {Map<number, number>} */
    this.places = new Map();
    /** @type {Record<string, [string, string]>} */
    this.words = {};
    this.cli = "";
    /** Id of the widget. */
    this.model_id = "";
    this.seq = -1;
    /** Seconds by which this browser's clock is ahead of the kernel's. */
    this.ahead = Infinity;
    /** When all is likely to be over. @type {number | null} */
    this.overAt = null;
    /** Rows in the order in which they are shown; null: to be sorted. @type {number[] | null} */
    this.sorted = null;
    /** How far below the cell each task that a task sent is. @type {Map<number, number>} */
    this.depths = new Map();
    /** Clicks that have not led to anything yet. @type {Map<number, Ask>} */
    this.asks = new Map();
    this.asked = 0;
    /** Why nothing can be heard: "" (it can), "cut" (no connection) or "gone" (no kernel). */
    this.silence = "";
    /** The kernel's clock when silence fell. */
    this.stopped = 0;
    /** Whether a notification is wanted, and allowed; "": there are none here. */
    this.bell = false;
    this.permission = "Notification" in window ? Notification.permission : "";
    this.healing = false;
    /** Id of the kernel that it belongs to, where that is known. @type {string | undefined} */
    this.kernel = undefined;
    /** @type {Set<View>} */
    this.views = new Set();
  }

  /** @param {any} model */
  listen(model) {
    this.model = model;
    const heard = (/** @type {any} */ message) => this.hear(message);
    // A page that was offline is told the whole state again.
    const told = () => this.hear({ ...model.get("snapshot"), kind: "snapshot" });
    // Jupyter says so when it gives the kernel's end up: it restarts, or is another one.
    const lost = () => this.fallSilent("gone");
    model.on("msg:custom", heard);
    model.on("change:snapshot", told);
    model.on("comm_live_update", lost);
    told();
    const forget = keep(this);
    return () => {
      forget();
      model.off("msg:custom", heard);
      model.off("change:snapshot", told);
      model.off("comm_live_update", lost);
    };
  }

  /** @param {any} message */
  hear(message) {
    this.silence = "";
    switch (message.kind) {
      case "rows":
        if (message.seq <= this.seq) return;
        if (message.seq !== this.seq + 1) this.send({ kind: "snapshot" });
        this.take(message);
        break;
      case "snapshot":
        this.take(message);
        break;
      case "heard":
        this.acknowledge(message.ask);
        break;
      case "detail":
        for (const view of this.views) view.folds.get(message.i)?.take(message.detail);
        break;
      case "picture":
        heal(this, message);
        break;
    }
  }

  /** @param {any} message  A snapshot, or rows. */
  take(message) {
    if (!message.rows || message.seq < this.seq) return;
    const first = this.seq < 0;
    const wasOpen = this.total.open > 0;
    this.seq = message.seq;
    this.ahead = Math.min(this.ahead, Date.now() / 1000 - message.now);
    this.total = message.total;
    const left = message.total.left;
    this.overAt = left === null || left === undefined ? null : message.now + left;
    if (message.words) this.words = message.words;
    if (message.cli) this.cli = message.cli;
    if (message.model) this.model_id = message.model;
    if (message.queue !== undefined) {
      this.queue = message.queue;
      this.places = new Map(message.queue?.places);
    }
    if (message.saved) {
      this.silence = "gone";
      this.stopped = message.now;
    }
    const news = message.rows.filter((/** @type {Row} */ row) => this.put(row));
    if (wasOpen && this.total.open === 0) this.ring();
    for (const view of this.views) view.hear(first ? [] : news);
  }

  /** @param {Row} row @returns {boolean} Whether it has ended just now. */
  put(row) {
    const before = this.rows.get(row.i);
    this.rows.set(row.i, row);
    if (!before || before.parent !== row.parent) this.sorted = null;
    if (before && before.state !== row.state) this.settle(row.i);
    return row.final && !before?.final;
  }

  /** The snapshot for a page that will find no kernel: of many rows those about the first open one. */
  memory() {
    const { total, words, cli, model_id: model, seq } = this;
    const rows = [...this.rows.values()];
    const open = rows.findIndex((row) => !row.final);
    const end = Math.max(KEPT.rows, open + KEPT.rows / 2);
    const kept = rows.slice(Math.max(0, end - KEPT.rows), end);
    return { saved: true, seq, now: this.now(), rows: kept, total, words, cli, model };
  }

  show() {
    for (const view of this.views) view.later();
  }

  /** @param {object} message */
  send(message) {
    try {
      this.model.send(message);
    } catch {
      // A kernel that is dead: the click stays unheard, and the panel says so.
    }
  }

  /** Seconds since the epoch on the kernel's clock; it stops when nothing can be heard. */
  now() {
    return this.silence ? this.stopped : Date.now() / 1000 - this.ahead;
  }

  /** @param {string} silence */
  fallSilent(silence) {
    if (silence === this.silence || this.silence === "gone") return;
    const now = this.now();
    this.silence = silence;
    this.stopped = now;
    this.show();
  }

  /** Each task in order, followed by those that it sent itself. */
  order() {
    if (this.sorted) return this.sorted;
    const all = [...this.rows.keys()].sort((a, b) => a - b);
    /** @type {Map<number, number[]>} */
    const children = new Map();
    const roots = [];
    for (const i of all) {
      const parent = this.rows.get(i).parent;
      // A parent comes before its children, so that a chain of parents has an end.
      if (parent === undefined || parent >= i || !this.rows.has(parent)) roots.push(i);
      else if (children.has(parent)) children.get(parent).push(i);
      else children.set(parent, [i]);
    }
    this.sorted = [];
    this.depths.clear();
    const stack = roots.reverse();
    while (stack.length) {
      const i = stack.pop();
      this.sorted.push(i);
      for (const child of (children.get(i) || []).reverse()) {
        this.depths.set(child, (this.depths.get(i) || 0) + 1);
        stack.push(child);
      }
    }
    return this.sorted;
  }

  // ---------------------------------------------------------------------------- clicks

  /** @param {Kind} kind @param {number[] | null} rows  null: all to which it applies. */
  ask(kind, rows) {
    const { applies } = DEEDS[kind];
    const touched = rows || [...this.rows.values()].filter(applies).map((row) => row.i);
    /** @type {Ask} */
    const ask = { kind, rows: new Set(touched), all: rows === null, heard: false, late: false };
    this.asked += 1;
    this.asks.set(this.asked, ask);
    this.send({ kind, rows, ask: this.asked });
    setTimeout(() => {
      ask.late = !ask.heard;
      this.show();
    }, PATIENCE);
    this.show();
  }

  /** @param {number} number */
  acknowledge(number) {
    const ask = this.asks.get(number);
    if (!ask) return;
    ask.heard = true;
    ask.late = false;
    setTimeout(() => {
      this.asks.delete(number);
      this.show();
    }, OBLIVION);
    this.show();
  }

  /** Take a row whose state has changed out of what was asked. @param {number} i */
  settle(i) {
    for (const [number, ask] of this.asks) {
      ask.rows.delete(i);
      if (!ask.rows.size) this.asks.delete(number);
    }
  }

  /** @param {Kind} kind @param {number | null} i  null: for all. @returns {Ask | undefined} */
  pending(kind, i) {
    return [...this.asks.values()].find(
      (ask) => ask.kind === kind && (i === null ? ask.all : ask.rows.has(i)),
    );
  }

  /** The line that cancels these tasks from a terminal. @param {number[]} rows */
  line(rows) {
    const ids = rows.slice(0, MOST_IDS).map((i) => this.rows.get(i)?.id);
    return this.cli.replace("{id}", ids.join(" "));
  }

  // ---------------------------------------------------------------------------- the end

  async toggleBell() {
    if (!this.bell) this.permission = await Notification.requestPermission();
    this.bell = !this.bell && this.permission === "granted";
    this.show();
  }

  ring() {
    const { n } = this.total;
    if (!this.bell) return;
    this.bell = false;
    try {
      const what = n === 1 ? "Your task is over" : `All ${n} tasks are over`;
      const note = new Notification(what, { body: `${summary(this)}\n${document.title}` });
      note.onclick = () => {
        window.focus();
        for (const view of this.views) view.root.scrollIntoView({ block: "nearest" });
      };
    } catch {
      // Some browsers (on telephones) have the name, but leave it to service workers.
    }
  }
}
