//! The thread that reads what /proc says of processes, so that the owner of the state never waits for /proc.
//!
//! In: processes as records report them, a bounded number. Out: an answer to each request, in the order of the requests.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
};

use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::{
    events::{
        decode::TaskRecord,
        frame::{ProcDetails, ProcessFrame},
    },
    kernel::{
        capabilities::{self, Thread},
        procfs,
    },
};

/// Requests that may wait, as many as answers.
const MAX_REQUESTS: usize = 1024;

/// What is asked of a process.
#[derive(Debug)]
pub enum Request {
    Details(TaskRecord),
    /// The details again, where its executable seems to have been deleted since.
    IfDeleted(TaskRecord),
}

/// What /proc says; `None` where the process is gone, or runs another program now, and where there is nothing to say.
pub type Answer = Option<ProcessFrame>;

/// Handle of the thread, which ends when this is dropped.
#[derive(Debug)]
pub struct Describer {
    requests: Sender<Request>,
    answers: Receiver<Answer>,
}

impl Describer {
    /// # Errors
    /// When no thread can be started.
    pub fn start() -> io::Result<Self> {
        Self::answering(answer)
    }

    fn answering(answer: impl Fn(&Request) -> Answer + Send + 'static) -> io::Result<Self> {
        let (requests, mut asked) = channel(MAX_REQUESTS);
        let (reply, answers) = channel(MAX_REQUESTS);
        std::thread::Builder::new().name("procfs".into()).spawn(move || {
            if let Err(error) = capabilities::become_thread(Thread::Describer) {
                tracing::error!(%error, "the reader of /proc keeps more capabilities than it needs");
            }
            while let Some(request) = asked.blocking_recv() {
                // The log has the place of a panic.
                let found = catch_unwind(AssertUnwindSafe(|| answer(&request))).unwrap_or(None);
                if reply.blocking_send(found).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { requests, answers })
    }

    /// Requests for which there is room.
    pub fn room(&self) -> usize {
        self.requests.capacity()
    }

    /// `false` where there is no room.
    pub fn ask(&self, request: Request) -> bool {
        self.requests.try_send(request).is_ok()
    }

    /// The next answer; `None` when the thread has ended.
    pub async fn answer(&mut self) -> Option<Answer> {
        self.answers.recv().await
    }

    /// An answer that has come already.
    pub fn next_answer(&mut self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }
}

fn answer(request: &Request) -> Answer {
    let found = |task: &TaskRecord, details: Option<ProcDetails>| {
        details.map(|details| ProcessFrame { identity: task.identity(), details })
    };
    match request {
        Request::Details(task) => found(task, procfs::details(task)),
        Request::IfDeleted(task) => found(task, procfs::details_if_deleted(task)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn task(pid: u32) -> TaskRecord {
        TaskRecord { pid, start_ns: 1, exec_id: 1, stack: 1, comm: "x".into() }
    }

    #[tokio::test]
    async fn a_slow_proc_bounds_what_waits_and_a_panic_is_an_answer() {
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let mut describer = Describer::answering(move |request| {
            may_go_on.recv().unwrap();
            let Request::Details(task) = request else { panic!("on purpose") };
            Some(ProcessFrame { identity: task.identity(), details: ProcDetails::default() })
        })
        .unwrap();
        assert!(describer.ask(Request::IfDeleted(task(0))));
        // One is with the thread, once it has taken it.
        while describer.room() < MAX_REQUESTS {
            std::thread::yield_now();
        }
        for pid in 0..MAX_REQUESTS {
            assert!(describer.ask(Request::Details(task(pid as u32))));
        }
        assert!(!describer.ask(Request::Details(task(0))) && describer.room() == 0);
        for _ in 0..=MAX_REQUESTS {
            go_on.send(()).unwrap();
        }
        assert_eq!(describer.answer().await, Some(None), "the panic");
        for pid in 0..MAX_REQUESTS {
            let answer = describer.answer().await.flatten();
            assert_eq!(answer.map(|process| process.identity.pid), Some(pid as u32));
        }
        drop(go_on);
        assert!(describer.ask(Request::Details(task(0))));
        assert_eq!(describer.answer().await, Some(None), "it lives on");
    }
}
