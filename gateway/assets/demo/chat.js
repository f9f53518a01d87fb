// The chat page. Messages go through one room; typing indicators, read receipts and names go through a second one beside it, so
// that the first room's history holds messages only. chat-view.js draws the page.

import { connect } from "/client.js";
import { $, keep, recall, remember, token } from "./demo.js";
import * as view from "./chat-view.js";

const params = new URLSearchParams(location.search);
const roomName = params.get("room") || "chat:lobby";
const transport = params.get("transport");
const TYPING_MS = 4000; // how long a "typing" is shown; while somebody types it is sent every TYPING_MS / 2
const CROWD = 40; // in larger rooms pages do not answer a newcomer's hello
const KNOWN_MAX = 500; // people that the page remembers

/** A name as the page shows it. Other programs may publish in this room too, with anything as a name. */
const called = (name) => (typeof name === "string" && view.isVisible(name) && name.trim().slice(0, 40)) || "somebody";

const me = { tab: recall("sessionStorage", "tab") ?? token(), name: recall("sessionStorage", "name") ?? "", read: null };
remember("sessionStorage", "tab", me.tab);

const tabs = new Map(); // tab -> its last signal: {name, read, session, typing (until when), heard (when)}
const names = new Map(); // session -> name; presence lists session ids only
const unsent = new Map(); // nonce -> the pending message
let last = null; // the last message
let skew = 0; // the gateway's clock minus this computer's
let f, room, signals;

function start() {
  f = connect(undefined, transport ? { transports: [transport] } : {});
  room = f.join(roomName, { history: 50, presence: true });
  signals = f.join(`typing:${roomName.replace(/^chat:/, "")}`);
  f.on("open", connection);
  f.on("close", ({ reconnect } = {}) => {
    view.state(reconnect === false ? "closed" : "", reconnect === false ? "disconnected" : "reconnecting…");
  });
  room.on("message", onMessage);
  room.on("gap", ({ missed }) => view.gap(missed));
  room.on("joined", () => {
    connection();
    setTimeout(view.settled, 500); // the history follows at once
  });
  room.on("members", people);
  room.on("error", ({ message, retryable }) => view.state(retryable ? "" : "closed", message));
  room.on("left", () => view.state("closed", "no longer in this room"));
  signals.on("message", onSignal);
  signals.on("joined", () => signal("hello", { ask: true }));
  view.state("", "connecting…");
}

const TRANSPORTS = { ws: "WebSocket", sse: "server-sent events", poll: "long polling" };
function connection() {
  const node = f.node ? ` · node ${f.node}` : "";
  view.state("open", `${TRANSPORTS[f.transport] ?? f.transport ?? "connected"}${node}`);
}

// Messages

function send(text, nonce = token()) {
  const item = view.pending({ name: me.name, text, at: Date.now() });
  unsent.set(nonce, item);
  setTimeout(item.late, 2000); // the client keeps the message and sends it when there is a connection again
  // With the same key as before: a message whose acknowledgement was lost is not published twice.
  room.publish({ name: me.name, text, tab: me.tab, session: f.session, nonce }, { key: nonce }).catch((error) => {
    if (unsent.has(nonce)) item.failed(error.message, () => send(text, nonce));
  });
}

function onMessage({ cursor, data, from, ts }) {
  if (typeof data?.text !== "string") return; // another program publishes something else in this room
  const { text, tab, nonce } = data;
  const name = called(data.name);
  unsent.get(nonce)?.gone();
  unsent.delete(nonce);
  learn(from?.session ?? data.session, name);
  const author = tabs.get(tab);
  if (author) author.typing = 0;
  last = { id: cursor ?? nonce, tab };
  view.message({ name, text, author: tab ?? name, at: ts, own: tab === me.tab });
  show();
  read();
}

// Signals: hello, typing, read. Each carries the sender's whole state, so that a lost one is made up for by the next.

function signal(event, more = {}) {
  signals.publish({ ...me, session: f.session, ...more }, { event }).catch(() => {}); // the next signal carries the same
}

function onSignal({ event, data, from, ts }) {
  if (typeof data?.tab !== "string") return;
  if (data.tab === me.tab) {
    if (event === "hello") skew = ts - Date.now();
    return;
  }
  const name = called(data.name);
  learn(from?.session ?? data.session, name);
  // The room may keep a history: a typing signal that is old by the gateway's clock has ended.
  const typing = event === "typing" ? ts - skew + TYPING_MS : tabs.get(data.tab)?.typing ?? 0;
  keep(tabs, data.tab, { name, read: data.read, session: data.session, typing, heard: ts }, KNOWN_MAX);
  people();
  if (event === "hello" && data.ask && room.members.length < CROWD) setTimeout(signal, 1000 * Math.random(), "hello");
  if (event === "typing") setTimeout(show, Math.max(0, typing - Date.now()) + 20);
  show();
}

function learn(session, name) {
  if (!session || names.get(session) === name) return;
  keep(names, session, name, KNOWN_MAX);
  people();
}

let reading;
function read() {
  if (document.hidden || !last || me.read === last.id) return;
  clearTimeout(reading);
  reading = setTimeout(() => {
    me.read = last.id;
    signal("read");
  }, 300);
}

let typed = 0;
function typing() {
  const now = Date.now();
  if (now - typed < TYPING_MS / 2 || !$("text").value.trim()) return;
  typed = now;
  signal("typing");
}

function show() {
  const all = [...tabs];
  const now = Date.now();
  view.typing(all.filter(([, { typing }]) => typing > now).map(([, { name }]) => name));
  view.seen(all.filter(([tab, { read }]) => last && read === last.id && tab !== last.tab).map(([, { name }]) => name));
}

function people() {
  // A page that polls does not know its own session id. Members without a name are taken for those pages, the last heard first.
  const others = [...tabs.values()].filter(({ session }) => !session).sort((a, b) => b.heard - a.heard).map(({ name }) => ({ name }));
  const unnamed = f.session ? others : [{ name: me.name, you: true }, ...others];
  const all = room.members.map(({ user }) => {
    if (user === f.session) return { name: me.name, you: true };
    return names.has(user) ? { name: names.get(user) } : unnamed.shift() ?? { name: `guest ${user.slice(0, 4)}` };
  });
  view.people(all.sort((a, b) => Boolean(b.you) - Boolean(a.you) || a.name.localeCompare(b.name)));
}

// The page

$("composer").onsubmit = (event) => {
  event.preventDefault();
  $("text").focus();
  const text = $("text").value.trim();
  if (text.length > view.LENGTH_MAX) return; // the page says so
  if (text) send(text);
  $("text").value = "";
  view.length(0);
  typed = 0;
};
$("text").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
};
$("text").oninput = () => {
  view.length($("text").value.trim().length);
  typing();
};
$("down").onclick = view.toEnd;
$("scroll").onscroll = () => { if ($("scroll").scrollHeight - $("scroll").scrollTop - $("scroll").clientHeight < 80) $("down").hidden = true; };
document.addEventListener("visibilitychange", read);

const here = (change) => `chat.html?${new URLSearchParams({ ...Object.fromEntries(params), ...change })}`;
$("room").textContent = roomName;
document.title = `${roomName} · Fanfare`;
$("second").href = here({});
for (const link of document.querySelectorAll("[data-transport]")) {
  link.href = here({ transport: link.dataset.transport });
  if (link.dataset.transport === (transport ?? "")) link.setAttribute("aria-current", "true");
}
$("go").onsubmit = (event) => {
  event.preventDefault();
  if ($("other").value) location.href = here({ room: `chat:${$("other").value}` });
};
if (matchMedia("(max-width: 52rem)").matches) for (const part of document.querySelectorAll("aside details")) part.open = false;

function ask() {
  $("name").value = me.name || recall("localStorage", "name") || "";
  $("who").showModal();
}
$("rename").onclick = ask;
$("who").oncancel = (event) => { if (me.name) $("name").value = me.name; else event.preventDefault(); };
$("who").onclose = () => {
  const name = $("name").value.trim();
  if (!view.isVisible(name)) return me.name ? undefined : ask();
  me.name = name;
  remember("sessionStorage", "name", name);
  remember("localStorage", "name", name);
  if (!f) start();
  else signal("hello");
  if (room) people();
  $("text").focus();
};
if (me.name) {
  start();
  $("text").focus();
} else ask();
