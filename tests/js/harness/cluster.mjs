// A redis-server, several gateways and a real nginx before them, with the repository's own nginx/fanfare/*.conf included
// unchanged: only the top file, which holds ports and paths, is generated, as tests/src/nginx.rs does. Each can be killed;
// what still runs when the test ends is ended by its own process id. Knows nothing of browsers.

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

/** The two for which the repository has configurations: Debian 12's, and those since 1.30, which have `sticky route`. */
export const versions = [
  { name: "nginx 1.22", program: process.env.NGINX_OLD_BIN ?? "/usr/sbin/nginx", upstreams: listed },
  { name: "nginx 1.31", program: process.env.NGINX_NEW_BIN ?? fileURLToPath(new URL("../../.cache/nginx/nginx", import.meta.url)), upstreams: sticky },
];

/** `nodes` gateways, named north, south, east and west, over one Redis, behind nginx of that version. `?n=route` leads to a node. */
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

/** An nginx before `nodes`, once it serves. */
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
    /** Master and workers: a worker whose master was killed would serve on. */
    async kill() {
      const workers = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8").match(/\d+/g) ?? [];
      child.kill("SIGKILL");
      await ended;
      for (const pid of workers) process.kill(+pid, "SIGKILL");
    },
  };
}

/** What nginx/fanfare/http.conf says that a top file provides. */
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

/** The list that operators generate for the old one. */
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
