// What is served and what is published: the client's size, its types, its npm package, the examples of its README.

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { client } from "./harness/client.mjs";
import { gateway } from "./harness/gateway.mjs";
import { until } from "./harness/wait.mjs";

const source = fileURLToPath(new URL("../../gateway/assets/client/", import.meta.url));
const SIZE_MAX = 7168;

/** The output of the TypeScript compiler about `files` in `folder`; empty if it accepts them. */
function compile(folder, ...files) {
  const compiler = fileURLToPath(new URL("node_modules/typescript/bin/tsc", import.meta.url));
  const options = ["--noEmit", "--strict", "--target", "es2022", "--module", "nodenext", "--skipLibCheck", "false"];
  return spawnSync(process.execPath, [compiler, ...options, ...files], { cwd: folder, encoding: "utf8" }).stdout;
}

/** A folder with these files, which is deleted when the test ends. */
function project(t, files) {
  const folder = mkdtempSync(join(tmpdir(), "fanfare-project-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
  return folder;
}

const run = (folder, file) => execFileSync(process.execPath, ["--no-warnings", file], { cwd: folder, encoding: "utf8" });

test("the client is served without its comments, in at most 7 KiB compressed", async (t) => {
  const node = await gateway(t), answer = await fetch(`${node.url}/client.js`), text = await answer.text();
  assert.match(answer.headers.get("content-type"), /^text\/javascript/);
  assert.doesNotMatch(text, /^\s*\/\/|\s\/\/ /m);
  const size = gzipSync(text, { level: 9 }).length;
  t.diagnostic(`client.js: ${text.length} bytes, ${size} of ${SIZE_MAX} with gzip -9`);
  assert.ok(size <= SIZE_MAX, `${size} bytes`);
  assert.equal(await (await fetch(`${node.url}/client.d.ts`)).text(), readFileSync(join(source, "client.d.ts"), "utf8"));
});

test("the types allow the usage they promise, and refuse wrong usage", () => {
  assert.equal(compile(fileURLToPath(new URL(".", import.meta.url)), "usage.ts"), "");
});

/** Programs that use the client by that name: an ES module, a CommonJS module, and a typed one. */
const programs = (name, client) => {
  const use = "const f = connect('http://127.0.0.1:9', { transports: ['poll'] });\nconsole.log(typeof f.join);\nf.close();\n";
  return {
    [`${name}.mjs`]: `import { connect } from "${client}";\n${use}`,
    [`${name}.js`]: `const { connect } = require("${client}");\n${use}`,
    [`${name}.mts`]: `import { connect, type Room } from "${client}";\nexport const room: Room<number> = connect().join<number>("a");\n`,
  };
};

test("in a CommonJS project the npm package works, and so does a saved client.mjs", (t) => {
  const manifest = { "package.json": '{ "type": "commonjs" }' };
  const folder = project(t, { ...manifest, ...programs("packed", "fanfare-client"), ...programs("saved", "./client.mjs") });
  const pack = ["pack", "--json", "--silent", "--pack-destination", folder];
  const [{ filename, files }] = JSON.parse(execFileSync("npm", pack, { cwd: source, encoding: "utf8" }));
  assert.deepEqual(files.map(({ path }) => path), ["LICENSE", "README.md", "client.d.ts", "client.js", "package.json"]);
  const installed = join(folder, "node_modules/fanfare-client");
  mkdirSync(installed, { recursive: true });
  execFileSync("tar", ["-xf", join(folder, filename), "-C", installed, "--strip-components=1"]);
  copyFileSync(join(source, "client.js"), join(folder, "client.mjs"));
  copyFileSync(join(source, "client.d.ts"), join(folder, "client.d.mts"));
  for (const name of ["packed", "saved"]) {
    assert.equal(run(folder, `${name}.mjs`), "function\n");
    // `require` loads an ES module in Node from 20.19 and 22.12.
    if (process.features.require_module) assert.equal(run(folder, `${name}.js`), "function\n");
  }
  assert.equal(compile(folder, "packed.mts", "saved.mts"), "");
});

test("the README's example for names shows everybody the others' names", async (t) => {
  const readme = readFileSync(join(source, "README.md"), "utf8"), [, code] = /## Names of people\n[^]*?```js\n([^]*?)```/.exec(readme);
  const node = await gateway(t), shown = {};
  for (const name of ["Ann", "Bob"]) {
    const f = client(t, node.url);
    new Function("f", "name", "show", code)(f, name, (names) => (shown[name] = names.sort().join()));
  }
  await until(() => shown.Ann === "Ann,Bob" && shown.Bob === "Ann,Bob", "both see both names");
});
