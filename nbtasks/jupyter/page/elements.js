// Elements, and little that is done with them.

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
