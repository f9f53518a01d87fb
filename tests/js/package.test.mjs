// What is served and published: the size of the client, its types, its metadata.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { gateway } from "./harness/gateway.mjs";

const folder = new URL("../../gateway/assets/client/", import.meta.url);
const SIZE_MAX = 6144;

test("the client has at most 6 KiB, compressed as servers do", (t) => {
  const size = gzipSync(readFileSync(new URL("client.js", folder)), { level: 9 }).length;
  t.diagnostic(`client.js: ${size} bytes of ${SIZE_MAX} with gzip -9`);
  assert.ok(size <= SIZE_MAX, `${size} bytes`);
});

test("the types fit the usage they promise, and refuse wrong usage", () => {
  const compiler = fileURLToPath(new URL("node_modules/typescript/bin/tsc", import.meta.url));
  const options = ["--noEmit", "--strict", "--target", "es2022", "--module", "nodenext", "--skipLibCheck", "false", "usage.ts"];
  const { stdout, status } = spawnSync(process.execPath, [compiler, ...options], { cwd: fileURLToPath(new URL(".", import.meta.url)), encoding: "utf8" });
  assert.equal(status, 0, stdout);
});

test("the package cannot be published by accident, and leads to the module and its types", () => {
  const data = JSON.parse(readFileSync(new URL("package.json", folder)));
  assert.deepEqual([data.name, data.version, data.type, data.license, data.private], ["fanfare-client", "0.1.0", "module", "Apache-2.0", true]);
  assert.deepEqual(data.exports, { ".": { types: "./client.d.ts", default: "./client.js" } });
});

test("the gateway serves the very file", async (t) => {
  const node = await gateway(t), answer = await fetch(`${node.url}/client.js`);
  assert.match(answer.headers.get("content-type"), /^text\/javascript/);
  assert.equal((await answer.text()).length > 0, true);
  assert.equal((await fetch(`${node.url}/client.d.ts`)).status, 200);
});
