//! Recordings, and what is answered about what was played: frames behind the header of the tests' recording.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tcpwatch::{
    cli::replay::{answer, play},
    events::recording::Recording,
    findings::Settings,
};
use tokio::runtime::Builder;

const FIXTURE: &[u8] = include_bytes!("../../tcpwatch/tests/fixtures/node.tcpwatch");
const PATHS: [&str; 4] = ["/metrics", "/leaks", "/connections?format=json", "/history"];

fuzz_target!(|frames: &[u8]| {
    let _ = Recording::parse(Bytes::copy_from_slice(frames));
    let header = FIXTURE.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let recording = [&FIXTURE[..header], frames].concat();
    let Ok(recording) = Recording::parse(recording.into()) else { return };
    let played = play(recording, Settings::default());
    let path = PATHS[frames.len() % PATHS.len()];
    let runtime = Builder::new_current_thread().enable_time().build();
    let answered = runtime.map(|runtime| runtime.block_on(answer(played, path)));
    assert!(matches!(answered, Ok(Ok((status, _))) if !status.is_server_error()), "{path}");
});
