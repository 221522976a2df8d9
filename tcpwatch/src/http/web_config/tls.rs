//! TLS: what clients are shown, what is asked of them, and the stream of a connection.

use std::{
    io,
    net::IpAddr,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{
    Accept, TlsAcceptor,
    rustls::{
        CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
        SignatureScheme, SupportedCipherSuite, SupportedProtocolVersion,
        client::danger::HandshakeSignatureValid,
        crypto::{
            CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
        },
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
        server::{
            WebPkiClientVerifier,
            danger::{ClientCertVerified, ClientCertVerifier},
        },
        version::{TLS12, TLS13},
    },
    server::TlsStream,
};

use crate::http::web_config::format::{Pem, TlsServerConfig, TlsVersion};

/// `read` reads a file that is named in the configuration.
///
/// # Errors
/// What is wrong with a key or a file; a message for the user.
pub(super) fn server_config(
    tls: &TlsServerConfig,
    read: &mut impl FnMut(&Path) -> Result<Vec<u8>, String>,
) -> Result<Arc<ServerConfig>, String> {
    let provider = Arc::new(provider(tls)?);
    let chain = certificates("cert_file", tls.certificates()?, read)?;
    let key = PrivateKeyDer::from_pem_slice(&bytes(tls.key()?, read)?)
        .map_err(|error| format!("key_file: no private key in PEM: {error}"))?;
    let clients = clients(tls, &provider, read)?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions(tls))
        .map_err(|error| format!("min_version, cipher_suites, curve_preferences: {error}"))?;
    let config = match clients {
        Some(clients) => config.with_client_cert_verifier(Arc::new(clients)),
        None => config.with_no_client_auth(),
    };
    let mut config =
        config.with_single_cert(chain, key).map_err(|error| format!("cert_file, key_file: {error}"))?;
    config.ignore_client_order = tls.prefer_server_cipher_suites;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn bytes(pem: Pem, read: &mut impl FnMut(&Path) -> Result<Vec<u8>, String>) -> Result<Vec<u8>, String> {
    match pem {
        Pem::Written(text) => Ok(text.as_bytes().to_vec()),
        Pem::File(path) => read(path),
    }
}

fn certificates(
    key: &str,
    pem: Pem,
    read: &mut impl FnMut(&Path) -> Result<Vec<u8>, String>,
) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = bytes(pem, read)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!("{key}: no certificate in PEM")),
        Err(error) => Err(format!("{key}: no certificates in PEM: {error}")),
    }
}

fn versions(tls: &TlsServerConfig) -> Vec<&'static SupportedProtocolVersion> {
    let known = [(TlsVersion::Tls12, &TLS12), (TlsVersion::Tls13, &TLS13)];
    let wanted =
        known.into_iter().filter(|(version, _)| (tls.min_version..=tls.max_version).contains(version));
    wanted.map(|(_, version)| version).collect()
}

/// The cipher suites and curves that are wanted, by Go's names.
fn provider(tls: &TlsServerConfig) -> Result<CryptoProvider, String> {
    let mut provider = ring::default_provider();
    if !tls.cipher_suites.is_empty() {
        let wanted = chosen("cipher_suites", &tls.cipher_suites, &provider.cipher_suites, suite_name)?;
        let (named, all) = (wanted.into_iter(), provider.cipher_suites.iter().copied());
        // As in Go, those of TLS 1.3 are not chosen.
        let is_new = |suite: &SupportedCipherSuite| suite.tls13().is_some();
        provider.cipher_suites = named.filter(|suite| !is_new(suite)).chain(all.filter(is_new)).collect();
    }
    if !tls.curve_preferences.is_empty() {
        let name =
            |group: &&'static dyn tokio_rustls::rustls::crypto::SupportedKxGroup| match group.name().as_str()
            {
                Some("secp256r1") => "CurveP256".to_owned(),
                Some("secp384r1") => "CurveP384".to_owned(),
                other => other.unwrap_or_default().to_owned(),
            };
        provider.kx_groups = chosen("curve_preferences", &tls.curve_preferences, &provider.kx_groups, name)?;
    }
    Ok(provider)
}

fn suite_name(suite: &SupportedCipherSuite) -> String {
    suite.suite().as_str().unwrap_or_default().replace("TLS13_", "TLS_")
}

/// Those of `known` that are named, in the order of their names.
fn chosen<T: Copy>(
    key: &str,
    names: &[String],
    known: &[T],
    name: impl Fn(&T) -> String,
) -> Result<Vec<T>, String> {
    let find = |wanted: &String| {
        known.iter().find(|one| name(one) == *wanted).copied().ok_or_else(|| {
            let names: Vec<_> = known.iter().map(&name).collect();
            format!("{key}: `{wanted}` is not one of {}", names.join(", "))
        })
    };
    names.iter().map(find).collect()
}

fn clients(
    tls: &TlsServerConfig,
    provider: &Arc<CryptoProvider>,
    read: &mut impl FnMut(&Path) -> Result<Vec<u8>, String>,
) -> Result<Option<Clients>, String> {
    use crate::http::web_config::format::ClientAuthType::NoClientCert;

    if tls.client_auth_type == NoClientCert {
        return Ok(None);
    }
    let mut chains = None;
    if let Some(pem) = tls.client_ca()? {
        let mut roots = RootCertStore::empty();
        for certificate in certificates("client_ca_file", pem, read)? {
            roots.add(certificate).map_err(|error| format!("client_ca_file: {error}"))?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
        chains = Some(verifier.map_err(|error| format!("client_ca_file: {error}"))?);
    }
    Ok(Some(Clients {
        chains,
        required: tls.client_auth_type.requires(),
        allowed: tls.client_allowed_sans.clone(),
        algorithms: provider.signature_verification_algorithms,
    }))
}

/// What is asked of clients' certificates.
#[derive(Debug)]
struct Clients {
    /// Checks that a certificate leads to `client_ca`; `None` where any certificate will do.
    chains: Option<Arc<dyn ClientCertVerifier>>,
    required: bool,
    /// Of these names a certificate must have one; empty for any.
    allowed: Vec<String>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.as_ref().map_or(&[], |chains| chains.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if let Some(chains) = &self.chains {
            chains.verify_client_cert(certificate, intermediates, now)?;
        }
        if !self.allowed.is_empty() && !has_one_of(certificate, &self.allowed) {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Whether a subject alternative name of the certificate is one of these: a DNS name, a URI or an address, exactly.
fn has_one_of(certificate: &CertificateDer, names: &[String]) -> bool {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return false };
    let is = |name: &String| {
        let address = |address: IpAddr| ServerName::IpAddress(address.into());
        let is_address = |name: ServerName| certificate.verify_is_valid_for_subject_name(&name).is_ok();
        certificate.valid_dns_names().chain(certificate.valid_uri_names()).any(|one| one == name)
            || name.parse().is_ok_and(|one| is_address(address(one)))
    };
    names.iter().any(is)
}

/// A TLS connection, which shakes hands when it is read for the first time. So whoever bounds the time for what is read
/// bounds that of the handshake too.
pub(crate) enum Tls<S> {
    Handshake(Box<Accept<S>>),
    Open(Box<TlsStream<S>>),
    Failed,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Tls<S> {
    pub(crate) fn new(config: Arc<ServerConfig>, stream: S) -> Self {
        Self::Handshake(Box::new(TlsAcceptor::from(config).accept(stream)))
    }

    fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Pin<&mut TlsStream<S>>>> {
        if let Self::Handshake(accept) = self {
            let accepted = ready!(Pin::new(&mut **accept).poll(context));
            *self = Self::Failed;
            *self = Self::Open(Box::new(accepted?));
        }
        match self {
            Self::Open(stream) => Poll::Ready(Ok(Pin::new(stream))),
            _ => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tls<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_open(context))?.poll_read(context, into)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tls<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(context))?.poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Open(stream) => Pin::new(stream).poll_flush(context),
            // Nothing was written.
            Self::Handshake(_) | Self::Failed => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Open(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Handshake(_) | Self::Failed => Poll::Ready(Ok(())),
        }
    }
}
