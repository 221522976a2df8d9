//! Who may ask, and what browsers may do with an answer.
//!
//! What is served only on this machine is reached from elsewhere through a browser on it: by a page whose name was made to
//! lead here (DNS rebinding), or by a request from another site. Names that are not this machine's, and requests from other
//! sites, are refused.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
        header::{
            CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, HOST, REFERRER_POLICY,
            TRANSFER_ENCODING, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
        },
    },
    middleware::Next,
    response::Response,
};

use crate::http::{
    endpoints::Asked,
    listen::is_loopback,
    request::ApiError,
    web_config::{WebConfig, is_open},
};

/// Who may ask a listener.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    pub(crate) names: Names,
    pub(crate) web_config: Option<WebConfig>,
}

/// The address of the client, where it has one: an extension of its requests.
#[derive(Clone, Copy)]
pub(crate) struct Client(pub(crate) Option<IpAddr>);

/// Names under which a listener is asked.
#[derive(Clone, Debug)]
pub(crate) enum Names {
    /// Any: whoever reaches the address may ask.
    Any,
    /// `localhost`, loopback addresses and these.
    Local(Arc<[String]>),
}

impl Names {
    fn accept(&self, host: &str) -> bool {
        let Self::Local(configured) = self else { return true };
        let name = without_port(host);
        let address: Option<IpAddr> = name.trim_matches(['[', ']']).parse().ok();
        address.is_some_and(is_loopback)
            || name.eq_ignore_ascii_case("localhost")
            || configured.iter().any(|one| one.eq_ignore_ascii_case(name))
    }
}

/// `[::1]:80` and `name:80` without the port.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Headers of every answer.
const HEADERS: [(HeaderName, &str); 5] = [
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (CACHE_CONTROL, "no-store"),
];

pub(crate) async fn guard(
    State(guard): State<Guard>,
    asked: Asked,
    request: Request,
    next: Next,
) -> Response {
    let web = guard.web_config.as_ref().map(|web| (web, web.current()));
    let mut refused = refusal(&guard.names, request.method(), request.headers());
    if let (None, Some((web, loaded))) = (&refused, &web) {
        let from = request.extensions().get().and_then(|Client(from)| *from);
        refused = web.refusal(loaded, request.uri().path(), request.headers(), from).await;
    }
    let mut response = match refused {
        Some(error) => {
            let mut response = error.respond(asked.format());
            // What it would still send is not read.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            response
        }
        None => next.run(request).await,
    };
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"tcpwatch\""));
    }
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    if let Some((_, loaded)) = web {
        response.headers_mut().extend(loaded.headers.iter().cloned());
    }
    response
}

fn refusal(names: &Names, method: &Method, headers: &HeaderMap) -> Option<ApiError> {
    // A browser always sends it; HTTP/1.0 need not.
    if let Some(host) = headers.get(HOST) {
        let host = String::from_utf8_lossy(host.as_bytes());
        if !names.accept(&host) {
            return Some(ApiError::unknown_host(&host));
        }
    }
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    // A link to here may be followed: the page that has it does not see the answer.
    let is_followed =
        text("sec-fetch-mode") == Some("navigate") && text("sec-fetch-dest") == Some("document");
    if matches!(text("sec-fetch-site"), Some("cross-site" | "same-site")) && !is_followed {
        return Some(ApiError::cross_site());
    }
    let length = headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    if matches!(*method, Method::GET | Method::HEAD) && (length || headers.contains_key(TRANSFER_ENCODING)) {
        return Some(ApiError::with_body());
    }
    None
}

/// Statuses with which a request for a path is refused before it is looked at, and when.
pub(crate) fn refusals(path: &str) -> Vec<(StatusCode, &'static str)> {
    let mut refusals = vec![
        (StatusCode::FORBIDDEN, "the `Host` is not accepted, or a browser asks on behalf of another site"),
        (StatusCode::PAYLOAD_TOO_LARGE, "a request with a body"),
    ];
    if !is_open(path) {
        refusals.push((
            StatusCode::UNAUTHORIZED,
            "with users in the web configuration: a request without the name and password of one",
        ));
        refusals.push((
            StatusCode::TOO_MANY_REQUESTS,
            "with users in the web configuration: too many passwords to check",
        ));
    }
    refusals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machines_names_are_accepted() {
        let names = Names::Local(["node-7.example".to_owned()].into());
        for host in [
            "localhost",
            "LOCALHOST:18279",
            "127.0.0.1:18279",
            "127.9.9.9",
            "[::1]:18279",
            "[::1]",
            "[::ffff:127.0.0.1]:1",
            "node-7.example",
            "Node-7.Example:80",
        ] {
            assert!(names.accept(host), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::2]:1",
            "",
            ":80",
            "localhost:80:80",
            "evil.example:127",
        ] {
            assert!(!names.accept(host), "{host}");
            assert!(Names::Any.accept(host), "{host}");
        }
    }

    #[test]
    fn requests_of_other_sites_and_with_bodies_are_refused() {
        let refused = |headers: &[(&'static str, &'static str)]| {
            let headers = headers
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            refusal(&Names::Any, &Method::GET, &headers.collect()).is_some()
        };
        for (headers, is_refused) in [
            (&[][..], false),
            (&[("sec-fetch-site", "none")], false),
            (&[("sec-fetch-site", "same-origin")], false),
            (&[("sec-fetch-site", "same-site")], true),
            (&[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "cors")], true),
            (
                &[
                    ("sec-fetch-site", "cross-site"),
                    ("sec-fetch-mode", "navigate"),
                    ("sec-fetch-dest", "iframe"),
                ],
                true,
            ),
            (
                &[
                    ("sec-fetch-site", "cross-site"),
                    ("sec-fetch-mode", "navigate"),
                    ("sec-fetch-dest", "document"),
                ],
                false,
            ),
            (&[("content-length", "0")], false),
            (&[("content-length", "1")], true),
            (&[("transfer-encoding", "chunked")], true),
        ] {
            assert_eq!(refused(headers), is_refused, "{headers:?}");
        }
    }
}
