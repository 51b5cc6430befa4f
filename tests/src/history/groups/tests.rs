//! Hand-made bad histories of groups: the checker must find each fault, and nothing in a good one.

use super::*;

fn message(seq: u64) -> Seen {
    Seen {
        message_id: 100 + seq,
        conversation_id: 1,
        conversation_seq: seq,
        from: "alice".to_owned(),
        client_msg_id: format!("a{seq}"),
    }
}

fn row(user: &str, seq: u64, what: Row) -> Event {
    Event::Row { user: user.to_owned(), seq, what }
}

fn history(user: &str, seq: u64) -> Event {
    Event::History { user: user.to_owned(), message: message(seq) }
}

/// Alice says 1 to 4; Bob is in for 2 and 3. Her fifth was accepted and failed.
fn good() -> Vec<Event> {
    let invoked = |seq: u64| Event::Invoked { sender: "alice".to_owned(), id: format!("a{seq}"), nth: seq };
    let acked = |seq: u64| Event::Acked { id: format!("a{seq}") };
    let change = |joins, done| {
        let user = "bob".to_owned();
        if done { Event::Changed { user, joins } } else { Event::Changing { user, joins } }
    };
    let said = |seq| [invoked(seq), acked(seq), row("alice", seq + 1, Row::Message(message(seq)))];
    let mut events = vec![row("alice", 1, Row::Change { joins: true })];
    events.extend(said(1));
    events.extend([change(true, false), change(true, true)]);
    events.extend(said(2));
    events.extend(said(3));
    events.extend([change(false, false), change(false, true)]);
    events.extend(said(4));
    events.extend([invoked(5), acked(5), row("alice", 6, Row::Failure("a5".to_owned()))]);
    events.extend([
        row("bob", 1, Row::Change { joins: true }),
        row("bob", 2, Row::Message(message(2))),
        row("bob", 3, Row::Change { joins: false }),
        row("bob", 4, Row::Message(message(3))),
    ]);
    events.extend((1..=4).map(|seq| history("alice", seq)));
    events.extend((2..=3).map(|seq| history("bob", seq)));
    events
}

fn checked(events: &[Event]) -> Report {
    check(events, &["alice".to_owned()])
}

/// The report on the good history with these events changed.
fn spoilt(spoil: impl FnMut(&mut Event)) -> Report {
    let mut events = good();
    events.iter_mut().for_each(spoil);
    checked(&events)
}

fn without(gone: &Event) -> Report {
    let mut events = good();
    events.retain(|event| event != gone);
    assert_eq!(events.len(), good().len() - 1, "{gone:?} is there");
    checked(&events)
}

#[test]
fn a_good_history_is_clean() {
    let report = checked(&good());
    assert!(report.clean(), "{report:?}");
    assert_eq!((report.invoked, report.acked), (5, 5));
}

#[test]
fn a_message_that_a_member_did_not_get_is_lost() {
    // As if spread had left him out: history shows it, and it was said while he was in.
    let report = without(&row("bob", 4, Row::Message(message(3))));
    assert_eq!(report.lost, 2, "{report:?}");
}

#[test]
fn a_row_that_is_missing_is_a_gap() {
    assert!(without(&row("alice", 2, Row::Message(message(1)))).gaps > 0);
}

#[test]
fn a_message_from_before_he_came_or_after_he_left_is_a_phantom() {
    for seq in [1, 4] {
        let mut events = good();
        events.extend([row("bob", 5, Row::Message(message(seq))), history("bob", seq)]);
        let report = checked(&events);
        assert!(report.phantom > 0 || report.out_of_order > 0, "{seq}: {report:?}");
    }
    let mut events = good();
    events.extend([row("bob", 5, Row::Message(message(4))), history("bob", 4)]);
    assert_eq!(checked(&events).phantom, 1, "in order, and yet not his");
}

#[test]
fn a_seq_that_is_two_messages_is_out_of_order() {
    let report = spoilt(|event| {
        if let Event::Row { user, what: Row::Message(seen), .. } = event
            && user == "bob"
        {
            seen.conversation_seq = 5 - seen.conversation_seq;
        }
    });
    assert!(report.out_of_order >= 2, "{report:?}");
}

#[test]
fn a_message_twice_is_duplicated() {
    let mut events = good();
    events.push(row("bob", 5, Row::Message(message(3))));
    assert!(checked(&events).duplicated > 0);
    let report = spoilt(|event| match event {
        Event::Row { what: Row::Message(seen), .. } | Event::History { message: seen, .. }
            if seen.conversation_seq == 4 =>
        {
            seen.client_msg_id = "a3".to_owned();
        }
        _ => {}
    });
    assert!(report.duplicated > 0, "under two seqs: {report:?}");
}

#[test]
fn an_accepted_message_that_is_nowhere_is_lost() {
    assert_eq!(without(&row("alice", 6, Row::Failure("a5".to_owned()))).lost, 1);
}

#[test]
fn a_message_that_failed_and_is_there_is_a_phantom() {
    let mut events = good();
    events.push(row("alice", 7, Row::Failure("a4".to_owned())));
    assert_eq!(checked(&events).phantom, 1);
}

#[test]
fn being_told_twice_is_found() {
    let mut events = good();
    events.push(row("bob", 5, Row::Change { joins: false }));
    assert_eq!(checked(&events).duplicated, 1);
}

#[test]
fn a_hole_in_a_stay_is_a_gap() {
    let mut events = good();
    events.retain(|event| !matches!(event, Event::Changing { .. } | Event::Changed { .. }));
    events.extend([row("bob", 5, Row::Message(message(5))), history("bob", 5)]);
    events.extend([row("alice", 7, Row::Message(message(5))), history("alice", 5)]);
    let report = checked(&events);
    assert!(report.gaps > 0, "{report:?}");
}
