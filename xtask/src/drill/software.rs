//! The software of the drills: Debian's packages, and the programs in `xtask/drills`, built with Debian's Go.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::stage::{Program, Stage, listening, until};
use crate::{
    command::{self, find_program},
    debian,
    namespace::Namespace,
};

/// Programs and their Debian packages. Of the servers only what starts no service: redis' server is a name of
/// `redis-check-rdb`.
const PROGRAMS: [(&str, &str); 13] = [
    ("ip", "iproute2"),
    ("ss", "iproute2"),
    ("nstat", "iproute2"),
    ("nsenter", "util-linux"),
    ("/usr/bin/python3", "python3"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("redis-check-rdb", "redis-tools"),
    ("mariadbd", "mariadb-server-core"),
    ("mariadb", "mariadb-client-core"),
    ("node", "nodejs"),
    ("iptables", "iptables"),
    ("go", "golang-go"),
];

/// Debian's folder of Go sources, for builds in GOPATH mode.
const GOPATH: &str = "/usr/share/gocode";
/// Packages of Go sources, and a folder that each has.
const SOURCES: [(&str, &str); 3] = [
    ("github.com/gomodule/redigo", "golang-github-gomodule-redigo-dev"),
    ("github.com/go-sql-driver/mysql", "golang-github-go-sql-driver-mysql-dev"),
    ("golang.org/x/net/netutil", "golang-golang-x-net-dev"),
];
/// Programs of the drills in Go.
const GO: [&str; 4] = ["limited", "orders", "reports", "shorts"];

/// Installs, builds and links all that the drills run. Needs no root but for apt-get.
///
/// Returns the folder with the programs.
pub(crate) fn prepare(tcpwatch: bool) -> Result<PathBuf> {
    debian::install_missing(&PROGRAMS, "the drills")?;
    let missing: Vec<&str> = SOURCES
        .iter()
        .filter(|(folder, _)| !Path::new(GOPATH).join("src").join(folder).exists())
        .map(|(_, package)| *package)
        .collect();
    if !missing.is_empty() {
        debian::install(&missing, "the drills")?;
    }
    let folder = command::target_directory()?.join("drills");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    link(&folder, "nginx", &debian::unpacked("nginx", "usr/sbin/nginx", "the drills", "")?)?;
    link(
        &folder,
        "redis-server",
        &find_program("redis-check-rdb").context("redis-tools has no redis-check-rdb")?,
    )?;
    for name in GO {
        build_go(&folder, name)?;
    }
    if tcpwatch {
        let mut build = command::cargo();
        build.args(["build", "--package", "tcpwatch", "--bin", "tcpwatch", "--locked"]);
        let [built] = command::build_executables(&mut build, ["tcpwatch"])?;
        link(&folder, "tcpwatch", &built)?;
    }
    Ok(folder)
}

fn link(folder: &Path, name: &str, to: &Path) -> Result<()> {
    let link = folder.join(name);
    // It may be the first time.
    let _ = fs::remove_file(&link);
    symlink(to, &link).with_context(|| format!("linking {}", link.display()))
}

fn build_go(folder: &Path, name: &str) -> Result<()> {
    let mut build = Command::new("go");
    build.args(["build", "-o"]).arg(folder.join(name)).arg(sources().join(format!("{name}.go")));
    build
        .env("GO111MODULE", "off")
        .env("GOPATH", GOPATH)
        .env("GOFLAGS", "")
        .env("GOCACHE", folder.join("go-cache"));
    command::run(&mut build)
}

fn sources() -> PathBuf {
    command::repository().join("xtask").join("drills")
}

/// The prepared programs.
pub(crate) struct Software {
    folder: PathBuf,
    sources: PathBuf,
}

impl Software {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), sources: sources() }
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A program of the drills that is not compiled.
    pub(crate) fn script(&self, name: &str) -> PathBuf {
        self.sources.join(name)
    }
}

/// A redis in memory only, on port 6379.
pub(crate) fn redis(stage: &Stage, inside: &Namespace, options: &[&str]) -> Result<Program> {
    let program = stage.software.program("redis-server");
    let common = ["--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""];
    let server = stage.start(inside, program, common.iter().chain(options))?;
    listening(inside, 6379)?;
    Ok(server)
}

/// An nginx with this configuration of `http`, and the pid of its only worker.
pub(crate) fn nginx(stage: &Stage, inside: &Namespace, http: &str) -> Result<(Program, u32)> {
    let folder = stage.folder.join(format!("nginx-{}", inside.name));
    fs::create_dir_all(&folder).context("making a folder for nginx")?;
    let configuration = format!(
        "user root; daemon off; worker_processes 1; error_log stderr info; pid nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {http}
}}
"
    );
    fs::write(folder.join("nginx.conf"), configuration).context("writing nginx's configuration")?;
    let mut command = inside.command(stage.software.program("nginx"));
    command.arg("-p").arg(&folder).args(["-c", "nginx.conf", "-e", "stderr"]);
    let nginx = stage.spawn(command)?;
    let worker = until("nginx has a worker", std::time::Duration::from_secs(20), || {
        let children = format!("/proc/{0}/task/{0}/children", nginx.pid());
        let children = fs::read_to_string(children).context("nginx ended")?;
        Ok(children
            .split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok())
            .ok_or_else(|| "none".to_owned()))
    })?;
    Ok((nginx, worker))
}

/// A MariaDB in the namespace, on port 3306 of all its addresses, with user `drill` and no password.
pub(crate) fn mariadb(stage: &Stage, inside: &Namespace, options: &[&str]) -> Result<Program> {
    let folder = stage.folder.join(format!("mariadb-{}", inside.name));
    fs::create_dir_all(&folder).context("making a folder for MariaDB")?;
    let start = folder.join("start.sql");
    // The grant tables are not loaded: any user may do all. There is nothing in it.
    fs::write(&start, "CREATE DATABASE IF NOT EXISTS drill;\n")
        .context("writing MariaDB's first statements")?;
    let mut command =
        inside.command(find_program("mariadbd").context("mariadb-server-core has no mariadbd")?);
    command.args(["--no-defaults", "--user=root", "--skip-grant-tables", "--skip-networking=0"]);
    command.args(["--port=3306", "--bind-address=0.0.0.0", "--skip-name-resolve", "--skip-innodb"]);
    command.args(["--default-storage-engine=MyISAM", "--skip-log-bin", "--aria-pagecache-buffer-size=8M"]);
    for (option, name) in
        [("datadir", ""), ("socket", "mariadb.sock"), ("pid-file", "mariadb.pid"), ("init-file", "start.sql")]
    {
        command.arg(format!("--{option}={}", folder.join(name).display()));
    }
    command.args(options);
    let mariadb = stage.spawn(command)?;
    listening(inside, 3306)?;
    ensure!(mariadb.pid() > 0, "MariaDB has no pid");
    Ok(mariadb)
}
