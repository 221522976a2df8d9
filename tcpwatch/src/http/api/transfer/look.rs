//! Looks at the kernel's counts of all connections: one for what there is, two for what flows.

use std::{sync::Arc, time::Duration};

use rustc_hash::FxHashMap;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::{
    http::{Api, ApiError, api::transfer::totals::is_full},
    kernel::{
        clock,
        sock_diag::{self, Carried, Figures},
    },
    model::table::{Conn, ConnFlags},
    tcp::state::TcpState,
};

/// Limit for each part of an answer.
const PART_LIMIT: Duration = Duration::from_secs(8);

/// The kernel is asked in a thread of its own and answers in parts.
pub(crate) struct Look {
    parts: mpsc::Receiver<Result<Vec<Figures>, String>>,
    /// CLOCK_MONOTONIC, before the kernel was asked.
    asked_ns: u64,
    /// When it first answered: others that ask it may have come first.
    answered_ns: Option<u64>,
    pub problems: Vec<String>,
}

impl Look {
    pub(crate) async fn start(api: &Api) -> Result<Self, ApiError> {
        let namespaces = api.ask(false, |node, _| node.namespaces_of(is_full)).await?;
        let asked_ns = clock::read().now_ns;
        let parts = sock_diag::ask_all(namespaces);
        Ok(Self { parts, asked_ns, answered_ns: None, problems: Vec::new() })
    }

    pub(crate) async fn next(&mut self) -> Option<Vec<Figures>> {
        loop {
            let Ok(part) = tokio::time::timeout(PART_LIMIT, self.parts.recv()).await else {
                self.parts.close();
                let why = "there are many questions, or the kernel is slow";
                self.problems.push(format!("no further answer within {PART_LIMIT:?}: {why}"));
                return None;
            };
            let part = part?;
            self.answered_ns.get_or_insert_with(|| clock::read().now_ns);
            match part {
                Ok(part) => return Some(part),
                Err(problem) => self.problems.push(problem),
            }
        }
    }

    pub(crate) fn answered_ns(&self) -> u64 {
        self.answered_ns.unwrap_or(self.asked_ns)
    }
}

/// What every connection had carried: 33 bytes for each, and room to grow.
pub(crate) struct FirstLook {
    asked_ns: u64,
    pub answered_ns: u64,
    carried: FxHashMap<u64, Carried>,
    pub problems: Vec<String>,
    _kept: OwnedSemaphorePermit,
}

impl FirstLook {
    /// Looks, and waits until it is time for the second look.
    pub(crate) async fn take(api: &Api, period: Duration) -> Result<Self, ApiError> {
        let kept = Arc::clone(&api.first_looks).try_acquire_owned().map_err(|_| ApiError::busy())?;
        let mut look = Look::start(api).await?;
        let mut carried = FxHashMap::default();
        while let Some(part) = look.next().await {
            carried.extend(part.iter().map(|figures| (figures.cookie, figures.carried)));
        }
        let answered_ns = look.answered_ns();
        let passed = Duration::from_nanos(clock::read().now_ns - answered_ns);
        tokio::select! {
            () = tokio::time::sleep(period.saturating_sub(passed)) => {}
            () = api.stopped() => return Err(ApiError::stopping()),
        }
        Ok(Self { asked_ns: look.asked_ns, answered_ns, carried, problems: look.problems, _kept: kept })
    }

    /// What the connection with this cookie had carried; `None` where that is not known.
    pub(crate) fn carried(&self, conn: &Conn, cookie: u64) -> Option<Carried> {
        self.carried.get(&cookie).copied().or_else(|| {
            // Nothing, if it was established since. What is older was missed.
            let established = conn.life().steps().find(|step| step.state == TcpState::Established);
            let since =
                !conn.is(ConnFlags::OLDER) && established.is_some_and(|step| step.since_ns >= self.asked_ns);
            since.then(Carried::default)
        })
    }
}
