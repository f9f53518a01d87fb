/*! Fanfare client, Apache-2.0 */

// README.md describes it. A gateway serves it without these comments. Room, Client, Link and the three transports follow each
// other; the steps of joining, resuming, falling and climbing are explained where they are taken.

const ERRORS = 20; // commands that may be refused, and errors of the last 11 s; a session ends after more than 20 in 10 s
const WINDOW = 8; // of them requests under way
const JOINS = 12; // joins of rooms that have not been joined with these options before
const RATE = 450; // joins, leaves and questions under way or answered within the last second; the gateway takes 500

export const connect = (...options) => new Client(...options);

const failure = (frame) => Object.assign(new Error(frame.message ?? frame.code), frame);
// A cursor is an epoch, a dot, and the offset of a message in that epoch. Offsets of two epochs have no distance.
const distance = (from = "", to = "") => {
  const [epoch, offset] = from.split("."), [at, number] = to.split(".");
  return epoch === at ? number - offset : undefined;
};
const before = (cursor) => cursor?.replace(/\d+$/, (offset) => offset - 1);
const delay = ({ retry_after_ms = 1000 }) => retry_after_ms * (1 + Math.random());
const defined = (fields) => JSON.parse(JSON.stringify(fields));
const isRoom = (name) => name?.match?.(/^(?!\$)[!#-[\]-z|~]{1,255}$/);
// URLs cannot carry these names as a segment of their path: they are normalised, encoded or not.
const isDots = (name) => /^\.\.?$/.test(name);
const refusal = (code, message) => ({ type: "error", code, message, retryable: false });
const NO_ROOM = refusal("room_invalid", 'a room name is visible ASCII without { } " \\');

// When a token expires, in ms; NaN if it does not. Rejects if it is not a JWT.
const expiry = async (token) => JSON.parse(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/"))).exp * 1000;

class Emitter {
  listeners = new Map();

  on(type, listener) {
    const all = this.listeners.get(type) ?? new Set();
    this.listeners.set(type, all.add(listener));
    return () => all.delete(listener);
  }

  // In a microtask: a listener that throws does not stop the client.
  emit(type, value) {
    this.listeners.get(type)?.forEach((listener) => queueMicrotask(() => listener(value)));
  }
}

// What the application holds: the options, cursor, members and listeners of a room. It outlives every connection.
class Room extends Emitter {
  members = [];
  list = []; // what has come of a long list
  options = {};

  constructor(client, name) { Object.assign(super(), { client, name }); }

  // Asynchronous, so that wrong arguments reject the promise.
  async publish(data = null, { event, key } = {}) {
    return this.request("publish", { data, event, key: key ?? this.client.keys + this.client.ids });
  }

  presence() { return this.request("presence"); }
  async history({ since, limit } = {}) { return this.request("history", { since, limit }); }
  async request(type, fields) {
    const { client, name: room } = this, { queue, limits } = client, id = ++client.ids, isLost = (field) => fields[field] !== undefined && !(field in command);
    let text, command = {}; // what JSON makes of the fields
    try { command = JSON.parse((text = JSON.stringify({ ...fields, type, room, id }))); } catch {}
    const large = new Blob([text]).size > limits.message_bytes + 4096 && "message_too_large";
    const code = client.closed ? "closed" : queue.size >= 500 ? "queue_full" : large;
    const why = !isRoom(room) ? NO_ROOM : Object.keys({ ...fields }).some(isLost) ? refusal("bad_request", "an argument is not JSON") : code && { code };
    if (why) throw failure(why);
    return new Promise((resolve, reject) => {
      queue.set(id, { command, resolve, reject });
      client.flush();
    });
  }

  leave() {
    const { client, name, proven } = this;
    if (client.rooms.delete(name)) client.turn({ type: "leave", name, proven });
  }

  // Takes a frame of this room and moves the cursor, which is where the next join resumes.
  frame(frame) {
    const { type, cursor, member, to } = frame, { client, options, name: room, cursor: from } = this;
    let { members, gap } = frame;
    if (type === "message") {
      // A connection that ended and the one that replaces it may both bring a message. Only the first counts.
      if (distance(from, cursor) <= 0) return;
      this.cursor = cursor;
      if (options.echo === false && (client.own.delete(cursor) || client.sessions.includes(frame.from?.session))) return;
    } else if (type === "joined") {
      this.proven = true;
      delete options.history; // it is for the first join only
      // After a resume the cursor stays: messages of the connection before may have moved it further.
      if (!frame.resumed) this.cursor = cursor;
    } else if (type === "gap") {
      frame = { missed: distance(frame.from, to) ?? null, ...frame }; // between two epochs nobody knows
      this.cursor = to;
    } else if (type === "left") {
      if (!frame.reason) return; // the answer to a leave; the room may be joined again by now
      client.rooms.delete(room);
    } else if (member) {
      members = this.members.filter(({ user }) => user !== member.user);
      if (type === "member_joined") members.push(member);
    }
    // A long list comes in several frames; the last one has no `more`.
    if (members && !member) members = this.list = type === "members" ? [...this.list, ...members] : members;
    if (members && !frame.more) this.emit("members", (this.members = members));
    if (type !== "members") this.emit(type, frame);
    if (gap) this.emit("gap", { type: "gap", room, from, to: cursor, ...gap });
  }
}

// The rooms that are wanted, the requests without an answer, and which transport is used when.
class Client extends Emitter {
  rooms = new Map();
  queue = new Map(); // requests without an answer, by id
  ids = 0;
  keys = crypto.getRandomValues(new Uint32Array(4)).join(""); // what idempotency keys begin with
  sessions = []; // this session and earlier ones
  polled; // the session of its polls, which outlives their connections
  own = new Set(); // cursors of own messages that are to be left out when they arrive
  limits = { message_bytes: 65_536, rooms: Infinity };
  level = 0; // the transport in use or tried next, as an index of `transports`
  tries = 0; // attempts in a row that failed over this transport
  failed = 0; // attempts in a row that failed over any transport; doubles the wait
  holdUntil = 0; // no request before this time
  slowUntil = 0; // until then requests go one by one
  pace = 0; // ms between two of those

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
    Object.assign(room.options, defined({ ...options }));
    room.cursor ??= room.options.since;
    room.proven = false;
    if (isRoom(name)) {
      this.rooms.set(name, room);
      this.turn(room);
    } else this.refused(room, NO_ROOM);
    return room;
  }

  issue(command, owner, risk = true) { // a command that has an answer; `risk`: it may be refused
    const { link } = this, { id, type } = command;
    if (!link.free) link.sent.push({ id, owner, risk, rated: type !== "publish" });
    link.send(command);
  }

  // Whether a command has to wait; asked again after each answer, and after 100 ms.
  full(risks, rate) {
    const { link } = this, now = Date.now(), count = (field) => link.sent.filter((one) => one[field]).length;
    link.sent = link.sent.filter(({ until }) => !(until <= now));
    return (count("risk") >= risks || count("rated") >= rate) && this.later(100);
  }

  later(ms) {
    clearTimeout(this.timer);
    return (this.timer = setTimeout(() => this.flush(), Math.min(ms, 100)));
  }

  // Joins or leaves a room when its turn comes: joins and leaves keep their order.
  turn(room) {
    if (!this.transport) return;
    this.link.turns.add(room);
    this.flush();
  }

  // Sends joins and leaves until one has to wait, except joins of rooms that were left since. A rejoin is not expected to be
  // refused. 50 of the rate are kept for questions.
  take({ turns, rooms } = this.link) {
    for (const room of turns) {
      const { type, name, proven } = room, known = rooms.has(name);
      if (type ? known : this.rooms.get(name) === room) {
        if (!known && rooms.size >= this.limits.rooms) this.beyond(room);
        else {
          if (this.full(proven ? Infinity : JOINS, RATE - 50)) return;
          rooms[type ? "delete" : "add"](name);
          this.issue(type ? { type, id: ++this.ids, room: name } : this.joining(room), room, !proven);
        }
      }
      turns.delete(room);
    }
  }

  // Sends the first requests of the queue that this connection has not yet sent: after a reconnect all of them again, in
  // order. The gateway publishes once by the key, which it knows for 5 minutes.
  flush() {
    const { link, holdUntil } = this, now = Date.now();
    let left = now < this.slowUntil ? 1 : WINDOW;
    if (!this.transport) return;
    this.take();
    if (now < holdUntil) return this.queue.size && this.later(holdUntil - now);
    for (const entry of this.queue.values()) {
      if (!left--) return;
      if (entry.link === link) continue;
      if (this.full(ERRORS, entry.command.type === "publish" ? Infinity : RATE)) return;
      entry.link = link;
      entry.sent ??= now;
      if (entry.command.key && now - entry.sent > 280_000) this.answer(entry, { type: "error", code: "unacknowledged" });
      else this.issue(entry.command, entry);
    }
  }

  answer(entry, frame) {
    const { type, code, cursor } = frame, { id, key, room: name } = entry.command, room = this.rooms.get(name), now = Date.now(), ms = delay(frame);
    if (frame.retryable && (key || code === "rate_limited")) {
      // Refused for now: it stays in the queue. Too fast: one by one, and slower each time that is still too fast.
      entry.link = null;
      if (code === "rate_limited" && now >= this.holdUntil) {
        this.pace = Math.max(now < this.slowUntil ? this.pace * 2 : this.pace, ms);
        this.slowUntil = now + 10_000;
      }
      this.holdUntil = now + ms;
    } else {
      this.queue.delete(id);
      if (now < this.slowUntil) this.holdUntil = now + this.pace;
      type === "error" ? entry.reject(failure(frame)) : entry.resolve(frame);
      if (key && cursor && room?.options.echo === false) {
        // The next message of the room is an own one that does not come back: the cursor moves past it.
        if (distance(room.cursor, cursor) === 1) room.cursor = cursor;
        if (type === "publish") this.own.add(cursor); // over HTTP, where a message does not show its session
      }
    }
    this.flush();
  }

  frame(frame) {
    const { type, id, room: name } = frame, { link } = this, asked = id && link?.sent.find((one) => one.id === id && !one.until);
    const entry = this.queue.get(id), room = this.rooms.get(name), owner = asked?.owner;
    if (asked) {
      asked.risk = type === "error" && (!frame.retryable || frame.code === "rate_limited");
      asked.until = Date.now() + (asked.risk ? 11_000 : asked.rated * 1000);
    }
    if (frame.reason) link.rooms.delete(name); // a `left`
    if (entry && type === "members") frame = { ...entry.part, more: frame.more, members: [...entry.part.members, ...frame.members] };
    if (entry && frame.more) entry.part = frame;
    else if (entry) this.answer(entry, frame);
    else if (type === "error") {
      // The answer to a leave, or to a join that a later one has overtaken, is nobody's.
      if (!owner || owner.joinId === id) this.refused(owner, frame);
    } else if (room) room.frame(frame);
    else if (type === "joined" && !asked) {
      // The room in the URL of the stream was left before this came.
      link.rooms.add(name);
      this.turn({ type: "leave", name });
    }
    if (asked) this.flush();
  }

  // A join that was refused for now is sent again, unless a later one has taken its turn; otherwise the room is given up.
  refused(room, frame) {
    this.link?.rooms.delete(room?.name);
    if (frame.retryable) setTimeout(() => room?.joinId === frame.id && this.turn(room), delay(frame));
    else if (this.rooms.get(room?.name) === room) this.rooms.delete(room?.name);
    // Later, so that a room can have listeners by then.
    queueMicrotask(() => (room ?? this).emit("error", failure({ ...frame, room: room?.name })));
  }

  beyond(room) { this.refused(room, refusal("room_limit", `at most ${this.limits.rooms} rooms at a time`)); }

  // Resumes at the room's cursor. Messages of earlier sessions of this client are own ones too.
  joining(room) {
    const { name, cursor, options } = room, exclude = options.echo === false ? this.sessions.slice(1, 9) : undefined;
    return { ...options, type: "join", id: (room.joinId = ++this.ids), room: name, since: cursor, exclude };
  }

  connect() {
    clearTimeout(this.retry);
    this.link = new Link(this, this.level);
  }

  // A transport is welcome. One that was tried beside a worse one replaces it, and every room goes on from its cursor.
  opened(link, { session, node, post, route = this.route, limits = this.limits }) {
    const { level, name: transport } = link;
    clearTimeout(this.retry);
    if (this.link !== link) this.link?.drop(link.name !== "poll");
    if (this.worked !== level) {
      this.failed = 0;
      this.emit("transport", transport);
    }
    Object.assign(this, { link, transport, level, worked: level, session, node, post, route, limits, next: null, tries: 0, renewed: false });
    if (session) this.sessions = [session, ...this.sessions].slice(0, 32);
    this.emit("open", { session, transport });
    for (const room of this.rooms.values()) link.carries?.(room) ? link.rooms.add(room.name) : link.turns.add(room);
    this.flush();
  }

  // An attempt or a connection has ended: decides whether, when and over which transport to try again.
  ended(link, { code, reason, after = 0, final, fault }) {
    const now = Date.now();
    if (link !== this.link) return (this.next = null); // the better one does not open: the one in use stays
    this.link = this.session = this.transport = undefined;
    if (link.open && now - link.born > 10_000) this.failed = 0;
    if (/401$/.test(code) && this.token?.call && !this.renewed) {
      this.renewed = true; // once: the old token may have expired on its way
      this.bearer = null;
    } else if (final || /^(1009|44..|401)$/.test(code)) {
      return this.close({ code, reason });
    } else if (fault && ++this.tries >= (this.worked === link.level ? 3 : 1)) {
      // The next transport, after the last one the first. One that has worked gets three tries: the gateway may be away.
      this.tries = 0;
      this.level = (this.level + 1) % this.transports.length;
    }
    // At least what the server asks, and on top of it full jitter, so that the clients of a node do not come back at once.
    after = Math.min(300_000, after);
    this.rest = now + after;
    after += Math.random() * Math.min(10_000, 200 * 2 ** this.failed++);
    this.retry = setTimeout(() => this.connect(), after);
    if (link.open) this.emit("close", { code, reason, reconnect: true, after_ms: after });
  }

  close(why = { code: 1000 }) {
    if (this.closed) return;
    this.closed = true;
    clearInterval(this.ticker);
    clearTimeout(this.retry);
    this.abort.abort();
    this.link?.drop(true);
    this.next?.drop();
    this.transport = undefined;
    for (const { reject } of this.queue.values()) reject(failure({ code: "closed" }));
    this.emit("close", { ...why, reconnect: false });
  }

  // Every 5 s, late in pages that sleep: time stamps count, not ticks. Below the best transport it climbs: it tries a better
  // one, any of them, with a chance that makes one try in `climb_ms` on average.
  tick() {
    if (Date.now() > this.renewAt) this.renew().catch(() => {});
    if (!this.transport) return;
    this.wake(this.link.silence);
    if (this.level && !this.next && Math.random() * this.climb_ms < 5000) this.next = new Link(this, ++this.ids % this.level);
  }

  // Is a connection that was silent for `ms` still alive? A WebSocket has 4 s to answer a ping; a stream or a poll cannot be
  // asked and is opened anew. Without a connection the wait for the next try ends, but not before the server allows it.
  wake(ms) {
    const { link } = this, now = Date.now();
    if (!link && now >= this.rest) this.connect();
    else if (this.transport && now - link.seen >= ms) {
      if (link.name !== "ws") return link.end({ reason: "silent", after: 0 });
      link.send({ type: "ping" });
      setTimeout(() => link.seen < now && link.end({ reason: "silent" }), 4000);
    }
  }

  auth() { return this.token?.call ? (this.bearer ??= this.fresh()) : this.token; }

  async fresh() {
    try {
      const token = await this.token(), expires = await expiry(token).catch(() => NaN), now = Date.now();
      this.renewAt = now + Math.max(10_000, (expires - now) * 0.8); // NaN is never reached
      return token;
    } catch (error) {
      this.bearer = null;
      this.emit("error", error);
      throw error;
    }
  }

  async renew() {
    this.renewAt += 30_000;
    const token = await (this.bearer = this.fresh());
    if (this.transport) this.link.send({ type: "auth", token });
  }
}

// One attempt of one transport, from its opening to its end. It is dead once it has ended or been dropped.
class Link {
  born = Date.now();
  seen = this.born; // the last sign of life
  rooms = new Set(); // names of rooms that this session has joined or is joining
  turns = new Set(); // joins and leaves that are still to be sent
  sent = []; // commands without an answer, and those whose answer is so recent that they count for the limits

  constructor(client, level) {
    Object.assign(this, { client, level, name: client.transports[level] });
    this.begin().catch(({ message }) => this.end({ reason: message, fault: false }));
  }

  async begin() {
    const token = await this.client.auth();
    if (this.dead) return;
    // Some proxies open a connection and let nothing through.
    this.deadline = setTimeout(() => this.end({ reason: "no welcome" }), this.client.open_ms);
    Object.assign(this, { __proto__: null, ws, sse, poll }[this.name](this, token));
  }

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

  text(text) {
    try {
      this.frame(JSON.parse(text));
    } catch (error) {
      this.lost(error); // at once: frames after one that cannot be read would hide it
    }
  }
  lost = ({ message: reason }) => this.end({ reason });
  url(path, query) { return this.client.base + path + "?" + new URLSearchParams(defined({ n: this.client.route, ...query })); }

  // Gives the body of the answer. A refusal of the request goes to `refused`; everything else that is not 200 ends the link.
  async fetch(path, query, refused, body, signal) {
    const late = setTimeout(() => this.end({ reason: "silent" }), 30_000);
    try {
      const token = await this.client.auth();
      const headers = defined({ authorization: token && `Bearer ${token}`, "content-type": body && "application/json" });
      const answer = await fetch(this.url(path, query), { method: body && "POST", body, headers, signal });
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

  // An end before the welcome speaks against the transport, unless the server said when to come back.
  end({ after = this.after, fault = !this.open && after === undefined, ...why }) {
    if (this.dead) return;
    this.drop();
    this.client.ended(this, { after, fault, ...why });
  }

  drop(leaves) { // for good: it gives back what it has at the gateway
    if (leaves) this.leave?.();
    this.dead = true;
    clearTimeout(this.deadline);
    this.abort?.abort();
    this.close?.();
  }
}

// The transports. Each opens a link and gives it `send(command)`. What arrives goes to `link.frame()`, as the frames that a
// WebSocket has; `carries(room)` tells which rooms are joined by opening alone.

function ws(link, token) {
  const socket = new link.client.WebSocket(link.url("ws").replace("http", "ws"), token ? ["fanfare.v1", `token.${token}`] : []);
  socket.onmessage = ({ data }) => link.text(data);
  socket.onerror = () => {}; // a close follows
  socket.onclose = ({ code, reason }) => link.end({ code, reason });
  return { send: (command) => socket.send(JSON.stringify(command)), close: () => socket.close() };
}

export function eventStream(onEvent, onRetry) { // WHATWG HTML 9.2.6
  let rest = "", cr, data = [], type, id = "";
  return (text) => {
    // A line ends with CR, LF or both; the piece before may have ended between the two.
    const lines = (rest + (cr ? text.replace(/^\n/, "") : text)).split(/\r\n?|\n/);
    cr = text.endsWith("\r");
    rest = lines.pop();
    for (const line of lines) {
      const [, field, value] = /^([^:]*):? ?([^]*)/.exec(line);
      if (!line) {
        if (data.length) onEvent(data.join("\n"), type || "message", id);
        [data, type] = [[], ""];
      } else if (field === "data") data.push(value);
      else if (field === "event") type = value;
      else if (field === "id" && !value.includes("\0")) id = value;
      else if (field === "retry" && /^\d+$/.test(value)) onRetry(+value);
    }
  };
}

// One room is in the URL; the others join by POSTs to the session, as over WebSocket. Without a room there is no stream.
function sse(link) {
  const { client } = link, all = [...client.rooms.values()], plain = ({ name }) => !isDots(name) && !name.includes(",");
  const room = all.find(plain) ?? all[0];
  if (!room) return poll(link);
  const { signal } = (link.abort = new AbortController()), waiting = [];
  let busy;

  async function read() {
    const { since, history: last, presence, echo } = client.joining(room);
    const refused = (frame) => link.end({ after: client.refused(room, frame) ?? 0 });
    const [path, name] = plain(room) ? [encodeURIComponent(room.name)] : ["", room.name];
    const body = await link.fetch(`v1/rooms/${path}/sse`, { room: name, since, last, presence, echo }, refused, undefined, signal);
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    const take = eventStream((data) => link.frame(JSON.parse(data)), (ms) => (link.after = ms));
    for (let piece; !(piece = await reader.read()).done; take(piece.value)) link.seen = Date.now();
    link.end({ reason: "stream ended" });
  }

  async function send(command) {
    waiting.push(JSON.stringify(command));
    while (waiting[0] && !busy && !link.dead) {
      // One POST at a time, since they overtake each other: up to 100 commands and a megabyte, where a character may take 3 bytes.
      let space = 300_000;
      const end = waiting.findIndex((text, i) => i > 99 || ((space -= text.length) < 0 && i));
      busy = `[${waiting.splice(0, end < 0 ? 100 : end)}]`;
      const refused = (frame) => JSON.parse(busy).forEach(({ id }) => link.frame({ ...frame, id }));
      const frames = await link.fetch(client.post.slice(1), {}, refused, busy, signal);
      // `joined` and `left` come by the stream too, in order with the messages.
      for (const frame of frames ?? []) if (!/joined|left/.test(frame.type)) link.frame(frame);
      busy = null;
    }
  }

  read().catch(link.lost);
  return { send, carries: (other) => other === room };
}

// Asks for all rooms at once, and carries their frames out of the answers. Requests are requests of plain HTTP.
function poll(link) {
  const { client } = link, known = new Set(), unpollable = new Set(); // rooms that have been polled; rooms without history
  let posting = Promise.resolve(), most = Infinity;

  // Polls until rooms come or go, which starts another turn. A lost answer comes again: the next cursors acknowledge it.
  async function turn() {
    link.abort?.abort();
    const { signal } = (link.abort = new AbortController());
    await null; // rooms that come in one moment start one turn
    while (!signal.aborted) {
      const all = [...client.rooms.values()].filter((room) => !unpollable.has(room));
      for (const room of all.splice(client.limits.rooms)) client.beyond(room);
      // New rooms are asked for without waiting, so that their cursors are known at once. If they are refused, half of them
      // are asked for, down to the one that the refusal is for.
      const fresh = all.filter((room) => !known.has(room)), [first] = fresh, last = first?.options.history;
      const group = last ? [first] : first ? fresh.filter(({ options }) => !options.history).slice(0, most) : all;
      const rooms = Object.fromEntries(group.map(({ name, cursor = null }) => [name, cursor]));
      const refused = (frame) => {
        // The text alone says how many rooms a poll may have.
        if (frame.code === "room_limit") client.limits = { ...client.limits, rooms: +/\d+/.exec(frame.message) || group.length - 1 };
        else if (!first) link.lost(frame);
        else if (group[1]) most = group.length >> 1;
        else {
          if (frame.code === "history_off") frame.retryable = !!unpollable.add(first);
          client.refused(first, frame);
          most *= 2;
        }
      };
      const body = JSON.stringify({ rooms, wait: first ? 0 : 25, last, session: client.polled });
      const answer = await (all[0] && link.fetch("v1/poll", {}, refused, body, signal));
      if (all[0] && !answer) continue;
      if (!link.open) link.frame({ type: "welcome", ping_ms: 25_000 });
      if (group.some(({ options }) => options.echo === false)) await posting; // whose answers tell own messages
      if (!answer || signal.aborted) return;
      most *= 2;
      link.seen = Date.now();
      client.polled = answer.session;
      for (const room of group) deliver(room, answer);
      if (answer.next_ms && !first) await new Promise((resolve) => setTimeout(resolve, answer.next_ms));
    }
  }

  // Makes the frames of a WebSocket: `joined`, if the answer is the room's first or there is a gap, then the messages.
  function deliver(room, answer) {
    const { name, cursor: from } = room, messages = answer.messages.filter((message) => message.room === name);
    // Own fields only: a room may have the name `constructor`.
    const gap = { __proto__: null, ...answer.gap }[name], resumed = from && !gap, cursor = resumed ? from : before(messages[0]?.cursor) ?? answer.cursors[name];
    if (gap || !known.has(room)) link.frame({ type: "joined", room: name, cursor, resumed, gap });
    known.add(room);
    messages.forEach(link.frame, link);
    room.cursor = answer.cursors[name];
    if (room.options.presence && !isDots(name) && !(Date.now() < room.asked)) {
      room.asked = Date.now() + 10_000;
      send({ type: "presence", room: name });
    }
  }

  async function call({ type, id, room, data, event, key, since, limit }) {
    const refused = ({ detail, ...frame }) => link.frame({ message: detail, ...frame, type: "error", room, id });
    let answer;
    if (type === "publish") {
      [answer] = (await link.fetch("v1/publish", {}, refused, JSON.stringify([{ room, data, event, key }]))) ?? [];
      if (answer?.code) return refused(answer);
    } else if (isDots(room)) refused(refusal("room_invalid", "no URL can carry this name"));
    else answer = await link.fetch(`v1/rooms/${encodeURIComponent(room)}/${type}`, { since, limit }, refused);
    if (answer) client.frame({ type, ...answer, id });
  }

  // Others see at once that this client polls these rooms no longer.
  function leave(names) {
    const body = { rooms: Object.fromEntries(names.map((name) => [name, null])), session: client.polled, leave: true };
    if (names[0] && client.polled) link.fetch("v1/poll", {}, () => {}, JSON.stringify(body));
  }

  function send(command) {
    if (command.type === "leave") leave([command.room]);
    if (/join|leave/.test(command.type)) link.name === "sse" ? link.end({ after: 0 }) : turn();
    else if (command.room) posting = posting.then(() => link.dead || call(command));
  }

  turn();
  return { send, carries: () => true, free: true, leave: () => leave([...known].map(({ name }) => name)) };
}
