//! `--web-config`: TLS and users, with real certificates and clients.

use std::{
    fs,
    io::{self, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use tcpwatch::http::{Access, probes_router, router, web_config::WebConfig};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    version::{TLS12, TLS13},
};

use crate::{Server, is_ok};

const LOCAL: &str = "Host: localhost\r\n";

/// A folder with a configuration and what it names.
struct Folder(PathBuf);

impl Folder {
    fn new(config: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tcpwatch-web-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let folder = Self(path);
        folder.write("web.yml", config);
        folder
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.0.join(name), content).unwrap();
    }

    fn certified(self, pair: &Pair) -> Self {
        self.write("node.crt", &pair.certificate);
        self.write("node.key", &pair.key);
        self
    }

    fn read(&self) -> Result<WebConfig, String> {
        WebConfig::read(&self.0.join("web.yml"))
    }

    fn serve(&self) -> Server {
        let web_config = Some(self.read().unwrap());
        Server::with("127.0.0.1:0", router, Access { web_config, ..Access::default() })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

const TLS: &str = "tls_server_config:\n  cert_file: node.crt\n  key_file: node.key\n";

/// A certificate and its key, in PEM.
struct Pair {
    certificate: String,
    key: String,
}

struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// For `localhost`, this URI and this address.
    fn pair(&self, uri: &str) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "10.9.8.7".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair { certificate, key: key.serialize_pem() }
    }

    /// A client that trusts it.
    fn client(
        &self,
        own: Option<&Pair>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        Arc::new(match own {
            None => config.with_no_client_auth(),
            Some(own) => config
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(own.certificate.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap(),
                )
                .unwrap(),
        })
    }
}

fn connect(server: &Server, client: Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    let connection = ClientConnection::new(client, "localhost".try_into().unwrap()).unwrap();
    StreamOwned::new(connection, server.connect())
}

fn ask(server: &Server, client: Arc<ClientConfig>, path: &str) -> io::Result<String> {
    let mut stream = connect(server, client);
    write!(stream, "GET {path} HTTP/1.1\r\n{LOCAL}Connection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Until a changed file was noticed.
fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < crate::LIMIT, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn certificates_are_read_anew_and_a_broken_file_changes_nothing() {
    let (old, new) = (Authority::new(), Authority::new());
    let folder = Folder::new(TLS).certified(&old.pair("spiffe://node"));
    let server = folder.serve();
    let trusts = |authority: &Authority| ask(&server, authority.client(None, &[&TLS13, &TLS12]), "/leaks");
    assert!(is_ok(&trusts(&old).unwrap()));
    assert!(trusts(&new).is_err());

    let folder = folder.certified(&new.pair("spiffe://node"));
    eventually("the new certificate", || trusts(&new).is_ok_and(|answer| is_ok(&answer)));
    assert!(trusts(&old).is_err());

    folder.write("web.yml", "tls_sever_config:\n");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(is_ok(&trusts(&new).unwrap()), "what was read before stays in force");

    folder.write("web.yml", &format!("{TLS}http_server_config:\n  headers:\n    X-Frame-Options: deny\n"));
    eventually("the mended file", || trusts(&new).unwrap().contains("x-frame-options: deny"));
    server.stop();
}

#[test]
fn clients_without_the_wanted_certificate_are_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let folder = Folder::new(&format!(
        "{TLS}  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n  \
         client_allowed_sans: [spiffe://prometheus, 10.9.8.6]\n"
    ))
    .certified(&authority.pair("spiffe://node"));
    folder.write("ca.crt", &authority.certificate);
    let server = folder.serve();
    let is_answered = |own: Option<&Pair>, version| {
        ask(&server, authority.client(own, &[version]), "/leaks").is_ok_and(|answer| is_ok(&answer))
    };
    let [right, wrong] = ["spiffe://prometheus", "spiffe://somebody"].map(|uri| authority.pair(uri));
    for version in [&TLS12, &TLS13] {
        assert!(is_answered(Some(&right), version));
        assert!(!is_answered(Some(&wrong), version));
        assert!(!is_answered(Some(&other.pair("spiffe://prometheus")), version));
        assert!(!is_answered(None, version));
    }
    folder.write(
        "web.yml",
        &format!("{TLS}  client_auth_type: RequireAnyClientCert\n  client_allowed_sans: [10.9.8.7]\n"),
    );
    eventually("any certificate with the address", || {
        is_answered(Some(&other.pair("spiffe://somebody")), &TLS13)
    });
    assert!(!is_answered(None, &TLS13));
    server.stop();
}

#[test]
fn versions_and_cipher_suites_are_those_of_the_file() {
    let authority = Authority::new();
    let folder = Folder::new(&format!("{TLS}  min_version: TLS13\n  curve_preferences: [CurveP256]\n"))
        .certified(&authority.pair("spiffe://node"));
    let server = folder.serve();
    assert!(is_ok(&ask(&server, authority.client(None, &[&TLS13]), "/leaks").unwrap()));
    assert!(ask(&server, authority.client(None, &[&TLS12]), "/leaks").is_err());
    server.stop();

    let suite = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256";
    folder.write("web.yml", &format!("{TLS}  max_version: TLS12\n  cipher_suites: [{suite}]\n"));
    let server = folder.serve();
    let mut stream = connect(&server, authority.client(None, &[&TLS13, &TLS12]));
    write!(stream, "GET /leaks HTTP/1.1\r\n{LOCAL}Connection: close\r\n\r\n").unwrap();
    assert_eq!(stream.conn.negotiated_cipher_suite().unwrap().suite().as_str(), Some(suite));
    server.stop();

    for (key, value) in [("cipher_suites", "TLS_RSA_WITH_RC4_128_SHA"), ("curve_preferences", "CurveP521")] {
        folder.write("web.yml", &format!("{TLS}  {key}: [{value}]\n"));
        let error = folder.read().unwrap_err();
        assert!(error.contains(key) && error.contains(value), "{error}");
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let authority = Authority::new();
    let folder = Folder::new(TLS).certified(&authority.pair("spiffe://node"));
    folder.write("node.key", &authority.pair("spiffe://node").key);
    assert!(folder.read().unwrap_err().contains("key_file"), "the key is another one's");
    folder.write("node.key", "no key");
    assert!(folder.read().unwrap_err().contains("key_file"));
    fs::remove_file(folder.0.join("node.crt")).unwrap();
    assert!(folder.read().unwrap_err().contains("node.crt"));
    folder.write("web.yml", "tls_server_config:\n  cert_file: .\n  key_file: node.key\n");
    assert!(folder.read().unwrap_err().contains("no regular file"));
    assert!(WebConfig::read(Path::new("/nonexistent/web.yml")).unwrap_err().contains("/nonexistent/web.yml"));
}

#[test]
fn a_client_that_does_not_finish_the_handshake_or_then_does_not_ask_is_closed_in_time() {
    /// The limit for a header, and what a busy machine may add.
    const CLOSED: Duration = Duration::from_secs(8);
    let authority = Authority::new();
    let server = Folder::new(TLS).certified(&authority.pair("spiffe://node")).serve();
    let began = Instant::now();
    let mut silent: Vec<_> = (0..200).map(|_| server.connect()).collect();
    for stream in &mut silent[100..] {
        // The first bytes of a ClientHello of 512 bytes. The server may have closed the connection for a later one.
        let _ = stream.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]);
    }
    assert!(is_ok(&ask(&server, authority.client(None, &[&TLS13]), "/leaks").unwrap()));

    // The time of a handshake counts.
    let (late, connected) = (server.connect(), Instant::now());
    let connection =
        ClientConnection::new(authority.client(None, &[&TLS13]), "localhost".try_into().unwrap()).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    let mut late = StreamOwned::new(connection, late);
    late.flush().unwrap();
    while late.conn.is_handshaking() {
        late.conn.complete_io(&mut late.sock).unwrap();
    }
    let mut rest = Vec::new();
    let _ = late.read_to_end(&mut rest);
    assert!(rest.is_empty() && connected.elapsed() < CLOSED, "{:?}", connected.elapsed());

    for mut stream in silent {
        let mut rest = Vec::new();
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }
    assert!(began.elapsed() < CLOSED + Duration::from_secs(4), "{:?}", began.elapsed());
    server.stop();
}

#[test]
fn plain_http_is_not_answered_where_tls_is_wanted() {
    let authority = Authority::new();
    let folder = Folder::new(TLS).certified(&authority.pair("spiffe://node"));
    let server = folder.serve();
    let mut stream = server.connect();
    write!(stream, "GET /leaks HTTP/1.1\r\n{LOCAL}\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    server.stop();
}

/// What a password costs in these tests: the least.
const COST: u32 = 4;

fn authorization(name: &str, password: &str) -> String {
    format!("{LOCAL}Authorization: Basic {}\r\n", BASE64_STANDARD.encode(format!("{name}:{password}")))
}

fn users(names: &[(&str, &str)]) -> String {
    names.iter().fold("basic_auth_users:\n".to_owned(), |file, (name, password)| {
        format!("{file}  {name}: {}\n", bcrypt::hash(password, COST).unwrap())
    })
}

#[test]
fn without_a_password_only_probes_are_answered() {
    let folder = Folder::new(&users(&[("prometheus", "right")]));
    for router in [router, probes_router] {
        let access = Access { web_config: Some(folder.read().unwrap()), ..Access::default() };
        let server = Server::with("127.0.0.1:0", router, access);
        for path in ["/healthz", "/readyz"] {
            assert!(is_ok(&server.get(path, LOCAL)), "{path}");
        }
        assert!(is_ok(&server.get("/metrics", &authorization("prometheus", "right"))));
        for headers in [
            LOCAL.to_owned(),
            authorization("prometheus", "wrong"),
            authorization("prometheus", ""),
            authorization("somebody", "right"),
            format!("{LOCAL}Authorization: Bearer right\r\n"),
        ] {
            for path in ["/metrics", "/leaks", "/nonexistent", "/healthz/", "//healthz"] {
                let answer = server.get(path, &headers);
                assert!(answer.starts_with("HTTP/1.1 401 "), "{path} {headers} {answer}");
                assert!(
                    answer.contains("www-authenticate: Basic ") && answer.contains("nosniff"),
                    "{answer}"
                );
            }
        }
        server.stop();
    }
}

#[test]
fn a_password_that_was_replaced_is_refused() {
    let folder = Folder::new(&users(&[("prometheus", "old")]));
    let server = folder.serve();
    let is_answered = |password| is_ok(&server.get("/metrics", &authorization("prometheus", password)));
    assert!(is_answered("old"));
    folder.write("web.yml", &users(&[("prometheus", "new")]));
    eventually("the new password", || is_answered("new"));
    assert!(!is_answered("old"));
    server.stop();
}

#[test]
fn wrong_passwords_are_checked_with_pauses_and_hold_up_nobody_who_is_known() {
    /// Some 50 ms of a processor each.
    const EXPENSIVE: u32 = 10;
    let hash = bcrypt::hash("right", EXPENSIVE).unwrap();
    let folder = Folder::new(&format!("basic_auth_users:\n  prometheus: {hash}\n"));
    let server = folder.serve();
    assert!(is_ok(&server.get("/metrics", &authorization("prometheus", "right"))));
    let mut attackers: Vec<_> = (0..40).map(|_| server.connect()).collect();
    for attacker in &mut attackers {
        write!(attacker, "GET /leaks HTTP/1.1\r\n{}\r\n", authorization("prometheus", "wrong")).unwrap();
        attacker.set_nonblocking(true).unwrap();
    }
    std::thread::sleep(Duration::from_secs(3));
    let answered = attackers.iter().filter(|attacker| attacker.peek(&mut [0; 1]).is_ok()).count();
    // A check of some 50 ms is followed by a pause of nine times as much. Without pauses all would be answered.
    assert!(answered < 20, "{answered}");
    for _ in 0..20 {
        assert!(is_ok(&server.get("/metrics", &authorization("prometheus", "right"))));
    }
    drop(attackers);
    server.stop();
}
