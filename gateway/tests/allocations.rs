//! A delivery allocates nothing: counted by an allocator of this test's own. Alone in its process, because the allocator is
//! the process's.
#![expect(
    unsafe_code,
    reason = "an allocator is unsafe to write; this one counts and passes on to the system's"
)]

#[path = "gateway/support/mod.rs"]
#[expect(dead_code, reason = "shared with the other tests; this one needs a part of it")]
mod support;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use berth_proto::{
    client::ConversationSeq,
    wire::{NotifyConnection, NotifyConnections, to_gateway},
};
use support::{
    Site,
    client::{ALL, Client},
    eventually,
};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is the system allocator's, unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CONNECTIONS: u64 = 120;
const ROUNDS: u64 = 50;

/// What the rest of the process may allocate meanwhile: the supervisor's report each half second, and each batch's own
/// few vectors, which the test makes.
const OTHERS: u64 = 500;

fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.load(SeqCst);
    work();
    ALLOCATIONS.load(SeqCst) - before
}

#[test]
fn a_delivery_allocates_nothing() {
    let site = Site::start();
    let clients: Vec<Client> =
        (0..120).map(|n| site.login(ALL[n % ALL.len()], &format!("u{n}"), "d")).collect();
    let handles: Vec<u64> = (0..CONNECTIONS).map(|n| site.logic.handle(&format!("u{n}"), "d")).collect();
    let written = || site.metrics.counter("berth_gateway_frames_sent_total{kind=\"notify\"}");
    let mut expected = 0;
    let mut deliver = |seq: &dyn Fn(u64) -> u64| {
        let mut batch = NotifyConnections::with_capacity(handles.len());
        (0..).zip(&handles).for_each(|(n, handle)| batch.push(*handle, seq(n)));
        site.logic.send(vec![to_gateway::Message::Notify(batch)]);
        expected += CONNECTIONS;
        eventually("all are written", || written() == expected);
    };
    // What is made once is made now.
    deliver(&|_| 1);
    let equal = allocations(|| (0..ROUNDS).for_each(|round| deliver(&|_| 10 + round)));
    assert!(equal < OTHERS, "{equal} allocations for {} equal notifies", CONNECTIONS * ROUNDS);
    let different = allocations(|| (0..ROUNDS).for_each(|round| deliver(&|n| 1_000 * (1 + round) + n)));
    assert!(different < OTHERS, "{different} allocations for {} different ones", CONNECTIONS * ROUNDS);
    // Each by itself: the batch has the three vectors that the test gives it, and nothing is added to them.
    let single = |handle: &u64, seq| {
        let mut batch = NotifyConnections::default();
        batch.push(*handle, seq);
        site.logic.send(vec![to_gateway::Message::Notify(batch)]);
    };
    let before = written();
    let singles = allocations(|| {
        for round in 0..ROUNDS {
            handles.iter().for_each(|handle| single(handle, 1_000_000 + round));
            eventually("all are written", || written() == before + CONNECTIONS * (round + 1));
        }
    });
    let own = 3 * CONNECTIONS * ROUNDS;
    assert!((own..own + OTHERS).contains(&singles), "{singles} allocations for {own} of the test's own");
    // About a conversation too: the test makes three vectors of each; what is pending is a box and a list, which becomes the
    // frame's; and JSON has its numbers as text.
    let before = written();
    let others = allocations(|| {
        for round in 0..ROUNDS {
            for handle in &handles {
                let conversations = vec![ConversationSeq { conversation_id: 7, seq: 1 + round }];
                let other = NotifyConnection { handle: *handle, inbox_seq: 2_000_000 + round, conversations };
                site.logic.send(vec![to_gateway::Message::Notify(NotifyConnections::from_iter([other]))]);
            }
            eventually("all are written", || written() == before + CONNECTIONS * (round + 1));
        }
    });
    let (own, ours) = (3 * CONNECTIONS * ROUNDS, 4 * CONNECTIONS * ROUNDS);
    assert!(others < own + ours + OTHERS, "{others} allocations, {own} of them the test's own");
    drop(clients);
}
