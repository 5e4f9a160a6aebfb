// How things are said: the same words as in nbtasks/jupyter/rows.py.

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
    const again = "To follow them again, run %load_ext nbtasks and %nbtasks attach.";
    const them = some(open, total.open, "them");
    return { text: `${text} ${again} To stop ${them}, in a terminal:`, line: feed.line(open) };
  }
  const late = [...feed.asks.values()].filter((ask) => ask.late);
  if (!late.length) return { text: "", line: "" };
  const what = [...new Set(late.map((ask) => DEEDS[ask.kind].rest.toLowerCase()))].join(" and ");
  const text = `The kernel is busy: ${what} is queued until the running cell lets it through.`;
  const rowsToStop = late.filter((ask) => ask.kind === "cancel").flatMap((ask) => [...ask.rows]);
  if (!rowsToStop.length) return { text, line: "" };
  const stop = ["To stop", some(rowsToStop, rowsToStop.length, ""), "at once, in a terminal:"];
  return { text: `${text} ${stop.filter(Boolean).join(" ")}`, line: feed.line(rowsToStop) };
}

/** Say how many of all the line for a terminal is for. @param {number[]} rows */
function some(rows, /** @type {number} */ all, /** @type {string} */ them) {
  const named = Math.min(rows.length, MOST_IDS);
  return named < all ? `${count(named)} of the ${count(all)}` : them;
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

/** @param {number} seconds @returns {string} 0:07, 1:02:05, 4 d 15 h */
function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  if (hours >= 48) return `${Math.floor(hours / 24)} d ${hours % 24} h`;
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
  return seconds < 59.95 ? `${seconds.toFixed(1)} s` : clock(Math.round(seconds));
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

/** @param {number} time  Seconds since the epoch. @returns {string} 14:32:10, 24 Nov [2027] 14:32 */
function wall(time) {
  const [date, today] = [new Date(time * 1000), new Date()];
  const clockTime = `${pad(date.getHours())}:${pad(date.getMinutes())}`;
  if (date.toDateString() === today.toDateString()) {
    return `${clockTime}:${pad(date.getSeconds())}`;
  }
  const year = date.getFullYear() === today.getFullYear() ? "" : ` ${date.getFullYear()}`;
  return `${date.getDate()} ${date.toLocaleDateString("en", { month: "short" })}${year} ${clockTime}`;
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
