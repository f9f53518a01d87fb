// Real gateways and a real redis-server for the tests of the JavaScript client, and requests to them. Started on free ports,
// ended by their own process ids when the test that asked for them ends. Knows nothing of the client.

import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { until } from "./wait.mjs";

const target = fileURLToPath(new URL("../../../target/", import.meta.url));

/** The program under test: what FANFARE_BIN names, else the newest build there is. */
function binary() {
  const builds = ["debug", "release"].map((profile) => join(target, profile, "fanfare")).filter((path) => existsSync(path));
  builds.sort((a, b) => statSync(b).mtimeMs - statSync(a).mtimeMs);
  const found = process.env.FANFARE_BIN ?? builds[0];
  if (!found) throw new Error("no gateway: build it with `cargo build`, or name it in FANFARE_BIN");
  return found;
}

async function freePort() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

function start(t, program, args) {
  const child = spawn(program, args, { stdio: ["ignore", "ignore", "pipe"] });
  let log = "";
  child.stderr.on("data", (text) => (log = (log + text).slice(-4096)));
  const ended = new Promise((resolve) => child.once("exit", resolve));
  t.after(async () => {
    child.kill("SIGKILL");
    await ended;
  });
  return { child, ended, log: () => log, runs: () => child.exitCode === null && child.signalCode === null };
}

function folder(t) {
  const path = mkdtempSync(join(tmpdir(), "fanfare-js-"));
  t.after(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** A redis-server that keeps nothing on disk. */
export async function redis(t) {
  const port = await freePort();
  const args = ["--port", String(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder(t)];
  const server = start(t, "redis-server", args);
  const command = async (...words) => {
    const child = spawn("redis-cli", ["-p", String(port), ...words], { stdio: ["ignore", "pipe", "ignore"] });
    let out = "";
    child.stdout.on("data", (text) => (out += text));
    await new Promise((resolve) => child.once("close", resolve));
    return out.trim();
  };
  await until(async () => (await command("ping")) === "PONG", "redis-server answers");
  return { url: `redis://127.0.0.1:${port}`, command, pause: () => server.child.kill("SIGSTOP"), go: () => server.child.kill("SIGCONT") };
}

/** A gateway; over `redis` it is one of a cluster. `config` is TOML. */
export async function gateway(t, { redis, config = "", args = [] } = {}) {
  const place = folder(t), ready = join(place, "ready.json"), file = join(place, "fanfare.toml");
  writeFileSync(file, config);
  const options = ["serve", "--config", file, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--ready-file", ready, "--shards", "1"];
  const server = start(t, binary(), [...options, ...(redis ? ["--redis", redis.url] : []), "--drain", "1", ...args]);
  // The file may be there before its text.
  const addresses = await until(() => (server.runs() ? JSON.parse(readFileSync(ready, "utf8")) : {}), "the gateway is ready");
  if (!addresses.listen) throw new Error(`the gateway ended: ${server.log()}`);
  const { listen, admin } = addresses;
  return {
    url: `http://${listen}`,
    admin: `http://${admin}`,
    address: listen,
    async kill() {
      server.child.kill("SIGKILL");
      await server.ended;
    },
    terminate: () => server.child.kill("SIGTERM"),
    /** Publishes over HTTP, as a back end does. */
    async publish(room, data) {
      const body = JSON.stringify(data), headers = { "content-type": "application/json" };
      const answer = await fetch(`http://${listen}/v1/rooms/${encodeURIComponent(room)}`, { method: "POST", body, headers });
      if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
      return answer.json();
    },
    async get(path) { return (await fetch(`http://${listen}${path}`)).json(); },
    async remove(path) { return (await fetch(`http://${listen}${path}`, { method: "DELETE" })).status; },
  };
}
