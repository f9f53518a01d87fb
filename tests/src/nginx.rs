//! A real nginx before a cluster, with the repository's own `nginx/fanfare/*.conf`, included unchanged. Only the ports
//! and paths are a test's own: the top file is generated, and those in `nginx/tls*.conf` are replaced. Called by the
//! tests through nginx.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::cluster::Cluster;
use crate::dns::Dns;
use crate::http;
use crate::ports::free_port;
use crate::process::{Launch, Process};
use crate::scratch::Scratch;
use crate::target::Target;
use crate::wait::eventually;

/// An nginx and the configuration for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Debian 12's, without `sticky`: it gets a generated list of nodes (`nodes-1.22.sh`).
    Old,
    /// 1.30 or newer, with `sticky route`.
    New,
}

/// A running nginx; dropping it ends it.
#[derive(Debug)]
pub struct Nginx {
    /// Where clients connect.
    pub address: SocketAddr,
    secure: Option<Secure>,
    version: Version,
    process: Process,
    scratch: Scratch,
}

/// The nodes behind an nginx.
enum Nodes<'a> {
    /// At these addresses.
    List(&'a [SocketAddr]),
    /// At the addresses that the resolver has for a name.
    Named { resolver: SocketAddr, port: u16 },
}

/// Where clients connect with TLS, and the certificate that they have to trust.
#[derive(Clone, Debug)]
pub struct Secure {
    /// The address.
    pub address: SocketAddr,
    /// The certificate; it is self-signed.
    pub certificate: PathBuf,
}

impl Version {
    /// Its name in verdicts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Old => "nginx 1.22",
            Self::New => "nginx new",
        }
    }

    /// The repository's files for it: the top file, and the one that adds TLS.
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
    /// When `tests/run` has not fetched the new one yet.
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
    /// Starts nginx before the nodes of `cluster` and waits until it serves.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn before(cluster: &Cluster, version: Version) -> Self {
        let nodes: Vec<SocketAddr> = cluster.nodes.iter().map(|node| node.listen).collect();
        Self::before_nodes(&nodes, version).await
    }

    /// The same before these addresses.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn before_nodes(nodes: &[SocketAddr], version: Version) -> Self {
        Self::start(&Nodes::List(nodes), version, None).await
    }

    /// The newer nginx before the nodes that `dns` names, all at `port`; it looks them up every second.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn before_names(dns: &Dns, port: u16) -> Self {
        Self::start(&Nodes::Named { resolver: dns.address, port }, Version::New, None).await
    }

    /// The same, also with TLS and HTTP/2, on a second port.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn secure_before(cluster: &Cluster, version: Version) -> Self {
        let nodes: Vec<SocketAddr> = cluster.nodes.iter().map(|node| node.listen).collect();
        Self::start(&Nodes::List(&nodes), version, Some(local())).await
    }

    async fn start(nodes: &Nodes<'_>, version: Version, secure: Option<SocketAddr>) -> Self {
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

    /// This nginx as the target that clients connect to.
    #[must_use]
    pub fn target(&self) -> Target {
        Target::balancer(self.version.name(), self.address)
    }

    /// Where clients connect with TLS.
    ///
    /// # Panics
    /// When it was started without TLS.
    #[must_use]
    pub fn secure(&self) -> &Secure {
        self.secure.as_ref().expect("this nginx was started with TLS")
    }

    /// Its access log so far.
    #[must_use]
    pub fn access_log(&self) -> String {
        std::fs::read_to_string(self.scratch.path().join("access.log")).unwrap_or_default()
    }

    /// Its error log so far. Before it has read its configuration it writes to a file, afterwards to standard error.
    #[must_use]
    pub fn error_log(&self) -> String {
        let file = std::fs::read_to_string(self.scratch.path().join("error.log")).unwrap_or_default();
        file + &self.process.log()
    }

    /// The number of the connection, the protocol and the path of every request that has ended.
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

/// The TLS server of the repository, with the port and the paths of a test.
fn tls_server(version: Version, address: SocketAddr, scratch: &Path) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../nginx");
    let shipped = std::fs::read_to_string(directory.join(version.files()[1])).expect("the TLS server is shipped");
    assert!(shipped.contains(" 8443 ") && shipped.contains(" certificates/"), "{shipped}");
    shipped
        .replace(" 8443 ", &format!(" {address} "))
        .replace(" certificates/", &format!(" {}/", scratch.display()))
        .replace(" fanfare/", &format!(" {}/fanfare/", directory.display()))
}

/// A top file, as the head of `nginx/fanfare/http.conf` describes it, but for the last brace of `http { }`.
async fn top_file(version: Version, address: SocketAddr, nodes: &Nodes<'_>, scratch: &Path) -> String {
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
    text.push_str(&upstream(version, nodes).await);
    let _ = write!(
        text,
        "    server {{\n        listen {address};\n        include {}/locations.conf;\n    }}\n",
        fanfare.display()
    );
    text
}

/// The nodes, for the top file.
async fn upstream(version: Version, nodes: &Nodes<'_>) -> String {
    if let (Version::Old, Nodes::List(addresses)) = (version, nodes) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../nginx/nodes-1.22.sh");
        let list = Launch::new("nodes-1.22.sh", script).args(addresses.iter().map(ToString::to_string)).run().await;
        assert_eq!(list.code, Some(0), "{}", list.stderr);
        return list.stdout;
    }
    let (mut text, servers) = match nodes {
        Nodes::List(addresses) => (String::new(), addresses.iter().map(ToString::to_string).collect()),
        Nodes::Named { resolver, port } => {
            (format!("    resolver {resolver} valid=1s ipv6=off;\n"), vec![format!("nodes.test:{port} resolve")])
        }
    };
    text.push_str("    upstream gateway {\n        zone gateway 256k;\n        least_conn;\n");
    for server in servers {
        let _ = writeln!(text, "        server {server} max_fails=0;");
    }
    text + "        sticky route $arg_n $cookie_fanfare_node;\n    }\n"
}

#[cfg(test)]
mod tests {
    use super::{Nginx, Version};
    use crate::http;

    #[tokio::test]
    async fn nginx_starts_with_both_configurations() {
        for version in [Version::Old, Version::New] {
            let nowhere = ([127, 0, 0, 1], crate::ports::free_port()).into();
            let nginx = Nginx::before_nodes(&[nowhere], version).await;
            let reply = http::get(nginx.address, "/v1/rooms/a").send().await;
            assert_eq!(reply.status, 503, "{}: {}", version.name(), reply.text);
        }
    }
}
