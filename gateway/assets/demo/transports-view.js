// Draws the figures of the meters: the lanes of the last 20 seconds, the bars, the columns. Called by transports.js.

import { $, el, svg } from "./demo.js";

const WINDOW_MS = 20_000;
const ms = (value) => (value < 100 ? `${value.toFixed(1)} ms` : `${Math.round(value).toLocaleString("en")} ms`);
const whole = (value) => value.toLocaleString("en");

const FIGURES = [
  ["Messages", (f) => whole(f.messages)],
  ["Missing · repeated", (f) => `${f.missing} · ${f.repeated}`],
  ["Latency, p50", (f) => f.messages && ms(f.latency_ms_median)],
  ["Latency, p99", (f) => f.messages && ms(f.latency_ms_p99)],
  ["Requests", (f) => whole(f.requests)],
  ["Bytes received", (f) => whole(f.bytes_received)],
  ["Bytes sent", (f) => whole(f.bytes_sent)],
];

const linear = (value, most) => value / most;
const logarithmic = (value, most) => Math.log10(1 + value) / Math.log10(1 + most);
const CHARTS = [
  { title: "Latency", note: "median, logarithmic scale", key: "latency_ms_median", show: ms, scale: logarithmic },
  { title: "Bytes per message", note: "both ways, headers too", key: "bytes_per_message", show: whole, scale: linear },
  { title: "Requests per message", note: "the one that opens a connection too", key: "requests_per_message", show: (v) => v.toFixed(v < 0.1 ? 3 : 2), scale: linear },
];

/** Makes the elements whose text and length `draw` changes later. */
export function build(columns) {
  for (const column of columns) {
    const card = $("column").content.cloneNode(true).firstElementChild;
    const [title, text, list] = ["h3", "p", "dl"].map((name) => card.querySelector(name));
    card.classList.add(column.key);
    title.textContent = column.name;
    text.textContent = column.how;
    column.badge = card.querySelector(".badge");
    column.cells = FIGURES.map(() => el("dd"));
    list.append(...FIGURES.map(([label], at) => el("div", {}, el("dt", {}, label), column.cells[at])));
    $("columns").append(card);
    document.querySelector(".codes").append(el("details", { className: `card ${column.key}` },
      el("summary", {}, column.name), el("pre", { tabIndex: 0 }, el("code", {}, `${column.follow}`))));
  }
  for (const chart of CHARTS) {
    chart.rows = columns.map(() => ({ bar: el("i"), value: el("b") }));
    const rows = chart.rows.map(({ bar, value }, at) =>
      el("li", { className: columns[at].key }, el("span", {}, columns[at].name), el("span", { className: "track" }, bar), value));
    $("charts").append(el("div", { className: "card" },
      el("h2", {}, chart.title), el("p", { className: "small soft" }, chart.note), el("ul", {}, ...rows)));
  }
}

/** Shows the current figures. `moments`: when the last messages were published. */
export function draw(columns, moments) {
  const figures = columns.map(({ meter }) => meter.figures());
  columns.forEach(({ badge, cells, meter }, at) => {
    badge.textContent = meter.open ? "open" : "connecting…";
    badge.dataset.state = meter.open ? "open" : "";
    FIGURES.forEach(([, show], nth) => { cells[nth].textContent = show(figures[at]) || "–"; });
  });
  for (const { key, show, scale, rows } of CHARTS) {
    const values = figures.map((f) => f[key] ?? 0);
    const most = Math.max(...values) || 1;
    rows.forEach(({ bar, value }, at) => {
      bar.style.width = `${100 * scale(values[at], most)}%`;
      value.textContent = figures[at].messages ? show(values[at]) : "–";
    });
  }
  $("lesson").textContent = lesson(figures);
  lanes(columns, moments);
}

// The bars' main result, in a sentence.
function lesson([ws, , , long, short]) {
  if (Math.min(ws.messages, long.messages, short.messages) < 5) return "";
  const times = (a, b) => (a / b).toFixed(a / b < 10 ? 1 : 0);
  return `Until now a message over long polling has cost ${times(long.bytes_per_message, ws.bytes_per_message)} times the bytes of one over ` +
    `WebSocket; over short polling ${times(short.bytes_per_message, ws.bytes_per_message)} times, and it came ${ms(short.latency_ms_median - ws.latency_ms_median)} later.`;
}

// A row for each transport. Time runs to the right; the right edge is now.
const ROW = 34;
function lanes(columns, moments) {
  const now = performance.now();
  const width = $("lanes").clientWidth;
  const left = width < 560 ? 0 : 150;
  const x = (at) => left + ((Math.max(at, now - WINDOW_MS) - (now - WINDOW_MS)) / WINDOW_MS) * (width - left - 6);
  const recent = (at) => at > now - WINDOW_MS;
  const height = ROW * columns.length;
  const lines = moments.filter(recent).map((at) => svg("line", { class: "moment", x1: x(at), x2: x(at), y1: 0, y2: height }));
  const rows = columns.map(({ key, name, meter }, row) => {
    const y = row * ROW + ROW / 2 + (left ? 0 : 7);
    const label = svg("text", left ? { x: 0, y: y + 5 } : { x: 0, y: y - 9 }, name);
    const spans = meter.spans.filter(({ to }) => recent(to)).map(({ from, to }) => {
      const [start, end] = [x(from), x(Math.min(to, now))];
      return svg("rect", { x: start, y: y - 4, width: Math.max(1, end - start), height: 8 });
    });
    const asked = meter.spans.filter(({ from }) => recent(from)).map(({ from }) =>
      svg("line", { class: "request", x1: x(from), x2: x(from), y1: y - 9, y2: y + 9 }));
    const dots = meter.arrivals.filter(recent).map((at) => svg("circle", { cx: x(at), cy: y, r: 4.5 }));
    return svg("g", { class: key }, label, svg("line", { class: "moment", x1: left, x2: width - 6, y1: y, y2: y }), ...spans, ...asked, ...dots);
  });
  const picture = svg("svg", {
    width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": "Requests and arrivals of the last 20 seconds, a row for each transport. The figures below are the same in numbers.",
  }, ...lines, ...rows);
  $("lanes").replaceChildren(picture);
}
