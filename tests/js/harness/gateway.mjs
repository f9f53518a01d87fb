// Real gateways and a real redis-server for the tests of the JavaScript client, and requests to them. They are started on
// free ports, and ended by their own process ids when the test that asked for them ends. Nothing here uses the client.

import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { freePort } from "./port.mjs";
import { until } from "./wait.mjs";

const repository = fileURLToPath(new URL("../../../", import.meta.url));

/** Where cargo puts its builds: it alone knows all of `CARGO_TARGET_DIR`, `CARGO_BUILD_TARGET_DIR` and its configuration files. */
export function targetDirectory(env = process.env) {
  const answer = execFileSync("cargo", ["metadata", "--no-deps", "--offline", "--format-version", "1"], { cwd: repository, env, encoding: "utf8" });
  return JSON.parse(answer).target_directory;
}

/** The newest of the builds in cargo's target directory. */
function newestBuild() {
  const target = targetDirectory();
  const builds = ["debug", "release"].map((profile) => join(target, profile, "fanfare")).filter((path) => existsSync(path));
  builds.sort((a, b) => statSync(b).mtimeMs - statSync(a).mtimeMs);
  if (!builds[0]) throw new Error(`no gateway in ${target}: build it with \`cargo build\`, or name it in FANFARE_BIN`);
  return builds[0];
}

let found;
/** The program under test: the one that FANFARE_BIN names, otherwise the newest build. */
const program = () => (found ??= process.env.FANFARE_BIN || newestBuild());

function start(t, program, args) {
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"] });
  let log = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (text) => (log = (log + text).slice(-4096)));
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
  // If another process has taken the port in the meantime, it is that one's Redis that answers.
  const isOurs = async () => (await command("info", "server")).includes(`process_id:${server.child.pid}\r`);
  await until(async () => !server.runs() || (await isOurs()), "redis-server answers");
  if (!server.runs()) throw new Error(`redis-server ended: ${server.log()}`);
  return { url: `redis://127.0.0.1:${port}`, command, pause: () => server.child.kill("SIGSTOP"), go: () => server.child.kill("SIGCONT") };
}

/** A gateway; over `redis` it is one of a cluster. `config` is TOML. */
export async function gateway(t, { redis, config = "", args = [] } = {}) {
  const home = folder(t), ready = join(home, "ready.json"), file = join(home, "fanfare.toml");
  writeFileSync(file, config);
  const options = ["serve", "--config", file, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--ready-file", ready, "--shards", "1"];
  const server = start(t, program(), [...options, ...(redis ? ["--redis", redis.url] : []), "--drain", "1", ...args]);
  // The file is created before its text is written: JSON.parse fails until then, and `until` tries again.
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
