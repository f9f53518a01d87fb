// A real Chromium for the tests, with its own profile, and an empty page with the proxy's origin to run code in. The proxy
// answers for this page, since the gateway serves no empty one.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const ARGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];

export const executablePath = process.env.CHROMIUM_BIN ?? "/usr/bin/chromium";

export async function browser(t) {
  const profile = mkdtempSync(join(tmpdir(), "fanfare-chromium-"));
  const context = await chromium.launchPersistentContext(profile, { executablePath, args: ARGS });
  t.after(async () => {
    await context.close();
    rmSync(profile, { recursive: true, force: true });
  });
  return context;
}

const FILES = {
  "/page": ["text/html", "<!doctype html><title>a page</title>"],
  "/worker.js": [
    "text/javascript",
    `import { connect } from "/client.js";
     onmessage = ({ data: { transports } }) => {
       const f = connect(undefined, { transports }), room = f.join("a", { history: 10 });
       f.on("transport", (name) => postMessage({ transport: name }));
       room.on("message", ({ data }) => postMessage({ data }));
     };`,
  ],
};

/** Has a proxy answer for the empty page and its worker. */
export function serve(front) {
  front.instead = ({ url }, answer) => {
    const file = FILES[url];
    if (file) answer.writeHead(200, { "content-type": file[0] }).end(file[1]);
    return !!file;
  };
}
