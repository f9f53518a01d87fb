// The demo chat in a real browser and a real cluster behind nginx, while nodes are killed and a proxy blocks transports. The
// tests check what the page shows.

import assert from "node:assert/strict";
import { test } from "node:test";
import { browser } from "./harness/browser.mjs";
import { agree, person } from "./harness/chat.mjs";
import { WebSocket, upTo } from "./harness/client.mjs";
import { cluster, versions } from "./harness/cluster.mjs";
import { proxy } from "./harness/proxy.mjs";
import { until } from "./harness/wait.mjs";

/** Opens a second person's page, again and again until it is connected to another node than the first one's. */
async function elsewhere(t, chromium, url, name, first) {
  const node = await first.node();
  for (let tries = 0; tries < 5; tries++) {
    const second = await person(t, chromium, url, name);
    if ((await second.node()) !== node) return second;
    await second.leave();
  }
  assert.fail(`five times on node ${node}`);
}

/** Gives that node the most connections: least_conn would lead a client that reconnects to the other one. */
async function crowd(t, nginx, { name, route }) {
  const there = await Promise.all(upTo(3).map(() => new Promise((resolve, reject) => {
    const socket = new WebSocket(`${nginx.url.replace("http", "ws")}/ws?n=${route}`);
    t.after(() => socket.terminate());
    socket.once("message", (text) => resolve(JSON.parse(text).node));
    socket.once("error", reject);
  })));
  assert.deepEqual(there, [name, name, name]);
}

/** They write in turns, each after having read the other's message. */
async function talk(people, from, to) {
  for (let n = from; n <= to; n++) {
    for (const one of people) {
      await one.says(`${one.name} ${n}`);
      await Promise.all(people.map((other) => other.hears(`${one.name} ${n}`)));
    }
  }
}

/** They write without waiting for a message to arrive. */
async function write(people, from, to) {
  for (let n = from; n <= to; n++) for (const one of people) await one.says(`${one.name} ${n}`);
}

/** No page was reloaded, no script failed, no policy was violated. */
async function unharmed(people) {
  for (const one of people) {
    assert.deepEqual([await one.neverReloaded(), await one.violations()], [true, []]);
    // The browser's own messages about connections that failed are expected.
    assert.deepEqual(one.errors.filter((text) => !/WebSocket connection to|Failed to load resource/.test(text)), []);
  }
}

async function survivesItsNode(t, chromium, version) {
  const { nodes, nginx } = await cluster(t, { version, nodes: 3 });
  const ann = await person(t, chromium, nginx.url, "Ann"), bob = await elsewhere(t, chromium, nginx.url, "Bob", ann), people = [ann, bob];
  const [home, other] = await Promise.all(people.map((one) => one.node()));
  assert.notEqual(home, other);
  await talk(people, 1, 10);
  await Promise.all([ann.sees(["Ann (you)", "Bob"]), bob.sees(["Bob (you)", "Ann"])]);

  await ann.says("Ann 11");
  const wake = await ann.hangs(); // so that it is sure to miss a message
  await nodes.find(({ name }) => name === home).kill();
  await bob.says("Bob 11");
  await bob.hears("Bob 11");
  await wake();
  await write(people, 12, 14);
  await talk(people, 15, 20);

  const read = await agree(people, 20);
  const { messages } = await nodes.find(({ name }) => name === other).get("/v1/rooms/chat:garden/history?limit=100");
  assert.deepEqual(read, messages.map(({ data }) => `${data.name}: ${data.text}`));
  const refuge = await ann.node();
  assert.notEqual(refuge, home);
  assert.deepEqual(await ann.states(), ["connecting…", `WebSocket · node ${home}`, "reconnecting…", `WebSocket · node ${refuge}`]);
  assert.deepEqual(await bob.states(), ["connecting…", `WebSocket · node ${other}`]);
  // A dead node's members are listed until the others count it as dead, after 12 s (docs/guarantees.md).
  await Promise.all([ann.sees(["Ann (you)", "Bob"]), bob.sees(["Bob (you)", "Ann"])]);
  await unharmed(people);
}

async function survivesItsProxy(t, chromium, version) {
  const { nodes, nginx } = await cluster(t, { version }), front = await proxy(t, nginx);
  const ann = await person(t, chromium, front.url, "Ann", { climbs: true }), bob = await person(t, chromium, nginx.url, "Bob"), people = [ann, bob];
  const home = await ann.node();
  await crowd(t, nginx, nodes.find(({ name }) => name === home));
  /** From now on the proxy blocks this. Ann's last message before that was published, and its acknowledgement was lost. */
  const block = async (what, n) => {
    await bob.isSeenBy("Ann");
    await ann.types(`Ann ${n}`);
    await bob.seesTyping("Ann");
    await ann.isQuiet();
    front.deaf = true;
    await ann.enters();
    await bob.hears(`Ann ${n}`);
    Object.assign(front, what, { deaf: false });
    front.cut();
    await bob.says(`Bob ${n}`);
    await write(people, n + 1, n + 2);
  };
  await talk(people, 1, 3);
  await block({ upgrades: "refuse" }, 4);
  await ann.connected("server-sent events");
  await talk(people, 7, 9);
  await block({ streams: "refuse" }, 10);
  await ann.connected("long polling");
  await talk(people, 13, 15);

  Object.assign(front, { upgrades: "pass", streams: "pass" });
  // They write until it has climbed. That takes two tries at most: the page shows 500 messages, and there are far fewer.
  let n = 15;
  await until(async () => {
    await ann.climbs();
    await write(people, ++n, n);
    return (await ann.states()).at(-1).startsWith("WebSocket");
  }, "Ann's page has climbed to WebSocket", 20_000);
  await talk(people, n + 1, n + 3);

  await agree(people, n + 3);
  const used = (await ann.states()).filter((state) => !/^(re)?connecting…$/.test(state));
  // ?n= led it to the same node each time; a page that polls shows no node.
  const named = [`WebSocket · node ${home}`, `server-sent events · node ${home}`, "long polling"];
  assert.deepEqual(used.slice(0, 3), named);
  assert.deepEqual([used.at(-1), used.filter((transport) => !named.includes(transport))], [named[0], []]);
  await unharmed(people);
}

test("in Chromium: the chat goes on in a cluster behind nginx", { concurrency: 6 }, async (t) => {
  const chromium = (await browser(t)).browser(), tests = [];
  const show = (name, run, ...more) => tests.push(t.test(name, (t) => run(t, chromium, ...more)));
  for (const version of versions) {
    const { name } = version;
    show(`${name}: a node is killed, and both people read all 40 messages in one order`, survivesItsNode, version);
    show(`${name}: a proxy blocks WebSocket, then streams, and the chat goes on`, survivesItsProxy, version);
  }
  await Promise.all(tests);
});
