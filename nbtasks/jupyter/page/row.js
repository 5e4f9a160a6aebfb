// One task in sight, and what is below it when it is open.

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

  /** Whether the call is longer than its place. */
  get isCut() {
    return this.name.scrollWidth > this.name.clientWidth;
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
    // In full, where the row has cut it off.
    const cut = this.view.lines.get(this.i)?.isCut ?? true;
    this.call.hidden = !detail.call || (!cut && detail.call === `${this.row.name}${this.row.args}`);
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
  const length = Math.max(last - first, 0.00001);
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
