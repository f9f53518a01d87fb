// People who chat: each a browser with a storage of its own on the chat page, who types and reads as people do. Called by the
// tests of the demo pages; knows of the page what can be seen on it, and nothing of the client behind it.

import assert from "node:assert/strict";
import { until } from "./wait.mjs";

const WAIT_MS = 15_000;

// Runs in the page before its own scripts: writes down what the page says of its connection, and what its policy forbids.
function witness() {
  globalThis.states = [];
  globalThis.violations = [];
  addEventListener("securitypolicyviolation", ({ effectiveDirective, blockedURI }) => violations.push(`${effectiveDirective} ${blockedURI}`));
  addEventListener("DOMContentLoaded", () => {
    const state = document.getElementById("state");
    const note = () => state.textContent !== states.at(-1) && states.push(state.textContent);
    if (state) new MutationObserver(note).observe(state, { childList: true, characterData: true, subtree: true });
  });
}

// The client tries to climb once a minute, by chance, and backs off by chance: here it climbs with every tick, one a second,
// and waits a twelfth.
function hurry() {
  const { setInterval } = globalThis, { random } = Math;
  globalThis.setInterval = (call, ms, ...rest) => setInterval(call, ms / 5, ...rest);
  Math.random = () => random() / 12;
}

/** A page in a storage of its own, and what it complains of. */
export async function open(t, chromium, url, { hurried = false } = {}) {
  const context = await chromium.newContext(), errors = [], posts = new Set();
  t.after(() => context.close());
  context.setDefaultTimeout(WAIT_MS);
  await context.addInitScript(witness);
  if (hurried) await context.addInitScript(hurry);
  const page = await context.newPage();
  page.on("pageerror", (error) => errors.push(`${error}`));
  page.on("console", (line) => /error|warning/.test(line.type()) && errors.push(line.text()));
  page.on("request", (request) => request.method() === "POST" && posts.add(request));
  for (const end of ["requestfinished", "requestfailed"]) page.on(end, (request) => posts.delete(request));
  await page.goto(url);
  return { page, errors, posts, violations: () => page.evaluate(() => violations) };
}

/** Resolves once `condition`, which runs in the page, holds. */
export async function shows(page, what, condition, argument, ms = WAIT_MS) {
  await page.waitForFunction(condition, argument, { timeout: ms, polling: 20 }).catch(async ({ message }) => {
    const text = await page.evaluate(() => document.body.innerText).catch(() => message);
    assert.fail(`not within ${ms} ms: ${what}. The page ends: ${text.replace(/\s*\n\s*/g, " | ").slice(-2000)}`);
  });
}

/** Opens the chat at `url`, gives a name, and comes in. */
export async function person(t, chromium, url, name, options) {
  const { page, ...rest } = await open(t, chromium, `${url}/demo/chat.html?room=chat:garden`, options);
  await page.locator("#name").pressSequentially(name);
  await page.keyboard.press("Enter");
  const connected = (how = "") => shows(page, `${name} is connected ${how}`, (how) => {
    const { dataset, textContent } = document.getElementById("state");
    return dataset.state === "open" && textContent.startsWith(how);
  }, how);
  await connected();
  await page.evaluate(() => (globalThis.neverReloaded = true));
  const text = page.locator("#text");
  const says = (id, what) => shows(page, `${name}'s page says "${what}"`, ([id, what]) => document.getElementById(id).textContent === what, [id, what]);
  return {
    ...rest,
    name,
    connected,
    types: (what) => text.pressSequentially(what),
    enters: () => text.press("Enter"),
    async says(what) {
      await this.types(what);
      await this.enters();
    },
    /** Waits until the other has seen the last message, or types. */
    isSeenBy: (other) => says("seen", `Seen by ${other}`),
    seesTyping: (other) => says("typing", `${other} is typing`),
    /** Waits until each request that carries something to the gateway is answered. */
    isQuiet: () => until(() => rest.posts.size === 0, `${name}'s requests are answered`),
    /** Waits until it stands there, said by whomever and confirmed by the gateway. */
    hears: (what) => shows(page, `${name} reads "${what}"`, (what) => {
      return [...document.querySelectorAll("#messages > .message:not(.pending) .said")].some(({ textContent }) => textContent === what);
    }, what),
    /** Everything in the list of messages, from top to bottom: `Ann: hello`, and otherwise the text of what is no message. */
    read: () => page.evaluate((me) => [...document.querySelectorAll("#messages > li")].map((item) => {
      if (!item.matches(".message:not(.pending)")) return item.innerText;
      const who = item.querySelector("b").textContent;
      return `${who === "You" ? me : who}: ${item.querySelector(".said").textContent}`;
    }), name),
    /** Waits until exactly these stand under "Here now". */
    sees: (people, ms) => shows(page, `${name} sees ${people}`, (people) => {
      const shown = [...document.querySelectorAll("#people li > span:last-child")].map(({ textContent }) => textContent);
      return `${shown}` === `${people}` && document.getElementById("count").textContent === `(${people.length})`;
    }, people, ms),
    /** What the page has said of its connection, in order, without repeats. */
    states: () => page.evaluate(() => states),
    async node() { return /· node (\w+)$/.exec((await this.states()).at(-1))?.[1]; },
    neverReloaded: () => page.evaluate(() => globalThis.neverReloaded === true),
    /** The tab hangs, and sees nothing of what goes on, until the function that this gives is called. */
    async hangs() {
      const tools = await page.context().newCDPSession(page);
      let hung = false;
      tools.once("Debugger.paused", () => (hung = true));
      await tools.send("Debugger.enable");
      await tools.send("Debugger.pause"); // before the next line of any script
      return async () => {
        await until(() => hung, `${name}'s tab has hung`);
        await tools.send("Debugger.resume");
        await tools.detach();
      };
    },
    leave: () => page.context().close(),
  };
}

/** All read the same in the same order, and nothing else: `Ann 1` to `Ann count`, and so on, each person's in the order in which they were said. */
export async function agree(people, count) {
  const [one, ...others] = await Promise.all(people.map((person) => person.read()));
  for (const other of others) assert.deepEqual(other, one);
  for (const { name } of people) {
    const own = one.filter((line) => line.startsWith(`${name}: `));
    assert.deepEqual(own, Array.from({ length: count }, (_, i) => `${name}: ${name} ${i + 1}`));
  }
  assert.equal(one.length, people.length * count);
  return one;
}
