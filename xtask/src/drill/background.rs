//! A load of healthy software: whatever tcpwatch finds wrong with it is a false alarm.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{
    software::{self, Software},
    stage::{Program, Stage, listening, printed},
    watch::Watch,
};
use crate::{namespace::Namespace, stop};

/// Addresses of the short connections, and how many of these a second.
const DESTINATIONS: usize = 60;
const SHORT_PER_SECOND: &str = "500";
/// Time between two replacements of a server.
const ROLLOUT: Duration = Duration::from_secs(60);
/// Time between two looks at the findings.
const LOOK: Duration = Duration::from_secs(5);

/// The running load; ended when dropped.
pub(super) struct Background<'a> {
    // In this order: programs end before their namespaces are removed.
    clients: Vec<Program>,
    backends: Vec<(u16, Program)>,
    _servers: Vec<Program>,
    client: Namespace,
    server: Namespace,
    stage: Stage<'a>,
    watch: &'a Watch,
    began: Instant,
}

impl<'a> Background<'a> {
    pub(super) fn start(folder: &Path, software: &'a Software, watch: &'a Watch) -> Result<Self> {
        let stage = Stage::new("background", folder, software, Some(watch))?;
        let (client, server) = (stage.namespace("client")?, stage.namespace("server")?);
        client.join(&server, "veth0", "10.98.0.1", "10.98.0.2")?;
        let addresses: Vec<String> =
            (0..DESTINATIONS).map(|number| format!("10.98.0.{}", 100 + number)).collect();
        for address in &addresses {
            server.ip(&["addr", "add", &format!("{address}/24"), "dev", "veth0"])?;
        }
        let servers = servers(&stage, &server)?;
        let backends = [8082, 8083].into_iter().map(|port| Ok((port, backend(&stage, &server, port)?)));
        let backends = backends.collect::<Result<Vec<_>>>()?;
        let clients = clients(&stage, &client, &addresses)?;
        stage.say(format_args!(
            "runs: {} servers, {} clients",
            servers.len() + backends.len(),
            clients.len()
        ));
        Ok(Self { clients, backends, _servers: servers, client, server, stage, watch, began: Instant::now() })
    }

    /// Lets it run until the minutes are over, and says what was found wrong.
    ///
    /// # Errors
    /// A warning or critical finding is about it, or a client of it was not served.
    pub(super) fn judge(mut self, minutes: f64) -> Result<()> {
        let until = self.began + Duration::from_secs_f64(minutes * 60.0);
        let (mut alarms, mut rolled) = (BTreeMap::new(), Instant::now());
        let namespaces = [self.client.inode()?, self.server.inode()?];
        while Instant::now() < until {
            stop::sleep(LOOK)?;
            if rolled.elapsed() >= ROLLOUT {
                self.roll_out()?;
                rolled = Instant::now();
            }
            for (id, json) in self.watch.alarms_in(&namespaces)? {
                if alarms.insert(id, json.to_string()).is_none() {
                    self.stage.say(format_args!("false alarm: {json}"));
                }
            }
        }
        self.say_what_was_done()?;
        let found = alarms.values().cloned().collect::<Vec<_>>().join("\n");
        ensure!(alarms.is_empty(), "{} false alarms:\n{found}", alarms.len());
        println!("background: no warning and no critical finding in {minutes} minutes");
        Ok(())
    }

    /// Replaces one of nginx's two backends, in turn.
    fn roll_out(&mut self) -> Result<()> {
        let (port, old) = self.backends.remove(0);
        drop(old);
        self.backends.push((port, backend(&self.stage, &self.server, port)?));
        Ok(())
    }

    fn say_what_was_done(&self) -> Result<()> {
        for client in &self.clients {
            // A probe says what came of each try.
            let wrong = client.said("try")?.iter().filter(|outcome| *outcome != "ok").count();
            ensure!(wrong == 0, "{wrong} probes fail");
            let (answers, failed) = (client.said("answers")?, client.said("failed")?);
            let last = answers.last().map_or("0", String::as_str);
            self.stage.say(format_args!("pid {}: {last} answers, {} failed", client.pid(), failed.len()));
            let few = failed.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
            ensure!(failed.is_empty(), "a client of the load was not served: {few}");
        }
        Ok(())
    }
}

fn servers(stage: &Stage, inside: &Namespace) -> Result<Vec<Program>> {
    let keepalive = stage.software.script("keepalive.mjs");
    let certificate = certificate(stage, inside)?;
    let http = format!(
        "upstream node {{ server 127.0.0.1:3000; keepalive 8; keepalive_timeout 30s; }}
    upstream backends {{ server 127.0.0.1:8082; server 127.0.0.1:8083; keepalive 8; }}
    proxy_http_version 1.1; proxy_set_header Connection \"\";
    server {{
        listen 80; location / {{ proxy_pass http://node; }} location /backends {{ proxy_pass http://backends; }}
    }}
    server {{
        listen 443 ssl; ssl_certificate {certificate}.crt; ssl_certificate_key {certificate}.key;
        location / {{ return 200 ok; }}
    }}"
    );
    let mut servers = vec![
        software::redis(stage, inside, &[])?,
        software::mariadb(stage, inside, &[])?,
        stage.start(inside, "node", [keepalive.as_os_str(), "3000".as_ref(), "65000".as_ref()])?,
        stage.start(inside, stage.software.program("shorts"), ["serve", "9000"])?,
    ];
    for (name, options) in [
        ("orders", ["10.98.0.2:8080", "127.0.0.1:6379", "0", "returns"].as_slice()),
        (
            "reports",
            &[
                "10.98.0.2:8081",
                "drill@tcp(127.0.0.1:3306)/drill?interpolateParams=true",
                "10",
                "0",
                "closes",
            ],
        ),
    ] {
        servers.push(stage.start(inside, stage.software.program(name), options)?);
    }
    for port in [3000, 9000, 8080, 8081] {
        listening(inside, port)?;
    }
    servers.push(software::nginx(stage, inside, &http)?.0);
    Ok(servers)
}

/// Makes a key and its certificate; their path without the extension.
fn certificate(stage: &Stage, inside: &Namespace) -> Result<String> {
    let path = stage.folder.join("drill").to_string_lossy().into_owned();
    let (key, certificate) = (format!("{path}.key"), format!("{path}.crt"));
    let options = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=drill"];
    let files = ["-keyout", &key, "-out", &certificate];
    printed(inside, &[&["openssl", "req"], &options[..], &files].concat())?;
    ensure!(fs::exists(&certificate)?, "openssl made no certificate");
    Ok(path)
}

fn backend(stage: &Stage, inside: &Namespace, port: u16) -> Result<Program> {
    let address = format!("127.0.0.1:{port}");
    let backend = stage.start(inside, stage.software.program("limited"), [address.as_str(), "1000"])?;
    listening(inside, port)?;
    Ok(backend)
}

fn clients(stage: &Stage, inside: &Namespace, addresses: &[String]) -> Result<Vec<Program>> {
    let mut clients = Vec::new();
    for (name, url, every) in [
        ("shopper", "http://10.98.0.2/", "0.02"),
        ("visitor", "http://10.98.0.2/", "20"),
        ("roller", "http://10.98.0.2/backends", "0.05"),
        ("orderer", "http://10.98.0.2:8080/order?id=1", "0.1"),
        ("reader", "http://10.98.0.2:8081/report?sleep=0", "0.1"),
        ("secret", "https://10.98.0.2/", "0.5"),
    ] {
        clients.push(stage.python(inside, "browse.py", [name, url, every])?);
    }
    let mut shorts = vec!["dial", "9000", SHORT_PER_SECOND];
    shorts.extend(addresses.iter().map(String::as_str));
    clients.push(stage.start(inside, stage.software.program("shorts"), shorts)?);
    let probe = |port, how: &[&str]| {
        let options = ["kubelet", "10.98.0.2", port, "--tries", "100000", "--every", "2", "--connect-only"];
        stage.python(inside, "client.py", [&options[..], how].concat())
    };
    clients.extend([probe("80", &[])?, probe("8080", &[])?, probe("8081", &["--linger0"])?]);
    Ok(clients)
}
