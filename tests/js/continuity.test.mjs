// Continuity of a room, over each transport alone: every message arrives once and in order, through killed nodes, cut
// connections and lost answers, or a gap is reported.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { client, listen, upTo } from "./harness/client.mjs";
import { gateway, redis } from "./harness/gateway.mjs";
import { proxy } from "./harness/proxy.mjs";
import { next, until } from "./harness/wait.mjs";

const SHORT = '[[rooms]]\nmatch = "short:*"\nhistory = { messages = 3, ttl = "5m" }\n';

for (const transport of ["ws", "sse", "poll"]) describe(transport, { concurrency: 4 }, () => {
  const only = { transports: [transport] };

  test("rooms go on without loss or repeat when their node is killed", async (t) => {
    const broker = await redis(t);
    const [one, two] = await Promise.all([gateway(t, { redis: broker }), gateway(t, { redis: broker })]);
    const front = await proxy(t, one), f = client(t, front.url, only);
    const a = listen(f, "a"), b = listen(f, "b,c");
    await until(() => a.joined.length && b.joined.length, "both rooms are joined");
    let n = 0;
    const publish = async (count) => {
      for (const end = n + count; n < end;) await Promise.all([two.publish("a", ++n), two.publish("b,c", n)]);
    };
    await publish(20);
    await Promise.all([one.kill(), publish(20)]);
    front.gateway = two;
    await publish(20); // while the client comes back
    await until(() => a.joined.length > 1 && b.joined.length > 1, "both rooms are joined again", 15_000);
    await publish(20);
    await until(() => a.data.length >= n && b.data.length >= n, "everything has come");
    assert.deepEqual([a.data, b.data], [upTo(n), upTo(n)]);
    assert.deepEqual([a.gaps, b.gaps], [[], []]);
    assert.equal(a.joined.at(-1).resumed, true);
  });

  test("a publish whose acknowledgement is lost is repeated and published once", async (t) => {
    const node = await gateway(t), front = await proxy(t, node), f = client(t, front.url, only);
    const witness = listen(client(t, node.url, { transports: ["ws"] }), "a"), own = listen(f, "a");
    await until(() => own.joined.length && witness.joined.length, "both have joined");
    front.deaf = true;
    const first = own.room.publish("first"), second = own.room.publish("second");
    await until(() => witness.data.length > 0, "the gateway has published");
    front.deaf = false;
    front.cut();
    const [one, two] = await Promise.all([first, second]);
    await own.room.publish("third");
    await until(() => own.data.length === 3 && witness.data.length === 3, "all of it has come");
    assert.deepEqual([own.data, witness.data], [["first", "second", "third"], ["first", "second", "third"]]);
    assert.deepEqual([one.cursor, two.cursor], witness.messages.slice(0, 2).map(({ cursor }) => cursor));
    assert.equal(one.room, "a");
  });

  test("messages published while offline are sent in order after the reconnect", async (t) => {
    const node = await gateway(t), front = await proxy(t, node), f = client(t, front.url, only), room = listen(f, "a");
    await until(() => room.joined.length, "joined");
    front.block();
    await next(f, "close");
    const data = { n: 0 }, sent = upTo(30).map((n) => room.room.publish(Object.assign(data, { n }), { event: "count" }));
    front.open();
    await Promise.all(sent);
    await until(() => room.data.length === 30, "all of it has come");
    assert.deepEqual(room.data.map(({ n }) => n), upTo(30));
    assert.equal(room.messages[0].event, "count");
  });

  test("requests do not overtake an earlier one that breaks", async (t) => {
    const node = await gateway(t), front = await proxy(t, node), f = client(t, front.url, only), room = listen(f, "a");
    await until(() => room.joined.length, "joined");
    let held = 0;
    front.instead = ({ method, url }) => method === "POST" && !url.startsWith("/v1/poll") && !held++;
    const sent = upTo(6).map((n) => room.room.publish(n));
    await until(() => held || transport === "ws", "the first request is held");
    front.cut();
    await Promise.all(sent);
    await until(() => room.data.length === 6, "all has come");
    assert.deepEqual(room.data, upTo(6));
  });

  test("lost history is reported as a gap, and the messages that are kept follow", async (t) => {
    const node = await gateway(t, { config: SHORT }), front = await proxy(t, node), f = client(t, front.url, only);
    const room = listen(f, "short:1");
    await until(() => room.joined.length, "joined");
    await node.publish("short:1", 0);
    await until(() => room.data.length === 1, "the first one has come");
    front.block();
    for (const n of upTo(300)) await node.publish("short:1", n);
    front.open();
    const reported = next(room.room, "gap");
    f.wake(0); // a slow machine has failed to connect so often by now that the client waits long
    const gap = await reported;
    await until(() => room.data.at(-1) === 300, "the newest one has come");
    const kept = room.data.slice(1);
    assert.ok(kept.length >= 3 && gap.missed === 300 - kept.length, `${gap.missed} are missed, ${kept.length} were kept`);
    assert.deepEqual(kept, upTo(300).slice(-kept.length));
    assert.equal(gap.from, room.messages[0].cursor);
    assert.equal(gap.room, "short:1");
    assert.equal(room.joined.at(-1).resumed ?? false, false);
  });

  test("a new epoch is a gap, and its messages arrive", async (t) => {
    const broker = await redis(t), node = await gateway(t, { redis: broker }), front = await proxy(t, node);
    const room = listen(client(t, front.url, only), "a");
    await until(() => room.joined.length, "joined");
    for (const n of upTo(5)) await node.publish("a", n);
    await until(() => room.data.length === 5, "five have come");
    await broker.command("flushall");
    await until(async () => (await node.publish("a", "new")) && room.gaps.length, "the gap is reported", 15_000);
    await until(() => room.data.at(-1) === "new", "the new epoch's message has come");
    assert.equal(room.gaps[0].missed ?? null, null);
    assert.deepEqual(room.data.slice(0, 5), upTo(5));
    assert.equal(room.messages.length, new Set(room.messages.map(({ cursor }) => cursor)).size);
  });

  test("with echo:false own messages stay away, also after a resume", async (t) => {
    const node = await gateway(t), front = await proxy(t, node), f = client(t, front.url, only);
    const room = listen(f, "a", { echo: false }), witness = listen(client(t, node.url), "a");
    await until(() => room.joined.length && witness.joined.length, "both have joined");
    await room.room.publish("own, live");
    await node.publish("a", "theirs 1");
    await until(() => room.data.length === 1, "the first of theirs has come");
    front.deaf = true;
    const lost = room.room.publish("own, unacknowledged");
    await until(() => witness.data.includes("own, unacknowledged"), "the gateway has published");
    await node.publish("a", "theirs 2");
    front.deaf = false;
    front.cut();
    await Promise.all([lost, room.room.publish("own, after"), node.publish("a", "theirs 3")]);
    await until(() => room.data.includes("theirs 3"), "the last of theirs has come");
    await node.publish("a", "end");
    await until(() => room.data.at(-1) === "end", "the end has come");
    assert.deepEqual(room.data, ["theirs 1", "theirs 2", "theirs 3", "end"]);
    assert.equal(witness.data.filter((data) => data === "own, unacknowledged").length, 1);
  });

  test("with echo:false many own messages do not become a gap", async (t) => {
    const node = await gateway(t, { config: SHORT }), front = await proxy(t, node), f = client(t, front.url, only);
    const room = listen(f, "short:own", { echo: false });
    await until(() => room.joined.length, "joined");
    for (const n of upTo(120)) await room.room.publish(n);
    await front.interrupt(f);
    await next(room.room, "joined");
    assert.deepEqual([room.gaps, room.data], [[], []]);
  });

  test("a refused room says why, and the others go on", async (t) => {
    const node = await gateway(t), front = await proxy(t, node), f = client(t, front.url, only);
    const wrong = listen(f, "not a name"), good = listen(f, "good"), reserved = listen(f, "$reserved"), late = listen(f, "late");
    await until(() => wrong.errors.length && reserved.errors.length && good.joined.length && late.joined.length, "all are answered");
    assert.deepEqual([wrong.errors[0].code, wrong.errors[0].retryable, wrong.errors[0].room], ["room_invalid", false, "not a name"]);
    await node.publish("good", 1);
    await until(() => good.data.length === 1, "the good room's message has come");
    await front.interrupt(f);
    await next(good.room, "joined");
    await node.publish("good", 2);
    await node.publish("late", 3);
    await until(() => good.data.length === 2 && late.data.length === 1, "they go on after a reconnect");
    assert.deepEqual([wrong.errors.length, wrong.joined.length], [1, 0]);
  });

  test("rooms are joined and left while connected", async (t) => {
    const node = await gateway(t), f = client(t, node.url, only);
    const first = listen(f, "first");
    await until(() => first.joined.length, "the first is joined");
    const second = listen(f, "second", { history: 2 });
    await until(() => second.joined.length, "the second is joined");
    await node.publish("first", 1);
    await node.publish("second", 1);
    await until(() => first.data.length && second.data.length, "both have a message");
    first.room.leave();
    await node.publish("first", 2);
    await node.publish("second", 2);
    await until(() => second.data.length === 2, "the second has a message");
    const again = listen(f, "first", { history: 2 });
    await until(() => again.data.length === 2, "joined again, with history");
    assert.deepEqual([first.data, second.data, again.data], [[1], [1, 2], [1, 2]]);
  });

  // The answer to the leave came after the new join, and removed that room.
  test("a room that is left and joined again at once is joined", async (t) => {
    const node = await gateway(t), f = client(t, node.url, only);
    const first = listen(f, "a");
    await until(() => first.joined.length, "it is joined");
    first.room.leave();
    const again = listen(f, "a");
    await until(() => again.joined.length, "it is joined again");
    for (const n of upTo(3)) await node.publish("a", n);
    await until(() => again.data.length === 3, "three have come");
    assert.deepEqual([first.data, again.data], [[], upTo(3)]);
  });

  test("history, presence and members", async (t) => {
    const node = await gateway(t), f = client(t, node.url, only), other = client(t, node.url);
    for (const n of upTo(4)) await node.publish("a", n);
    const room = listen(f, "a", { history: 2, presence: true });
    await until(() => room.data.length === 2, "the last two have come");
    const page = await room.room.history({ limit: 3 });
    assert.deepEqual(page.messages.map(({ data }) => data), [2, 3, 4]);
    const rest = await room.room.history({ since: page.messages[1].cursor });
    assert.deepEqual([rest.messages.map(({ data }) => data), rest.cursor], [[4], page.cursor]);
    listen(other, "a");
    await until(() => other.session, "the other one is there");
    const there = ({ members }) => members.some(({ user }) => user === other.session);
    await until(async () => there(await room.room.presence()), "presence shows the other one");
    await until(() => transport === "poll" || there(room.room), "members do too");
    assert.deepEqual(room.data, [3, 4]);
  });
});

test("a gap within an epoch has the number of messages, one between epochs has none", async (t) => {
  const node = await gateway(t), f = client(t, node.url), room = listen(f, "a");
  await until(() => room.joined.length, "joined");
  const [epoch] = room.joined[0].cursor.split(".");
  f.link.frame({ type: "gap", room: "a", from: `${epoch}.0`, to: `${epoch}.3` });
  f.link.frame({ type: "gap", room: "a", from: `${epoch}.3`, to: "another1.9" });
  await until(() => room.gaps.length === 2, "both are reported");
  assert.deepEqual([room.gaps.map(({ missed }) => missed), room.room.cursor], [[3, null], "another1.9"]);
});
