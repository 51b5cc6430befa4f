//! Hand-made bad histories: the checker must find each fault, and nothing in good ones.

use proptest::{prelude::*, sample::Index};

use super::*;

fn reader(user: &str, device: &str) -> Reader {
    Reader { user: user.to_owned(), device: device.to_owned() }
}

/// Users 0.. send to each other in this order of (from, to); each has two devices, which pull everything in every epoch.
fn good(sends: &[(u8, u8)], epochs: u64) -> Vec<Event> {
    let name = |user: u8| format!("u{user}");
    let mut events = Vec::new();
    let mut counts: HashMap<u8, u64> = HashMap::new();
    let mut conversations: HashMap<(u8, u8), u64> = HashMap::new();
    let mut inboxes: BTreeMap<u8, Vec<Seen>> = BTreeMap::new();
    for (message_id, (from, to)) in (100..).zip(sends) {
        let pair = (*from.min(to), *from.max(to));
        let conversation_seq = conversations.entry(pair).or_default();
        *conversation_seq += 1;
        let nth = counts.entry(*from).or_default();
        let client_msg_id = format!("c{nth}");
        let seen = Seen {
            message_id,
            conversation_id: 1 + u64::from(pair.0) * 256 + u64::from(pair.1),
            conversation_seq: *conversation_seq,
            from: name(*from),
            client_msg_id: client_msg_id.clone(),
        };
        let sender = name(*from);
        events.push(Event::Invoked {
            sender: sender.clone(),
            client_msg_id: client_msg_id.clone(),
            to: name(*to),
            nth: *nth,
        });
        events.push(Event::Acked { sender, client_msg_id, message_id });
        *nth += 1;
        for user in BTreeSet::from([*from, *to]) {
            inboxes.entry(user).or_default().push(seen.clone());
        }
    }
    for (user, inbox) in &inboxes {
        for epoch in 1..=epochs {
            for device in ["a", "b"] {
                let reader = reader(&name(*user), device);
                for (seq, seen) in (1..).zip(inbox) {
                    let message = Some(seen.clone());
                    events.push(Event::Row { reader: reader.clone(), epoch, seq, message });
                }
                for seen in inbox {
                    let message = seen.clone();
                    events.push(Event::Timeline { reader: reader.clone(), epoch, message });
                }
            }
        }
    }
    events
}

const SENDS: [(u8, u8); 6] = [(0, 1), (0, 2), (1, 0), (0, 1), (2, 0), (0, 1)];

/// Changes the `nth` row of that reader's inbox.
fn with_rows(device: &str, change: impl Fn(&mut Vec<Event>, &[usize])) -> Vec<Event> {
    let mut events = good(&SENDS, 1);
    let of_reader =
        |event: &Event| matches!(event, Event::Row { reader: r, .. } if *r == reader("u0", device));
    let places: Vec<usize> = (0..events.len()).filter(|i| of_reader(&events[*i])).collect();
    change(&mut events, &places);
    events
}

fn seen(event: &mut Event) -> &mut Seen {
    match event {
        Event::Row { message: Some(seen), .. } | Event::Timeline { message: seen, .. } => seen,
        other => panic!("no message: {other:?}"),
    }
}

#[test]
fn a_good_history_is_clean() {
    let report = check(&good(&SENDS, 2));
    assert!(report.clean(), "{report:?}");
    assert_eq!((report.invoked, report.acked), (6, 6));
    assert_eq!(report.to_string(), "acked 6, lost 0, duplicated 0, out of order 0, gaps 0");
}

#[test]
fn an_acked_message_at_no_recipient_is_lost() {
    let mut events = good(&SENDS, 1);
    events.retain(
        |e| !matches!(e, Event::Row { reader, .. } | Event::Timeline { reader, .. } if reader.user == "u2"),
    );
    let report = check(&events);
    assert_eq!(report.lost, 2, "{report:?}");
}

#[test]
fn an_acked_message_missing_at_the_end_of_one_inbox_is_lost() {
    let events = with_rows("a", |events, rows| {
        events.remove(rows[5]);
    });
    let report = check(&events);
    assert_eq!((report.lost, report.gaps), (1, 0), "{report:?}");
}

#[test]
fn an_acked_message_that_only_an_older_epoch_had_is_lost() {
    let mut events = good(&SENDS, 2);
    let last =
        |e: &Event| matches!(e, Event::Row { reader: r, epoch: 2, seq: 6, .. } if *r == reader("u0", "b"));
    events.retain(|e| !last(e));
    assert_eq!(check(&events).lost, 1);
}

#[test]
fn a_message_missing_in_a_timeline_is_lost() {
    let mut events = good(&SENDS, 1);
    let last = events
        .iter()
        .rposition(|e| matches!(e, Event::Timeline { reader: r, .. } if *r == reader("u1", "b")))
        .expect("u1 read timelines");
    events.remove(last);
    assert_eq!(check(&events).lost, 1);
}

#[test]
fn an_unacked_message_may_be_missing_or_there() {
    let mut events = good(&SENDS, 1);
    events.retain(|e| !matches!(e, Event::Acked { message_id: 105, .. }));
    assert!(check(&events).clean());
    events.retain(|e| !matches!(e, Event::Row { message: Some(Seen { message_id: 105, .. }), .. }));
    events.retain(|e| !matches!(e, Event::Timeline { message: Seen { message_id: 105, .. }, .. }));
    assert!(check(&events).clean());
}

#[test]
fn one_message_in_two_rows_is_duplicated() {
    let events = with_rows("a", |events, rows| {
        let mut again = events[rows[5]].clone();
        if let Event::Row { seq, .. } = &mut again {
            *seq = 7;
        }
        events.insert(rows[5] + 1, again);
    });
    let report = check(&events);
    assert_eq!(report.duplicated, 1, "{report:?}");
}

#[test]
fn one_send_under_two_message_ids_is_duplicated() {
    let events = with_rows("a", |events, rows| seen(&mut events[rows[5]]).message_id = 999);
    let report = check(&events);
    assert!(report.duplicated >= 1, "{report:?}");
}

#[test]
fn a_row_given_again_is_duplicated() {
    let events = with_rows("a", |events, rows| {
        let again = events[rows[2]].clone();
        events.insert(rows[2] + 1, again);
    });
    assert!(check(&events).duplicated >= 1);
}

#[test]
fn a_sender_out_of_order_is_found() {
    let events = with_rows("b", |events, rows| {
        let (early, late) = (seen(&mut events[rows[0]]).clone(), seen(&mut events[rows[3]]).clone());
        *seen(&mut events[rows[0]]) = late;
        *seen(&mut events[rows[3]]) = early;
    });
    assert!(check(&events).out_of_order >= 1);
}

#[test]
fn two_readers_who_disagree_on_a_seq_are_found() {
    let events = with_rows("b", |events, rows| {
        // Conversation (0, 1): u0's c0 is seq 1 and u1's c0 is seq 2; this reader is told the reverse.
        seen(&mut events[rows[0]]).conversation_seq = 2;
        seen(&mut events[rows[2]]).conversation_seq = 1;
    });
    let report = check(&events);
    assert!(report.out_of_order >= 2, "{report:?}");
}

#[test]
fn a_skipped_inbox_seq_is_a_gap() {
    let events = with_rows("a", |events, rows| {
        for row in &rows[3..] {
            if let Event::Row { seq, .. } = &mut events[*row] {
                *seq += 1;
            }
        }
    });
    assert_eq!(check(&events).gaps, 1);
}

#[test]
fn a_skipped_conversation_seq_is_a_gap() {
    let mut events = good(&SENDS, 1);
    for event in &mut events {
        if let Event::Row { message: Some(seen), .. } | Event::Timeline { message: seen, .. } = event
            && seen.message_id == 105
        {
            seen.conversation_seq += 1;
        }
    }
    assert!(check(&events).gaps >= 1);
}

#[test]
fn a_message_nobody_sent_is_a_phantom() {
    let mut events = good(&SENDS, 1);
    events.retain(|e| !matches!(e, Event::Invoked { client_msg_id, sender, .. } if client_msg_id == "c0" && sender == "u2"));
    assert!(check(&events).phantom >= 1);
}

#[test]
fn own_messages_may_precede_the_other_sides_earlier_ones() {
    let mut events = good(&[(0, 1), (1, 0)], 1);
    for event in &mut events {
        if let Event::Row { reader, seq, message: Some(_), .. } = event
            && reader.user == "u1"
        {
            *seq = 3 - *seq;
        }
    }
    // Rows are written down in the order of their seqs.
    let rows: Vec<usize> = (0..events.len())
        .filter(|i| matches!(&events[*i], Event::Row { reader: r, .. } if *r == reader("u1", "a")))
        .collect();
    events.swap(rows[0], rows[1]);
    let rows: Vec<usize> = (0..events.len())
        .filter(|i| matches!(&events[*i], Event::Row { reader: r, .. } if *r == reader("u1", "b")))
        .collect();
    events.swap(rows[0], rows[1]);
    let report = check(&events);
    assert!(report.clean(), "{report:?}");
}

/// u0's device "a" without its last row of epoch `epoch`, after its two last rows changed places: u0's own message comes
/// before u1's earlier one, and then the epoch ends.
fn cut_between_both_sides(sends: &[(u8, u8)], epoch: u64) -> Report {
    let mut events = good(sends, 2);
    let of_view = |event: &Event| matches!(event, Event::Row { reader: r, epoch: e, .. } if *r == reader("u0", "a") && *e == epoch);
    let rows: Vec<usize> = (0..events.len()).filter(|i| of_view(&events[*i])).collect();
    let [.., last_but_one, last] = rows[..] else { panic!("it has two rows") };
    let own = seen(&mut events[last]).clone();
    *seen(&mut events[last_but_one]) = own;
    events.remove(last);
    check(&events)
}

#[test]
fn what_the_other_side_said_before_ones_own_last_may_be_cut_off_with_its_epoch() {
    let report = cut_between_both_sides(&[(0, 1), (1, 0), (1, 0), (0, 1)], 1);
    assert!(report.clean(), "{report:?}");
    let newest = cut_between_both_sides(&[(0, 1), (1, 0), (1, 0), (0, 1)], 2);
    assert_eq!((newest.gaps, newest.lost), (1, 1), "the newest epoch goes on until it is there");
    let own = cut_between_both_sides(&[(1, 0), (0, 1), (0, 1)], 1);
    assert_eq!(own.gaps, 1, "one's own messages come in order");
    let behind = cut_between_both_sides(&[(0, 1), (1, 0), (1, 0)], 1);
    assert_eq!(behind.gaps, 1, "so do the other side's");
}

fn sends() -> impl Strategy<Value = Vec<(u8, u8)>> {
    proptest::collection::vec((0u8..4, 0u8..4), 1..40)
}

proptest! {
    #[test]
    fn good_histories_are_clean_however_clients_interleave(sends in sends(), epochs in 1u64..3, seed: u64) {
        let events = good(&sends, epochs);
        let report = check(&shuffle_between_clients(events, seed));
        prop_assert!(report.clean(), "{report:?}");
    }

    #[test]
    fn any_row_taken_away_or_doubled_is_found(sends in sends(), which: Index, double: bool) {
        let mut events = good(&sends, 1);
        let rows: Vec<usize> =
            (0..events.len()).filter(|i| matches!(events[*i], Event::Row { .. } | Event::Timeline { .. })).collect();
        let row = rows[which.index(rows.len())];
        // A reader of no timeline at all is held to nothing there.
        let only = |event: &Event| match event {
            Event::Timeline { reader, .. } => {
                let same = |e: &&Event| matches!(e, Event::Timeline { reader: r, .. } if r == reader);
                events.iter().filter(same).count() == 1
            }
            _ => false,
        };
        prop_assume!(double || !only(&events[row]));
        if double {
            events.insert(row, events[row].clone());
        } else {
            events.remove(row);
        }
        prop_assert!(!check(&events).clean());
    }
}

/// Mixes the clients' events, keeping each client's own order.
fn shuffle_between_clients(events: Vec<Event>, mut seed: u64) -> Vec<Event> {
    let client = |event: &Event| match event {
        Event::Invoked { sender, .. } | Event::Acked { sender, .. } => (sender.clone(), String::new()),
        Event::Row { reader, .. } | Event::Timeline { reader, .. } => {
            (reader.user.clone(), reader.device.clone())
        }
    };
    let mut queues: BTreeMap<_, std::collections::VecDeque<Event>> = BTreeMap::new();
    for event in events {
        queues.entry(client(&event)).or_default().push_back(event);
    }
    let mut queues: Vec<_> = queues.into_values().collect();
    let mut mixed = Vec::new();
    while !queues.is_empty() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let place = (seed >> 33) as usize % queues.len();
        mixed.extend(queues[place].pop_front());
        queues.retain(|queue| !queue.is_empty());
    }
    mixed
}
