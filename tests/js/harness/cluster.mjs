// A redis-server, several gateways and a real nginx in front of them. nginx includes the repository's own nginx/fanfare/*.conf
// unchanged; only the top file, with ports and paths, is generated, as in tests/src/nginx.rs. A test can kill each of these
// processes; those that still run when it ends are ended by their process ids. Nothing here uses a browser.

import { execFileSync, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gateway, redis } from "./gateway.mjs";
import { freePort } from "./port.mjs";
import { until } from "./wait.mjs";

const shipped = fileURLToPath(new URL("../../../nginx/", import.meta.url));
const NAMES = ["north", "south", "east", "west"];

/** The versions that the repository has configurations for: Debian 12's, and those from 1.30 on, which have `sticky route`. */
export const versions = [
  { name: "nginx 1.22", program: process.env.NGINX_OLD_BIN ?? "/usr/sbin/nginx", upstreams: listed },
  { name: "nginx 1.31", program: process.env.NGINX_NEW_BIN ?? fileURLToPath(new URL("../../.cache/nginx/nginx", import.meta.url)), upstreams: sticky },
];

/** `nodes` gateways (north, south, east, west) over one Redis, behind nginx of this version. `?n=` with a node's `route` leads to it. */
export async function cluster(t, { version, nodes: count = 2 }) {
  const broker = await redis(t);
  const nodes = await Promise.all(NAMES.slice(0, count).map(async (name) => {
    const node = await gateway(t, { redis: broker, args: ["--node", name] });
    return { name, route: createHash("md5").update(node.address).digest("hex"), ...node };
  }));
  return { nodes, nginx: await nginx(t, version, nodes.map(({ address }) => address)), redis: { ...broker, kill: () => killRedis(broker) } };
}

async function killRedis(broker) {
  const [, pid] = /^process_id:(\d+)/m.exec(await broker.command("info", "server"));
  process.kill(+pid, "SIGKILL");
  await until(async () => (await broker.command("ping")) !== "PONG", "redis-server is gone");
}

/** An nginx in front of `nodes`, as soon as it serves. */
async function nginx(t, { name, program, upstreams }, nodes) {
  if (!existsSync(program)) throw new Error(`no ${program}: tests/run fetches it`);
  const home = mkdtempSync(join(tmpdir(), "fanfare-nginx-")), address = `127.0.0.1:${await freePort()}`, top = join(home, "nginx.conf");
  writeFileSync(top, topFile(home, address, upstreams(nodes)));
  const child = spawn(program, ["-p", home, "-e", join(home, "error.log"), "-c", top, "-g", "daemon off;"], { stdio: "ignore" });
  const ended = new Promise((resolve) => child.once("exit", resolve)), runs = () => child.exitCode === null && child.signalCode === null;
  const log = () => readFileSync(join(home, "error.log"), "utf8");
  t.after(async () => {
    child.kill("SIGTERM"); // the master ends its workers
    await ended;
    rmSync(home, { recursive: true, force: true });
  });
  const serves = async () => (await fetch(`http://${address}/nginx/health`)).ok;
  await until(() => !runs() || serves(), `${name} serves`);
  if (!runs()) throw new Error(`${name} ended: ${log()}`);
  return {
    address,
    url: `http://${address}`,
    log,
    /** Kills the master and its workers: a worker whose master was killed would go on serving. */
    async kill() {
      const workers = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8").match(/\d+/g) ?? [];
      child.kill("SIGKILL");
      await ended;
      for (const pid of workers) process.kill(+pid, "SIGKILL");
    },
  };
}

/** The top file, with what nginx/fanfare/http.conf expects of it. */
function topFile(home, address, upstreams) {
  const kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
  return `# Generated for one test.
user root;
pid ${home}/nginx.pid;
worker_processes 2;
events { worker_connections 1024; }
http {
    ${kinds.map((kind) => `${kind}_temp_path ${home}/${kind};`).join("\n    ")}
    include ${shipped}fanfare/http.conf;
    access_log ${home}/access.log fanfare;
${upstreams}
    server {
        listen ${address};
        include ${shipped}fanfare/locations.conf;
    }
}
`;
}

/** The upstreams of the older version: the list that operators generate for it. */
function listed(nodes) {
  return execFileSync(`${shipped}nodes-1.22.sh`, nodes, { encoding: "utf8" });
}

function sticky(nodes) {
  return `    upstream gateway {
        zone gateway 256k;
        least_conn;
        ${nodes.map((node) => `server ${node} max_fails=0;`).join("\n        ")}
        sticky route $arg_n $cookie_fanfare_node;
    }`;
}
