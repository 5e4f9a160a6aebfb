// The panel under a cell: one plain ES module, no build step.
//
//   kernel ──snapshot trait──▶ Feed ──▶ View (one for each place where the widget is shown)
//          ──numbered rows───▶   │        │ tick: countdowns and clocks, without the kernel
//          ◀─cancel, snapshot────┴────────┘
//
// The feed listens in initialize(), before any view exists: what comes between the first message and
// the first view is not lost. Each message carries whole rows, so applying one twice does no harm;
// a gap in the numbers makes the feed ask for the snapshot. All text is set as text, never as HTML.

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
 * @property {string} [text]
 * @property {string} [error]
 * @property {number} [attempt]
 * @property {number | null} [attempts]
 *
 * @typedef {object} Total
 * @property {number} n
 * @property {number} open
 * @property {Record<string, number>} counts
 * @property {number} began
 * @property {number | null} ended
 *
 * @typedef {object} Message
 * @property {"rows" | "snapshot" | "heard"} kind
 * @property {number} seq
 * @property {number} now  The kernel's clock when it was sent.
 * @property {Row[]} rows
 * @property {Total} total
 * @property {Record<string, [string, string]>} [words]  State → symbol, word.
 */

/** Milliseconds between two looks at the clock. */
const TICK = 250;

/** Milliseconds after which an unanswered click is said to wait for the kernel. */
const PATIENCE = 1500;

/** Paths of the symbols, in a box of 16 by 16, drawn as lines. */
const ICONS = {
  running: "M8 2.5a5.5 5.5 0 1 1-5.5 5.5",
  retrying: "M13 8a5 5 0 1 1-1.6-3.7M13 2.2v3h-3",
  waiting: "M8 3a5 5 0 1 0 0 10a5 5 0 1 0 0-10",
  scheduled: "M8 2.8a5.2 5.2 0 1 0 0 10.4a5.2 5.2 0 1 0 0-10.4M8 5.2v3l2 1.4",
  done: "M3 8.6l3.2 3.2L13 4.8",
  failed: "M4 4l8 8M12 4l-8 8",
  expired: "M8 3a5 5 0 1 0 0 10a5 5 0 1 0 0-10M4.6 4.6l6.8 6.8",
  cancelled: "M8 3a5 5 0 1 0 0 10a5 5 0 1 0 0-10M4.6 4.6l6.8 6.8",
};

// ------------------------------------------------------------------------------------- the feed

class Feed {
  constructor() {
    /** @type {Map<number, Row>} */
    this.rows = new Map();
    /** @type {Total} */
    this.total = { n: 0, open: 0, counts: {}, began: 0, ended: null };
    /** @type {Record<string, [string, string]>} */
    this.words = {};
    this.seq = -1;
    /** Seconds by which this browser's clock is ahead of the kernel's. */
    this.ahead = Infinity;
    /** @type {Set<(changed: Row[], heard: boolean) => void>} */
    this.views = new Set();
  }

  /** @param {any} model */
  listen(model) {
    this.model = model;
    const heard = (/** @type {Message} */ message) => this.hear(message);
    model.on("msg:custom", heard);
    this.take(model.get("snapshot"));
    return () => model.off("msg:custom", heard);
  }

  /** @param {Message} message */
  hear(message) {
    if (message.kind === "heard") return this.show([], true);
    if (message.kind === "snapshot") return this.take(message);
    if (message.kind !== "rows" || message.seq <= this.seq) return undefined;
    if (message.seq !== this.seq + 1) this.model.send({ kind: "snapshot" });
    return this.take(message);
  }

  /** @param {Message} message */
  take(message) {
    if (!message || !message.rows) return;
    this.seq = Math.max(this.seq, message.seq);
    this.ahead = Math.min(this.ahead, Date.now() / 1000 - message.now);
    if (message.words) this.words = message.words;
    this.total = message.total;
    for (const row of message.rows) this.rows.set(row.i, row);
    this.show(message.rows, false);
  }

  /** @param {Row[]} changed @param {boolean} heard */
  show(changed, heard) {
    for (const view of this.views) view(changed, heard);
  }

  /** Seconds since the epoch on the kernel's clock. */
  now() {
    return Date.now() / 1000 - this.ahead;
  }

  /** @param {number[] | null} rows  null: all that are open. */
  cancel(rows) {
    this.model.send({ kind: "cancel", rows });
  }
}

// ------------------------------------------------------------------------------------- the view

class View {
  /** @param {Feed} feed @param {HTMLElement} el */
  constructor(feed, el) {
    this.feed = feed;
    /** @type {Map<number, Line>} */
    this.lines = new Map();
    this.spoken = 0;
    /** Whether the reader has taken the scrolling into his own hands. */
    this.held = false;
    this.root = make("section", "nbtasks-panel", { "aria-label": "Background tasks" });
    this.makeHead();
    this.list = make("div", "nbtasks-list", { role: "list", "aria-label": "Tasks" });
    for (const kind of ["wheel", "pointerdown", "keydown", "touchstart"]) {
      this.list.addEventListener(kind, () => { this.held = true; }, { passive: true });
    }
    this.more = make("div", "nbtasks-more");
    this.live = make("div", "nbtasks-live", { role: "status", "aria-live": "polite" });
    this.root.append(this.head, this.list, this.more, this.live);
    el.append(this.root);
    this.update = this.update.bind(this);
    feed.views.add(this.update);
    this.update([...feed.rows.values()], false);
    this.timer = setInterval(() => this.tick(), TICK);
  }

  makeHead() {
    this.head = make("div", "nbtasks-head");
    this.count = make("strong", "nbtasks-count");
    this.counts = make("span", "nbtasks-counts");
    this.clock = make("span", "nbtasks-time");
    this.all = button("nbtasks-cancel-all", "Cancel all", "Cancel all tasks that are not over");
    this.all.onclick = () => {
      wait(this.all);
      this.feed.cancel(null);
    };
    this.bar = make("div", "nbtasks-total", {
      role: "progressbar",
      "aria-label": "Tasks that are over",
      "aria-valuemin": "0",
    });
    this.head.append(this.count, this.counts, this.clock, this.all, this.bar);
  }

  remove() {
    clearInterval(this.timer);
    this.feed.views.delete(this.update);
  }

  /** @param {Row[]} changed @param {boolean} heard */
  update(changed, heard) {
    if (heard) return this.acknowledge();
    for (const row of [...changed].sort((a, b) => a.i - b.i)) this.line(row).draw(row);
    this.drawTotal();
    this.tick();
    this.follow();
    this.announce(changed);
    return undefined;
  }

  /** @param {Row} row @returns {Line} */
  line(row) {
    let line = this.lines.get(row.i);
    if (!line) {
      line = new Line(this.feed);
      this.lines.set(row.i, line);
      // Rows may come out of order; each stands before the next one that is there.
      const after = [...this.lines.keys()].filter((i) => i > row.i).sort((a, b) => a - b)[0];
      this.list.insertBefore(line.root, after === undefined ? null : this.lines.get(after).root);
    }
    return line;
  }

  /** Keep what goes on in sight: scroll to the first task that is not over. */
  follow() {
    if (this.held || this.list.scrollHeight <= this.list.clientHeight) return;
    const open = [...this.lines.values()].find((line) => !line.row.final);
    if (!open) return;
    const above = open.root.getBoundingClientRect().top - this.list.getBoundingClientRect().top;
    this.list.scrollTop += above - 3 * open.root.offsetHeight;
  }

  drawTotal() {
    const { n, open, counts } = this.feed.total;
    const { words } = this.feed;
    this.head.hidden = n < 2;
    set(this.count, `${n} tasks`);
    this.counts.replaceChildren(
      ...Object.entries(counts).map(([state, number]) => {
        const part = make("span", "nbtasks-part", { "data-state": state });
        part.textContent = `${number} ${words[state][1]}`;
        return part;
      }),
    );
    this.bar.replaceChildren(
      ...["done", "failed", "expired", "cancelled", "running"].map((state) => {
        const part = make("span", "", { "data-state": state });
        part.style.width = `${(100 * (counts[state] || 0)) / n}%`;
        return part;
      }),
    );
    this.bar.setAttribute("aria-valuemax", String(n));
    this.bar.setAttribute("aria-valuenow", String(n - open));
    this.all.hidden = open < 2;
    const hidden = n - this.lines.size;
    this.more.hidden = hidden <= 0;
    set(this.more, `… and ${hidden} more, counted above`);
    // A list that scrolls must be reachable by keyboard.
    if (this.lines.size > 12) this.list.tabIndex = 0;
  }

  /** Say aloud what ended; of many only what went wrong, and that all is over. */
  announce(/** @type {Row[]} */ changed) {
    const { n, open } = this.feed.total;
    const news = changed.filter((row) => row.final && (n < 6 || row.state === "failed"));
    const said = news.slice(0, 3).map((row) => `${row.name} ${this.feed.words[row.state][1]}`);
    if (n > 1 && open === 0 && this.spoken !== n) said.push(`all ${n} tasks are over`);
    this.spoken = open === 0 ? n : 0;
    if (said.length) this.live.textContent = said.join(", ");
  }

  acknowledge() {
    for (const line of this.lines.values()) line.acknowledge();
    if (this.all.dataset.asked) this.all.textContent = "Cancelling";
  }

  tick() {
    const now = this.feed.now();
    const { began, ended } = this.feed.total;
    set(this.clock, began ? clock((ended || now) - began) : "");
    for (const line of this.lines.values()) line.tick(now);
  }
}

/** One task. */
class Line {
  /** @param {Feed} feed */
  constructor(feed) {
    this.feed = feed;
    /** @type {Row} */
    this.row = null;
    this.root = make("div", "nbtasks-row", { role: "listitem" });
    this.icon = icon();
    this.name = make("code", "nbtasks-name");
    this.word = make("span", "nbtasks-word");
    this.said = make("span", "nbtasks-said");
    this.bar = make("span", "nbtasks-bar", {
      role: "progressbar",
      "aria-valuemin": "0",
      "aria-valuemax": "100",
    });
    this.fill = make("span", "nbtasks-fill");
    this.bar.append(this.fill);
    this.percent = make("span", "nbtasks-percent");
    this.text = make("span", "nbtasks-text");
    this.side = make("span", "nbtasks-aside");
    this.said.append(this.bar, this.percent, this.text, this.side);
    this.time = make("span", "nbtasks-time");
    this.cancel = button("nbtasks-cancel", "Cancel", "");
    this.cancel.onclick = () => this.ask();
    this.root.append(this.icon, this.name, this.word, this.time, this.said, this.cancel);
  }

  /** @param {Row} row */
  draw(row) {
    const before = this.row;
    this.row = row;
    if (!before || before.state !== row.state) this.drawState(row);
    const title = `${row.name}${row.args}`;
    if (!before) {
      this.name.append(row.name, Object.assign(make("span", ""), { textContent: row.args }));
      this.name.title = title;
      this.bar.setAttribute("aria-label", `Progress of ${title}`);
      this.cancel.setAttribute("aria-label", `Cancel ${title}`);
    }
    this.drawBar(row);
    const text = row.state === "failed" ? row.error : row.text;
    set(this.text, text || "");
    this.text.title = text || "";
    this.cancel.hidden = row.final;
  }

  /** @param {Row} row */
  drawState(row) {
    this.root.dataset.state = row.state;
    this.icon.firstElementChild.setAttribute("d", ICONS[row.state] || ICONS.waiting);
    set(this.word, this.feed.words[row.state][1]);
  }

  /** @param {Row} row */
  drawBar(row) {
    const known = row.state === "running" && row.fraction !== null && row.fraction !== undefined;
    this.bar.hidden = !known;
    this.percent.hidden = !known;
    if (!known) return;
    const percent = Math.floor(row.fraction * 100);
    this.fill.style.width = `${row.fraction * 100}%`;
    this.bar.setAttribute("aria-valuenow", String(percent));
    set(this.percent, `${percent} %`);
  }

  /** @param {number} now */
  tick(now) {
    const row = this.row;
    if (row.state === "retrying" || row.state === "scheduled") {
      set(this.text, `${this.what(row)} ${this.when(row, now)}`);
    }
    set(this.side, this.aside(row, now));
    set(this.time, this.elapsed(row, now));
  }

  /** @param {Row} row */
  what(row) {
    return row.state === "scheduled" ? "starts" : attempt(row);
  }

  /** @param {Row} row @param {number} now */
  when(row, now) {
    const left = (row.due || 0) - now;
    return left > 0 ? `in ${clock(Math.ceil(left))}` : "due now";
  }

  /** Small print after the text. */
  aside(/** @type {Row} */ row, /** @type {number} */ now) {
    if (row.state === "retrying") return row.error || "";
    if (row.state === "running" || row.final) return attempt(row);
    if (row.expires) return `expires in ${clock(Math.max(0, row.expires - now))}`;
    return "";
  }

  /** @param {Row} row @param {number} now */
  elapsed(row, now) {
    if (row.took !== undefined && row.took !== null) return duration(row.took);
    return row.state === "running" && row.began ? clock(now - row.began) : "";
  }

  ask() {
    wait(this.cancel);
    this.feed.cancel([this.row.i]);
  }

  acknowledge() {
    if (this.cancel.dataset.asked) this.cancel.textContent = "Cancelling";
  }
}

// ------------------------------------------------------------------------------------- small things

/** @param {Row} row */
function attempt(row) {
  if (!row.attempt) return "";
  return `attempt ${row.attempt}${row.attempts ? ` of ${row.attempts}` : ""}`;
}

/** Show that a click was taken, and say so when the kernel is too busy to hear it. */
function wait(/** @type {HTMLButtonElement} */ element) {
  element.disabled = true;
  element.dataset.asked = "yes";
  element.textContent = "Cancelling";
  setTimeout(() => {
    if (!element.isConnected || element.hidden) return;
    element.textContent = "Cancel queued";
    element.title = "The kernel is busy; it hears of this click when the running cell lets it.";
  }, PATIENCE);
}

/** @param {string} tag @param {string} name @param {Record<string, string>} [attributes] */
function make(tag, name, attributes = {}) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** @param {string} name @param {string} text @param {string} label @returns {HTMLButtonElement} */
function button(name, text, label) {
  const element = /** @type {HTMLButtonElement} */ (make("button", name, { type: "button" }));
  element.textContent = text;
  if (label) element.setAttribute("aria-label", label);
  return element;
}

function icon() {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", "nbtasks-icon");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(space, "path"));
  return svg;
}

/** Set a text only when it is another one: the page is not laid out for nothing. */
function set(/** @type {HTMLElement} */ element, /** @type {string} */ text) {
  if (element.textContent !== text) element.textContent = text;
}

/** @param {number} seconds @returns {string} 0:07, 1:02:05 */
function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const pad = (/** @type {number} */ number) => String(number).padStart(2, "0");
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return hours ? `${hours}:${pad(minutes)}:${pad(rest)}` : `${minutes}:${pad(rest)}`;
}

/** @param {number} seconds @returns {string} 40 ms, 7.1 s, 1:15 */
function duration(seconds) {
  if (seconds < 0.0005) return "< 1 ms";
  if (seconds < 0.0995) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 59.95 ? `${seconds.toFixed(1)} s` : clock(seconds);
}

// One feed for each widget: anywidget calls this function once for each.
export default () => {
  const feed = new Feed();
  return {
    initialize: (/** @type {{ model: any }} */ { model }) => feed.listen(model),
    render: (/** @type {{ el: HTMLElement }} */ { el }) => {
      const view = new View(feed, el);
      return () => view.remove();
    },
  };
};
