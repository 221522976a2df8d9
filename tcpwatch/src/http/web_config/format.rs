//! The format of the file: that of Prometheus' exporter-toolkit, docs/web-configuration.md there.
//!
//! Only what is written is looked at here; the files that it names are read in `tls`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr,
};

use axum::http::{HeaderName, HeaderValue};
use serde::Deserialize;

use crate::http::web_config::basic_auth::MAX_COST;

/// What the file says.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub(super) tls_server_config: Option<TlsServerConfig>,
    http_server_config: Option<HttpServerConfig>,
    basic_auth_users: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TlsServerConfig {
    cert: Option<String>,
    key: Option<String>,
    client_ca: Option<String>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    client_ca_file: Option<PathBuf>,
    pub(super) client_auth_type: ClientAuthType,
    pub(super) client_allowed_sans: Vec<String>,
    pub(super) min_version: TlsVersion,
    pub(super) max_version: TlsVersion,
    pub(super) cipher_suites: Vec<String>,
    pub(super) prefer_server_cipher_suites: bool,
    pub(super) curve_preferences: Vec<String>,
}

impl Default for TlsServerConfig {
    fn default() -> Self {
        Self {
            cert: None,
            key: None,
            client_ca: None,
            cert_file: None,
            key_file: None,
            client_ca_file: None,
            client_auth_type: ClientAuthType::NoClientCert,
            client_allowed_sans: Vec::new(),
            min_version: TlsVersion::Tls12,
            max_version: TlsVersion::Tls13,
            cipher_suites: Vec::new(),
            prefer_server_cipher_suites: true,
            curve_preferences: Vec::new(),
        }
    }
}

/// Where certificates or a key are: in the file itself, or in another one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pem<'a> {
    Written(&'a str),
    File(&'a Path),
}

/// As in Go's crypto/tls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum ClientAuthType {
    NoClientCert,
    RequestClientCert,
    RequireAnyClientCert,
    VerifyClientCertIfGiven,
    RequireAndVerifyClientCert,
}

impl ClientAuthType {
    /// Whether a certificate must lead to `client_ca`.
    pub(super) const fn verifies(self) -> bool {
        matches!(self, Self::VerifyClientCertIfGiven | Self::RequireAndVerifyClientCert)
    }

    pub(super) const fn requires(self) -> bool {
        matches!(self, Self::RequireAnyClientCert | Self::RequireAndVerifyClientCert)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) enum TlsVersion {
    #[serde(rename = "TLS12")]
    Tls12,
    #[serde(rename = "TLS13")]
    Tls13,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpServerConfig {
    #[serde(default, rename = "http2")]
    #[expect(dead_code, reason = "HTTP/1.1 is spoken in any case, and every client can speak it")]
    http2: bool,
    #[serde(default)]
    headers: BTreeMap<Header, String>,
}

/// The headers that may be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
enum Header {
    #[serde(rename = "Content-Security-Policy")]
    ContentSecurityPolicy,
    #[serde(rename = "Strict-Transport-Security")]
    StrictTransportSecurity,
    #[serde(rename = "X-Content-Type-Options")]
    ContentTypeOptions,
    #[serde(rename = "X-Frame-Options")]
    FrameOptions,
    #[serde(rename = "X-XSS-Protection")]
    XssProtection,
}

impl Header {
    const fn name(self) -> &'static str {
        match self {
            Self::ContentSecurityPolicy => "content-security-policy",
            Self::StrictTransportSecurity => "strict-transport-security",
            Self::ContentTypeOptions => "x-content-type-options",
            Self::FrameOptions => "x-frame-options",
            Self::XssProtection => "x-xss-protection",
        }
    }

    fn accepts(self, value: &str) -> bool {
        match self {
            Self::ContentTypeOptions => value == "nosniff",
            Self::FrameOptions => matches!(value, "deny" | "sameorigin"),
            _ => true,
        }
    }
}

impl FromStr for File {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A message that quotes the file would bring its secrets into the log.
        let options = serde_saphyr::options! { with_snippet: false };
        let file: Option<Self> =
            serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
        let file = file.unwrap_or_default();
        file.headers()?;
        file.users()?;
        if let Some(tls) = &file.tls_server_config {
            tls.check()?;
        }
        Ok(file)
    }
}

impl File {
    /// Headers of every answer.
    pub(super) fn headers(&self) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
        let headers = self.http_server_config.iter().flat_map(|http| &http.headers);
        // A header without a value is not set.
        let headers = headers.filter(|(_, value)| !value.is_empty()).map(|(header, text)| {
            let value = HeaderValue::from_str(text).ok().filter(|_| header.accepts(text));
            let value = value.ok_or_else(|| format!("headers: `{text}` is no value of {}", header.name()))?;
            Ok((HeaderName::from_static(header.name()), value))
        });
        headers.collect()
    }

    /// Names, and bcrypt hashes of their passwords.
    pub(super) fn users(&self) -> Result<BTreeMap<String, String>, String> {
        let users = self.basic_auth_users.clone().unwrap_or_default();
        for (name, hash) in &users {
            let parts: bcrypt::HashParts =
                hash.parse().map_err(|_| format!("basic_auth_users: what `{name}` has is no bcrypt hash"))?;
            if parts.get_cost() > MAX_COST {
                let cost = parts.get_cost();
                return Err(format!(
                    "basic_auth_users: the cost of `{name}` is {cost}, more than {MAX_COST}"
                ));
            }
        }
        Ok(users)
    }
}

impl TlsServerConfig {
    pub(super) fn certificates(&self) -> Result<Pem<'_>, String> {
        one("cert", self.cert.as_deref(), self.cert_file.as_deref())?.ok_or_else(|| missing("cert_file"))
    }

    pub(super) fn key(&self) -> Result<Pem<'_>, String> {
        one("key", self.key.as_deref(), self.key_file.as_deref())?.ok_or_else(|| missing("key_file"))
    }

    pub(super) fn client_ca(&self) -> Result<Option<Pem<'_>>, String> {
        one("client_ca", self.client_ca.as_deref(), self.client_ca_file.as_deref())
    }

    fn check(&self) -> Result<(), String> {
        self.certificates()?;
        self.key()?;
        let client_ca = self.client_ca()?;
        let clients = self.client_auth_type;
        if clients.verifies() && client_ca.is_none() {
            return Err(format!("tls_server_config: client_auth_type {clients:?} needs client_ca_file"));
        }
        if client_ca.is_some() && !clients.verifies() {
            return Err(format!("tls_server_config: client_auth_type {clients:?} ignores client_ca_file"));
        }
        if !self.client_allowed_sans.is_empty() && !clients.requires() {
            return Err(
                "tls_server_config: client_allowed_sans needs client_auth_type RequireAndVerifyClientCert"
                    .to_owned(),
            );
        }
        if self.min_version > self.max_version {
            return Err("tls_server_config: min_version is above max_version".to_owned());
        }
        Ok(())
    }
}

fn one<'a>(key: &str, written: Option<&'a str>, file: Option<&'a Path>) -> Result<Option<Pem<'a>>, String> {
    match (written, file) {
        (Some(_), Some(_)) => Err(format!("tls_server_config: both {key} and {key}_file are given")),
        (Some(written), None) => Ok(Some(Pem::Written(written))),
        (None, Some(file)) => Ok(Some(Pem::File(file))),
        (None, None) => Ok(None),
    }
}

fn missing(key: &str) -> String {
    format!("tls_server_config: {key} is missing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_format_is_read() {
        let file: File = "
tls_server_config:
  cert_file: node.crt
  key: PRIVATE
  client_ca_file: ca.crt
  client_auth_type: RequireAndVerifyClientCert
  client_allowed_sans: [spiffe://example/prometheus]
  min_version: TLS13
  max_version: TLS13
  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]
  prefer_server_cipher_suites: false
  curve_preferences: [X25519]
http_server_config:
  http2: true
  headers:
    Strict-Transport-Security: max-age=31536000
    X-Frame-Options: deny
    X-XSS-Protection: ''
basic_auth_users:
  prometheus: $2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG
"
        .parse()
        .unwrap();
        let tls = file.tls_server_config.as_ref().unwrap();
        assert!(matches!(tls.certificates(), Ok(Pem::File(file)) if file == Path::new("node.crt")));
        assert!(matches!(tls.key(), Ok(Pem::Written("PRIVATE"))));
        assert_eq!(tls.min_version, TlsVersion::Tls13);
        assert!(!tls.prefer_server_cipher_suites);
        assert_eq!(file.headers().unwrap().len(), 2);
        assert_eq!(file.users().unwrap().len(), 1);
        for empty in ["", "{}", "# nothing\n", "basic_auth_users:\n", "tls_server_config:\n"] {
            assert!(empty.parse::<File>().unwrap().tls_server_config.is_none(), "{empty:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_and_secrets_are_not() {
        const TLS: &str = "tls_server_config:\n  cert_file: a\n  key: SECRET\n  ";
        for (text, names) in [
            ("tls_sever_config:\n", "tls_sever_config"),
            ("tls_server_config:\n  cert_fiel: a\n", "cert_fiel"),
            ("rate_limit:\n  burst: 1\n", "rate_limit"),
            ("http_server_config:\n  http3: true\n", "http3"),
            ("http_server_config:\n  headers:\n    X-Powered-By: a\n", "X-Powered-By"),
            ("http_server_config:\n  headers:\n    X-Frame-Options: allow\n", "x-frame-options"),
            ("tls_server_config: {}\n", "cert_file is missing"),
            ("tls_server_config:\n  cert_file: a\n", "key_file is missing"),
            (&format!("{TLS}cert: b\n"), "both cert and cert_file"),
            (&format!("{TLS}client_auth_type: Always\n"), "Always"),
            (&format!("{TLS}client_auth_type: RequireAndVerifyClientCert\n"), "client_ca_file"),
            (&format!("{TLS}client_ca_file: c\n"), "client_ca_file"),
            (&format!("{TLS}client_allowed_sans: [a]\n"), "client_allowed_sans"),
            (&format!("{TLS}min_version: TLS10\n"), "TLS10"),
            (&format!("{TLS}min_version: TLS13\n  max_version: TLS12\n"), "min_version"),
            (&format!("{TLS}min_version: [\n"), "line"),
            ("basic_auth_users:\n  prometheus: SECRET\n", "prometheus"),
            (
                "basic_auth_users:\n  a: $2y$31$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG\n",
                "cost",
            ),
            ("basic_auth_users: SECRET\n", "line"),
        ] {
            let error = text.parse::<File>().unwrap_err();
            assert!(error.contains(names) && !error.contains("SECRET"), "{text}: {error}");
        }
    }
}
