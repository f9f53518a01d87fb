// What a client with very many rooms, or with many wrong requests, does within the limits of its session: 500 joins, leaves and
// questions per second, 20 errors in 10 s, and as many rooms as the gateway allows.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { client, listen, upTo } from "./harness/client.mjs";
import { gateway } from "./harness/gateway.mjs";
import { proxy } from "./harness/proxy.mjs";
import { patient, until } from "./harness/wait.mjs";

/** Records when a connection ended, which none of these tests expects. */
function closes(f) {
  const all = [];
  f.on("close", ({ code, reason, reconnect }) => all.push({ code, reason, reconnect }));
  return all;
}

for (const transport of ["ws", "sse", "poll"]) describe(transport, { concurrency: true }, () => {
  const only = { transports: [transport] };

  // A poll's answer has no space for messages beyond some 1800 rooms.
  const MANY = transport === "poll" ? 1500 : 2000;
  test(`${MANY} rooms are joined within the rate of a session, again after a reconnect, and left`, { timeout: patient(120_000) }, async (t) => {
    // With such small messages a POST took more than the 100 commands that it may have.
    const node = await gateway(t, { config: `[limits]\nrooms_per_session = ${MANY}\nmessage_bytes = 1024\n` });
    const front = await proxy(t, node), f = client(t, front.url, only), ended = closes(f), name = (n) => `room/${n}`;
    const rooms = upTo(MANY).map((n) => listen(f, name(n))), all = (times) => () => ended.length || rooms.every(({ joined }) => joined.length >= times);
    await until(all(1), "every room is joined", 40_000);
    assert.deepEqual(ended, [], "the session has not ended");
    await front.interrupt(f);
    ended.length = 0;
    await until(all(2), "every room is joined again", 40_000);
    assert.deepEqual([ended, f.transport], [[], transport]);
    for (const n of [1, MANY / 2, MANY]) await node.publish(name(n), n);
    await until(() => rooms[MANY - 1].data.length && rooms[0].data.length, "messages come");
    const urls = front.seen.map(({ url }) => url.length);
    assert.ok(Math.max(...urls) < 500, `a URL has ${Math.max(...urls)} characters`);
    for (const { room } of rooms.slice(1)) room.leave();
    if (transport !== "poll") await until(async () => (await node.get("/v1/rooms?limit=1000")).rooms.length === 1, "one room has a member", 40_000);
    assert.deepEqual([ended, rooms.filter(({ errors }) => errors.length).length], [[], 0]);
  });

  test("rooms beyond what a session may have are refused one by one, and the others go on", async (t) => {
    const node = await gateway(t), front = await proxy(t, node), f = client(t, front.url, only), ended = closes(f);
    const rooms = upTo(200).map((n) => listen(f, `room:${n}`)), count = (what) => rooms.filter((room) => room[what].length).length;
    await until(() => ended.length || count("joined") + count("errors") >= 200, "every room is answered");
    assert.deepEqual([ended, count("joined"), count("errors")], [[], 128, 72]);
    const [error] = rooms[199].errors;
    assert.deepEqual([error.code, error.retryable, error.room], ["room_limit", false, "room:200"]);
    rooms[0].room.leave();
    const late = listen(f, "late");
    await until(() => late.joined.length, "there is space for another one");
    await front.interrupt(f);
    await until(() => rooms[127].joined.length > 1 && late.joined.length > 1, "joined again");
    await node.publish("room:128", 1);
    await until(() => rooms[127].data.length, "it goes on");
    assert.equal(count("errors"), 72);
  });

  test("24 refused joins and 25 refused publishes end no session", { timeout: patient(60_000) }, async (t) => {
    const node = await gateway(t, { config: '[[rooms]]\nmatch = "quiet:*"\npresence = false\n' });
    const f = client(t, node.url, only), ended = closes(f), a = listen(f, "a");
    await until(() => a.joined.length, "joined");
    const quiet = upTo(24).map((n) => listen(f, `quiet:${n}`, { presence: true, history: transport === "poll" ? 1 : undefined }));
    const answered = ({ errors, joined }) => errors.length + joined.length;
    await until(() => ended.length || quiet.every(answered), "every join is answered", 40_000);
    assert.deepEqual(ended, []);
    if (transport !== "poll") assert.deepEqual([...new Set(quiet.map(({ errors }) => errors[0].code))], ["presence_off"]);
    const codes = await Promise.all(upTo(25).map(() => a.room.publish(1, { event: "x".repeat(65) }).catch(({ code }) => code)));
    assert.deepEqual([ended, [...new Set(codes)]], [[], ["bad_request"]]);
    await a.room.publish("still here");
    await until(() => a.data.length, "it goes on");
  });
});

test("1500 questions keep to the rate of a session, however fast they are answered", { timeout: patient(60_000) }, async (t) => {
  const full = 1000, perSecond = 500, refused = [];
  let tokens = full, filled = performance.now();
  // A gateway without a network between, and its limit for joins, leaves and questions of one session.
  class Near {
    constructor() { setTimeout(() => this.answer({ type: "welcome", session: "s", ping_ms: 25_000 })); }
    answer(frame) { this.onmessage({ data: JSON.stringify(frame) }); }
    send(text) {
      const { id, type } = JSON.parse(text), now = performance.now();
      tokens = Math.min(full, tokens + ((now - filled) * perSecond) / 1000) - 1;
      filled = now;
      if (tokens < 0) refused.push(type);
      queueMicrotask(() => this.answer({ type, id, room: "a", count: 0, members: [] }));
    }
    close() {}
  }
  const f = client(t, "http://127.0.0.1:9", { WebSocket: Near, transports: ["ws"] }), { room } = listen(f, "a");
  for (const _ of upTo(3)) await Promise.all(upTo(500).map(() => room.presence()));
  assert.deepEqual(refused, []);
});
