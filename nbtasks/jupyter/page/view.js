// One place where the widget is shown.

class View {
  /** @param {Feed} feed @param {HTMLElement} el */
  constructor(feed, el) {
    this.feed = feed;
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
    this.build();
    el.classList.add("nbtasks-host");
    el.append(this.root);
    feed.views.add(this);
    this.check();
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
    const hidden = total.n > rows.size ? this.counted() - this.shown.length : 0;
    const none = this.chosen.size && !this.shown.length ? "None is in this state now." : "";
    set(this.more, hidden > 0 ? `… and ${count(hidden)} more, counted above` : none);
    this.more.hidden = !this.more.textContent;
    this.stretch();
  }

  /** How many tasks would be shown, had all of them been sent. */
  counted() {
    const { n, counts } = this.feed.total;
    if (!this.chosen.size) return n;
    return [...this.chosen].reduce((sum, state) => sum + (counts[state] || 0), 0);
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
