//! What waits for a worker that does not come.

use std::sync::Arc;

use berth_proto::wire::InboxesRefreshed;

use super::*;
use crate::testing::Site;

fn told(handle: u64) -> NotifyConnection {
    NotifyConnection { handle, inbox_seq: 1, conversations: Vec::new() }
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
    let notifies = |count| vec![to_gateway::Message::Notify(told(0)); count];
    send(&site, notifies(NOTIFIES - 1));
    assert_eq!(dropped(), 0);
    send(&site, notifies(3));
    assert_eq!(dropped(), 2);
    send(&site, vec![to_gateway::Message::Refreshed(InboxesRefreshed { inboxes: vec![told(0); 5] })]);
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
            to_gateway::Message::Notify(told(0)),
            to_gateway::Message::Refreshed(InboxesRefreshed { inboxes: vec![told(0)] }),
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
