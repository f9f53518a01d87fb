//! A real nginx before a cluster, with the repository's own `nginx/fanfare/*.conf` included unchanged: only the top
//! file, which holds ports and paths, is generated, and the server of `nginx/tls*.conf` gets others. Called by the tests
//! through nginx; it never edits how requests are treated.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::cluster::Cluster;
use crate::http;
use crate::ports::free_port;
use crate::process::{Launch, Process};
use crate::scratch::Scratch;
use crate::target::Target;
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
    secure: Option<Secure>,
    version: Version,
    process: Process,
    scratch: Scratch,
}

/// Where clients connect with TLS, and what they trust.
#[derive(Clone, Debug)]
pub struct Secure {
    /// The address.
    pub address: SocketAddr,
    /// The certificate, which signs itself.
    pub certificate: PathBuf,
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

    /// The files of the repository that are for it: the top file, and the one that adds TLS.
    #[must_use]
    pub fn files(self) -> [&'static str; 2] {
        match self {
            Self::Old => ["nginx-1.22.conf", "tls-1.22.conf"],
            Self::New => ["nginx.conf", "tls.conf"],
        }
    }

    /// The program.
    ///
    /// # Panics
    /// When the new one has not been fetched.
    #[must_use]
    pub fn binary(self) -> PathBuf {
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
        Self::before_nodes(&nodes, version, None).await
    }

    /// The same with TLS and HTTP/2 on a port of their own.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn secure_before(cluster: &Cluster, version: Version) -> Self {
        let nodes: Vec<SocketAddr> = cluster.nodes.iter().map(|node| node.listen).collect();
        Self::before_nodes(&nodes, version, Some(local())).await
    }

    async fn before_nodes(nodes: &[SocketAddr], version: Version, secure: Option<SocketAddr>) -> Self {
        let scratch = Scratch::new();
        let address = local();
        let mut text = top_file(version, address, nodes, scratch.path()).await;
        if let Some(secure) = secure {
            certify(scratch.path()).await;
            text.push_str(&tls_server(version, secure, scratch.path()));
        }
        text.push_str("}\n");
        let top = scratch.file("nginx.conf", &text);
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
        let certificate = scratch.path().join("fullchain.pem");
        let secure = secure.map(|address| Secure { address, certificate });
        let nginx = Self { address, secure, version, process, scratch };
        eventually("nginx serves", async || {
            http::get(address, "/nginx/health").try_send().await.is_ok_and(|reply| reply.status == 200)
        })
        .await;
        nginx
    }

    /// This as the place where clients connect.
    #[must_use]
    pub fn target(&self) -> Target {
        Target::balancer(self.version.name(), self.address)
    }

    /// Where it takes TLS.
    ///
    /// # Panics
    /// When it was started without.
    #[must_use]
    pub fn secure(&self) -> &Secure {
        self.secure.as_ref().expect("this nginx was started with TLS")
    }

    /// Its access log so far.
    #[must_use]
    pub fn access_log(&self) -> String {
        std::fs::read_to_string(self.scratch.path().join("access.log")).unwrap_or_default()
    }

    /// Its error log so far, wherever it has written it.
    #[must_use]
    pub fn error_log(&self) -> String {
        let file = std::fs::read_to_string(self.scratch.path().join("error.log")).unwrap_or_default();
        file + &self.process.log()
    }

    /// Of every request that has ended: the number of its connection, the protocol, the path.
    #[must_use]
    pub fn connections(&self) -> Vec<[String; 3]> {
        let text = std::fs::read_to_string(self.scratch.path().join("connections.log")).unwrap_or_default();
        let line = |line: &str| {
            let mut words = line.split(' ').map(str::to_owned);
            [(); 3].map(|()| words.next().unwrap_or_default())
        };
        text.lines().map(line).collect()
    }
}

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// Makes `fullchain.pem` and `privkey.pem` in `directory`, for 127.0.0.1.
///
/// # Panics
/// When `openssl` cannot.
pub async fn certify(directory: &Path) {
    let request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let made = Launch::new("openssl", "openssl")
        .args(request)
        .args(["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout"])
        .arg(directory.join("privkey.pem"))
        .arg("-out")
        .arg(directory.join("fullchain.pem"))
        .run()
        .await;
    assert_eq!(made.code, Some(0), "{}", made.stderr);
}

/// The server that the repository ships, with the port and the paths of a test.
fn tls_server(version: Version, address: SocketAddr, scratch: &Path) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../nginx");
    let shipped = std::fs::read_to_string(directory.join(version.files()[1])).expect("the TLS server is shipped");
    assert!(shipped.contains(" 8443 ") && shipped.contains(" certificates/"), "{shipped}");
    shipped
        .replace(" 8443 ", &format!(" {address} "))
        .replace(" certificates/", &format!(" {}/", scratch.display()))
        .replace(" fanfare/", &format!(" {}/fanfare/", directory.display()))
}

/// What `nginx/fanfare/http.conf` says that a top file provides; the last brace is left to the caller.
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
    text.push_str("    log_format connections '$connection $server_protocol $uri';\n");
    let _ = writeln!(text, "    access_log {here}/connections.log connections;");
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
        "    server {{\n        listen {address};\n        include {}/locations.conf;\n    }}\n",
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
            let nginx = Nginx::before_nodes(&[nobody], version, None).await;
            let reply = http::get(nginx.address, "/v1/rooms/a").send().await;
            assert_eq!(reply.status, 503, "{}: {}", version.name(), reply.text);
        }
    }
}
