// The page: takes what the engine tells, and shows it.

import { Chat } from "./chat.js";
import { compare } from "./depth.js";
import { CloseUp, Overview, palette, STAGES } from "./lanes.js";
import { Plot, rates, totals } from "./plots.js";
import { Records, WINDOW } from "./records.js";
import { Source } from "./source.js";

const LAG = 250; // milliseconds that the picture is behind: news come every tenth of a second, and may be late
const FRAME = 33; // milliseconds between two pictures …
const CALM_FRAME = 1000; // … and where people want less motion
const WORDS_EVERY = 1000; // milliseconds between two values of what is read
const KEY = "twodeep.key"; // in the storage of this tab

const $ = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");
let wantsKey = document.documentElement.dataset.key === "wanted";

const records = new Records();
const overview = new Overview($("overview"));
const closeUp = new CloseUp($("close"));
const plots = {
  rate: new Plot($("rate-plot"), "device"),
  first: new Plot($("first-plot"), "scheduler"),
  held: new Plot($("held-plot"), "worker"),
  running: new Plot($("running-plot"), "device", "idle"),
};
let colours = palette();
let about = null;
let counts = null;
let clock = null; // the engine's clock minus this page's, milliseconds
let heldAt = null; // where the picture stands still
let close = []; // steps of the closer look: [[step, laid out]]
let drawnAt = 0;
let wordsAt = 0;
let missed = 0;

function key() {
  if (!wantsKey) return "";
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null; // a browser that keeps nothing
  }
}

const chat = new Chat(
  { log: $("log"), form: $("say"), input: $("input"), send: $("send"), stop: $("stop"), clear: $("clear"), empty: $("empty") },
  key,
);

const source = new Source(
  {
    engine(news) {
      about = news;
      counts = clock = null;
      missed = 0;
      records.begin(news.columns);
      chat.begin(news);
      document.title = `${news.model} · twodeep`;
      const workers = `${news.workers} worker${news.workers === 1 ? "" : "s"}`;
      $("about").textContent = `${news.model} on ${news.device}, ${workers}, depth ${news.queue_depth}`;
      $("real-name").textContent = news.queue_depth === 1 ? "As it runs" : `Depth ${news.queue_depth}`;
      $("version").textContent = `twodeep ${news.version}, context ${news.max_model_len.toLocaleString("en")} tokens`;
    },
    tick(news) {
      const difference = news.now / 1000 - performance.now();
      // The least delayed event tells best; a clock that drifts is followed slowly.
      clock = clock === null ? difference : Math.max(difference, clock - 0.1);
      if (news.steps) records.add(news.steps, news.now);
      if (news.missed) missed = performance.now();
      if (news.counts) count(news.counts);
      status(news.status, news.workers);
    },
    state: connection,
  },
  key,
);

function connection(name, text) {
  const wanted = name === "key";
  wantsKey ||= wanted;
  $("key-form").hidden = !wanted;
  $("main").hidden = wanted;
  $("forget").hidden = wanted || !wantsKey;
  if (wanted) {
    $("key-fault").textContent = text;
    notice("");
    show("key", "locked");
    $("key").focus();
  } else if (name === "connecting") {
    if ($("state").dataset.state !== "away") show("connecting", "connecting");
  } else if (name === "paused") {
    show("paused", "paused");
  } else {
    show("away", name === "full" ? "too many pages" : "not connected");
    notice(`${text[0].toUpperCase()}${text.slice(1)}. This page tries again by itself.`);
  }
}

function status(name, workers) {
  const words = {
    ok: ["serving", ""],
    degraded: [`serving with ${workers} of ${about.workers} workers`, ""],
    recovering: ["no worker", "No worker is alive. Requests wait until one is back, and this page goes on then."],
    stalled: ["the scheduler is silent", "The scheduler does not answer. Requests wait, and this page goes on when it is back."],
    draining: ["shutting down", "The engine is shutting down: it finishes what runs, and takes nothing new."],
  };
  const [text, remark] = words[name] ?? [name, ""];
  show(name, text);
  notice(remark);
}

function show(name, text) {
  if ($("state").dataset.state === name && $("state-text").textContent === text) return;
  $("state").dataset.state = name;
  $("state-text").textContent = text;
}

function notice(text) {
  if ($("notice").textContent !== text) $("notice").textContent = text;
  $("notice").hidden = !text;
}

const number = (value) => Math.round(value).toLocaleString("en");
const seconds = (value) => (value < 1 ? `${number(1000 * value)} ms` : `${value.toFixed(2)} s`);
const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(1)} %`);

function count(news) {
  const { running, waiting, blocks, held } = totals(news);
  const change = counts === null ? null : rates(counts, news);
  counts = news;
  plots.held.add(blocks ? held / blocks : null);
  plots.running.add(running, waiting);
  $("held").textContent = blocks ? `${number((100 * held) / blocks)} %` : "–";
  $("held-more").textContent = blocks ? `${number(held)} of ${number(blocks)}` : "no worker";
  $("running").textContent = `${number(running)} run`;
  $("running-more").textContent = `${number(waiting)} wait`;
  if (change === null) return;
  plots.rate.add(change.generated);
  plots.first.add(change.firstToken);
  $("rate").textContent = number(change.generated);
  $("rate-more").textContent = `and ${number(change.prefilled)} of prompts`;
  if (change.firstToken !== null) $("first").textContent = seconds(change.firstToken);
  $("first-more").textContent = change.firstToken === null ? (news.first_tokens ? "none in this second" : "") : "mean of this second";
  drawPlots();
}

function drawPlots() {
  plots.rate.draw(colours);
  plots.first.draw(colours);
  plots.held.draw(colours, 1);
  plots.running.draw(colours, 1);
}

const single = () => document.querySelector("input[name=depth]:checked").value === "single";

function worker() {
  const there = records.workers;
  const pick = $("worker");
  if (pick.options.length !== there.length) {
    const chosen = pick.value;
    pick.replaceChildren(...there.map((index) => new Option(`${index}`, `${index}`)));
    if (there.includes(Number(chosen))) pick.value = chosen;
    $("pick").hidden = there.length < 2;
  }
  return there.length ? Number(pick.value) : 0;
}

function picture(stamp) {
  requestAnimationFrame(picture);
  if (clock === null || document.hidden || stamp - drawnAt < (calm.matches ? CALM_FRAME : FRAME)) return;
  drawnAt = stamp;
  draw(stamp);
}

function draw(stamp) {
  const time = heldAt ?? performance.now() + clock - LAG;
  overview.draw(records, worker(), time, single(), colours);
  if (stamp - wordsAt < WORDS_EVERY) return;
  wordsAt = stamp;
  say(time);
}

/** What is read, and the closer look: once a second, so that it can be read. */
function say(time) {
  const now = worker();
  const shares = compare(records.workers.map((index) => records.of(index)), time - WINDOW, time);
  $("real").textContent = percent(shares.real);
  $("single").textContent = percent(shares.single);
  const pairs = records.of(now);
  const until = pairs.findLastIndex(([step]) => step.answered <= time) + 1;
  const recent = pairs.slice(Math.max(0, until - closeUp.room), until);
  if (recent.length) close = recent;
  drawClose();
  const steps = pairs.filter(([step]) => step.answered > time - WINDOW && step.answered <= time).map(([step]) => step);
  stages(steps);
  const rows = steps.reduce((sum, step) => sum + step.decodes, 0);
  const remarks = [];
  if (shares.real === null) remarks.push("Nothing ran in the last two seconds.");
  else if (steps.length) remarks.push(`${number(steps.length)} steps, ${number(rows / steps.length)} rows decode in each.`);
  if (performance.now() - missed < WINDOW && missed) remarks.push("More steps than this page is told of: the latest of each moment are shown.");
  $("remark").textContent = remarks.join(" ");
}

function drawClose() {
  const shown = close.map(([step, laid]) => (single() ? laid : step));
  closeUp.draw(shown, worker(), records.workers.length > 1, colours);
}

function stages(steps) {
  const mean = { scheduler: 0, pipe: 0, worker: 0, device: 0 };
  for (const step of steps) for (const [lane, from, to] of STAGES) mean[lane] += Math.max(0, step[to] - step[from]);
  const parts = Object.entries(mean).map(([lane, sum]) => {
    const part = document.createElement("span");
    part.className = lane;
    part.textContent = steps.length ? `${lane} ${(sum / steps.length).toFixed(2)} ms` : lane;
    return part;
  });
  const idle = document.createElement("span");
  idle.className = "idle";
  idle.textContent = "device waits";
  $("stages").replaceChildren(...parts, idle);
}

function redraw() {
  colours = palette();
  wordsAt = 0;
  if (clock !== null) draw(performance.now());
  drawPlots();
}

for (const choice of document.querySelectorAll("input[name=depth]")) {
  choice.addEventListener("change", () => {
    $("real-share").classList.toggle("shown", !single());
    $("single-share").classList.toggle("shown", single());
    redraw();
  });
}
$("real-share").classList.add("shown");
$("worker").addEventListener("change", redraw);
$("hold").addEventListener("click", () => {
  if (clock === null) return;
  heldAt = heldAt === null ? performance.now() + clock - LAG : null;
  $("hold").setAttribute("aria-pressed", String(heldAt !== null));
  $("hold").textContent = heldAt === null ? "Hold" : "Go on";
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("key").value = "";
  source.start();
});
$("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  location.reload();
});
dark.addEventListener("change", redraw);
window.addEventListener("resize", redraw);
requestAnimationFrame(picture);
source.start();
