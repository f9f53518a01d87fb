//! A real nginx before a cluster, with the repository's own `nginx/fanfare/*.conf` included unchanged: only the top
//! file, which holds ports and paths, is generated. Called by the tests through nginx; it never edits what is tested.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::cluster::Cluster;
use crate::front::Front;
use crate::http;
use crate::ports::free_port;
use crate::process::{Launch, Process};
use crate::scratch::Scratch;
use crate::wait::eventually;

/// Which nginx, and with it which of the two configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Debian 12's: no `sticky`, a generated list of nodes (`nodes-1.22.sh`).
    Old,
    /// 1.30 and later: `sticky route`.
    New,
}

/// A running nginx; ends with this.
#[derive(Debug)]
pub struct Nginx {
    /// Where clients connect.
    pub address: SocketAddr,
    version: Version,
    _process: Process,
    scratch: Scratch,
}

impl Version {
    /// How it is called in verdicts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Old => "nginx 1.22",
            Self::New => "nginx new",
        }
    }

    /// The program.
    ///
    /// # Panics
    /// When the new one has not been fetched.
    fn binary(self) -> PathBuf {
        match self {
            Self::Old => PathBuf::from("/usr/sbin/nginx"),
            Self::New => {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/nginx/nginx");
                assert!(path.exists(), "no {}: tests/run fetches it", path.display());
                path
            }
        }
    }
}

impl Nginx {
    /// Starts one before the nodes of `cluster` and waits until it serves.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn before(cluster: &Cluster, version: Version) -> Self {
        let nodes: Vec<SocketAddr> = cluster.nodes.iter().map(|node| node.listen).collect();
        Self::before_nodes(&nodes, version).await
    }

    async fn before_nodes(nodes: &[SocketAddr], version: Version) -> Self {
        let scratch = Scratch::new();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let top = scratch.file("nginx.conf", &top_file(version, address, nodes, scratch.path()).await);
        let launch = Launch::new("nginx", version.binary())
            .arg("-p")
            .arg(scratch.path())
            .arg("-e")
            .arg(scratch.path().join("error.log"))
            .arg("-c")
            .arg(top)
            .args(["-g", "daemon off;"])
            .ends_by_term();
        let process = launch.start(scratch.path());
        let nginx = Self { address, version, _process: process, scratch };
        eventually("nginx serves", async || {
            http::get(address, "/nginx/health").try_send().await.is_ok_and(|reply| reply.status == 200)
        })
        .await;
        nginx
    }

    /// This as the place where clients connect.
    #[must_use]
    pub fn front(&self) -> Front {
        Front::balancer(self.version.name(), self.address)
    }

    /// Its access log so far.
    #[must_use]
    pub fn access_log(&self) -> String {
        std::fs::read_to_string(self.scratch.path().join("access.log")).unwrap_or_default()
    }
}

/// What `nginx/fanfare/http.conf` says that a top file provides.
async fn top_file(version: Version, address: SocketAddr, nodes: &[SocketAddr], scratch: &Path) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../nginx");
    let fanfare = directory.join("fanfare");
    let mut text = String::from("# Generated for one test.\n");
    let here = scratch.display();
    let _ = write!(
        text,
        "user root;\npid {here}/nginx.pid;\nworker_processes 2;\nworker_rlimit_nofile 20000;\n\
         events {{ worker_connections 16384; }}\nhttp {{\n"
    );
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(text, "    {kind}_temp_path {here}/{kind};");
    }
    let _ = writeln!(text, "    include {}/http.conf;\n    access_log {here}/access.log fanfare;", fanfare.display());
    let addresses: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    match version {
        Version::Old => {
            let list = Launch::new("nodes-1.22.sh", directory.join("nodes-1.22.sh")).args(&addresses).run().await;
            assert_eq!(list.code, Some(0), "{}", list.stderr);
            text.push_str(&list.stdout);
        }
        Version::New => {
            text.push_str("    upstream gateway {\n        zone gateway 256k;\n        least_conn;\n");
            for node in &addresses {
                let _ = writeln!(text, "        server {node} max_fails=0;");
            }
            text.push_str("        sticky route $arg_n $cookie_fanfare_node;\n    }\n");
        }
    }
    let _ = write!(
        text,
        "    server {{\n        listen {address};\n        include {}/locations.conf;\n    }}\n}}\n",
        fanfare.display()
    );
    text
}

#[cfg(test)]
mod tests {
    use super::{Nginx, Version};
    use crate::http;

    #[tokio::test]
    async fn both_configurations_are_taken_and_serve() {
        for version in [Version::Old, Version::New] {
            let nobody = ([127, 0, 0, 1], crate::ports::free_port()).into();
            let nginx = Nginx::before_nodes(&[nobody], version).await;
            let reply = http::get(nginx.address, "/v1/rooms/a").send().await;
            assert_eq!(reply.status, 503, "{}: {}", version.name(), reply.text);
        }
    }
}
