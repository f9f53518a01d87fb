//! The files that the gateway serves beside its API: the JavaScript client and the demo pages, compiled into the program.
//! Routed by `api`. They know the public protocol and nothing else; without `demo` there are no pages.

use axum::{
    Router,
    body::Body,
    extract::Path,
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
    response::Redirect,
    routing::get,
};
use sha2::{Digest as _, Sha256};

/// A file, by the path it is served at.
struct Asset {
    path: &'static str,
    bytes: &'static [u8],
}

macro_rules! assets {
    ($($path:literal: $file:literal),* $(,)?) => {
        &[$(Asset { path: $path, bytes: include_bytes!(concat!("../../assets/", $file)) }),*]
    };
}

static CLIENT: &[Asset] = assets! {
    "client.js": "client/client.js",
    "client.d.ts": "client/client.d.ts",
};

static DEMO: &[Asset] = assets! {
    "": "demo/index.html",
    "index.js": "demo/index.js",
    "demo.css": "demo/demo.css",
    "demo.js": "demo/demo.js",
    "chat.html": "demo/chat.html",
    "chat.css": "demo/chat.css",
    "chat.js": "demo/chat.js",
    "chat-view.js": "demo/chat-view.js",
    "ticker.html": "demo/ticker.html",
    "ticker.css": "demo/ticker.css",
    "ticker.js": "demo/ticker.js",
    "transports.html": "demo/transports.html",
    "transports.css": "demo/transports.css",
    "transports.js": "demo/transports.js",
    "transports-five.js": "demo/transports-five.js",
    "transports-meter.js": "demo/transports-meter.js",
    "transports-view.js": "demo/transports-view.js",
};

/// Pages load from this host alone, run no script but its files, and stand in no frame of others.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The routes; `with_demo` adds the pages.
pub(crate) fn router<S: Clone + Send + Sync + 'static>(with_demo: bool) -> Router<S> {
    let client = |path| get(move |headers: HeaderMap| async move { serve(CLIENT, path, &headers) });
    let router = Router::new().route("/client.js", client("client.js")).route("/client.d.ts", client("client.d.ts"));
    if !with_demo {
        return router;
    }
    router
        .route("/demo", get(|| async { Redirect::permanent("/demo/") }))
        .route("/demo/", get(|headers: HeaderMap| async move { serve(DEMO, "", &headers) }))
        .route(
            "/demo/{file}",
            get(|Path(file): Path<String>, headers: HeaderMap| async move { serve(DEMO, &file, &headers) }),
        )
}

fn serve(assets: &'static [Asset], path: &str, asked: &HeaderMap) -> Response<Body> {
    let path = if path == "index.html" { "" } else { path };
    let Some(asset) = assets.iter().find(|asset| asset.path == path) else {
        let mut response = Response::new(Body::from("there is no such page\n"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    };
    let tag = tag(asset.bytes);
    let is_known = asked.get(header::IF_NONE_MATCH).is_some_and(|known| *known == tag);
    let mut response = Response::new(if is_known { Body::empty() } else { Body::from(asset.bytes) });
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind(asset.path)));
    headers.insert(header::ETAG, tag);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn kind(path: &str) -> &'static str {
    match path.rsplit_once('.').map_or("html", |(_, end)| end) {
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "ts" => "text/plain; charset=utf-8",
        _ => "text/html; charset=utf-8",
    }
}

fn tag(bytes: &[u8]) -> HeaderValue {
    let digest = Sha256::digest(bytes);
    let text = digest.iter().take(12).fold(String::from("\""), |text, byte| text + &format!("{byte:02x}")) + "\"";
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_there_is_is_served_and_named_by_its_kind() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
        let mut files: Vec<String> =
            std::fs::read_dir(directory).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        let mut served: Vec<&str> =
            DEMO.iter().map(|a| if a.path.is_empty() { "index.html" } else { a.path }).collect();
        files.sort_unstable();
        served.sort_unstable();
        assert_eq!(files, served);
        let page = serve(DEMO, "", &HeaderMap::new());
        assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
        let mut known = HeaderMap::new();
        known.insert(header::IF_NONE_MATCH, page.headers()["etag"].clone());
        assert_eq!(serve(DEMO, "", &known).status(), 304);
        assert_eq!(serve(DEMO, "../lib.rs", &known).status(), 404);
    }

    #[test]
    fn the_client_is_small() {
        // 6 KiB compressed is the promise, which the tests of the client itself hold; four times that uncompressed.
        assert!(CLIENT[0].bytes.len() <= 24 << 10, "{}", CLIENT[0].bytes.len());
    }
}
