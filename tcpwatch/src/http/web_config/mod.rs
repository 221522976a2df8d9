//! `--web-config`: TLS and users, by a file in the format of Prometheus' exporter-toolkit.
//!
//! The file and those that it names are read anew when they change. A new one that is wrong is reported, and the old one
//! stays in force.

mod basic_auth;
mod format;
mod tls;

use std::{
    fmt, fs,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use tokio_rustls::rustls::ServerConfig;

use self::basic_auth::{Credentials, Turns, Users};
pub use self::format::File;
pub(crate) use self::tls::Tls;
use crate::http::request::ApiError;

/// How long a change may stay unnoticed.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Limit in bytes for the file and for each that it names.
const MAX_BYTES: u64 = 1 << 20;

/// The configuration in force.
#[derive(Clone)]
pub struct WebConfig(Arc<Shared>);

struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    turns: Turns,
}

struct State {
    loaded: Arc<Loaded>,
    files: Files,
    checked: Instant,
}

/// What the files say.
pub(crate) struct Loaded {
    /// `None` for plain HTTP.
    pub(crate) tls: Option<Arc<ServerConfig>>,
    /// Headers of every answer.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    users: Arc<Users>,
}

impl fmt::Debug for WebConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The rest is secret.
        f.debug_tuple("WebConfig").field(&self.0.path).finish()
    }
}

impl WebConfig {
    /// # Errors
    /// What is wrong with the file, or with one that it names; a message for the user.
    pub fn read(path: &Path) -> Result<Self, String> {
        let (files, loaded) = Loaded::read(path);
        let state = State { loaded: Arc::new(loaded?), files, checked: Instant::now() };
        Ok(Self(Arc::new(Shared {
            path: path.to_owned(),
            state: Mutex::new(state),
            turns: Turns::default(),
        })))
    }

    pub fn has_tls(&self) -> bool {
        self.current().tls.is_some()
    }

    /// What the files say now, or said when they were last right.
    pub(crate) fn current(&self) -> Arc<Loaded> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.checked.elapsed() >= CHECK_INTERVAL {
            state.checked = Instant::now();
            if state.files.have_changed() {
                self.read_again(&mut state);
            }
        }
        Arc::clone(&state.loaded)
    }

    fn read_again(&self, state: &mut State) {
        let (files, loaded) = Loaded::read(&self.0.path);
        state.files = files;
        match loaded {
            Ok(loaded) => {
                tracing::info!(file = %self.0.path.display(), "the web configuration was read anew");
                state.loaded = Arc::new(loaded);
            }
            Err(error) => {
                tracing::error!(%error, "the web configuration that was read before stays in force");
            }
        }
    }

    /// Why a request is refused: its user is unknown, or the password wrong.
    pub(crate) async fn refusal(
        &self,
        loaded: &Loaded,
        path: &str,
        headers: &HeaderMap,
        from: Option<IpAddr>,
    ) -> Option<ApiError> {
        if loaded.users.is_empty() || is_open(path) {
            return None;
        }
        let Some(credentials) = Credentials::of(headers) else { return Some(ApiError::unauthorized()) };
        match self.0.turns.check(&loaded.users, credentials, from).await {
            Some(true) => None,
            Some(false) => Some(ApiError::unauthorized()),
            None => Some(ApiError::too_many_passwords()),
        }
    }
}

/// Whether anyone may ask for a path: an orchestrator's probes have no password, and learn nothing but that they are
/// answered.
pub(crate) fn is_open(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz")
}

impl Loaded {
    /// Also which files were read, or would have been.
    fn read(path: &Path) -> (Files, Result<Self, String>) {
        let mut files = Files::default();
        let loaded = Self::read_through(path, &mut files);
        (files, loaded.map_err(|error| format!("{}: {error}", path.display())))
    }

    fn read_through(path: &Path, files: &mut Files) -> Result<Self, String> {
        let text = String::from_utf8(files.read(path)?).map_err(|_| "it is not UTF-8".to_owned())?;
        let file: File = text.parse()?;
        // Paths are relative to the file that names them.
        let directory = path.parent().unwrap_or(Path::new(""));
        let mut read = |named: &Path| files.read(&directory.join(named));
        let tls = file.tls_server_config.as_ref();
        Ok(Self {
            tls: tls.map(|tls| tls::server_config(tls, &mut read)).transpose()?,
            headers: file.headers()?,
            users: Arc::new(Users::new(file.users()?)?),
        })
    }
}

/// Files that were read, and what each was then.
#[derive(Debug, Default)]
struct Files(Vec<(PathBuf, Option<Stamp>)>);

/// Tells one content of a file from another: device, inode, size, and when it was written or given other rights.
#[derive(Debug, PartialEq, Eq)]
struct Stamp([i64; 4], u64, u64, u64);

impl Stamp {
    /// `None` when there is no such file.
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        let times = [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()];
        Some(Self(times, found.dev(), found.ino(), found.size()))
    }
}

impl Files {
    fn read(&mut self, path: &Path) -> Result<Vec<u8>, String> {
        // What is written while it is read is noticed later.
        self.0.push((path.to_owned(), Stamp::of(path)));
        let named = |error: &dyn fmt::Display| format!("cannot read {}: {error}", path.display());
        let metadata = fs::metadata(path).map_err(|error| named(&error))?;
        if !metadata.is_file() || metadata.len() > MAX_BYTES {
            return Err(named(&format!("it is no regular file of at most {MAX_BYTES} bytes")));
        }
        fs::read(path).map_err(|error| named(&error))
    }

    fn have_changed(&self) -> bool {
        self.0.iter().any(|(path, stamp)| Stamp::of(path) != *stamp)
    }
}
