// People who chat: each is a browser with its own storage on the chat page, and types and reads as people do. Called by the
// tests of the demo pages; uses what can be seen on the page, never the client behind it.

import assert from "node:assert/strict";
import { patient, until } from "./wait.mjs";

const WAIT_MS = patient(15_000);

// Runs in the page before the page's own scripts: records the states of the connection that the page shows, and violations
// of its content security policy.
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

// The client tries to climb with a chance of one in twelve at each tick, and waits for random times before it reconnects. In
// this page every tick tries to climb, the test says when it ticks, and waits are a twelfth as long.
function climbOnDemand() {
  const { setInterval } = globalThis, { random } = Math;
  globalThis.setInterval = (call, ms, ...rest) => {
    if (ms !== 5000) return setInterval(call, ms, ...rest);
    globalThis.tick = call;
  };
  Math.random = () => random() / 12;
}

/** A page with its own storage, the errors on its console, and its policy's violations. */
export async function open(t, chromium, url, { climbs = false } = {}) {
  const context = await chromium.newContext(), errors = [], posts = new Set();
  t.after(() => context.close());
  context.setDefaultTimeout(WAIT_MS);
  await context.addInitScript(witness);
  if (climbs) await context.addInitScript(climbOnDemand);
  const page = await context.newPage();
  page.on("pageerror", (error) => errors.push(`${error}`));
  page.on("console", (line) => /error|warning/.test(line.type()) && errors.push(line.text()));
  page.on("request", (request) => request.method() === "POST" && posts.add(request));
  for (const end of ["requestfinished", "requestfailed"]) page.on(end, (request) => posts.delete(request));
  await page.goto(url);
  return { page, errors, posts, violations: () => page.evaluate(() => violations) };
}

/** Resolves to the first true value of `condition`, which runs in the page. */
export async function shows(page, what, condition, argument, ms = WAIT_MS) {
  const value = await page.waitForFunction(condition, argument, { timeout: ms, polling: 20 }).catch(async ({ message }) => {
    const text = await page.evaluate(() => document.body.innerText).catch(() => message);
    assert.fail(`not within ${ms} ms: ${what}. The page ends: ${text.replace(/\s*\n\s*/g, " | ").slice(-2000)}`);
  });
  return value.jsonValue();
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
    page,
    name,
    connected,
    types: (what) => text.pressSequentially(what),
    enters: () => text.press("Enter"),
    /** Lets the client try a better transport. */
    climbs: () => page.evaluate(() => tick()),
    async says(what) {
      await this.types(what);
      await this.enters();
    },
    /** Waits until the page shows that `other` has seen the last message. */
    isSeenBy: (other) => says("seen", `Seen by ${other}`),
    /** Waits until the page shows that `other` is typing. */
    seesTyping: (other) => says("typing", `${other} is typing`),
    /** Waits until the page's POST requests are answered. */
    isQuiet: () => until(() => rest.posts.size === 0, `${name}'s requests are answered`),
    /** Waits until the page shows this message, confirmed by the gateway, no matter who wrote it. */
    hears: (what) => shows(page, `${name} reads "${what}"`, (what) => {
      return [...document.querySelectorAll("#messages > .message:not(.pending) .said")].some(({ textContent }) => textContent === what);
    }, what),
    /** The list of messages from top to bottom: `Ann: hello` for a message, for anything else (a gap) its text. */
    read: () => page.evaluate((me) => [...document.querySelectorAll("#messages > li")].map((item) => {
      if (!item.matches(".message:not(.pending)")) return item.innerText;
      const who = item.querySelector("b").textContent;
      return `${who === "You" ? me : who}: ${item.querySelector(".said").textContent}`;
    }), name),
    /** Waits until exactly these people are listed under "Here now". */
    sees: (people, ms) => shows(page, `${name} sees ${people}`, (people) => {
      const shown = [...document.querySelectorAll("#people li > span:last-child")].map(({ textContent }) => textContent);
      return `${shown}` === `${people}` && document.getElementById("count").textContent === `(${people.length})`;
    }, people, ms),
    /** The states of the connection that the page has shown, in order, without repeats. */
    states: () => page.evaluate(() => states),
    async node() { return /· node (\w+)$/.exec((await this.states()).at(-1))?.[1]; },
    neverReloaded: () => page.evaluate(() => globalThis.neverReloaded === true),
    /** The tab hangs and receives nothing. Returns a function that lets it run again. */
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

/** All pages show the same list: `Ann 1` to `Ann count`, and so on for each person, in the order of writing, and nothing else. */
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
