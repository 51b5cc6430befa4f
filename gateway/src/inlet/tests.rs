//! What waits for a worker that does not come.

use std::sync::Arc;

use super::*;
use crate::testing::Site;

/// So many times the inbox of one connection.
fn inboxes(handle: u64, count: usize) -> NotifyConnections {
    NotifyConnections { handles: vec![handle; count], inbox_seqs: vec![1; count], others: Vec::new() }
}

fn send(site: &Site, messages: Vec<to_gateway::Message>) {
    let down = LogicDown { shared: Arc::downgrade(&site.shared), index: 0 };
    let batch = messages.into_iter().map(|message| ToGateway { message: Some(message) }).collect();
    down.send(batch).expect("everything is taken or dropped");
}

fn take(inlet: &Inlet) -> Waiting {
    let mut waiting = Waiting::default();
    inlet.take(&mut waiting);
    waiting
}

#[test]
fn notifies_above_the_bound_are_dropped_and_counted_and_answers_to_heartbeats_never() {
    let site = Site::new(1);
    let dropped = || site.recorder.value("berth_gateway_notifies_total dropped");
    let notifies = |count| vec![to_gateway::Message::Notify(inboxes(0, count))];
    send(&site, notifies(NOTIFIES - 1));
    assert_eq!(dropped(), 0);
    send(&site, notifies(3));
    assert_eq!(dropped(), 2);
    send(&site, vec![to_gateway::Message::Refreshed(inboxes(0, 5))]);
    assert_eq!(dropped(), 2);
    let waiting = take(&site.shared.inlets[0]);
    assert_eq!((waiting.notifies.len(), waiting.refreshed.len()), (NOTIFIES, 5));
    send(&site, notifies(1));
    assert_eq!(take(&site.shared.inlets[0]).notifies.len(), 1, "there is room again");
}

#[test]
fn for_a_worker_that_has_ended_nothing_is_kept() {
    let site = Site::new(1);
    let everything = || {
        vec![
            to_gateway::Message::Notify(inboxes(0, 1)),
            to_gateway::Message::Refreshed(inboxes(0, 1)),
            to_gateway::Message::Opened(berth_proto::wire::SessionOpened::default()),
        ]
    };
    let kept = || {
        let waiting = lock(&site.shared.inlets[0].waiting);
        waiting.deliveries.len() + waiting.notifies.len() + waiting.refreshed.len()
    };
    send(&site, everything());
    assert_eq!(kept(), 3);
    site.shared.inlets[0].close();
    assert_eq!(kept(), 0);
    send(&site, everything());
    assert_eq!(kept(), 0);
    assert_eq!(site.recorder.value("berth_gateway_notifies_total dropped"), 1);
}

#[test]
fn a_batch_is_split_among_the_workers_and_nothing_is_lost_or_doubled() {
    let site = Site::new(3);
    let handle = |worker, slot| Handle { worker, slot, generation: 0 }.pack();
    let mut batch = NotifyConnections::default();
    (0..100).for_each(|slot| batch.push(handle((slot % 4) as u8, slot), u64::from(slot)));
    let conversations = vec![berth_proto::client::ConversationSeq { conversation_id: 1, seq: 2 }];
    batch.add(NotifyConnection { handle: handle(1, 7), inbox_seq: 3, conversations });
    let closed = berth_proto::wire::CloseConnection { handle: handle(2, 1), ..Default::default() };
    send(&site, vec![to_gateway::Message::Notify(batch), to_gateway::Message::Close(closed)]);
    for (worker, others, deliveries) in [(0u8, 0, 0), (1, 1, 0), (2, 0, 1)] {
        let waiting = take(&site.shared.inlets[usize::from(worker)]);
        let slots: Vec<u32> = (0..100).filter(|slot| slot % 4 == u32::from(worker)).collect();
        let expected: Vec<Reached> = slots
            .into_iter()
            .map(|slot| Reached { handle: handle(worker, slot), inbox_seq: u64::from(slot) })
            .collect();
        assert_eq!(waiting.notifies.into_pieces().concat(), expected);
        assert_eq!((waiting.others.len(), waiting.deliveries.len()), (others, deliveries));
    }
    // Worker 3 is none of this gateway's: its part is nobody's.
    assert_eq!(site.recorder.value("berth_gateway_notifies_total dropped"), 0);
}

#[test]
fn what_a_worker_has_not_done_stays_its_own_and_the_rest_waits() {
    let site = Site::new(1);
    let notifies = |count| vec![to_gateway::Message::Notify(inboxes(0, count))];
    send(&site, notifies(10));
    let inlet = &site.shared.inlets[0];
    let mut waiting = Waiting::default();
    assert!(!inlet.take(&mut waiting));
    (0..6).for_each(|_| assert!(waiting.notifies.pop().is_some()));
    send(&site, notifies(5));
    assert!(inlet.take(&mut waiting), "something stayed behind");
    assert_eq!(waiting.notifies.len(), 4);
    while waiting.notifies.pop().is_some() {}
    assert!(!inlet.take(&mut waiting));
    assert_eq!(waiting.notifies.len(), 5);
}
