//! Error responses as problem details (RFC 9457).

use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// The `Retry-After` of temporary refusals, in seconds.
const RETRY_AFTER_SECONDS: &str = "2";

/// An error response.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    detail: String,
    reason: Option<&'static str>,
    close: Option<(u16, Option<u64>)>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    close_code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

impl Problem {
    /// `detail` states the problem and the remedy.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            detail: detail.into(),
            reason: None,
            close: None,
            headers: Vec::new(),
        }
    }

    /// 401 with the reason. `retry_after` is set when the same token is accepted later.
    pub fn unauthorized(detail: impl Into<String>, retry_after: Option<Duration>) -> Self {
        let problem = Self::new(StatusCode::UNAUTHORIZED, detail).with(WWW_AUTHENTICATE, "Bearer");
        match retry_after {
            Some(wait) => problem.retry_after(wait),
            None => problem,
        }
    }

    /// The problem, for people.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Adds the member `reason`, for programs (RFC 9457 §3.2).
    pub fn reason(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }

    /// Adds the members `close_code` and `retry_after_ms`: the close that a WebSocket would get.
    pub fn close(mut self, code: u16, retry_after_ms: Option<u64>) -> Self {
        self.close = Some((code, retry_after_ms));
        self
    }

    /// Adds a header.
    pub fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }

    /// Adds `Retry-After` with this wait.
    pub fn retry_after(mut self, wait: Duration) -> Self {
        // The header counts whole seconds (RFC 9110 §10.2.3).
        let seconds = HeaderValue::from(wait.as_secs() + 1);
        self.headers.push((RETRY_AFTER, seconds));
        self
    }

    /// Adds `Retry-After`.
    pub fn retry_later(self) -> Self {
        self.with(RETRY_AFTER, RETRY_AFTER_SECONDS)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Body {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            reason: self.reason,
            close_code: self.close.map(|(code, _)| code),
            retry_after_ms: self.close.and_then(|(_, wait)| wait),
        };
        // Serialising two strings and a number cannot fail.
        let json = serde_json::to_string(&body).unwrap_or_default();
        let mut response = (
            self.status,
            [(CONTENT_TYPE, "application/problem+json")],
            json,
        )
            .into_response();
        response.headers_mut().extend(self.headers);
        response
    }
}
