// Fanfare's client; README.md tells how it works.

const WINDOW = 8; // requests under way: 20 errors end a session

export const connect = (...options) => new Client(...options);

const failure = (frame) => Object.assign(new Error(frame.message ?? frame.code), frame);
const split = (cursor = "") => cursor.split(".");
const before = (cursor) => cursor?.replace(/\d+$/, (offset) => offset - 1);
const delay = ({ retry_after_ms = 1000 }) => retry_after_ms * (1 + Math.random());
const defined = (fields) => JSON.parse(JSON.stringify(fields));

class Emitter {
  listeners = {};

  on(type, listener) {
    (this.listeners[type] ??= new Set()).add(listener);
    return () => this.listeners[type].delete(listener);
  }

  emit(type, value) {
    this.listeners[type]?.forEach((listener) => queueMicrotask(() => listener(value)));
  }
}

class Room extends Emitter {
  members = [];
  options = {};

  constructor(client, name) {
    super();
    Object.assign(this, { client, name });
  }

  publish(data = null, { event, key = this.client.keys + this.client.ids } = {}) { return this.request("publish", { data, event, key }); }
  presence() { return this.request("presence"); }
  history(range) { return this.request("history", range); }
  request(type, fields) { return this.client.request({ ...fields, type, room: this.name }); }

  leave() {
    const { client, name: room } = this;
    if (client.rooms.delete(room)) client.tell({ type: "leave", room });
  }

  frame(frame) {
    const { type, cursor, gap, member } = frame, { client, options, name: room, cursor: from } = this;
    let { members } = frame;
    if (type === "message") {
      const [epoch, offset] = split(cursor), [at, last] = split(from);
      if (epoch === at && +offset <= +last) return;
      this.cursor = cursor;
      if (options.echo === false && (client.own.delete(cursor) || client.sessions.includes(frame.from?.session))) return;
    } else if (type === "joined") {
      delete options.history;
      if (!frame.resumed) this.cursor = cursor; // else it may be further on
    } else if (type === "gap") {
      this.cursor = frame.to;
    } else if (type === "left") {
      if (!frame.reason) return;
      client.rooms.delete(room);
    } else if (member) {
      members = this.members.filter(({ user }) => user !== member.user);
      if (type === "member_joined") members.push(member);
    }
    if (members) this.emit("members", (this.members = members));
    this.emit(type, frame);
    if (gap) this.emit("gap", { type: "gap", room, from, to: cursor, ...gap });
  }
}

class Client extends Emitter {
  rooms = new Map();
  queue = new Map(); // requests without an answer
  ids = 0;
  keys = crypto.getRandomValues(new Uint32Array(4)).join("");
  sessions = [];
  own = new Set();
  limits = { message_bytes: 65_536 };
  level = 0;
  tries = 0;
  failed = 0;
  hold = 0;
  calm = 0;
  pace = 0; // ms between publishes

  constructor(url = globalThis.location?.origin ?? new URL(import.meta.url).origin, options) {
    super();
    this.base = (url + "/").replace(/^ws/, "http").replace(/\/+$/, "/");
    Object.assign(this, { transports: ["ws", "sse", "poll"], open_ms: 8000, climb_ms: 60_000, WebSocket: globalThis.WebSocket }, options);
    this.transports = this.transports.filter((name) => name !== "ws" || this.WebSocket);
    if (!this.transports[0]) throw failure({ code: "no_transport" });
    this.ticker = setInterval(() => this.tick(), 5000);
    this.abort = new AbortController();
    for (const type of ["online", "pageshow", "visibilitychange"]) {
      globalThis.addEventListener?.(type, () => this.wake(type === "online" ? 0 : 20_000), this.abort);
    }
    this.connect();
  }

  join(name, options) {
    const room = this.rooms.get(name) ?? new Room(this, name);
    this.rooms.set(name, room);
    Object.assign(room.options, options);
    room.cursor ??= room.options.since;
    this.tell(this.entry(room));
    return room;
  }

  request(fields) {
    const id = ++this.ids, text = JSON.stringify({ ...fields, id });
    return new Promise((resolve, reject) => {
      const large = new Blob([text]).size > this.limits.message_bytes + 4096 && "message_too_large";
      const code = this.over ? "closed" : this.queue.size >= 500 ? "queue_full" : large;
      if (code) return reject(failure({ code }));
      this.queue.set(id, { command: JSON.parse(text), resolve, reject });
      this.flush();
    });
  }

  flush() {
    const { link, hold } = this, now = Date.now();
    let left = now < this.calm ? 1 : WINDOW;
    if (!this.transport) return;
    if (now < hold) return setTimeout(() => this.flush(), hold - now);
    for (const entry of this.queue.values()) {
      if (!left--) return;
      if (entry.link === link) continue;
      entry.link = link;
      entry.sent ??= now;
      // The gateway forgets keys after 5 minutes.
      if (entry.command.key && now - entry.sent > 280_000) this.answer(entry, { type: "error", code: "unacknowledged" });
      else this.tell(entry.command);
    }
  }

  answer(entry, frame) {
    const { type, code, cursor } = frame, { id, key, room: name } = entry.command, room = this.rooms.get(name), now = Date.now(), ms = delay(frame);
    if (frame.retryable && key) {
      entry.link = null;
      if (code === "rate_limited" && now >= this.hold) {
        this.pace = Math.max(now < this.calm ? this.pace * 2 : this.pace, ms);
        this.calm = now + 10_000;
      }
      this.hold = now + ms;
    } else {
      this.queue.delete(id);
      if (now < this.calm) this.hold = now + this.pace;
      if (type === "error") entry.reject(failure(frame));
      else entry.resolve(frame);
      if (key && cursor && room?.options.echo === false) {
        if (before(cursor) === room.cursor) room.cursor = cursor; // it does not come
        if (type === "publish") this.own.add(cursor);
      }
    }
    this.flush();
  }

  tell(command) {
    if (this.transport) this.link.send(command);
  }

  frame(frame) {
    const { type, id } = frame, entry = this.queue.get(id), room = this.rooms.get(frame.room);
    if (entry) this.answer(entry, frame);
    else if (type === "error") this.refused([...this.rooms.values()].find(({ ask }) => ask === id), frame);
    else if (room) room.frame(frame);
    else if (type === "joined") this.tell({ type: "leave", room: frame.room });
  }

  refused(room, frame) {
    if (frame.retryable) setTimeout(() => room?.ask === frame.id && this.tell(this.entry(room)), delay(frame));
    else if (room) this.rooms.delete(room.name);
    (room ?? this).emit("error", failure({ ...frame, room: room?.name }));
  }

  entry(room) {
    const { name, cursor, options } = room, exclude = options.echo === false ? this.sessions.slice(1, 9) : undefined;
    return { ...options, type: "join", id: (room.ask = ++this.ids), room: name, since: cursor, exclude };
  }

  connect() {
    clearTimeout(this.retry);
    this.link = new Link(this, this.level);
  }

  opened(link, { session, node, post, route = this.route, limits = this.limits }) {
    const { level, name: transport } = link;
    clearTimeout(this.retry);
    if (this.link !== link) this.link?.drop();
    if (this.worked !== level) {
      this.failed = 0;
      this.emit("transport", transport);
    }
    Object.assign(this, { link, transport, level, worked: level, session, node, post, route, limits, next: null, tries: 0, renewed: false });
    if (session) this.sessions = [session, ...this.sessions].slice(0, 32);
    this.emit("open", { session, transport });
    for (const room of this.rooms.values()) if (!link.carries?.(room)) this.tell(this.entry(room));
    this.flush();
  }

  ended(link, { code, reason, after = 0, final, fault }) {
    const now = Date.now();
    if (link !== this.link) return (this.next = null);
    this.link = this.session = this.transport = undefined;
    if (link.open && now - link.born > 10_000) this.failed = 0;
    if (/401$/.test(code) && this.token?.call && !this.renewed) {
      this.renewed = true;
      this.bearer = null;
    } else if (final || /^(1009|44..|401)$/.test(code)) {
      return this.close({ code, reason });
    } else if (fault && ++this.tries >= (this.worked === link.level ? 3 : 1)) {
      this.tries = 0;
      this.level = (this.level + 1) % this.transports.length;
    }
    // Full jitter on top of what the server asks.
    after = Math.min(300_000, after);
    this.rest = now + after;
    after += Math.random() * Math.min(10_000, 200 * 2 ** this.failed++);
    this.retry = setTimeout(() => this.connect(), after);
    if (link.open) this.emit("close", { code, reason, reconnect: true, after_ms: after });
  }

  close(why = { code: 1000 }) {
    if (this.over) return;
    this.over = true;
    clearInterval(this.ticker);
    clearTimeout(this.retry);
    this.abort.abort();
    this.link?.drop();
    this.next?.drop();
    this.transport = undefined;
    for (const { reject } of this.queue.values()) reject(failure({ code: "closed" }));
    this.emit("close", { ...why, reconnect: false });
  }

  // Pages sleep: only time stamps count.
  tick() {
    if (Date.now() > this.renewAt) this.renew().catch(() => {});
    if (!this.transport) return;
    this.wake(this.link.silence);
    if (this.level && !this.next && Math.random() * this.climb_ms < 5000) this.next = new Link(this, ++this.ids % this.level);
  }

  wake(ms) {
    const { link } = this, now = Date.now();
    if (!link && now >= this.rest) this.connect();
    else if (this.transport && now - link.seen >= ms) {
      if (link.name !== "ws") return link.end({ reason: "silent", after: 0 });
      this.tell({ type: "ping" });
      setTimeout(() => link.seen < now && link.end({ reason: "silent" }), 4000);
    }
  }

  auth() { return this.token?.call ? (this.bearer ??= this.fresh()) : this.token; }

  async fresh() {
    try {
      const token = await this.token(), [, claims = "e30"] = token.split(".");
      const { exp } = JSON.parse(atob(claims.replace(/-/g, "+").replace(/_/g, "/"))), now = Date.now();
      this.renewAt = now + Math.max(10_000, (exp * 1000 - now) * 0.8);
      return token;
    } catch (error) {
      this.bearer = null;
      this.emit("error", error);
      throw error;
    }
  }

  async renew() {
    this.renewAt += 30_000;
    this.tell({ type: "auth", token: await (this.bearer = this.fresh()) });
  }
}

class Link {
  born = Date.now();
  seen = this.born;

  constructor(client, level) {
    Object.assign(this, { client, level, name: client.transports[level] });
    this.begin().catch(({ message }) => this.end({ reason: message, fault: false }));
  }

  async begin() {
    const token = await this.client.auth();
    if (this.dead) return;
    // Some proxies let nothing through.
    this.deadline = setTimeout(() => this.end({ reason: "no welcome" }), this.client.open_ms);
    Object.assign(this, { ws, sse, poll }[this.name](this, token));
  }

  async text(text) { this.frame(JSON.parse(text)); }

  frame(frame) {
    const { type, code, after_ms, ping_ms } = frame;
    if (this.dead) return;
    this.seen = Date.now();
    if (type === "welcome") {
      clearTimeout(this.deadline);
      this.open = true;
      this.silence = 2 * ping_ms;
      this.client.opened(this, frame);
    } else if (type === "close") this.end({ code, after: after_ms, final: !frame.reconnect });
    else if (type === "reconnect") this.after = after_ms; // a close follows
    else if (this.client.link === this) this.client.frame(frame);
  }

  url(path, query) { return this.client.base + path + "?" + new URLSearchParams(defined({ n: this.client.route, ...query })); }

  // `refused` takes what is the request's own fault.
  async fetch(path, query, refused, signal, body, key) {
    const late = setTimeout(() => this.end({ reason: "silent" }), 30_000);
    try {
      const token = await this.client.auth();
      const headers = defined({ authorization: token && `Bearer ${token}`, "content-type": body && "application/json", "idempotency-key": key });
      const answer = await fetch(this.url(path, query), { method: body ? "POST" : "GET", body, headers, signal });
      if (answer.ok) return path.endsWith("/sse") ? answer.body : await answer.json();
      const { status } = answer, { code, detail, ...problem } = await answer.json().catch(() => ({}));
      if (code && /400|403|413/.test(status)) return refused({ ...problem, type: "error", code, message: detail });
      this.end({ code: status, reason: code, after: answer.headers.get("retry-after") * 1000 || undefined });
    } catch (error) {
      if (!signal?.aborted) this.lost(error);
    } finally {
      clearTimeout(late);
    }
  }

  lost = ({ message: reason }) => this.end({ reason });

  end({ after = this.after, fault = !this.open && after === undefined, ...why }) {
    if (this.dead) return;
    this.drop();
    this.client.ended(this, { after, fault, ...why });
  }

  drop() {
    this.dead = true;
    clearTimeout(this.deadline);
    this.abort?.abort();
    this.close?.();
  }
}

function ws(link, token) {
  const socket = new link.client.WebSocket(link.url("ws").replace("http", "ws"), token ? ["fanfare.v1", `token.${token}`] : []);
  socket.onmessage = ({ data }) => link.text(data).catch(link.lost);
  socket.onerror = () => {}; // a close follows
  socket.onclose = ({ code, reason }) => link.end({ code, reason });
  return { send: (command) => socket.send(JSON.stringify(command)), close: () => socket.close() };
}

// WHATWG HTML 9.2.6
export function eventStream(onEvent, onRetry) {
  let rest = "", cr, data = [], type, id = "";
  return (text) => {
    const lines = (rest + (cr ? text.replace(/^\n/, "") : text)).split(/\r\n?|\n/);
    cr = text.endsWith("\r");
    rest = lines.pop();
    for (const line of lines) {
      const [, field, value] = /^([^:]*):? ?([^]*)/.exec(line);
      if (!line) {
        if (data.length) onEvent(data.join("\n"), type || "message", id);
        data = [];
        type = "";
      } else if (field === "data") data.push(value);
      else if (field === "event") type = value;
      else if (field === "id" && !value.includes("\0")) id = value;
      else if (field === "retry" && /^\d+$/.test(value)) onRetry(+value);
    }
  };
}

function sse(link) {
  // One room is in the URL; the others join as on WebSocket.
  const { client } = link, room = [...client.rooms.values()].find(({ name }) => !name.includes(","));
  if (!room) return poll(link);
  const { signal } = (link.abort = new AbortController()), waiting = [];
  let busy;

  async function read() {
    const { since, history: last, presence, echo } = client.entry(room);
    const refused = (frame) => link.end({ after: client.refused(room, frame) ?? 0 });
    const body = await link.fetch(`v1/rooms/${encodeURIComponent(room.name)}/sse`, { since, last, presence, echo }, refused, signal);
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    const take = eventStream((data) => link.frame(JSON.parse(data)), (ms) => (link.after = ms));
    for (let piece; !(piece = await reader.read()).done; take(piece.value)) link.seen = Date.now();
    link.end({ reason: "stream ended" });
  }

  async function send(command) {
    waiting.push(command);
    while (waiting[0] && !busy && !link.dead) {
      busy = waiting.splice(0, 1 + 2 ** 19 / client.limits.message_bytes); // POSTs overtake each other
      const refused = (frame) => busy.forEach(({ id }) => link.frame({ ...frame, id }));
      const frames = await link.fetch(client.post.slice(1), {}, refused, signal, JSON.stringify(busy));
      for (const frame of frames ?? []) if (!/joined|left/.test(frame.type)) link.frame(frame);
      busy = null;
    }
  }

  read().catch(link.lost);
  return { send, carries: (other) => other === room };
}

function poll(link) {
  const { client } = link, known = new Set(), unkept = new Set();
  let session, posting = Promise.resolve();

  // A lost answer comes again: the cursor acknowledges.
  async function turn() {
    link.abort?.abort();
    const { signal } = (link.abort = new AbortController());
    while (!signal.aborted) {
      const all = [...client.rooms.values()].filter((room) => !unkept.has(room)), fresh = all.find((room) => !known.has(room));
      // A new room comes alone: its refusal is its own.
      const group = fresh ? [fresh] : all, rooms = {};
      for (const { name, cursor = null } of group) rooms[name] = cursor;
      const refused = (frame) => {
        if (!fresh) return link.lost(frame);
        if (frame.code === "history_off") frame.retryable = !!unkept.add(fresh);
        client.refused(fresh, frame);
      };
      const body = JSON.stringify({ rooms, wait: fresh ? 0 : 25, last: fresh?.options.history, session });
      const answer = await (all[0] && link.fetch("v1/poll", {}, refused, signal, body));
      if (all[0] && !answer) continue;
      if (!link.open) link.frame({ type: "welcome", ping_ms: 25_000 });
      if (group.some(({ options }) => options.echo === false)) await posting; // to know own messages
      if (!answer || signal.aborted) return;
      link.seen = Date.now();
      ({ session } = answer);
      for (const room of group) deliver(room, answer);
      if (answer.next_ms && !fresh) await new Promise((resolve) => setTimeout(resolve, answer.next_ms));
    }
  }

  function deliver(room, answer) {
    const { name, cursor: from } = room, own = answer.messages.filter((message) => message.room === name), gap = answer.gap?.[name], resumed = from && !gap;
    const cursor = resumed ? from : before(own[0]?.cursor) ?? answer.cursors[name];
    if (gap || !known.has(room)) link.frame({ type: "joined", room: name, cursor, resumed, gap });
    known.add(room);
    own.forEach(link.frame, link);
    room.cursor = answer.cursors[name];
    if (room.options.presence && !(Date.now() < room.asked)) {
      room.asked = Date.now() + 10_000;
      send({ type: "presence", room: name });
    }
  }

  async function call({ type, id, room, data, event, key, since, limit }) {
    const path = `v1/rooms/${encodeURIComponent(room)}${key ? "" : `/${type}`}`, refused = (frame) => link.frame({ ...frame, room, id });
    const answer = await link.fetch(path, { event, since, limit }, refused, undefined, key && JSON.stringify(data), key);
    if (answer) client.frame({ type, ...answer, id });
  }

  function send(command) {
    if (/join|leave/.test(command.type)) link.name === "sse" ? link.end({ after: 0 }) : turn();
    else if (command.room) posting = posting.then(() => link.dead || call(command));
  }

  turn();
  return { send, carries: () => true };
}
