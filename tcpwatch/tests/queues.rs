//! The reader of the queues beside a program that writes meanwhile, in every order of their steps that the memory model of
//! C11 allows (loom).
//!
//! The program's stores are modelled as x86 orders them: each is a release. On other processors nothing orders them, which
//! the last test shows this to find; there the reader waits between noticing a record and reading it.
#![allow(clippy::unwrap_used, unsafe_code, reason = "tests, of memory that two sides share")]

use std::sync::atomic::AtomicUsize;

use loom::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};
use tcpwatch::kernel::transport::{
    inbox::Inbox,
    queue::{Memory, Reader},
};
use tcpwatch_common::QueueSlot;

const SLOTS: u64 = 2;
const RECORDS: u64 = 3;

/// One queue.
struct Shared {
    head: AtomicU64,
    tail: AtomicU64,
    slots: [UnsafeCell<QueueSlot>; SLOTS as usize],
}

impl Shared {
    fn new() -> Arc<Self> {
        let slots = std::array::from_fn(|_| UnsafeCell::new([0; 8]));
        Arc::new(Self { head: AtomicU64::new(0), tail: AtomicU64::new(0), slots })
    }

    fn slot(&self, number: u64) -> &UnsafeCell<QueueSlot> {
        &self.slots[(number % SLOTS) as usize]
    }

    /// As `try_push` of the BPF programs; `false` when there is no room. `head`: what only this side changes. A load of it
    /// would keep loom from trying what the reader does meanwhile.
    fn push(&self, head: &mut u64, time: u64, order: Ordering) -> bool {
        if *head - self.tail.load(Ordering::Acquire) == SLOTS {
            return false;
        }
        // SAFETY: loom fails when this is not the only access.
        self.slot(*head).with_mut(|slot| unsafe { *slot = [time; 8] });
        *head += 1;
        self.head.store(*head, order);
        true
    }
}

struct Mapped(Arc<Shared>);

impl Memory for Mapped {
    fn count(&self) -> usize {
        1
    }

    fn head(&self, _: usize) -> u64 {
        self.0.head.load(Ordering::Acquire)
    }

    fn set_tail(&self, _: usize, taken: u64) {
        self.0.tail.store(taken, Ordering::Release);
    }

    fn read<T>(&self, _: usize, number: u64, read: impl FnOnce(&QueueSlot) -> T) -> T {
        // SAFETY: loom fails when it is written meanwhile.
        self.0.slot(number).with(|slot| read(unsafe { &*slot }))
    }
}

/// A program writes while the reader reads twice, and once more afterwards. Returns in how many orders of their steps the
/// program found room for all, so that it used a slot again.
fn read_while_written(order: Ordering) -> usize {
    let reused = std::sync::Arc::new(AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&reused);
    loom::model(move || {
        let shared = Shared::new();
        let program = Arc::clone(&shared);
        let program = thread::spawn(move || {
            let mut head = 0;
            (1..=RECORDS).filter(|time| program.push(&mut head, *time, order)).collect()
        });
        let (mut reader, mut inbox, mut read) = (Reader::new(Mapped(shared)), Inbox::default(), Vec::new());
        let mut look = || {
            reader.look();
            inbox.take(&mut reader, u64::MAX - 1, |record| {
                let words: Vec<_> =
                    record.chunks(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect();
                assert!(words.iter().all(|word| *word == words[0]), "a record is whole: {words:?}");
                read.push(words[0]);
            });
        };
        look();
        look();
        let written: Vec<u64> = program.join().unwrap();
        look();
        assert_eq!(read, written, "each once, and in order");
        counted.fetch_add(usize::from(written.len() as u64 == RECORDS), Ordering::Relaxed);
    });
    reused.load(Ordering::Relaxed)
}

#[test]
fn each_record_is_read_whole_once_and_before_it_is_overwritten() {
    assert!(read_while_written(Ordering::Release) > 0);
}

#[test]
#[should_panic = "Causality violation"]
fn without_an_order_of_stores_a_record_may_be_read_before_it_is_there() {
    read_while_written(Ordering::Relaxed);
}
