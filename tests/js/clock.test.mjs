// What the client does by the clock: a laptop that slept, a tab in the background, a network that changed, transports that
// open and carry nothing, requests that get no answer. The clock and the window's events, which Node does not have, are
// mocked; the gateway and the connections are real.

import assert from "node:assert/strict";
import { getEventListeners } from "node:events";
import { test } from "node:test";
import { client, listen } from "./harness/client.mjs";
import { gateway } from "./harness/gateway.mjs";
import { proxy } from "./harness/proxy.mjs";
import { until } from "./harness/wait.mjs";

// The client's timers that a test decides about: the wait for a pong, the tick, the wait for a welcome, the wait for an answer.
const HELD_MS = [4000, 5000, 8000, 30_000];

/** Stops the client's long timers, so that they fire when `jump` has reached them and never because the machine is slow. */
function clock(t) {
  const { now } = Date, real = { ...globalThis }, held = new Set();
  let ahead = 0;
  t.mock.method(Date, "now", () => now() + ahead);
  for (const [set, clear] of [["setTimeout", "clearTimeout"], ["setInterval", "clearInterval"]]) {
    t.mock.method(globalThis, set, (call, ms, ...rest) => {
      if (!HELD_MS.includes(ms)) return real[set](call, ms, ...rest);
      // Node's own fetch has timers of these lengths too, and expects them to be like Node's.
      const timer = { call: () => call(...rest), due: Date.now() + ms, every: set === "setInterval" && ms, unref() {}, refresh() {} };
      held.add(timer);
      return timer;
    });
    t.mock.method(globalThis, clear, (timer) => held.delete(timer) || real[clear](timer));
  }
  return {
    /** Lets time pass all at once, as a machine that slept sees it: a timer that is due several times fires once. */
    jump(ms) {
      ahead += ms;
      for (const timer of [...held].filter(({ due }) => due <= Date.now())) {
        if (timer.every) timer.due = Date.now() + timer.every;
        else held.delete(timer);
        timer.call();
      }
    },
  };
}

/** The window that Node does not have. */
function page(t) {
  const window = new EventTarget();
  globalThis.addEventListener = window.addEventListener.bind(window);
  t.after(() => delete globalThis.addEventListener);
  return {
    fire: (type) => window.dispatchEvent(new Event(type)),
    /** How many listeners the client has added, by the events that it listens for. */
    listeners: () => ["online", "pageshow", "visibilitychange"].map((type) => getEventListeners(window, type).length),
  };
}

/** Waits until the connection's last sign of life is older than now, by at least a millisecond. */
const aWhile = (link) => until(() => link.seen < Date.now(), "a millisecond has passed");

for (const transport of ["ws", "sse", "poll"]) {
  test(`${transport}: after a sleep a dead connection is replaced, and the room goes on`, async (t) => {
    const time = clock(t), node = await gateway(t), front = await proxy(t, node), f = client(t, front.url, { transports: [transport] });
    const room = listen(f, "a"), closes = [];
    f.on("close", ({ reason }) => closes.push(reason));
    await until(() => room.joined.length, "joined");
    const { link } = f;
    front.frozen = true;
    await node.publish("a", "missed");
    time.jump(3_600_000);
    time.jump(4000); // a WebSocket was sent a ping, and no pong came
    assert.equal(link.dead, true);
    front.frozen = false;
    await until(() => room.data.length, "what was missed has come");
    assert.deepEqual([room.data, closes[0]], [["missed"], "silent"]);
  });

  test(`${transport}: after a sleep a live connection is kept`, async (t) => {
    const time = clock(t), node = await gateway(t), f = client(t, node.url, { transports: [transport] }), room = listen(f, "a");
    await until(() => room.joined.length, "joined");
    const { link } = f;
    time.jump(15_000);
    const asked = Date.now();
    await node.publish("a", 1);
    await until(() => room.data.length && link.seen >= asked, "a message has come");
    assert.deepEqual([f.link === link, link.dead], [true, undefined]);
  });
}

test("a silent WebSocket is sent a ping, and a pong keeps it", async (t) => {
  const time = clock(t), node = await gateway(t), f = client(t, node.url), room = listen(f, "a");
  await until(() => room.joined.length, "joined");
  const { link } = f;
  time.jump(link.silence + 1);
  const asked = Date.now();
  await until(() => link.seen >= asked, "a pong has come");
  time.jump(4000);
  assert.deepEqual([f.link === link, link.dead], [true, undefined]);
});

test("a changed network ends a back-off and replaces a dead WebSocket at once", async (t) => {
  const time = clock(t), window = page(t), node = await gateway(t), front = await proxy(t, node), f = client(t, front.url), room = listen(f, "a");
  await until(() => room.joined.length, "joined");
  const { link } = f;
  await aWhile(link);
  front.frozen = true;
  window.fire("online");
  time.jump(4000);
  assert.equal(link.dead, true);
  front.frozen = false;
  front.block();
  f.failed = 20;
  await until(() => !f.link && f.failed > 20, "it waits for its next try");
  clearTimeout(f.retry); // as if the wait were long
  front.open();
  window.fire("online");
  await until(() => f.transport, "connected");
});

test("a page that wakes checks silent connections, and waits as long as asked", async (t) => {
  const time = clock(t), window = page(t), node = await gateway(t), front = await proxy(t, node);
  const f = client(t, front.url, { transports: ["poll"] }), room = listen(f, "a");
  await until(() => room.joined.length, "joined");
  const { link } = f;
  window.fire("visibilitychange");
  assert.equal(link.dead, undefined);
  time.jump(21_000);
  window.fire("visibilitychange");
  assert.equal(link.dead, true);
  f.rest = Date.now() + 60_000;
  clearTimeout(f.retry);
  window.fire("pageshow");
  assert.equal(f.link, undefined);
  time.jump(60_001);
  window.fire("pageshow");
  await until(() => f.transport, "connected");
});

test("a publish without an answer for five minutes is not repeated", async (t) => {
  const time = clock(t), node = await gateway(t), front = await proxy(t, node), f = client(t, front.url), room = listen(f, "a");
  const witness = listen(client(t, node.url), "a");
  await until(() => room.joined.length && witness.joined.length, "both have joined");
  front.deaf = true;
  const sent = room.room.publish("once");
  await until(() => witness.data.length, "it is published");
  front.block();
  await until(() => !f.transport, "the client has noticed");
  const unsent = room.room.publish("later");
  time.jump(281_000);
  front.deaf = false;
  front.open();
  await assert.rejects(sent, { code: "unacknowledged" }); // the gateway may have forgotten its key
  await unsent;
  await until(() => witness.data.length === 2, "what had not been sent is published");
  assert.deepEqual(witness.data, ["once", "later"]);
});

test("a closed client no longer listens for the window's events", async (t) => {
  const window = page(t), node = await gateway(t), f = client(t, node.url);
  await until(() => f.transport, "open");
  assert.deepEqual(window.listeners(), [1, 1, 1]);
  f.close();
  assert.deepEqual(window.listeners(), [0, 0, 0]);
});

test("a mute WebSocket and a stream that a proxy holds back give way to polling", async (t) => {
  const time = clock(t), node = await gateway(t), front = await proxy(t, node);
  Object.assign(front, { upgrades: "mute", streams: "hold" });
  const f = client(t, front.url), room = listen(f, "a");
  for (const path of ["/ws", "/v1/rooms/a/sse"]) {
    await until(() => front.seen.some(({ url, answer }) => url.startsWith(path) && answer), `the gateway has answered ${path}`);
    time.jump(8000);
  }
  await until(() => room.joined.length, "joined");
  await node.publish("a", 1);
  await until(() => room.data.length, "a message has come");
  assert.equal(f.transport, "poll");
});

for (const transport of ["sse", "poll"]) {
  test(`over ${transport} a request without an answer is sent again after 30 s`, async (t) => {
    const time = clock(t), node = await gateway(t), front = await proxy(t, node), f = client(t, front.url, { transports: [transport] });
    const room = listen(f, "a");
    await until(() => room.joined.length, "joined");
    let swallowed = 0;
    front.instead = ({ method, url }) => method === "POST" && !url.startsWith("/v1/poll") && ++swallowed === 1;
    const sent = room.room.publish("at last");
    await until(() => swallowed, "it is held");
    await node.publish("a", "meanwhile");
    await until(() => room.data.length, "what others publish comes meanwhile");
    time.jump(30_000);
    await sent;
    await until(() => room.data.length === 2, "it has come");
    assert.deepEqual([room.data, swallowed], [["meanwhile", "at last"], 2]);
  });
}
