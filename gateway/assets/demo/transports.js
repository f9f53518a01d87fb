// The page that follows one room over five transports at once. This file publishes, starts and stops; transports-five.js has
// the transports, transports-meter.js counts, transports-view.js draws.

import { $, copy, token } from "./demo.js";
import { httpStream, longPolling, serverSentEvents, shortPolling, webSocket } from "./transports-five.js";
import { Meter } from "./transports-meter.js";
import { build, draw } from "./transports-view.js";

const page = token();
const room = new URLSearchParams(location.search).get("room") ?? `transports:${page}`;
const protocol = performance.getEntriesByType("navigation")[0]?.nextHopProtocol || "http/1.1";
const path = encodeURIComponent(room);
const failed = new Set(); // numbers of messages that were not published, as far as this page knows
const columns = [
  { key: "ws", name: "WebSocket", how: "One connection, both ways. A message is one frame.", follow: webSocket },
  { key: "sse", name: "Server-sent events", how: "One answer without an end. The browser reconnects by itself.", follow: serverSentEvents },
  { key: "stream", name: "HTTP streaming", how: "One answer without an end, a line of JSON for each message.", follow: httpStream },
  { key: "long", name: "Long polling", how: "Each answer waits for a message. Then the page asks again.", follow: longPolling },
  { key: "short", name: "Short polling", how: "The page asks from time to time. Messages wait until it asks.", follow: shortPolling },
].map((column) => ({ ...column, meter: new Meter(column.key, page, failed) }));

// Publishing

const moments = []; // when the last messages were published, for the picture
let published = 0; // since the page was opened: the number of the last message
let before = 0; // how many of them came before "count anew"
let began = performance.now();
let waiting = 0;
let turn = Promise.resolve(); // one at a time: two POSTs could overtake each other

function publish() {
  if (waiting > 5) return; // the gateway does not answer
  waiting += 1;
  turn = turn.then(post).then((trouble) => {
    waiting -= 1;
    if (trouble) failed.add(published);
    $("trouble").textContent = trouble && `A message could not be published: ${trouble}`;
    $("trouble").hidden = !trouble;
  });
}

/** Publishes one message. Returns what went wrong, or "". */
async function post() {
  const at = performance.now();
  moments.push(at);
  if (moments.length > 200) moments.shift();
  published += 1;
  const body = JSON.stringify({ page, n: published, at, text: "The quick brown fox jumps over the lazy dog." });
  try {
    const answer = await fetch(`/v1/rooms/${path}`, { method: "POST", headers: { "Content-Type": "application/json" }, body });
    return answer.ok ? "" : (await answer.json()).detail;
  } catch {
    return "no connection to the gateway";
  }
}

let clock;
function pace() {
  clearInterval(clock);
  const every = Number($("rate").value);
  if (every && !document.hidden) clock = setInterval(publish, every);
}

// Following

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

async function keep({ follow, meter }, signal) {
  while (!signal.aborted) {
    await follow(path, meter, signal).catch(() => {}); // its badge shows that it is not open
    meter.ended();
    if (!signal.aborted) await sleep(1000 + 1000 * Math.random());
  }
}

let stops = [];
async function start() {
  stops = columns.map((column) => {
    const stop = new AbortController();
    column.meter.began = performance.now();
    keep(column, stop.signal);
    return stop;
  });
  // The first message is published once all of them follow the room, or after 3 s: otherwise some would miss it.
  for (let tries = 60; tries && !columns.every(({ meter }) => meter.open || meter.cursor); tries -= 1) await sleep(50);
  pace();
}

function showOrHide() {
  for (const stop of stops.splice(0)) stop.abort();
  clearInterval(clock);
  if (!document.hidden) start();
}

// The page

/** The figures on the page, as JSON. */
window.figures = () => JSON.stringify({
  room,
  seconds: Number(((performance.now() - began) / 1000).toFixed(1)),
  published: published - before,
  protocol,
  transports: Object.fromEntries(columns.map(({ name, meter }) => [name, meter.figures()])),
}, null, 2);

$("room").textContent = room;
$("h2").hidden = /^http\/1/.test(protocol);
$("rate").onchange = pace;
$("one").onclick = publish;
$("clear").onclick = () => {
  for (const { meter } of columns) meter.clear();
  before = published;
  began = performance.now();
  $("said").textContent = "Counting from now on.";
};
$("copy").onclick = async () => {
  $("said").textContent = (await copy(window.figures())) ? "The figures are on the clipboard." : "";
};
document.addEventListener("visibilitychange", showOrHide);

build(columns);
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
setInterval(() => document.hidden || draw(columns, moments), calm ? 1000 : 200);
showOrHide();
