//! `tcpwatch replay`: a recording through everything behind the kernel, then one question.

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
    findings::lingering::LingerLimits,
    http::{Api, router},
    kernel::probes::Hooks,
    node::{Node, NodeIdentity},
    tcp::time::Clock,
};

/// The state at the end of a recording.
pub struct Replayed {
    pub node: Node,
    /// The clocks of the recorded machine, then.
    pub clock: Clock,
    /// Bytes at the end that are no whole frame: the recorder was stopped hard.
    pub unread_bytes: usize,
}

/// Plays the recording.
pub fn play(mut recording: Recording, linger: LingerLimits) -> Replayed {
    let wall_offset_ns = recording.header.wall_offset_ns;
    let wall = |now_ns: u64| UNIX_EPOCH + Duration::from_nanos(wall_offset_ns.saturating_add(now_ns));
    let identity = NodeIdentity {
        node: recording.header.node.clone(),
        kernel: recording.header.kernel.clone(),
        started: wall(0),
        wall_offset_ns,
        tick_rate: recording.header.ticks_per_second,
    };
    let mut clock = Clock { now_ns: 0, wall: wall(0) };
    let mut hooks = Hooks::default();
    hooks.kernel.release.clone_from(&identity.kernel);
    let mut node = Node::new(identity, linger, DEFAULT_LIMITS, hooks, recording.header.reported);
    let mut first = true;
    for frame in recording.by_ref() {
        if let Frame::Tick(now_ns) = frame {
            clock = Clock { now_ns, wall: wall(now_ns) };
            if std::mem::take(&mut first) {
                node.identity.started = clock.wall;
            }
        }
        node.ingest(&frame);
    }
    Replayed { node, clock, unread_bytes: recording.remaining() }
}

/// What HTTP would have answered to `path` at the end of the recording.
///
/// # Errors
/// When the path is not one.
pub async fn answer(replayed: Replayed, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    anyhow::ensure!(
        !path.starts_with("/events"),
        "a recording is over: nothing follows that /events could tell"
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
