//! Paths and queries, asked of the tests' recording.
#![no_main]

use std::cell::RefCell;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, header::HOST},
};
use libfuzzer_sys::fuzz_target;
use tcpwatch::{
    cli::replay::play,
    events::recording::Recording,
    findings::Settings,
    http::{Api, router},
    node::Question,
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::mpsc,
};
use tower::ServiceExt as _;

const FIXTURE: &[u8] = include_bytes!("../../tcpwatch/tests/fixtures/node.tcpwatch");

thread_local! {
    static SERVED: RefCell<Option<(Runtime, Router)>> = const { RefCell::new(None) };
}

fn serve() -> (Runtime, Router) {
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    let recording = Recording::parse(FIXTURE.into()).expect("the tests' recording");
    let played = play(recording, Settings::default());
    let (sender, mut questions) = mpsc::channel::<Question>(1);
    runtime.spawn(async move {
        while let Some(question) = questions.recv().await {
            (question.ask)(&played.node, played.clock);
        }
    });
    (runtime, router(Api::of_recording(sender)))
}

fuzz_target!(|path: &str| {
    // It has no end.
    if path.starts_with("/events") {
        return;
    }
    let Ok(request) = Request::get(path).header(HOST, "localhost").body(Body::empty()) else { return };
    SERVED.with_borrow_mut(|served| {
        let (runtime, router) = served.get_or_insert_with(serve);
        runtime.block_on(async {
            let Ok(response) = router.clone().oneshot(request).await;
            assert!(!response.status().is_server_error(), "{path}: {}", response.status());
            to_bytes(response.into_body(), usize::MAX).await.expect("the whole answer");
        });
    });
});
