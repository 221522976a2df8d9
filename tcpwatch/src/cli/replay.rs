//! `tcpwatch replay`: feeds a recording to everything behind the kernel, then answers one HTTP request.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context as _;
use axum::{
    body::{Body, Bytes, to_bytes},
    http::{Request, StatusCode},
};
use tokio::sync::mpsc;
use tower::ServiceExt as _;

use crate::{
    cli::options::DEFAULT_LIMITS,
    events::{frame::Frame, recording::Recording},
    findings::Settings,
    http::{Api, router},
    kernel::probes::{Hooks, SocketIdentity},
    node::{Node, NodeIdentity},
    tcp::time::Clock,
};

/// The state at the end of a recording.
pub struct Replayed {
    pub node: Node,
    /// The recorded machine's clocks at that time.
    pub clock: Clock,
    /// Bytes at the end that are not a whole frame: the recording daemon was killed.
    pub unread_bytes: usize,
}

/// Feeds the whole recording to a new node.
pub fn play(mut recording: Recording, settings: Settings) -> Replayed {
    let wall_offset_ns = recording.header.wall_offset_ns;
    let wall = |now_ns: u64| UNIX_EPOCH + Duration::from_nanos(wall_offset_ns.saturating_add(now_ns));
    let identity = NodeIdentity {
        node: recording.header.node.clone(),
        kernel: recording.header.kernel.clone(),
        started_ns: 0,
        wall_offset_ns,
        tick_rate: recording.header.ticks_per_second,
    };
    let mut clock = Clock { now_ns: 0, wall: wall(0) };
    let reported = recording.header.reported;
    let of_sockets =
        if reported.identity_is_address { SocketIdentity::Address } else { SocketIdentity::Cookie };
    let mut hooks = Hooks { identity: Some(of_sockets), ..Hooks::default() };
    hooks.kernel.release.clone_from(&identity.kernel);
    let mut node = Node::new(identity, settings, DEFAULT_LIMITS, hooks, reported);
    let mut first = true;
    for frame in recording.by_ref() {
        if let Frame::Tick(now_ns) = frame {
            clock = Clock { now_ns, wall: wall(now_ns) };
            if std::mem::take(&mut first) {
                node.identity.started_ns = now_ns;
            }
        }
        node.ingest(&frame);
    }
    Replayed { node, clock, unread_bytes: recording.remaining() }
}

/// The answer of HTTP to `path` at the end of the recording.
///
/// # Errors
/// When `path` is not a path and query, or asks for events.
pub async fn answer(replayed: Replayed, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    anyhow::ensure!(
        !path.starts_with("/events"),
        "/events follows a running tcpwatch: a recording has ended, so nothing would follow"
    );
    let (sender, mut questions) = mpsc::channel::<crate::node::Question>(1);
    let request =
        Request::get(path).body(Body::empty()).with_context(|| format!("`{path}` is not a path"))?;
    let owner = tokio::spawn(async move {
        while let Some(question) = questions.recv().await {
            (question.ask)(&replayed.node, replayed.clock);
        }
    });
    let response = router(Api::of_recording(sender)).oneshot(request).await?;
    let status = response.status();
    let body = to_bytes(response.into_body(), usize::MAX).await?;
    owner.await?;
    Ok((status, body))
}
