// Requests with arguments that cannot be sent: the returned promise is rejected with a code, nothing is sent, and the client
// goes on. And what is answered while Redis is away.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { client, listen } from "./harness/client.mjs";
import { gateway, redis } from "./harness/gateway.mjs";
import { patient, until } from "./harness/wait.mjs";

/** The code with which the promise that `call` returns is rejected; otherwise what happened. */
function outcome(call) {
  let promise;
  try {
    promise = call();
  } catch (error) {
    return `thrown: ${error}`;
  }
  const deadline = new Promise((resolve) => setTimeout(resolve, patient(5000), "no answer").unref());
  return Promise.race([deadline, promise.then(() => "published", ({ code }) => code)]);
}

const circular = {};
circular.self = circular;
const DATA = {
  "a BigInt": 10n, "a BigInt inside": { n: [10n] }, "a circular object": circular, "a function": () => {}, "a symbol": Symbol("s"),
  "an object whose toJSON gives nothing": { toJSON() {} }, "an object whose toJSON throws": { toJSON() { throw null; } },
};
const OPTIONS = {
  "event: a BigInt": { event: 10n }, "event: a function": { event() {} }, "event: empty": { event: "" }, "event: 65 bytes": { event: "x".repeat(65) },
  "key: a symbol": { key: Symbol("k") }, "key: a BigInt": { key: 1n }, "key: empty": { key: "" }, "key: 65 bytes": { key: "x".repeat(65) },
};
const RANGES = { "limit: a BigInt": { limit: 10n }, "limit: negative": { limit: -1 }, "limit: a word": { limit: "ten" }, "limit: a function": { limit() {} }, "since: no cursor": { since: "x" }, "since: a symbol": { since: Symbol("s") } };

for (const transport of ["ws", "sse", "poll"]) describe(transport, { concurrency: true }, () => {
  const only = { transports: [transport] };

  test("wrong arguments reject the promise, and nothing is sent", { timeout: patient(60_000) }, async (t) => {
    const node = await gateway(t), f = client(t, node.url, only), closes = [], { room, joined, data } = listen(f, "a");
    f.on("close", (why) => closes.push(why));
    await until(() => joined.length, "joined");
    const calls = [
      ...Object.entries(DATA).map(([what, wrong]) => [`publish ${what}`, () => room.publish(wrong)]),
      ...Object.entries(OPTIONS).map(([what, wrong]) => [`publish with ${what}`, () => room.publish(1, wrong)]),
      ...Object.entries(RANGES).map(([what, wrong]) => [`history with ${what}`, () => room.history(wrong)]),
    ];
    const outcomes = [];
    for (const [what, call] of calls) outcomes.push([what, await outcome(call)]);
    assert.deepEqual(outcomes, calls.map(([what]) => [what, "bad_request"]));
    for (const call of [() => room.publish(1, null), () => room.history(null)]) assert.doesNotMatch(String(await outcome(call)), /thrown|no answer/);
    await room.publish("ok", { event: undefined, key: null });
    await until(() => data.includes("ok"), "the client goes on");
    assert.deepEqual([data.filter((one) => one !== 1), closes], [["ok"], []]);
  });

  test("a key or an event of any characters is published", async (t) => {
    const node = await gateway(t), f = client(t, node.url, only), { room, joined, messages } = listen(f, "a");
    await until(() => joined.length, "joined");
    const names = ["schlüssel", "鍵", " a ", "a\nb", "100%", "a+b&c", "__proto__"];
    const sent = await Promise.all(names.map((name) => room.publish(name, { key: name, event: name })));
    const again = await Promise.all(names.map((name) => room.publish(name, { key: name, event: name })));
    assert.deepEqual(again.map(({ cursor }) => cursor), sent.map(({ cursor }) => cursor), "the key is known");
    await until(() => messages.length === names.length, "all have come");
    assert.deepEqual(messages.map(({ event }) => event).sort(), [...names].sort());
  });

  test("join options that are not JSON throw, and other rooms are joined", async (t) => {
    const node = await gateway(t), f = client(t, node.url, only);
    assert.throws(() => f.join("a", { history: 10n }), TypeError);
    const wrong = listen(f, "wrong", { since: 5 }), good = listen(f, "good");
    await until(() => good.joined.length && wrong.errors.length, "one is joined, one is refused");
    assert.equal(wrong.errors[0].code, "bad_request");
  });
});

for (const transport of ["ws", "sse"]) {
  // Of a room that the node follows already: the join needs nothing from Redis but the list of members.
  test(`over ${transport} a join with presence and questions are answered while Redis is away`, { timeout: patient(60_000) }, async (t) => {
    const broker = await redis(t), node = await gateway(t, { redis: broker }), witness = client(t, node.url), there = listen(witness, "present");
    const f = client(t, node.url, { transports: [transport] }), before = listen(f, "before"), closes = [];
    f.on("close", (why) => closes.push(why));
    await until(() => before.joined.length && there.joined.length, "both have joined");
    broker.pause();
    await until(async () => (await fetch(`${node.admin}/readyz`).then((answer) => answer.text())).includes("down"), "the gateway has noticed", 20_000);
    const present = listen(f, "present", { presence: true });
    const asked = await Promise.all([before.room.history(), before.room.presence()].map((promise) => outcome(() => promise)));
    await until(() => present.errors.length, "the join is answered");
    const [{ code, retryable, room }] = present.errors;
    assert.deepEqual([code, retryable, room, asked], ["backplane_unavailable", true, "present", ["backplane_unavailable", "backplane_unavailable"]]);
    // One that needs a subscription waits, and holds up neither the client nor its session.
    const plain = listen(f, "plain");
    assert.deepEqual([present.joined, plain.errors], [[], []]);
    broker.go();
    await until(() => present.joined.length && plain.joined.length, "both are joined when Redis is back", 30_000);
    assert.ok(present.room.members.some(({ user }) => user === witness.session), "the members are known");
    await plain.room.publish(1);
    await until(() => plain.data.length, "a message comes");
    assert.deepEqual(closes, []);
  });
}
