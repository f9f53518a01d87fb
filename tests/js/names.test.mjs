// Names of rooms that a URL or an object treats specially: `.` and `..` are steps in a path, `constructor` and `__proto__` are
// properties of every object. And names that the gateway does not take.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { browser, serve } from "./harness/browser.mjs";
import { client, listen } from "./harness/client.mjs";
import { gateway } from "./harness/gateway.mjs";
import { proxy } from "./harness/proxy.mjs";
import { patient, until } from "./harness/wait.mjs";

const DOTS = [".", ".."], PROPERTIES = ["constructor", "__proto__", "toString", "hasOwnProperty"];

for (const transport of ["ws", "sse", "poll"]) describe(transport, { concurrency: true }, () => {
  const only = { transports: [transport] };

  for (const [what, names] of [["steps in a path", DOTS], ["properties of objects", PROPERTIES]]) {
    test(`rooms whose names are ${what} are joined, published to and resumed`, { timeout: patient(60_000) }, async (t) => {
      const node = await gateway(t), front = await proxy(t, node), f = client(t, front.url, only), back = client(t, node.url);
      const rooms = names.map((name) => listen(f, name, { presence: true })), gaps = () => rooms.flatMap(({ gaps }) => gaps);
      const problems = [];
      f.on("error", (error) => problems.push(error));
      await until(() => rooms.every(({ joined }) => joined.length), "all are joined");
      await Promise.all(rooms.map(({ room }) => room.publish(`own ${room.name}`, { event: room.name })));
      await Promise.all(names.map((name) => back.join(name).publish(`other ${name}`)));
      await until(() => rooms.every(({ data }) => data.length === 2), "both messages have come");
      await front.interrupt(f);
      await until(() => rooms.every(({ joined }) => joined.length > 1), "all are joined again");
      await Promise.all(names.map((name) => back.join(name).publish(`later ${name}`)));
      await until(() => rooms.every(({ data }) => data.length === 3), "the third has come");
      assert.deepEqual(rooms.map(({ data }) => data), names.map((name) => [`own ${name}`, `other ${name}`, `later ${name}`]));
      assert.deepEqual([gaps(), rooms.flatMap(({ errors }) => errors), f.transport, rooms[0].messages[0].event], [[], [], transport, names[0]]);
      for (const { room } of rooms) {
        const page = room.history().then(({ messages }) => messages.length, ({ code }) => code);
        const there = room.presence().then(({ count }) => count > 0, ({ code }) => code);
        // Over plain HTTP these two questions have the room in their path alone.
        const expected = transport === "poll" && names === DOTS ? ["room_invalid", "room_invalid"] : [3, true];
        assert.deepEqual(await Promise.all([page, there]), expected, room.name);
      }
      for (const { room } of rooms) room.leave();
      assert.deepEqual(problems, []);
    });
  }

  test("a name that is no room name is refused by the client, and the others go on", async (t) => {
    const node = await gateway(t), f = client(t, node.url, only), ended = [], good = listen(f, "good");
    f.on("close", (why) => ended.push(why));
    await until(() => good.joined.length, "joined");
    const wrong = ["", "a b", "ä", "$reserved", 'a"b', "\\", "\ud800", "x".repeat(256), "a\n", undefined, null, 7, 10n, Symbol("a"), {}, ["a"]];
    const rooms = wrong.map((name) => listen(f, name));
    await until(() => rooms.every(({ errors }) => errors.length), "all are refused");
    assert.deepEqual([...new Set(rooms.map(({ errors: [{ code, retryable }] }) => `${code} ${retryable}`))], ["room_invalid false"]);
    for (const { room } of rooms) {
      await assert.rejects(room.publish(1), { code: "room_invalid" });
      await assert.rejects(room.history(), { code: "room_invalid" });
      await assert.rejects(room.presence(), { code: "room_invalid" });
      room.leave();
    }
    for (const name of ["!", "a/b", "100%", "a?b#c", "a,b", "~", "|", "x".repeat(255)]) await until(((heard) => () => heard.joined.length)(listen(f, name)), name);
    await good.room.publish(1);
    await until(() => good.data.length, "it goes on");
    assert.deepEqual(ended, []);
  });
});

for (const name of [...DOTS, "a,b"]) {
  test(`a stream of the room ${name} alone has its name in the query`, async (t) => {
    const node = await gateway(t), front = await proxy(t, node), f = client(t, front.url, { transports: ["sse"] }), room = listen(f, name);
    await until(() => room.joined.length, "joined");
    await node.publish("a,b", 1);
    assert.equal(typeof f.session, "string", "it is a stream, not a poll");
    assert.match(front.seen[0].url, /^\/v1\/rooms\/\/sse\?/);
    assert.equal((await room.room.history()).room, name);
  });
}

test("events whose names are properties of objects have listeners", async (t) => {
  const node = await gateway(t), f = client(t, node.url), { room, joined } = listen(f, "a"), heard = [];
  for (const name of PROPERTIES) room.on(name, (frame) => heard.push(frame.type));
  await until(() => joined.length, "joined");
  // Frames of types that a later gateway may send.
  for (const type of PROPERTIES) f.link.frame({ type, room: "a" });
  await until(() => heard.length === PROPERTIES.length, "all are heard");
  assert.deepEqual(heard, PROPERTIES);
});

test("in Chromium: rooms whose names are steps in a path", { timeout: patient(60_000) }, async (t) => {
  const node = await gateway(t), front = await proxy(t, node), back = client(t, node.url);
  serve(front);
  const page = await (await browser(t)).newPage();
  await page.goto(`${front.url}/page`);
  for (const transport of ["ws", "sse", "poll"]) {
    for (const name of DOTS) {
      await page.evaluate(async ([transport, name]) => {
        const { connect } = await import("/client.js");
        const f = (globalThis.f = connect(undefined, { transports: [transport] }));
        globalThis.heard = [];
        globalThis.failed = [];
        const room = f.join(name);
        room.on("message", ({ data }) => heard.push(data));
        for (const one of [f, room]) one.on("error", ({ code }) => failed.push(code));
        room.on("joined", () => room.publish("own"));
      }, [transport, name]);
      await until(() => page.evaluate(() => heard.length), `${name} is joined over ${transport}`);
      await back.join(name).publish("other");
      await until(() => page.evaluate(() => heard.length === 2), `both have come over ${transport}`);
      assert.deepEqual(await page.evaluate(() => [heard, failed, f.transport]), [["own", "other"], [], transport]);
      await page.evaluate(() => f.close());
    }
  }
});
