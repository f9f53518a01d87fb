// The ticker page: a room for each symbol, all of them over one stream of server-sent events. It can also publish the prices,
// which is the back end's part in a real application.

import { connect } from "/client.js";
import { $, el, svg } from "./demo.js";

// Symbol, company, yesterday's close.
const SYMBOLS = [
  ["ACME", "Acme Anvils", 182.4], ["BRSS", "Brass & Reed", 54.15], ["CIRR", "Cirrus Cloudworks", 311.7], ["DUNE", "Dune Glass", 23.86],
  ["ECHO", "Echo Valley Audio", 97.3], ["FJRD", "Fjord Tidal Power", 141.05], ["GLIM", "Glimmer Optics", 12.48], ["HARE", "Hare Express", 68.9],
];
const KEPT = 60;
const EVERY_MS = 160; // from one price to the next: about six publishes a second, far below the default limit of 50

const time = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const money = (value) => value.toFixed(2);
const calm = matchMedia("(prefers-reduced-motion: reduce)");

// The table

const stocks = SYMBOLS.map(([symbol, company, close]) => {
  const cells = {
    price: el("td", { className: "number price" }, "–"),
    change: el("td", { className: "number change" }, "–"),
    line: svg("path"), area: svg("path", { class: "area" }), zero: svg("line", { x1: 0, x2: 100, visibility: "hidden" }),
    at: el("td", { className: "number time" }, "–"),
  };
  cells.spark = svg("svg", { class: "spark", viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" }, cells.zero, cells.area, cells.line);
  $("rows").append(el("tr", {}, el("th", { scope: "row" }, symbol, el("small", {}, company)),
    cells.price, cells.change, el("td", { className: "wide" }, cells.spark), cells.at));
  return { symbol, close, room: `ticker:${symbol}`, prices: [], cells };
});

function show({ prices, close, cells }, ts) {
  const price = prices.at(-1);
  const before = prices.at(-2) ?? price;
  const change = price - close;
  const flat = Math.abs(change) < 0.005;
  const way = flat ? "" : change < 0 ? "down" : "up";
  const sign = flat ? "" : change < 0 ? "−" : "+";
  cells.price.textContent = money(price);
  cells.change.className = `number change ${way}`;
  cells.change.replaceChildren(`${flat ? "" : change < 0 ? "▼ " : "▲ "}${sign}${money(Math.abs(change))}`,
    el("small", {}, `${sign}${Math.abs((100 * change) / close).toFixed(2)} %`));
  cells.at.textContent = time.format(ts);
  cells.spark.setAttribute("class", `spark ${way}`);
  spark(prices, close, cells);
  if (price !== before && !calm.matches && !document.hidden) {
    const color = `var(--${price < before ? "down" : "up"}-flash)`;
    cells.price.animate({ backgroundColor: [color, color, "transparent"] }, 900);
  }
}

/** The last prices, the newest at the right edge; the dotted line is yesterday's close, where it is in sight. */
function spark(prices, close, { line, area, zero }) {
  const low = Math.min(...prices);
  const span = Math.max(...prices) - low || 1;
  const y = (price) => (28 - (26 * (price - low)) / span).toFixed(2);
  const x = (at) => ((100 * (KEPT - prices.length + at)) / (KEPT - 1)).toFixed(2);
  const d = `M${prices.map((price, at) => `${x(at)} ${y(price)}`).join("L")}`;
  line.setAttribute("d", d);
  area.setAttribute("d", `${d}L100 30L${x(0)} 30Z`);
  zero.setAttribute("y1", y(close));
  zero.setAttribute("y2", y(close));
  zero.setAttribute("visibility", close > low && close < low + span ? "visible" : "hidden");
}

// Following

let count = 0;
const f = connect(undefined, { transports: ["sse"] });
for (const stock of stocks) {
  stock.joined = new Promise((done) => {
    const room = f.join(stock.room, { history: KEPT });
    room.on("joined", () => done(opened()));
    room.on("message", ({ data, ts }) => {
      if (!Number.isFinite(data?.price)) return;
      stock.prices = [...stock.prices, data.price].slice(-KEPT);
      count += 1;
      $("count").textContent = count.toLocaleString("en");
      $("quiet").hidden = true;
      show(stock, ts);
    });
    room.on("error", ({ message, retryable }) => state(retryable ? "" : "closed", message));
  });
}

// The history follows `joined` at once: half a second later it is known whether there are prices.
const joined = Promise.all(stocks.map((stock) => stock.joined));
joined.then(() => setTimeout(() => { $("quiet").hidden = count > 0; }, 500));

function state(kind, text) {
  $("state").dataset.state = kind;
  $("state").textContent = text;
}
const opened = () => state("open", `server-sent events${f.node ? ` · node ${f.node}` : ""}`);
f.on("open", opened);
f.on("close", ({ reconnect }) => (reconnect ? state("", "reconnecting…") : state("closed", "disconnected")));

// Publishing, as a back end would

const publish = (room, data) => fetch(`/v1/rooms/${encodeURIComponent(room)}`, {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(data),
});

/** A random step with a slight pull towards yesterday's close, so that prices stay near it. */
function next({ prices, close }) {
  const price = prices.at(-1) ?? close * (0.99 + 0.02 * Math.random());
  const step = (Math.random() + Math.random() + Math.random() - 1.5) * 0.004 * close;
  return Number(Math.max(0.01, price + step + (close - price) * 0.01).toFixed(2));
}

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

let stop; // ends the publishing of this page
/** Publishes until `signal` says stop. Returns the gateway's reason if it refuses for good. */
async function run(signal) {
  let turn = 0;
  while (!signal.aborted) {
    const stock = stocks[turn % stocks.length];
    turn += 1 + Math.floor(Math.random() * 2);
    const answer = await publish(stock.room, { price: next(stock) }).catch(() => null);
    if (answer?.ok) {
      $("said").textContent = "This window publishes.";
    } else if (!answer) {
      $("said").textContent = "No connection to the gateway. Trying again…";
      await sleep(2000);
    } else {
      const { detail = answer.status } = await answer.json().catch(() => ({}));
      if (answer.status < 500 && answer.status !== 429) return `Refused: ${detail}`;
      $("said").textContent = `Not published: ${detail}. Trying again…`;
      await sleep(2000);
    }
    await sleep(EVERY_MS);
  }
}

async function start() {
  stop = new AbortController();
  button(true);
  const { signal } = stop;
  $("said").textContent = "Waiting for the last prices…";
  await joined;
  // One window of a browser at a time: a second one waits until the first stops. (Locks exist over https and on localhost.)
  $("said").textContent = "Another window publishes; this one takes over when it stops.";
  const work = () => run(signal);
  const why = await (navigator.locks ? navigator.locks.request("fanfare-ticker", { signal }, work) : work()).catch(() => {});
  if (stop?.signal === signal) halt(why);
}
function halt(why = "") {
  stop.abort();
  stop = undefined;
  button(false);
  $("said").textContent = why;
}
function button(on) {
  $("publish").textContent = on ? "Stop publishing" : "Publish prices";
  $("publish").setAttribute("aria-pressed", on);
  $("publish").classList.toggle("main", !on);
}
$("publish").onclick = () => (stop ? halt() : start());
$("begin").onclick = () => {
  $("publish").focus(); // this button is about to go
  if (!stop) start();
};
$("curl").textContent = `curl --json '{"price": ${money(SYMBOLS[0][2] * 1.01)}}' \\\n  ${location.origin}/v1/rooms/ticker:ACME`;
