//! The dashboard: `GET /` and `/assets/{file}` serve the files that `web/dashboard` builds and that
//! the binary embeds.
//!
//! Everyone may fetch them, because they have no data. The page fetches its data with the token of
//! its user.

use axum::Router;
use axum::extract::Path;
use axum::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
    IF_NONE_MATCH, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::http::problem::Problem;

struct Embedded {
    page: &'static str,
    page_tag: &'static str,
    /// Name, content and gzipped content. The name contains a hash of the content.
    assets: &'static [(&'static str, &'static [u8], &'static [u8])],
}

const EMBEDDED: Embedded = include!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/web/dashboard/dist/embedded.rs"
));

/// Nothing from other origins, nothing inline, and no markup from text, so that a customer's name
/// never becomes a script. `'self'` also permits the WebSocket of the page (CSP3 §6.7.2.8).
/// `lit-html` is the one policy that the components need, for templates of their own.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types lit-html";
const PERMISSIONS: &str =
    "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()";
/// The page names the assets of its build, so browsers must fetch it each time.
const PAGE_CACHE: &str = "no-cache";
const ASSET_CACHE: &str = "public, max-age=31536000, immutable";

/// The routes.
pub fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/", get(page))
        .route("/assets/{file}", get(asset))
}

async fn page(headers: HeaderMap) -> Response {
    respond(
        &headers,
        EMBEDDED.page_tag,
        "text/html; charset=utf-8",
        PAGE_CACHE,
        EMBEDDED.page.as_bytes(),
    )
}

async fn asset(Path(file): Path<String>, headers: HeaderMap) -> Response {
    let Some((name, plain, gzipped)) = EMBEDDED.assets.iter().find(|(name, ..)| *name == file)
    else {
        return Problem::new(
            StatusCode::NOT_FOUND,
            "the dashboard has no such file: reload the page",
        )
        .into_response();
    };
    let content_type = match name.rsplit('.').next() {
        Some("js") => "text/javascript; charset=utf-8",
        _ => "text/css; charset=utf-8",
    };
    let gzip = accepts_gzip(&headers);
    // Each encoding needs its own tag (RFC 9110 §8.8.3).
    let tag = format!("\"{name}{}\"", if gzip { ".gz" } else { "" });
    let mut response = respond(
        &headers,
        &tag,
        content_type,
        ASSET_CACHE,
        if gzip { gzipped } else { plain },
    );
    response
        .headers_mut()
        .insert(VARY, HeaderValue::from_static("accept-encoding"));
    if gzip && response.status() == StatusCode::OK {
        response
            .headers_mut()
            .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

fn respond(
    headers: &HeaderMap,
    tag: &str,
    content_type: &'static str,
    cache: &'static str,
    body: &'static [u8],
) -> Response {
    let fixed = [
        (CONTENT_TYPE, content_type),
        (CACHE_CONTROL, cache),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
        (HeaderName::from_static("permissions-policy"), PERMISSIONS),
    ];
    let known = headers
        .get(IF_NONE_MATCH)
        .and_then(|tags| tags.to_str().ok())
        .unwrap_or_default();
    if known
        .split(',')
        .any(|one| one.trim().trim_start_matches("W/") == tag)
    {
        return (StatusCode::NOT_MODIFIED, fixed, [(ETAG, tag)]).into_response();
    }
    (fixed, [(ETAG, tag)], body).into_response()
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers
        .get_all(ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok());
    accepted.flat_map(|list| list.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        name.trim().eq_ignore_ascii_case("gzip")
            && weight.trim().replace(' ', "").trim_end_matches(['0', '.']) != "q="
    })
}
