// A laptop that slept, a tab in the background, a network that changed: connections that are dead without saying so. Only
// the clock is mocked here, and the window's events, which Node does not have.

import assert from "node:assert/strict";
import { test } from "node:test";
import { client, listen } from "./harness/client.mjs";
import { gateway } from "./harness/gateway.mjs";
import { proxy } from "./harness/proxy.mjs";
import { until } from "./harness/wait.mjs";

/** Makes the clock jump, and those timers faster for which a test would wait: the tick, the wait for a pong, for an answer. */
function clock(t, faster = 10) {
  const { now } = Date, { setInterval } = globalThis, { setTimeout } = globalThis;
  let ahead = 0;
  t.mock.method(Date, "now", () => now() + ahead);
  t.mock.method(globalThis, "setInterval", (call, ms) => setInterval(call, ms / faster));
  t.mock.method(globalThis, "setTimeout", (call, ms, ...rest) => setTimeout(call, [4000, 30_000].includes(ms) ? ms / faster : ms, ...rest));
  return { jump: (ms) => (ahead += ms) };
}

/** The window that Node does not have. */
function page(t) {
  const window = new EventTarget();
  globalThis.addEventListener = window.addEventListener.bind(window);
  t.after(() => delete globalThis.addEventListener);
  return { fire: (type) => window.dispatchEvent(new Event(type)) };
}

for (const transport of ["ws", "sse", "poll"]) {
  test(`${transport}: after a sleep a dead connection is found out, and the room goes on`, async (t) => {
    const time = clock(t), node = await gateway(t), front = await proxy(t, node), f = client(t, front.url, { transports: [transport] });
    const room = listen(f, "a"), closes = [];
    f.on("close", ({ reason }) => closes.push(reason));
    await until(() => room.joined.length, "joined");
    const { link } = f;
    await until(() => link.seen < Date.now(), "some time has passed");
    front.frozen = true;
    await node.publish("a", "missed");
    time.jump(3_600_000);
    await until(() => link.dead, "the old connection is given up");
    front.frozen = false;
    await until(() => room.data.length, "what was missed has come");
    assert.deepEqual([room.data, closes[0]], [["missed"], "silent"]);
  });

  test(`${transport}: after a sleep a connection that lives is kept`, async (t) => {
    const time = clock(t), node = await gateway(t), f = client(t, node.url, { transports: [transport] }), room = listen(f, "a");
    await until(() => room.joined.length, "joined");
    const { link } = f;
    await until(() => link.seen < Date.now(), "some time has passed");
    time.jump(15_000);
    const asked = Date.now();
    await f.tick();
    await node.publish("a", 1);
    await until(() => room.data.length && link.seen >= asked, "it lives");
    assert.deepEqual([f.link === link, link.dead], [true, undefined]);
  });
}

test("a WebSocket that is silent is asked for a sign of life, and gives it", async (t) => {
  const time = clock(t), node = await gateway(t), f = client(t, node.url), room = listen(f, "a");
  await until(() => room.joined.length, "joined");
  const { link } = f;
  await until(() => link.seen < Date.now(), "some time has passed");
  time.jump(link.silence + 1);
  const asked = Date.now();
  await until(() => link.seen >= asked, "a pong has come");
  assert.equal(f.link, link);
});

test("when the network changes nothing waits: a dead WebSocket is found out, a back-off ends", async (t) => {
  clock(t);
  const window = page(t), node = await gateway(t), front = await proxy(t, node), f = client(t, front.url), room = listen(f, "a");
  await until(() => room.joined.length, "joined");
  const { link } = f;
  await until(() => link.seen < Date.now(), "some time has passed");
  front.frozen = true;
  window.fire("online");
  await until(() => link.dead, "the old connection is given up");
  front.frozen = false;
  front.block();
  f.failed = 20;
  await until(() => !f.link && f.failed > 20, "it waits");
  clearTimeout(f.retry); // as if the wait were long
  front.open();
  window.fire("online");
  await until(() => f.transport, "connected");
});

test("a page that comes back asks only what has been silent, and never earlier than the server allows", async (t) => {
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

test("a publish that nobody answered for almost five minutes is not repeated: its key may be forgotten", async (t) => {
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
  await assert.rejects(sent, { code: "unacknowledged" });
  await unsent;
  await until(() => witness.data.length === 2, "what had not been sent is published");
  assert.deepEqual(witness.data, ["once", "later"]);
});

test("a closed client listens to nothing any more", async (t) => {
  const window = page(t), node = await gateway(t), f = client(t, node.url);
  await until(() => f.transport, "open");
  f.close();
  window.fire("online");
  assert.deepEqual([f.transport, f.link.dead], [undefined, true]);
});

for (const transport of ["sse", "poll"]) {
  test(`over ${transport} a request that is never answered holds nothing up`, async (t) => {
    clock(t);
    const node = await gateway(t), front = await proxy(t, node), f = client(t, front.url, { transports: [transport] }), room = listen(f, "a");
    await until(() => room.joined.length, "joined");
    let swallowed = 0;
    front.instead = ({ method, url }) => method === "POST" && !url.startsWith("/v1/poll") && ++swallowed === 1;
    const sent = room.room.publish("at last");
    await until(() => swallowed, "it is held");
    await node.publish("a", "meanwhile");
    await until(() => room.data.length, "what others say comes meanwhile");
    await sent;
    await until(() => room.data.length === 2, "it has come");
    assert.deepEqual([room.data, swallowed], [["meanwhile", "at last"], 2]);
  });
}
