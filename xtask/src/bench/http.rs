//! A server that keeps its connections alive: where nothing opens or closes, a tracer must cost nothing.

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    Bench, Pairs,
    machine::{self, Foreign},
    stats::Spread,
    tool::{Running, Tool},
};
use crate::{command, debian, namespace::Namespace};

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Http {
    /// Requests with tcpwatch over those without, pair by pair.
    pub(crate) kept: Option<Spread>,
    pub(crate) p99_ratio: Option<Spread>,
    pub(crate) without_per_second: Option<Spread>,
    /// Pairs thrown away because somebody else used the processors.
    pub(crate) disturbed: usize,
}

struct Wrk {
    per_second: f64,
    p99_ms: f64,
}

const CONFIGURATION: &str = "daemon off; master_process off; error_log stderr crit; pid nginx.pid;
events {}
http {
    access_log off; keepalive_requests 100000000;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server { listen 127.0.0.1:8080; location / { return 200 'sixty-four bytes, as the load of the other parts sends them....'; } }
}
";

pub(crate) fn http(bench: &Bench) -> Result<Http> {
    debian::install_missing(&[("wrk", "wrk")], "the benchmark")?;
    let nginx = debian::unpacked("nginx", "usr/sbin/nginx", "the benchmark", "")?;
    let Pairs { kept: pairs, disturbed } = bench.pairs(bench.pairs, || {
        let (without, foreign) = run(bench, &nginx, None)?;
        let (with, other) = run(bench, &nginx, Some(Tool::Tcpwatch))?;
        eprintln!("http: {:.0} and {:.0} requests a second", without.per_second, with.per_second);
        Ok(((without, with), foreign.max(other)))
    })?;
    Ok(Http {
        kept: Spread::of(pairs.iter().map(|(without, with)| with.per_second / without.per_second)),
        p99_ratio: Spread::of(pairs.iter().map(|(without, with)| with.p99_ms / without.p99_ms)),
        without_per_second: Spread::of(pairs.iter().map(|(without, _)| without.per_second)),
        disturbed,
    })
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(bench: &Bench, nginx: &Path, tool: Option<Tool>) -> Result<(Wrk, f64)> {
    let inside = Namespace::new("bench-http")?;
    let folder = bench.folder.join("nginx");
    fs::create_dir_all(&folder).context("making a folder for nginx")?;
    fs::write(folder.join("nginx.conf"), CONFIGURATION).context("writing nginx's configuration")?;
    // Each on a processor of its own: otherwise their random placement is most of the difference between two runs.
    let mut server = inside.command("taskset");
    server
        .args(["-c", "0"])
        .arg(nginx)
        .arg("-p")
        .arg(&folder)
        .args(["-c", "nginx.conf", "-e", "stderr"])
        .stdout(Stdio::null());
    let _server = Server(server.spawn().context("starting nginx")?);
    let running =
        tool.map(|tool| Running::start(tool, &bench.tcpwatch, &inside, &bench.folder)).transpose()?;
    let until = Instant::now() + Duration::from_secs(10);
    while !command::output(inside.command("ss").args(["-Htln"]))?.contains(":8080") {
        ensure!(Instant::now() < until, "nginx does not listen");
        thread::sleep(Duration::from_millis(50));
    }
    machine::settle()?;
    let foreign = Foreign::watch()?;
    let mut wrk = inside.command("taskset");
    let seconds = format!("{}s", bench.seconds.ceil());
    let last = thread::available_parallelism().map_or(1, usize::from) - 1;
    let said = command::output(wrk.args(["-c", &last.to_string(), "wrk"]).args([
        "-t",
        "1",
        "-c",
        "32",
        "-d",
        &seconds,
        "--latency",
        "http://127.0.0.1:8080/",
    ]))?;
    let foreign = foreign.share()?;
    drop(running);
    Ok((parse(&said).with_context(|| format!("wrk said {said}"))?, foreign))
}

fn parse(said: &str) -> Option<Wrk> {
    let after = |name: &str| said.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
    let p99 = after("99%")?;
    let digits = p99.trim_end_matches(char::is_alphabetic);
    let unit = match &p99[digits.len()..] {
        "us" => 0.001,
        "ms" => 1.0,
        "s" => 1000.0,
        _ => return None,
    };
    Some(Wrk {
        per_second: after("Requests/sec:")?.parse().ok()?,
        p99_ms: digits.parse::<f64>().ok()? * unit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_is_understood() {
        let said = "  Latency Distribution\n     50%  412.00us\n     99%    1.50ms\n  1 requests in 5.00s\n\
                    Requests/sec:  61234.56\nTransfer/sec:     12.00MB\n";
        let wrk = parse(said).unwrap();
        assert_eq!((wrk.per_second, wrk.p99_ms), (61_234.56, 1.5));
        assert!(parse("unable to connect").is_none());
    }
}
