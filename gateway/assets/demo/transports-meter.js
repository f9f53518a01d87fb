// Counts what one transport costs and delivers: requests, bytes, messages, latencies. transports.js has one for each column.
// The footnote of transports.html says which figures are exact and which are estimated.

const encoder = new TextEncoder();
const bytes = (text) => encoder.encode(text).length;
const KEPT_MS = 25_000; // for the picture of the last 20 seconds
const AGES = 100; // latencies that the median and the 99th percentile are taken from

// The headers that a browser sends. A page cannot see them, so they are listed here as Chromium sends them (without Referer,
// which the gateway forbids on these pages).
const agent = navigator.userAgentData;
const ALWAYS = [
  "GET  HTTP/1.1", `Host: ${location.host}`, `User-Agent: ${navigator.userAgent}`, "Accept-Encoding: gzip, deflate, br, zstd",
  `Accept-Language: ${navigator.languages.join(",")};q=0.9`, document.cookie && `Cookie: ${document.cookie}`,
];
const FETCH = [
  ...ALWAYS, "Connection: keep-alive", "Accept: */*", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors", "Sec-Fetch-Dest: empty",
  agent && `sec-ch-ua-platform: "${agent.platform}"`, agent && "sec-ch-ua-mobile: ?0",
  agent && `sec-ch-ua: ${agent.brands.map(({ brand, version }) => `"${brand}";v="${version}"`).join(", ")}`,
];
const UPGRADE = [
  ...ALWAYS, "Connection: Upgrade", "Upgrade: websocket", "Pragma: no-cache", "Cache-Control: no-cache", `Origin: ${location.origin}`,
  "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: 0123456789012345678901==", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
];
const head = (lines) => bytes(lines.filter(Boolean).join("\r\n")) + 4;
const REQUEST_HEAD = { ws: head(UPGRADE), sse: head([...FETCH, "Pragma: no-cache", "Cache-Control: no-cache"]) + "text/event-stream".length - "*/*".length };
const ETAG_MORE = bytes("Cache-Control: max-age=0\r\n"); // sent together with If-None-Match
const ANSWER_HEAD = { ws: 301 + location.origin.length, sse: 170 }; // the two answers whose headers a page cannot see

export class Meter {
  cursor = ""; // empty: only messages from now on
  last = 0; // the number of the last message
  began = 0; // the latency of older messages is the page's pause, not the transport's

  constructor(key, page, failed) {
    Object.assign(this, { key, page, failed, spans: [], arrivals: [], open: false });
    this.clear();
  }

  /** Starts counting at zero; open connections stay open. */
  clear() {
    Object.assign(this, { messages: 0, requests: 0, received: 0, sent: 0, missing: 0, repeated: 0, ages: [] });
  }

  // Requests

  request = (path, more = 0) => {
    this.requests += 1;
    this.sent += (REQUEST_HEAD[this.key] ?? head(FETCH)) + bytes(path) + more;
    const now = performance.now();
    this.spans = this.spans.filter(({ to }) => to > now - KEPT_MS).concat({ from: now, to: Infinity });
  };
  opened = () => {
    this.open = true;
    this.received += ANSWER_HEAD[this.key] ?? 0;
  };
  /** The connection or request has ended. */
  ended = () => {
    this.open = false;
    this.#close();
  };
  #close() {
    const span = this.spans.at(-1);
    if (span?.to === Infinity) span.to = performance.now();
  }

  /** `fetch` that counts the request and both heads; throws if the gateway refuses. */
  fetch = async (path, options) => {
    const added = Object.entries(options.headers ?? {});
    this.request(path, added.reduce((sum, [name, value]) => sum + bytes(name + value) + 4, added.length && ETAG_MORE));
    const answer = await fetch(path, options);
    for (const [name, value] of answer.headers) this.received += bytes(name + value) + 4;
    this.received += `HTTP/1.1 ${answer.status} ${answer.statusText}\r\n\r\n`.length;
    if (!answer.ok && answer.status !== 304) throw new Error(`the gateway answered ${answer.status}`);
    this.open = true;
    return answer;
  };

  // Bodies, in the unit of each transport

  body = async (answer) => {
    const text = await answer.text();
    this.#close();
    const timing = performance.getEntriesByName(answer.url).at(-1); // has the length of a compressed body
    this.received += answer.status === 304 ? 0 : timing?.encodedBodySize || bytes(text);
    performance.clearResourceTimings();
    return text;
  };
  line = (text) => { this.received += bytes(text) + 1; };
  event = ({ type, data, lastEventId }) => {
    const name = type === "message" ? 0 : "event:\n".length + type.length;
    this.received += name + "data:\n".length + bytes(data) + "id:\n".length + lastEventId.length + 1;
  };
  frame = (text) => {
    const length = bytes(text);
    this.received += length + (length < 126 ? 2 : length < 65536 ? 4 : 10);
  };

  // Messages

  message = ({ cursor, data }) => {
    this.cursor = cursor;
    if (data?.page !== this.page) return; // another page's message: its time stamp is from another clock
    const now = performance.now();
    if (data.n <= this.last) this.repeated += 1;
    for (let n = this.last + 1; this.last && n < data.n; n += 1) if (!this.failed.has(n)) this.missing += 1;
    this.last = Math.max(this.last, data.n);
    this.messages += 1;
    if (data.at > this.began) this.ages = [...this.ages, now - data.at].slice(-AGES);
    this.arrivals = this.arrivals.filter((at) => at > now - KEPT_MS).concat(now);
  };

  figures() {
    const sorted = [...this.ages].sort((a, b) => a - b);
    const rank = (share) => round(sorted[Math.ceil(share * sorted.length) - 1], 1);
    const each = (sum, digits) => (this.messages ? round(sum / this.messages, digits) : null);
    const { messages, requests, received, sent, missing, repeated } = this;
    return {
      messages, missing, repeated, latency_ms_median: rank(0.5), latency_ms_p99: rank(0.99), requests,
      bytes_received: received, bytes_sent: sent, bytes_per_message: each(received + sent, 0), requests_per_message: each(requests, 3),
    };
  }
}

const round = (value, digits) => (value === undefined ? null : Number(value.toFixed(digits)));
