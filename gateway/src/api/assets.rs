//! The files that the gateway serves beside its API: the JavaScript client and the demo pages, compiled into the program.
//! Routed by `api`. With `demo = false` only the client is served.

use axum::{
    Router,
    body::Body,
    extract::Path,
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
    response::{IntoResponse as _, Redirect},
    routing::get,
};
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest as _, Sha256};
use std::{
    io::Write as _,
    sync::{LazyLock, OnceLock},
};

/// A file, by the path it is served at.
struct Asset {
    path: &'static str,
    bytes: &'static [u8],
    /// The file compressed, once a client has asked for that.
    gzip: OnceLock<Vec<u8>>,
}

macro_rules! demo {
    ($($file:literal),* $(,)?) => {
        LazyLock::new(|| vec![$(Asset::new($file, include_bytes!(concat!("../../assets/demo/", $file)))),*])
    };
}

static CLIENT: LazyLock<[Asset; 2]> = LazyLock::new(|| {
    let script = only_code(include_str!("../../assets/client/client.js"));
    [
        Asset::new("client.js", script.leak().as_bytes()),
        Asset::new("client.d.ts", include_bytes!("../../assets/client/client.d.ts")),
    ]
});

/// The client's comments and indentation are for those who read its source, and a quarter of its size. No text in it
/// contains `// ` or goes over several lines.
fn only_code(script: &str) -> String {
    let code = script.lines().map(|line| line.split_once("// ").map_or(line, |(code, _)| code).trim());
    code.filter(|line| !line.is_empty()).flat_map(|line| [line, "\n"]).collect()
}

static DEMO: LazyLock<Vec<Asset>> = demo![
    "index.html",
    "index.js",
    "demo.css",
    "demo.js",
    "chat.html",
    "chat.css",
    "chat.js",
    "chat-view.js",
    "ticker.html",
    "ticker.css",
    "ticker.js",
    "transports.html",
    "transports.css",
    "transports.js",
    "transports-five.js",
    "transports-meter.js",
    "transports-view.js",
];

/// Pages load from this host alone, run its scripts only, and cannot be framed by other sites.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Whether pages of all origins may load this file. A page has to load the client before it can learn that its origin may
/// not connect, and the file is the same for everybody.
pub(crate) fn is_for_every_origin(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|path| CLIENT.iter().any(|asset| asset.path == path))
}

/// The routes; `with_demo` adds the pages, and sends visitors of `/` to them.
pub(super) fn router<S: Clone + Send + Sync + 'static>(with_demo: bool) -> Router<S> {
    let client = |path| {
        get(move |headers: HeaderMap| async move {
            let mut response = serve(&*CLIENT, path, &headers);
            response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            response
        })
    };
    let router = Router::new().route("/client.js", client("client.js")).route("/client.d.ts", client("client.d.ts"));
    if !with_demo {
        return router;
    }
    router
        .route("/", get(|| async { Redirect::temporary("/demo/") }))
        .route("/demo", get(|| async { Redirect::permanent("/demo/") }))
        .route("/demo/", get(|headers: HeaderMap| async move { serve(&DEMO, "index.html", &headers) }))
        .route(
            "/demo/{file}",
            get(|Path(file): Path<String>, headers: HeaderMap| async move { serve(&DEMO, &file, &headers) }),
        )
}

/// A file, compressed if the client takes that, or 304 if it has that form already.
fn serve(assets: &'static [Asset], path: &str, asked: &HeaderMap) -> Response<Body> {
    let Some(asset) = assets.iter().find(|asset| asset.path == path) else {
        return (StatusCode::NOT_FOUND, Body::from("there is no such page\n")).into_response();
    };
    let is_gzip = takes_gzip(asked);
    let bytes: &'static [u8] = if is_gzip { asset.gzip() } else { asset.bytes };
    let tag = tag(bytes);
    let is_known = asked.get(header::IF_NONE_MATCH).is_some_and(|known| names(known, &tag));
    let mut response = Response::new(if is_known { Body::empty() } else { Body::from(bytes) });
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind(asset.path)));
    if is_gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    headers.insert(header::ETAG, tag);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

impl Asset {
    fn new(path: &'static str, bytes: &'static [u8]) -> Self {
        Self { path, bytes, gzip: OnceLock::new() }
    }

    fn gzip(&self) -> &[u8] {
        self.gzip.get_or_init(|| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
            // Writing to memory does not fail.
            let _ = encoder.write_all(self.bytes);
            encoder.finish().unwrap_or_default()
        })
    }
}

/// Whether `Accept-Encoding` has `gzip` (RFC 9110 section 12.5.3). A quality of 0 refuses it; other qualities only order the
/// encodings, and there is one.
fn takes_gzip(asked: &HeaderMap) -> bool {
    let lines = asked.get_all(header::ACCEPT_ENCODING).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|encoding| {
        let (name, parameter) = encoding.split_once(';').unwrap_or((encoding, ""));
        let quality = parameter.trim().strip_prefix("q=").map_or(Ok(1.0), str::parse::<f32>);
        name.trim().eq_ignore_ascii_case("gzip") && quality.is_ok_and(|quality| quality > 0.0)
    })
}

/// Whether an `If-None-Match` names this tag (RFC 9110 section 13.1.2: a list, weak comparison).
fn names(known: &HeaderValue, tag: &HeaderValue) -> bool {
    let known = known.to_str().unwrap_or_default();
    known.split(',').any(|known| known.trim().trim_start_matches("W/").as_bytes() == tag.as_bytes())
}

fn kind(path: &str) -> &'static str {
    match path.rsplit_once('.').map_or("", |(_, end)| end) {
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "ts" => "text/plain; charset=utf-8",
        _ => "text/html; charset=utf-8",
    }
}

/// An `ETag` that depends on the bytes, so the compressed form has another one.
fn tag(bytes: &[u8]) -> HeaderValue {
    let digest = Sha256::digest(bytes);
    let text = digest.iter().take(12).fold(String::from("\""), |text, byte| text + &format!("{byte:02x}")) + "\"";
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn every_page_is_served_with_the_type_of_its_kind() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
        let mut files: Vec<String> =
            std::fs::read_dir(directory).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        let mut served: Vec<&str> = DEMO.iter().map(|a| a.path).collect();
        files.sort_unstable();
        served.sort_unstable();
        assert_eq!(files, served);
        let page = serve(&DEMO, "index.html", &HeaderMap::new());
        assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
        assert_eq!(serve(&DEMO, "../lib.rs", &HeaderMap::new()).status(), 404);
    }

    #[test]
    fn the_client_is_served_without_comments_and_indentation() {
        assert_eq!(only_code("// a\n  // b\n\nlet c; // d\n  f(`https://g`);\n"), "let c;\nf(`https://g`);\n");
        let script = std::str::from_utf8(CLIENT[0].bytes).unwrap();
        assert!(script.starts_with("/*!") && script.contains("export const connect"));
        // Its own tests hold the promise of 7 KiB compressed; it may be four times that uncompressed.
        assert!(script.len() <= 24 << 10, "{} bytes", script.len());
    }

    fn headers(given: &[(header::HeaderName, &HeaderValue)]) -> HeaderMap {
        given.iter().map(|(name, value)| (name.clone(), (*value).clone())).collect()
    }

    #[tokio::test]
    async fn each_encoding_has_its_own_etag() {
        let gzip = HeaderValue::from_static("br, gzip;q=0.5");
        let compressed = serve(&*CLIENT, "client.js", &headers(&[(header::ACCEPT_ENCODING, &gzip)]));
        assert_eq!(
            (&compressed.headers()["content-encoding"], &compressed.headers()["vary"]),
            (&HeaderValue::from_static("gzip"), &HeaderValue::from_static("Accept-Encoding"))
        );
        let tag = compressed.headers()["etag"].clone();
        let body = axum::body::to_bytes(compressed.into_body(), usize::MAX).await.unwrap();
        assert!(body.len() < CLIENT[0].bytes.len() / 2, "{}", body.len());
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
        assert_eq!(plain, CLIENT[0].bytes);
        let weak = HeaderValue::try_from(format!("\"x\", W/{}", tag.to_str().unwrap())).unwrap();
        for tag in [&tag, &weak] {
            let again = headers(&[(header::ACCEPT_ENCODING, &gzip), (header::IF_NONE_MATCH, tag)]);
            assert_eq!(serve(&*CLIENT, "client.js", &again).status(), 304);
        }
        assert_eq!(serve(&*CLIENT, "client.js", &headers(&[(header::IF_NONE_MATCH, &tag)])).status(), 200);
    }

    #[test]
    fn a_client_that_does_not_take_gzip_gets_the_file_as_it_is() {
        for encodings in ["", "br", "gzip;q=0", "gzip; q=0.0", "xgzip", "identity"] {
            let encodings = HeaderValue::from_static(encodings);
            let plain = serve(&*CLIENT, "client.js", &headers(&[(header::ACCEPT_ENCODING, &encodings)]));
            assert!(!plain.headers().contains_key("content-encoding"), "{encodings:?}");
        }
    }
}
