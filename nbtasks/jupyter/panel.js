// The panel under a cell: one plain ES module, no build step.
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

/** Seconds that a panel must have run for its end to be worth a notification. */
const LONG = 10;

/** Milliseconds for which the kernel may take its time to put the picture in a panel's place. */
const GRACE = 1000;

/** Rows drawn above and below those in sight. */
const SPARE = 6;

/** Ids in a line for the terminal: a shell does not take them without end. */
const MOST_IDS = 200;

const VIEW_MIME = "application/vnd.jupyter.widget-view+json";

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

// ------------------------------------------------------------------------------------- the feed

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
    const changed = () => this.take(model.get("snapshot"));
    model.on("msg:custom", heard);
    // A page that was offline is told the whole state again.
    model.on("change:snapshot", changed);
    changed();
    return () => {
      model.off("msg:custom", heard);
      model.off("change:snapshot", changed);
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
        heal(this.model, message);
        break;
    }
  }

  /** @param {any} message  A snapshot, or rows. */
  take(message) {
    if (!message?.rows || message.seq < this.seq) return;
    const first = this.seq < 0;
    const wasOpen = this.total.open > 0;
    this.seq = message.seq;
    this.ahead = Math.min(this.ahead, Date.now() / 1000 - message.now);
    this.total = message.total;
    const left = message.total.left;
    this.overAt = left === null || left === undefined ? null : message.now + left;
    if (message.words) this.words = message.words;
    if (message.cli) this.cli = message.cli;
    if (message.queue !== undefined) {
      this.queue = message.queue;
      this.places = new Map(message.queue?.places);
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
    const { n, began, ended } = this.total;
    if (!this.bell) return;
    this.bell = false;
    if ((ended || this.now()) - began <= LONG) return;
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

// ------------------------------------------------------------------------------------- the view

class View {
  /** @param {Feed} feed @param {any} model @param {HTMLElement} el */
  constructor(feed, model, el) {
    this.feed = feed;
    this.model = model;
    this.el = el;
    /** Rows in the page. @type {Map<number, Line>} */
    this.lines = new Map();
    /** What is below the rows that are open. @type {Map<number, Fold>} */
    this.folds = new Map();
    /** States that are shown; none chosen: all. @type {Set<string>} */
    this.chosen = new Set();
    /** Rows that are shown, in order. @type {number[]} */
    this.shown = [];
    /** Position and height of each fold. @type {[number, number][]} */
    this.tall = [];
    /** The row that the tabulator key leads to. */
    this.active = -1;
    /** Whether the reader has taken the scrolling into his own hands. */
    this.held = false;
    this.seen = true;
    /** Pixels of a row that is not open. */
    this.height = 28;
    /** Ends that were not announced yet. @type {Row[]} */
    this.news = [];
    this.over = feed.total.open === 0;
    this.timers = { tick: 0, frame: 0, speech: 0, heal: 0 };
    this.wake = this.wake.bind(this);
    this.check = this.check.bind(this);
    this.build();
    el.classList.add("nbtasks-host");
    el.append(this.root);
    feed.views.add(this);
    this.draw();
    this.observe();
  }

  build() {
    this.root = make("section", "nbtasks-panel", { "aria-label": "Background tasks" });
    this.count = make("strong", "nbtasks-count");
    this.parts = make("div", "nbtasks-parts", { role: "group", "aria-label": "Show only" });
    this.clock = make("span", "nbtasks-time");
    this.bell = button("nbtasks-bell", () => this.feed.toggleBell());
    this.bell.append(icon("bell"));
    this.all = button("nbtasks-cancel-all", () => this.feed.ask("cancel", null));
    this.head = make("div", "nbtasks-head");
    this.head.append(this.count, this.parts, this.clock, this.bell, this.all);
    this.bar = bar("nbtasks-total", "Tasks that are over");
    this.bar.append(...[...OVER, "running"].map((state) => make("i", "", { "data-state": state })));
    this.percent = make("span", "nbtasks-percent");
    this.pace = make("span", "nbtasks-pace");
    this.meter = make("div", "nbtasks-meter");
    this.meter.append(this.bar, this.percent, this.pace);
    this.notice = make("div", "nbtasks-notice");
    this.notice.hidden = true;
    this.lane = make("div", "nbtasks-lane", { role: "list", "aria-label": "Tasks" });
    this.list = make("div", "nbtasks-list");
    this.list.append(this.lane);
    this.more = make("div", "nbtasks-more");
    this.live = make("div", "nbtasks-live", { role: "status" });
    /** What the notice says. */
    this.told = "";
    this.root.append(this.head, this.meter, this.notice, this.list, this.more, this.live);
  }

  observe() {
    const hold = () => {
      this.held = true;
    };
    for (const kind of ["wheel", "pointerdown", "keydown", "touchstart"]) {
      this.list.addEventListener(kind, hold, { passive: true });
    }
    this.list.addEventListener("scroll", () => this.arrange(), { passive: true });
    this.list.addEventListener("keydown", (event) => this.steer(event));
    this.list.addEventListener("focusin", (event) => this.enter(event));
    // A notebook has keys of its own that need no modifier: `dd` deletes the cell.
    this.root.addEventListener("keydown", (event) => {
      if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation();
    });
    this.sight = new IntersectionObserver((entries) => {
      this.seen = entries[entries.length - 1].isIntersecting;
      this.wake();
    });
    this.sight.observe(this.root);
    this.size = new ResizeObserver(() => this.measure());
    this.size.observe(this.list);
    document.addEventListener("visibilitychange", this.wake);
    this.model.on("comm_live_update", this.check);
  }

  remove() {
    this.seen = false;
    this.run();
    cancelAnimationFrame(this.timers.frame);
    clearTimeout(this.timers.speech);
    clearTimeout(this.timers.heal);
    for (const fold of this.folds.values()) fold.remove();
    this.sight.disconnect();
    this.size.disconnect();
    document.removeEventListener("visibilitychange", this.wake);
    this.model.off("comm_live_update", this.check);
    this.feed.views.delete(this);
    this.root.remove();
  }

  // ---------------------------------------------------------------------------- when to draw

  /** @param {Row[]} news  Rows that have ended. */
  hear(news) {
    const { open } = this.feed.total;
    this.news.push(...news);
    if (news.length || (open === 0 && !this.over)) {
      this.timers.speech ||= setTimeout(() => this.speak(), PAUSE.speech);
    }
    if (open) this.over = false;
    this.later();
  }

  /** Draw before the next frame, once, however much happens until then. */
  later() {
    this.timers.frame ||= requestAnimationFrame(() => {
      this.timers.frame = 0;
      if (this.seen) this.draw();
    });
  }

  /** Come into sight, or go out of it. */
  wake() {
    this.run();
    if (this.seen) this.later();
  }

  /** Let the clocks run while somebody sees them and something goes on. */
  run() {
    const runs = this.seen && !document.hidden && this.feed.total.open > 0;
    if (runs) this.timers.tick ||= setInterval(() => this.tick(), TICK);
    else {
      clearInterval(this.timers.tick);
      this.timers.tick = 0;
    }
  }

  draw() {
    // First what must know where things are: after a change that takes the page a layout.
    this.select();
    this.follow();
    this.arrange();
    this.drawHead();
    this.drawNotice();
    this.run();
    if (this.feed.total.open === 0) this.wantPicture();
  }

  tick() {
    this.check();
    const now = this.feed.now();
    this.drawTime(now);
    for (const line of this.lines.values()) line.tick(now);
  }

  check() {
    this.feed.fallSilent(silence(this.feed, this.el));
  }

  /** A notebook that was away when all ended still holds the live panel: it wants the picture. */
  wantPicture() {
    const { feed } = this;
    if (this.timers.heal || feed.healing || !feed.total.n || !notebook(feed.model)) return;
    this.timers.heal = setTimeout(() => {
      this.timers.heal = 0;
      if (feed.total.open || feed.silence || feed.healing) return;
      feed.healing = true;
      feed.send({ kind: "picture" });
    }, GRACE);
  }

  // ---------------------------------------------------------------------------- all tasks

  drawHead() {
    const { n, open, counts } = this.feed.total;
    this.root.toggleAttribute("data-single", n < 2);
    this.root.toggleAttribute("data-silent", Boolean(this.feed.silence));
    set(this.count, `${count(n)} tasks`);
    for (const state of Object.keys(this.feed.words)) this.drawPart(state, counts[state] || 0);
    this.drawBell(open);
    this.all.hidden = open < 2 || Boolean(this.feed.silence);
    press(this.all, this.feed.pending("cancel", null), { ...DEEDS.cancel, rest: "Cancel all" }, "");
    for (const part of /** @type {Iterable<HTMLElement>} */ (this.bar.children)) {
      part.style.width = `${(100 * (counts[part.dataset.state] || 0)) / Math.max(1, n)}%`;
    }
    this.bar.setAttribute("aria-valuemax", String(n));
    this.bar.setAttribute("aria-valuenow", String(n - open));
    set(this.percent, open ? `${Math.floor((100 * (n - open)) / n)} %` : "");
    this.drawTime(this.feed.now());
  }

  /** Draw a count, which is also a filter. @param {string} state @param {number} number */
  drawPart(state, number) {
    const parts = /** @type {HTMLElement[]} */ ([...this.parts.children]);
    let part = parts.find((other) => other.dataset.state === state);
    if (!part) {
      if (!number) return;
      part = button("nbtasks-part", () => this.choose(state));
      part.append(icon(state), make("span"));
      part.dataset.state = state;
      const order = Object.keys(this.feed.words);
      const after = (/** @type {string} */ other) => order.indexOf(other) > order.indexOf(state);
      const next = parts.find((other) => after(other.dataset.state));
      this.parts.insertBefore(part, next || null);
    }
    const chosen = this.chosen.has(state);
    part.hidden = !number && !chosen;
    part.setAttribute("aria-pressed", String(chosen));
    const words = /** @type {HTMLElement} */ (part.lastElementChild);
    set(words, `${count(number)} ${this.feed.words[state][1]}`);
  }

  /** @param {string} state */
  choose(state) {
    if (!this.chosen.delete(state)) this.chosen.add(state);
    this.list.scrollTop = 0;
    this.later();
  }

  /** @param {number} open */
  drawBell(open) {
    const { permission, silence } = this.feed;
    this.bell.hidden = !permission || !open || Boolean(silence);
    const blocked = permission === "denied";
    const label = blocked ? "This browser blocks notifications" : "Notify me when it is over";
    this.bell.setAttribute("aria-pressed", String(this.feed.bell));
    this.bell.setAttribute("aria-disabled", String(blocked));
    this.bell.setAttribute("aria-label", label);
    this.bell.title = label;
  }

  /** @param {number} now */
  drawTime(now) {
    const { began, ended, open, rate } = this.feed.total;
    set(this.clock, began ? clock((ended || now) - began) : "");
    const goesOn = open > 0 && !this.feed.silence;
    const left = (this.feed.overAt || 0) - now;
    set(
      this.pace,
      goesOn ? join(rate ? speed(rate) : "", left > 0.5 ? `about ${span(left)} left` : "") : "",
    );
  }

  /** Say what cannot work just now, and what can be done from a terminal. */
  drawNotice() {
    const { text, line } = trouble(this.feed);
    this.notice.hidden = !text;
    if (this.told === text + line) return;
    this.told = text + line;
    this.notice.replaceChildren(make("span", "", {}, text), ...(line ? [commandLine(line)] : []));
    if (text) this.say(text);
  }

  /** Announce what ended; of many tasks only what went wrong, and that all is over. */
  speak() {
    const { n, open } = this.feed.total;
    this.timers.speech = 0;
    const news = this.news.filter((row) => n < 6 || row.state === "failed");
    this.news = [];
    const said = news.slice(0, 3).map((row) => `${row.name} ${this.feed.words[row.state][1]}`);
    if (news.length > 3) said.push(`${news.length - 3} more ${n < 6 ? "over" : "failed"}`);
    if (n > 1 && open === 0 && !this.over) said.push(`all ${n} tasks are over`);
    this.over = open === 0;
    if (said.length) this.say(said.join(", "));
  }

  /** @param {string} text */
  say(text) {
    this.live.replaceChildren(text);
  }

  // ---------------------------------------------------------------------------- the list

  /** Find out which rows are shown at all. */
  select() {
    const { rows, total } = this.feed;
    const all = this.feed.order();
    this.shown = this.chosen.size ? all.filter((i) => this.chosen.has(rows.get(i).state)) : all;
    for (const [i, fold] of this.folds) fold.look(rows.get(i));
    const hidden = total.n - rows.size;
    const none = this.chosen.size && !this.shown.length ? "None is in this state now." : "";
    set(this.more, none || (hidden > 0 ? `… and ${count(hidden)} more, counted above` : ""));
    this.more.hidden = !this.more.textContent;
    this.stretch();
  }

  /** Make room for all rows. */
  stretch() {
    this.tall = [...this.folds]
      .map(([i, fold]) => /** @type {[number, number]} */ ([this.shown.indexOf(i), fold.height]))
      .filter(([position]) => position >= 0);
    this.lane.style.height = `${this.top(this.shown.length)}px`;
  }

  /** Read from the style sheet how high a row is: in a narrow panel it has two lines. */
  measure() {
    this.height = Number(getComputedStyle(this.list).getPropertyValue("--nbt-row")) || 28;
    this.stretch();
    this.arrange();
  }

  /** Pixels above a row. @param {number} position */
  top(position) {
    let pixels = position * this.height;
    for (const [place, height] of this.tall) if (place < position) pixels += height;
    return pixels;
  }

  /** The position of the row at so many pixels. @param {number} pixels */
  at(pixels) {
    let [low, high] = [0, this.shown.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.top(middle + 1) <= pixels) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Keep what goes on in sight, a little below the upper edge. */
  follow() {
    if (this.held) return;
    const open = this.shown.findIndex((i) => !this.feed.rows.get(i).final);
    if (open >= 0) this.list.scrollTop = this.top(Math.max(0, open - 3));
  }

  /** Put the rows that are in sight, and only these, into the page. */
  arrange() {
    const focus = this.focus();
    const positions = this.positions(focus);
    const wanted = new Set(positions.map((position) => this.shown[position]));
    for (const [i, line] of this.lines) {
      if (wanted.has(i)) continue;
      line.root.remove();
      this.lines.delete(i);
    }
    if (!wanted.has(this.active)) this.active = this.shown[this.at(this.list.scrollTop)] ?? -1;
    const now = this.feed.now();
    let next = this.lane.firstChild;
    for (const position of positions) {
      const line = this.line(this.shown[position]);
      line.place(position, this.shown.length, this.top(position));
      line.draw(now);
      if (line.root === next) next = next.nextSibling;
      else this.lane.insertBefore(line.root, next);
    }
    this.keep(focus);
  }

  /** Positions of the rows in sight, and of the one that has the focus. */
  positions(/** @type {Element | null} */ focus) {
    const { scrollTop, clientHeight } = this.list;
    const first = Math.max(0, this.at(scrollTop) - SPARE);
    const end = Math.min(this.shown.length, this.at(scrollTop + clientHeight) + 1 + SPARE);
    const positions = Array.from({ length: end - first }, (_, k) => first + k);
    const active = focus ? this.shown.indexOf(this.active) : -1;
    if (active >= end) positions.push(active);
    else if (active >= 0 && active < first) positions.unshift(active);
    return positions;
  }

  /** @param {number} i @returns {Line} */
  line(i) {
    if (!this.lines.has(i)) this.lines.set(i, new Line(this, i));
    return this.lines.get(i);
  }

  /** @param {number} i */
  toggle(i) {
    const fold = this.folds.get(i);
    if (fold) fold.remove();
    if (fold) this.folds.delete(i);
    else this.folds.set(i, new Fold(this, i));
    this.root.toggleAttribute("data-open", this.folds.size > 0);
    this.stretch();
    this.arrange();
  }

  // ---------------------------------------------------------------------------- the keyboard

  /** The element of the list that has the focus; the panel may be in a shadow tree. */
  focus() {
    const root = /** @type {Document | ShadowRoot} */ (this.root.getRootNode());
    const focus = /** @type {HTMLElement | null} */ (root.activeElement);
    return focus && this.list.contains(focus) ? focus : null;
  }

  /** Give the focus back, or to the same row, when its element was moved or is gone. */
  keep(/** @type {HTMLElement | null} */ focus) {
    if (!focus || this.focus() === focus) return;
    const element = focus.isConnected ? focus : this.lines.get(this.active)?.button;
    element?.focus({ preventScroll: true });
  }

  /** @param {FocusEvent} event */
  enter(event) {
    const target = /** @type {Node} */ (event.target);
    const line = [...this.lines.values()].find((each) => each.root.contains(target));
    if (!line || line.i === this.active) return;
    this.active = line.i;
    for (const each of this.lines.values()) each.drawFocus();
  }

  /** @param {KeyboardEvent} event */
  steer(event) {
    const target = /** @type {Element} */ (event.target);
    if (!target.closest(".nbtasks-line") || event.ctrlKey || event.metaKey || event.altKey) return;
    const here = this.shown.indexOf(this.active);
    const last = this.shown.length - 1;
    const page = Math.max(1, Math.floor(this.list.clientHeight / this.height) - 1);
    const to = {
      ArrowDown: here + 1,
      ArrowUp: here - 1,
      PageDown: here + page,
      PageUp: here - page,
      Home: 0,
      End: last,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.go(Math.min(last, Math.max(0, to)));
  }

  /** @param {number} position */
  go(position) {
    const { list } = this;
    const [top, bottom] = [this.top(position), this.top(position) + this.height];
    if (top < list.scrollTop) list.scrollTop = top;
    else if (bottom > list.scrollTop + list.clientHeight) {
      list.scrollTop = bottom - list.clientHeight;
    }
    this.active = this.shown[position];
    this.arrange();
    this.lines.get(this.active).button.focus({ preventScroll: true });
  }
}

/** One task in sight. */
class Line {
  /** @param {View} view @param {number} i */
  constructor(view, i) {
    this.view = view;
    this.feed = view.feed;
    this.i = i;
    this.root = make("div", "nbtasks-row", { role: "listitem" });
    this.button = button("nbtasks-toggle", () => view.toggle(i));
    this.icon = icon("state");
    this.name = make("code", "nbtasks-name", { dir: "auto" });
    this.button.append(icon("fold"), this.icon, this.name);
    this.word = make("span", "nbtasks-word");
    this.time = make("span", "nbtasks-time");
    this.bar = bar("nbtasks-bar", "");
    this.bar.setAttribute("aria-valuemax", "100");
    this.fill = make("i");
    this.bar.append(this.fill);
    this.percent = make("span", "nbtasks-percent");
    this.text = make("span", "nbtasks-text", { dir: "auto" });
    this.aside = make("span", "nbtasks-aside", { dir: "auto" });
    const said = make("span", "nbtasks-said");
    said.append(this.bar, this.percent, this.text, this.aside);
    this.deeds = make("span", "nbtasks-deeds");
    /** @type {Map<Kind, HTMLButtonElement>} */
    this.buttons = new Map();
    const line = make("div", "nbtasks-line");
    line.append(this.button, this.word, this.time, said, this.deeds);
    this.root.append(line);
  }

  /** @param {number} position @param {number} size @param {number} top */
  place(position, size, top) {
    const depth = this.view.chosen.size ? 0 : this.feed.depths.get(this.i) || 0;
    this.root.style.transform = `translateY(${top}px)`;
    this.root.style.setProperty("--nbt-depth", String(Math.min(depth, 6)));
    this.root.toggleAttribute("data-child", depth > 0);
    this.root.setAttribute("aria-posinset", String(position + 1));
    this.root.setAttribute("aria-setsize", String(size));
    if (this.feed.depths.size) this.root.setAttribute("aria-level", String(depth + 1));
  }

  /** @param {number} now */
  draw(now) {
    const row = this.feed.rows.get(this.i);
    if (row !== this.row) this.drawRow(row);
    this.drawDeeds(row);
    this.drawFocus();
    const fold = this.view.folds.get(this.i);
    this.button.setAttribute("aria-expanded", String(Boolean(fold)));
    if (fold && !this.root.contains(fold.root)) this.root.append(fold.root);
    this.tick(now);
  }

  /** @param {Row} row */
  drawRow(row) {
    this.row = row;
    const title = `${row.name}${row.args}`;
    if (this.button.title !== title) {
      // Each in a frame of its own: letters that turn the direction must not reach the other.
      this.name.replaceChildren(make("bdi", "", {}, row.name), make("bdi", "", {}, row.args));
      this.button.title = title;
      this.bar.setAttribute("aria-label", `Progress of ${title}`);
    }
    this.root.dataset.state = row.state;
    this.icon.firstElementChild.setAttribute("d", ICONS[row.state] || ICONS.waiting);
    set(this.word, this.feed.words[row.state]?.[1] || row.state);
    const known = row.state === "running" && typeof row.fraction === "number";
    this.bar.hidden = !known;
    this.percent.hidden = !known;
    if (!known) return;
    this.fill.style.width = `${row.fraction * 100}%`;
    this.bar.setAttribute("aria-valuenow", String(Math.floor(row.fraction * 100)));
    set(this.percent, `${Math.floor(row.fraction * 100)} %`);
  }

  /** @param {Row} row */
  drawDeeds(row) {
    for (const kind of KINDS) {
      const deed = DEEDS[kind];
      let element = this.buttons.get(kind);
      if (!deed.applies(row) || this.feed.silence) {
        element?.remove();
        this.buttons.delete(kind);
        continue;
      }
      if (!element) {
        element = button(`nbtasks-${kind}`, () => this.feed.ask(kind, [this.i]));
        this.buttons.set(kind, element);
        // Cancel stays at the right, whatever comes and goes beside it.
        if (kind === "cancel") this.deeds.append(element);
        else this.deeds.prepend(element);
      }
      press(element, this.feed.pending(kind, this.i), deed, this.button.title);
    }
  }

  /** Only one row has stops for the tabulator key; the arrow keys lead to the others. */
  drawFocus() {
    const stop = this.view.active === this.i ? 0 : -1;
    for (const element of [this.button, ...this.buttons.values()]) element.tabIndex = stop;
  }

  /** @param {number} now */
  tick(now) {
    const [text, aside] = explain(this.row, this.feed, now);
    tell(this.text, text);
    tell(this.aside, aside);
    set(this.time, elapsed(this.row, now));
  }
}

/** What is below an open row: asked of the kernel, forgotten when it is folded in. */
class Fold {
  /** @param {View} view @param {number} i */
  constructor(view, i) {
    this.view = view;
    this.i = i;
    this.height = 0;
    this.timers = { ask: 0, late: 0 };
    this.waiting = false;
    this.answered = false;
    this.late = false;
    /** What each part shows: one that stays the same keeps its selection and its place. */
    this.known = new Map();
    this.build(view.feed.rows.get(i));
    this.size = new ResizeObserver(() => this.measure());
    this.size.observe(this.root);
    this.ask();
  }

  /** @param {Row} row */
  build(row) {
    this.root = make("div", "nbtasks-fold", {
      role: "group",
      "aria-label": `Details of ${row.name}${row.args}`,
    });
    this.note = make("div", "nbtasks-note");
    this.call = make("pre", "nbtasks-call", { dir: "auto" });
    this.traceback = section("Traceback", "pre");
    this.result = section("Result", "pre");
    this.output = section("Output", "pre");
    this.attempts = section("Attempts", "div");
    this.facts = make("dl", "nbtasks-facts");
    this.root.append(this.note, this.call, this.traceback, this.result, this.output);
    this.root.append(this.attempts, this.facts);
    this.call.hidden = true;
    this.drawFacts([["id", row.id]]);
  }

  remove() {
    clearTimeout(this.timers.ask);
    clearTimeout(this.timers.late);
    this.size.disconnect();
    this.root.remove();
  }

  ask() {
    this.timers.ask = 0;
    this.row = this.view.feed.rows.get(this.i);
    this.asked = performance.now();
    this.waiting = true;
    this.view.feed.send({ kind: "detail", i: this.i });
    this.timers.late = setTimeout(() => {
      this.late = true;
      this.drawNote();
    }, PATIENCE);
    this.drawNote();
  }

  /** Ask again, not too often, when the row is another one than that which was asked about. */
  look(/** @type {Row} */ row) {
    this.drawNote();
    if (row === this.row || this.waiting || this.timers.ask) return;
    const pause = PAUSE.detail - (performance.now() - this.asked);
    this.timers.ask = setTimeout(() => this.ask(), Math.max(0, pause));
  }

  /** @param {Detail} detail */
  take(detail) {
    clearTimeout(this.timers.late);
    this.waiting = false;
    this.late = false;
    this.answered = true;
    this.drawNote();
    this.call.hidden = !detail.call;
    set(this.call, detail.call || "");
    this.fill(this.traceback, detail.traceback, [detail.traceback]);
    this.fill(this.result, detail.result, [detail.result]);
    this.fill(this.output, detail.output, chunks(detail.output || []));
    this.fill(this.attempts, detail.attempts, timeline(detail.attempts || []));
    const others = (detail.facts || []).filter(([label]) => label !== "id");
    this.drawFacts([["id", this.row.id], ...others]);
    this.look(this.view.feed.rows.get(this.i));
  }

  /** @param {HTMLElement} part @param {any} value @param {(Node | string)[]} nodes */
  fill(part, value, nodes) {
    const key = JSON.stringify(value);
    if (this.known.get(part) === key) return;
    this.known.set(part, key);
    const body = part.lastElementChild;
    const atEnd = body.scrollHeight - body.scrollTop - body.clientHeight < 8;
    part.hidden = !value?.length;
    body.replaceChildren(...nodes);
    if (part === this.output && atEnd) body.scrollTop = body.scrollHeight;
  }

  /** @param {[string, string][]} facts */
  drawFacts(facts) {
    const key = JSON.stringify(facts);
    if (this.known.get(this.facts) === key) return;
    this.known.set(this.facts, key);
    const items = facts.map(([label, text]) => {
      const item = make("div");
      const value = make("dd", "", { dir: "auto" }, text);
      item.append(make("dt", "", {}, label), value);
      if (label === "id") value.append(copyButton("Copy id", text));
      return item;
    });
    this.facts.replaceChildren(...items);
  }

  drawNote() {
    const words = this.view.feed.silence
      ? "The kernel cannot be asked for more."
      : this.late
        ? "The kernel is busy; it answers as soon as the running cell lets it."
        : "Asking the kernel …";
    const needed = this.waiting && (this.late || !this.answered);
    this.note.hidden = !needed;
    set(this.note, needed ? words : "");
  }

  measure() {
    if (!this.root.isConnected) return;
    for (const body of this.root.querySelectorAll("pre")) {
      // What scrolls must be reachable by keyboard.
      if (body.scrollHeight > body.clientHeight + 1) body.tabIndex = 0;
      else body.removeAttribute("tabindex");
    }
    const height = this.root.offsetHeight;
    if (height === this.height) return;
    this.height = height;
    this.view.stretch();
    this.view.arrange();
  }
}

/** @param {string} title @param {string} kind @returns {HTMLElement} */
function section(title, kind) {
  const root = make("div", "nbtasks-section");
  const body = make(kind, "", { role: "group", "aria-label": title });
  root.append(make("div", "nbtasks-title", { "aria-hidden": "true" }, title), body);
  root.hidden = true;
  return root;
}

/** @param {[string, string][]} output */
function chunks(output) {
  return output.map(([stream, text], k) => {
    const chunk = make("span", "nbtasks-chunk", { "data-stream": stream }, text);
    if (stream !== "stdout" && output[k - 1]?.[0] !== stream) {
      chunk.prepend(make("b", "", {}, `${stream} `));
    }
    return chunk;
  });
}

/** One line an attempt; with several, bars on one axis of time. @param {Attempt[]} attempts */
function timeline(attempts) {
  const began = attempts.map((each) => each.began).filter(Boolean);
  const first = Math.min(...began);
  const last = Math.max(...began, ...attempts.map((each) => each.ended || 0));
  const length = Math.max(last - first, 0.001);
  /** @type {Record<string, string>} */
  const states = { retry: "retrying", lost: "failed" };
  return attempts.map((each) => {
    const item = make("div", "nbtasks-attempt", { "data-state": states[each.how] || each.how });
    const track = make("span", "nbtasks-track", { "aria-hidden": "true" });
    const mark = make("i");
    if (each.began) {
      mark.style.insetInlineStart = `${(100 * (each.began - first)) / length}%`;
      mark.style.width = `${(100 * ((each.ended || last) - each.began)) / length}%`;
      track.append(mark);
    }
    const took = each.began && each.ended ? duration(each.ended - each.began) : "";
    item.append(
      make("span", "nbtasks-count", {}, String(each.n)),
      make("span", "nbtasks-time", {}, each.began ? wall(each.began) : ""),
      track,
      make("span", "nbtasks-time", {}, took),
      make("span", "nbtasks-word", {}, each.how),
      make("span", "nbtasks-text", { dir: "auto" }, join(each.why, each.worker)),
    );
    return item;
  });
}

// ------------------------------------------------------------------------------------- words

/** What a row says beside its bar, and in small print after it. @returns {[string, string]} */
function explain(/** @type {Row} */ row, /** @type {Feed} */ feed, /** @type {number} */ now) {
  const expiry = row.expires ? `expires in ${clock(Math.ceil(row.expires - now))}` : "";
  switch (row.state) {
    case "running":
      return [row.text || "", join(attempt(row), feed.silence ? "" : outlook(row, now))];
    case "retrying":
      return [`${attempt(row) || "next attempt"} ${until(row, now)}`, row.error || ""];
    case "scheduled":
      return [`starts ${until(row, now)} (${wall(row.due || now)})`, expiry];
    case "waiting":
      return [row.why || line(row, feed), expiry];
    case "failed":
      return [row.error || "", join(row.where ? `(${row.where})` : "", after(row))];
    default:
      return [row.text || "", after(row)];
  }
}

/** Where it stands in the broker's line, and why that does not move. */
function line(/** @type {Row} */ row, /** @type {Feed} */ { queue, places }) {
  if (!queue) return "";
  const place = places.get(row.i);
  const { workers, busy } = queue;
  const all = workers === 1 ? "the only worker is busy" : `all ${workers} workers busy`;
  return join(
    place === 1 ? "next in the queue" : place ? `${ordinal(place)} in the queue` : "in the queue",
    workers ? busy >= workers ? all : "" : "no worker yet",
  );
}

/** @param {Row} row */
function attempt(row) {
  if (!row.attempt) return "";
  return `attempt ${row.attempt}${row.attempts ? ` of ${row.attempts}` : ""}`;
}

/** @param {Row} row */
function after(row) {
  return row.attempt ? `after ${row.attempt} attempts` : "";
}

/** @param {Row} row @param {number} now */
function until(row, now) {
  const seconds = (row.due || 0) - now;
  return seconds > 0 ? `in ${clock(Math.ceil(seconds))}` : "now";
}

/** @param {Row} row @param {number} now */
function outlook(row, now) {
  const seconds = (row.done_at || 0) - now;
  return join(row.rate ? speed(row.rate) : "", seconds > 0.5 ? `${span(seconds)} left` : "");
}

/** @param {Row} row @param {number} now */
function elapsed(row, now) {
  if (row.took !== undefined && row.took !== null) return duration(row.took);
  return row.state === "running" && row.began ? clock(now - row.began) : "";
}

/** What cannot work just now. @returns {{text: string, line: string}} */
function trouble(/** @type {Feed} */ feed) {
  const { silence: why, rows, total } = feed;
  if (why && !total.open) return { text: "", line: "" };
  if (why === "cut") {
    const since = `No connection to the kernel since ${wall(feed.stopped)}.`;
    return { text: `${since} The tasks go on; this catches up when it is back.`, line: "" };
  }
  if (why) {
    const open = [...rows.values()].filter((row) => !row.final).map((row) => row.i);
    const as = `this is how they stood at ${wall(feed.stopped)}`;
    const text = `The kernel is gone. The tasks go on without it: ${as}.`;
    return { text: `${text} To stop them, in a terminal:`, line: feed.line(open) };
  }
  const late = [...feed.asks.values()].filter((ask) => ask.late);
  if (!late.length) return { text: "", line: "" };
  const what = [...new Set(late.map((ask) => DEEDS[ask.kind].rest.toLowerCase()))].join(" and ");
  const text = `The kernel is busy: ${what} is queued until the running cell lets it through.`;
  const rowsToStop = late.filter((ask) => ask.kind === "cancel").flatMap((ask) => [...ask.rows]);
  if (!rowsToStop.length) return { text, line: "" };
  return { text: `${text} To stop at once, in a terminal:`, line: feed.line(rowsToStop) };
}

/** @param {Feed} feed @returns {string} 10 done, 2 failed */
function summary({ total, words }) {
  return Object.entries(total.counts)
    .map(([state, number]) => `${number} ${words[state][1]}`)
    .join(", ");
}

/** @param {string[]} parts */
function join(...parts) {
  return parts.filter(Boolean).join(" · ");
}

/** @param {number} seconds @returns {string} 0:07, 1:02:05 */
function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return `${hours ? `${hours}:${pad(minutes)}` : minutes}:${pad(whole % 60)}`;
}

/** @param {number} number */
function pad(number) {
  return String(number).padStart(2, "0");
}

/** @param {number} seconds @returns {string} 40 ms, 7.1 s, 1:15 */
function duration(seconds) {
  if (seconds < 0.0005) return "< 1 ms";
  if (seconds < 0.0995) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 59.95 ? `${seconds.toFixed(1)} s` : clock(seconds);
}

/** What is left of something, as roughly as it is known. @param {number} seconds */
function span(seconds) {
  if (seconds < 20) return `${Math.ceil(seconds)} s`;
  if (seconds < 60) return `${Math.ceil(seconds / 5) * 5} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129_600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} days`;
}

/** @param {number} rate @returns {string} 3.2/s, 40/s, 12/min */
function speed(rate) {
  if (rate >= 10) return `${count(Math.round(rate))}/s`;
  if (rate >= 0.95) return `${rate.toFixed(1)}/s`;
  return rate * 60 >= 0.95 ? `${Math.round(rate * 60)}/min` : `${(rate * 3600).toFixed(1)}/h`;
}

/** @param {number} time  Seconds since the epoch. @returns {string} 14:32:10, 24 Nov 14:32 */
function wall(time) {
  const date = new Date(time * 1000);
  const clockTime = `${pad(date.getHours())}:${pad(date.getMinutes())}`;
  if (date.toDateString() === new Date().toDateString()) {
    return `${clockTime}:${pad(date.getSeconds())}`;
  }
  return `${date.getDate()} ${date.toLocaleDateString("en", { month: "short" })} ${clockTime}`;
}

/** @param {number} number @returns {string} 10,000 */
function count(number) {
  return number.toLocaleString("en");
}

/** @param {number} number */
function ordinal(number) {
  const teen = number % 100 > 10 && number % 100 < 14;
  return `${number}${(!teen && { 1: "st", 2: "nd", 3: "rd" }[number % 10]) || "th"}`;
}

// ------------------------------------------------------------------------------------- small things

/** @param {string} tag @param {string} [name] @param {Record<string, string>} [attributes] */
function make(tag, name = "", attributes = {}, text = "") {
  const element = document.createElement(tag);
  if (name) element.className = name;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text) element.textContent = text;
  return element;
}

/** @param {string} name @param {() => void} act @returns {HTMLButtonElement} */
function button(name, act) {
  const element = /** @type {HTMLButtonElement} */ (make("button", name, { type: "button" }));
  element.addEventListener("click", () => {
    // Not really disabled: that would take the focus away.
    if (element.getAttribute("aria-disabled") !== "true") act();
  });
  return element;
}

/** Draw a button as pressed, as long as the kernel has not done what it asks for. */
function press(
  /** @type {HTMLElement} */ element,
  /** @type {Ask | undefined} */ ask,
  /** @type {{rest: string, pressed: string}} */ { rest, pressed },
  /** @type {string} */ whose,
) {
  const text = !ask ? rest : ask.late ? `${rest} queued` : pressed;
  set(element, text);
  element.setAttribute("aria-disabled", String(Boolean(ask)));
  if (whose) element.setAttribute("aria-label", `${text}: ${whose}`);
}

/** @param {string} name @param {string} label */
function bar(name, label) {
  return make("span", name, {
    role: "progressbar",
    "aria-label": label,
    "aria-valuemin": "0",
    "aria-valuenow": "0",
  });
}

/** @param {string} name */
function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", `nbtasks-icon nbtasks-${name}-mark`);
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", ICONS[name] || "");
  svg.append(path);
  return svg;
}

/** @param {string} line  Of a shell. */
function commandLine(line) {
  const root = make("span", "nbtasks-command");
  root.append(make("code", "", { title: line }, line), copyButton("Copy", line));
  return root;
}

/** @param {string} label @param {string} text */
function copyButton(label, text) {
  const element = button("nbtasks-copy", async () => {
    set(element, (await copy(text)) ? "Copied" : "Select it to copy");
    setTimeout(() => set(element, label), PATIENCE);
  });
  element.textContent = label;
  return element;
}

/** @param {string} text @returns {Promise<boolean>} */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // a page that came over plain http has no clipboard
  }
}

/** Set a text only when it is another one: the page is not laid out for nothing. */
function set(/** @type {HTMLElement} */ element, /** @type {string} */ text) {
  if (element.textContent !== text) element.textContent = text;
}

/** The same for a text that may be cut off. */
function tell(/** @type {HTMLElement} */ element, /** @type {string} */ text) {
  if (element.textContent === text) return;
  element.textContent = text;
  element.title = text;
}

// ------------------------------------------------------------------------------------- the notebook
//
// JupyterLab and Notebook 7 hand their widget manager over, and through it the notebook. Elsewhere
// there is none, and nothing below does anything.

/** The cells of the notebook. @param {any} model */
function notebook(model) {
  return model.widget_manager?.context?.model?.cells;
}

/** Why the kernel cannot be heard: "" (it can, as far as is known here), "cut" or "gone". */
function silence(/** @type {Feed} */ feed, /** @type {HTMLElement} */ el) {
  if (el.closest(".jupyter-widgets-disconnected")) return "gone";
  const session = feed.model.widget_manager?.context?.sessionContext;
  if (!session) return "";
  const kernel = session.session?.kernel;
  feed.kernel ??= kernel?.id;
  if (!kernel || kernel.status === "dead" || kernel.id !== feed.kernel) return "gone";
  return ["connecting", "disconnected"].includes(kernel.connectionStatus) ? "cut" : "";
}

/** Put the final picture where the notebook holds the live panel. @param {any} model */
async function heal(model, /** @type {{html: string, text: string}} */ picture) {
  const cells = notebook(model);
  for (let c = 0; c < (cells?.length || 0); c += 1) {
    const outputs = cells.get(c).outputs;
    for (let k = 0; k < (outputs?.length || 0); k += 1) {
      const output = outputs.get(k);
      if (!(await shows(output, model)) || outputs.get(k) !== output) continue;
      const data = { "text/html": picture.html, "text/plain": picture.text };
      outputs.set(k, { ...output.toJSON(), data });
    }
  }
}

/** Whether an output of the notebook holds a view of this very widget. */
async function shows(/** @type {any} */ output, /** @type {any} */ model) {
  const id = output.data?.[VIEW_MIME]?.model_id;
  if (!id) return false;
  try {
    // A widget does not know its own id here, but what it holds is held by nobody else.
    const other = await model.widget_manager.get_model(id);
    return other.get("snapshot") === model.get("snapshot");
  } catch {
    return false; // a widget of a kernel that is no more
  }
}

// One feed for each widget: anywidget calls this function once for each.
export default () => {
  const feed = new Feed();
  return {
    initialize: (/** @type {{ model: any }} */ { model }) => feed.listen(model),
    render: (/** @type {{ model: any, el: HTMLElement }} */ { model, el }) => {
      const view = new View(feed, model, el);
      return () => view.remove();
    },
  };
};
