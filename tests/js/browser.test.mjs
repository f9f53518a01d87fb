// The client in a real browser, in pages and in workers; and the gateway's streams, read by standard EventSources.

import assert from "node:assert/strict";
import { test } from "node:test";
import { EventSource } from "eventsource";
import { browser, serve } from "./harness/browser.mjs";
import { upTo } from "./harness/client.mjs";
import { gateway } from "./harness/gateway.mjs";
import { proxy } from "./harness/proxy.mjs";
import { patient, until } from "./harness/wait.mjs";

test("in Chromium: the client in pages and workers, and EventSource", { timeout: patient(60_000) }, async (t) => {
  const node = await gateway(t), front = await proxy(t, node);
  serve(front);
  const context = await browser(t), page = await context.newPage(), problems = [];
  page.on("pageerror", (error) => problems.push(error));
  await page.goto(`${front.url}/page`);

  for (const transport of ["ws", "sse", "poll"]) {
    await t.test(`a page follows a room over ${transport}, through a cut connection`, async () => {
      const room = `page:${transport}`;
      await page.evaluate(async ([transport, name]) => {
        const { connect } = await import("/client.js");
        const f = (globalThis.f = connect(undefined, { transports: [transport] }));
        globalThis.heard = [];
        globalThis.closes = 0;
        f.on("close", () => closes++);
        globalThis.room = f.join(name, { presence: true });
        room.on("message", ({ data }) => heard.push(data));
        await new Promise((resolve) => room.on("joined", resolve));
        await room.publish(0);
      }, [transport, room]);
      for (const n of upTo(5)) await node.publish(room, n);
      front.block();
      await until(() => page.evaluate(() => closes > 0), "the page has noticed");
      for (const n of upTo(5)) await node.publish(room, 5 + n);
      front.open();
      await until(() => page.evaluate(() => heard.length >= 11), "all has come");
      assert.deepEqual(await page.evaluate(() => heard), [0, ...upTo(10)]);
      assert.equal(await page.evaluate(() => f.transport), transport);
      await page.evaluate(() => f.close());
    });
  }

  await t.test("a page falls to polling, and climbs back to WebSocket", async () => {
    Object.assign(front, { upgrades: "refuse", streams: "refuse" });
    await page.evaluate(async () => {
      const { connect } = await import("/client.js");
      globalThis.f = connect(undefined, { climb_ms: 1 });
      globalThis.heard = [];
      globalThis.room = f.join("climb");
      room.on("message", ({ data }) => heard.push(data));
      await new Promise((resolve) => room.on("joined", resolve));
    });
    assert.equal(await page.evaluate(() => f.transport), "poll");
    Object.assign(front, { upgrades: "pass", streams: "pass" });
    let n = 0;
    await until(async () => {
      await node.publish("climb", ++n);
      await until(() => page.evaluate((n) => heard.length > n - 50, n), "the page keeps up: the room keeps 100 messages");
      return page.evaluate(() => (f.tick(), f.transport === "ws"));
    }, "it climbs");
    await node.publish("climb", ++n);
    await until(() => page.evaluate((n) => heard.length >= n, n), "all has come");
    assert.deepEqual(await page.evaluate(() => heard), upTo(n));
    await page.evaluate(() => f.close());
  });

  await t.test("a worker uses every transport", async () => {
    await node.publish("a", "from a worker");
    for (const transport of ["ws", "sse", "poll"]) {
      const heard = await page.evaluate((transport) => new Promise((resolve) => {
        const worker = new Worker("/worker.js", { type: "module" }), heard = [];
        worker.onmessage = ({ data }) => heard.push(data) === 2 && resolve(heard);
        worker.postMessage({ transports: [transport] });
      }), transport);
      assert.deepEqual(heard, [{ transport }, { data: "from a worker" }]);
    }
  });

  await t.test("the browser's own EventSource resumes by itself", async () => {
    await page.evaluate(() => {
      globalThis.heard = [];
      globalThis.source = new EventSource("/v1/rooms/native/sse");
      source.onmessage = ({ data }) => heard.push(JSON.parse(data).data);
      return new Promise((resolve) => source.addEventListener("joined", resolve));
    });
    for (const n of upTo(3)) await node.publish("native", n);
    await until(() => page.evaluate(() => heard.length === 3), "three have come");
    front.cut();
    for (const n of upTo(3)) await node.publish("native", 3 + n);
    await until(() => page.evaluate(() => heard.length >= 6), "the others have come");
    assert.deepEqual(await page.evaluate(() => heard), upTo(6));
    await page.evaluate(() => source.close());
  });

  assert.deepEqual(problems, []);
});

test("in Node: the eventsource package resumes by itself", async (t) => {
  const node = await gateway(t), front = await proxy(t, node), heard = [];
  const source = new EventSource(`${front.url}/v1/rooms/native/sse`);
  t.after(() => source.close());
  source.onmessage = ({ data }) => heard.push(JSON.parse(data).data);
  await new Promise((resolve) => source.addEventListener("joined", resolve));
  for (const n of upTo(3)) await node.publish("native", n);
  await until(() => heard.length === 3, "three have come");
  front.cut();
  for (const n of upTo(3)) await node.publish("native", 3 + n);
  await until(() => heard.length >= 6, "the others have come");
  assert.deepEqual(heard, upTo(6));
});
