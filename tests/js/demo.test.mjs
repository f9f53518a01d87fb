// The demo pages in a real browser, each on one gateway: what a visitor sees on them. chat.test.mjs has the chat in a cluster.

import assert from "node:assert/strict";
import { test } from "node:test";
import { browser } from "./harness/browser.mjs";
import { open, person, shows } from "./harness/chat.mjs";
import { upTo } from "./harness/client.mjs";
import { gateway, redis } from "./harness/gateway.mjs";
import { proxy } from "./harness/proxy.mjs";
import { until } from "./harness/wait.mjs";

const FIVE = ["WebSocket", "Server-sent events", "HTTP streaming", "Long polling", "Short polling"];
const SHORT = '[[rooms]]\nmatch = "chat:*"\nhistory = { messages = 3, ttl = "5m" }\n';

async function tellsGaps(t, chromium) {
  const broker = await redis(t), node = await gateway(t, { redis: broker, config: SHORT }), front = await proxy(t, node);
  const ann = await person(t, chromium, front.url, "Ann");
  await ann.says("before");
  await ann.hears("before");
  const publish = (n) => node.publish("chat:garden", { name: "Bob", tab: "b", text: `${n}` });
  const gaps = (pattern) => shows(ann.page, `a gap: ${pattern}`, (pattern) => {
    return [...document.querySelectorAll(".gap")].some(({ textContent }) => new RegExp(pattern).test(textContent));
  }, pattern);
  front.block();
  for (const n of upTo(300)) await publish(n);
  front.open();
  await ann.page.evaluate(() => dispatchEvent(new Event("online"))); // ends the page's back-off
  await gaps("^\\d+ messages are missing here$");
  await ann.hears("300");
  await broker.command("flushall");
  await until(() => publish(301), "the gateway has noticed");
  await gaps("^Messages may be missing here$");
  await ann.hears("301");
}

async function readsRightToLeft(t, chromium) {
  const node = await gateway(t), ann = await person(t, chromium, node.url, "Ann"), noa = await person(t, chromium, node.url, "\u200bנועה");
  await noa.says("שלום! (UPS) מחר.");
  await ann.hears("שלום! (UPS) מחר.");
  await ann.says("Hello.");
  await noa.hears("Hello.");
  const look = () => [...document.querySelectorAll(".message:not(.pending)")].map((item) => {
    const said = item.querySelector(".said"), list = document.getElementById("messages").getBoundingClientRect(), { left, right } = said.getBoundingClientRect();
    return [getComputedStyle(said).direction, left - list.left < 2 ? "left" : list.right - right < 2 ? "right" : `${left} to ${right}`];
  });
  // The direction is the text's, the side is the author's.
  assert.deepEqual(await ann.page.evaluate(look), [["rtl", "left"], ["ltr", "right"]]);
  assert.deepEqual(await noa.page.evaluate(look), [["rtl", "right"], ["ltr", "left"]]);
  await noa.types("אני");
  assert.equal(await noa.page.evaluate(() => getComputedStyle(document.getElementById("text")).direction), "rtl");
  await shows(ann.page, "the typing name is isolated", () => document.querySelector("#typing bdi")?.textContent === "\u200bנועה");
  await shows(ann.page, "the face has the first letter that can be seen", () => {
    return [...document.querySelectorAll(".face")].map(({ textContent }) => textContent).join("") === "Aנ";
  });
}

async function guidesItsVisitor(t, chromium) {
  const node = await gateway(t), { page } = await open(t, chromium, `${node.url}/demo/chat.html?room=chat:garden`);
  await page.locator("#name").fill("\u200b \u3164");
  await page.keyboard.press("Enter");
  await shows(page, "a name that cannot be seen is asked for again", () => document.getElementById("who").open && !document.getElementById("name").value);
  await page.locator("#name").fill("Ann");
  await page.keyboard.press("Enter");
  const says = (what) => shows(page, `the field says "${what}"`, (what) => document.getElementById("length").textContent === what, what);
  await page.locator("#text").fill("x".repeat(4050));
  await says("Too long by 50 characters: a message has at most 4,000");
  await page.locator("#text").press("Enter");
  assert.deepEqual(await page.evaluate(() => [document.querySelectorAll(".message").length, document.getElementById("text").value.length]), [0, 4050]);
  await page.locator("#text").fill("x".repeat(3990));
  await says("10 more characters");
  await page.locator("#text").press("Enter");
  await says("");
  await shows(page, "the message is sent", () => document.querySelector(".message:not(.pending) .said")?.textContent.length === 3990);
  await page.reload();
  await shows(page, "the field has the focus after a reload", () => document.activeElement.id === "text");
}

async function showsTheTicker(t, chromium) {
  const node = await gateway(t), front = await proxy(t, node), { page, errors, violations } = await open(t, chromium, `${front.url}/demo/`);
  await page.locator("nav a", { hasText: "Ticker" }).click();
  await shows(page, "it is connected", () => /^server-sent events/.test(document.getElementById("state")?.textContent));
  await page.locator("#quiet button").click(); // it is there as long as there are no prices
  await shows(page, "all eight have a price", () => {
    const prices = [...document.querySelectorAll("td.price")].map(({ textContent }) => textContent);
    return prices.length === 8 && prices.every((price) => +price > 0) && document.getElementById("quiet").hidden;
  });
  assert.deepEqual([errors, await violations()], [[], []]);
  // The policy is in force, and its violations are recorded.
  await page.evaluate(() => document.head.append(Object.assign(document.createElement("script"), { textContent: "globalThis.forbidden = true" })));
  await shows(page, "an inline script is a violation", () => globalThis.violations.length > 0);
  assert.deepEqual([await violations(), await page.evaluate(() => globalThis.forbidden)], [["script-src-elem inline"], undefined]);
  await until(() => errors.length === 1, "the browser reports it on its console, and nothing else");
  const says = (what) => shows(page, what, (what) => document.getElementById("said").textContent === what, what);
  await says("This window publishes.");
  front.block();
  await says("No connection to the gateway. Trying again…");
  front.open();
  await says("This window publishes.");
}

async function comparesTransports(t, chromium) {
  const node = await gateway(t), { page, errors, violations } = await open(t, chromium, `${node.url}/demo/transports.html`);
  await page.locator("#rate").selectOption("200");
  await shows(page, "it has published 30 messages", () => JSON.parse(figures()).published >= 30);
  await page.locator("#rate").selectOption("0");
  const { published, transports } = await shows(page, "each column has received every message", () => {
    const all = JSON.parse(figures());
    return Object.values(all.transports).every(({ messages }) => messages >= all.published) && all;
  });
  const all = { messages: published, missing: 0, repeated: 0 };
  const counted = Object.entries(transports).map(([name, { messages, missing, repeated }]) => [name, { messages, missing, repeated }]);
  assert.deepEqual(counted, FIVE.map((name) => [name, all]));
  assert.deepEqual([errors, await violations()], [[], []]);
  t.diagnostic(`${published} messages over each of ${counted.length} transports`);
}

async function drawsWhatIsOpen(t, chromium) {
  const node = await gateway(t), front = await proxy(t, node), { page } = await open(t, chromium, `${front.url}/demo/transports.html`);
  const open5 = (open) => ([...document.querySelectorAll("#columns .badge")].filter(({ dataset }) => (dataset.state === "open") === open).length === 5);
  await shows(page, "all five are open", open5, true);
  front.block();
  await shows(page, "all five have noticed", open5, false);
  const ends = await shows(page, "the bars have ended 20 pixels before the right edge, which is now", () => {
    const { right } = document.querySelector("#lanes svg").getBoundingClientRect();
    const bars = [...document.querySelectorAll("#lanes g")].map((lane) => Math.max(...[...lane.querySelectorAll("rect")].map((bar) => bar.getBoundingClientRect().right)));
    return bars.every((end) => end < right - 20) && bars;
  });
  assert.equal(ends.length, 5);
  front.open();
  await shows(page, "all five are open again", open5, true);
}

test("in Chromium: the demo pages show what a visitor needs", { concurrency: 4 }, async (t) => {
  const chromium = (await browser(t)).browser(), tests = [];
  const show = (name, run) => tests.push(t.test(name, (t) => run(t, chromium)));
  show("the chat shows how many messages are missing, or that some may be", tellsGaps);
  show("right-to-left messages and names are laid out right to left", readsRightToLeft);
  show("the chat says when a message is too long, and has the focus after a reload", guidesItsVisitor);
  show("the ticker shows eight prices without an error or a policy violation", showsTheTicker);
  show("the five transports receive every message once, without an error or violation", comparesTransports);
  show("a transport is drawn as open only while it is", drawsWhatIsOpen);
  await Promise.all(tests);
});

test("with demo = false there are no demo pages, and the client is still served", async (t) => {
  const node = await gateway(t, { config: "demo = false\n" });
  const statuses = async (...paths) => Promise.all(paths.map(async (path) => (await fetch(`${node.url}${path}`)).status));
  assert.deepEqual(await statuses("/demo", "/demo/", "/demo/chat.html", "/demo/chat.js"), [404, 404, 404, 404]);
  assert.deepEqual(await statuses("/client.js", "/client.d.ts"), [200, 200]);
  const client = await fetch(`${node.url}/client.js`);
  assert.match(client.headers.get("content-type"), /^text\/javascript/);
  assert.match(await client.text(), /export const connect/);
});
