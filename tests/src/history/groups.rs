//! The history of one group whose members come and go, and whether it keeps what the protocol promises: everybody sees
//! one order, each member exactly what was said while he was in, once; whoever was accepted and removed is told.
//!
//! Events are in the order in which they happened to the load, over all its clients: so what must lie between two of them
//! is known.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Fault, Report, Seen};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The back end begins to add a user, or to remove him.
    Changing {
        /// Who.
        user: String,
        /// Whether he joins.
        joins: bool,
    },
    /// It was answered that this is done.
    Changed {
        /// Who.
        user: String,
        /// Whether he joined.
        joins: bool,
    },
    /// `sender` is about to send to the group; `nth` counts what he sends.
    Invoked {
        /// The user.
        sender: String,
        /// Unique over all senders.
        id: String,
        /// From 0.
        nth: u64,
    },
    /// The server accepted it.
    Acked {
        /// As invoked.
        id: String,
    },
    /// A user's device pulled a row.
    Row {
        /// The user.
        user: String,
        /// The inbox seq.
        seq: u64,
        /// What it is.
        what: Row,
    },
    /// A user read a message in the group's history.
    History {
        /// The user.
        user: String,
        /// The message.
        message: Seen,
    },
}

/// An inbox row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// A message of the group.
    Message(Seen),
    /// He joined (or left).
    Change {
        /// Whether he joined.
        joins: bool,
    },
    /// A send of his, by its id, could not be delivered.
    Failure(String),
    /// Anything else.
    Other,
}

/// One user, as he saw it.
#[derive(Default)]
struct View<'a> {
    rows: Vec<(u64, &'a Row)>,
    history: Vec<&'a Seen>,
}

impl<'a> View<'a> {
    fn messages(&self) -> impl Iterator<Item = &'a Seen> + '_ {
        self.rows.iter().filter_map(|(_, row)| match row {
            Row::Message(seen) => Some(seen),
            _ => None,
        })
    }
}

/// When something happened: an index of the events.
type At = usize;

#[derive(Default)]
struct Facts<'a> {
    views: BTreeMap<&'a str, View<'a>>,
    /// By id: who, which of his, when.
    invoked: HashMap<&'a str, (&'a str, u64, At)>,
    acked: Vec<&'a str>,
    /// By id: when anybody first saw it, so that it was committed by then.
    seen: HashMap<&'a str, At>,
    /// By user: (when it began, when it was done, joins).
    changes: BTreeMap<&'a str, Vec<(At, At, bool)>>,
}

/// Checks the history of a group whose `stable` members were in from before the first message to the end.
#[must_use]
pub fn check(events: &[Event], stable: &[String]) -> Report {
    let facts = sort_out(events);
    let mut report = Report { invoked: facts.invoked.len(), acked: facts.acked.len(), ..Report::default() };
    let timeline = timeline(&facts, &mut report);
    for (user, view) in &facts.views {
        check_inbox(user, view, &facts, &mut report);
        check_stays(user, view, &mut report);
        if stable.iter().any(|name| name == user) {
            check_all(user, view, &timeline, &mut report);
        }
        check_times(user, view, &facts, &mut report);
    }
    check_acked(&facts, &timeline, &mut report);
    report
}

fn sort_out(events: &[Event]) -> Facts<'_> {
    let mut facts = Facts::default();
    for (at, event) in events.iter().enumerate() {
        match event {
            Event::Changing { user, joins } => {
                facts.changes.entry(user).or_default().push((at, usize::MAX, *joins));
            }
            Event::Changed { user, .. } => {
                if let Some(last) = facts.changes.entry(user).or_default().last_mut() {
                    last.1 = at;
                }
            }
            Event::Invoked { sender, id, nth } => drop(facts.invoked.insert(id, (sender, *nth, at))),
            Event::Acked { id } => facts.acked.push(id),
            Event::Row { user, seq, what } => {
                facts.views.entry(user).or_default().rows.push((*seq, what));
                if let Row::Message(seen) = what {
                    facts.seen.entry(&seen.client_msg_id).or_insert(at);
                }
            }
            Event::History { user, message } => facts.views.entry(user).or_default().history.push(message),
        }
    }
    facts
}

/// Which message is which seq, as all agree; contiguous from 1, nobody's message twice, each one sent.
fn timeline<'a>(facts: &Facts<'a>, report: &mut Report) -> BTreeMap<u64, &'a str> {
    let mut timeline: BTreeMap<u64, &Seen> = BTreeMap::new();
    for (user, view) in &facts.views {
        for seen in view.messages().chain(view.history.iter().copied()) {
            let first = *timeline.entry(seen.conversation_seq).or_insert(seen);
            if first.message_id != seen.message_id {
                let (seq, id, other) = (seen.conversation_seq, &seen.client_msg_id, &first.client_msg_id);
                report.find(Fault::OutOfOrder, format!("{user}: seq {seq} is {id}, to others {other}"));
            }
        }
    }
    let mut places: HashMap<&str, u64> = HashMap::new();
    let mut last = 0;
    for (seq, seen) in &timeline {
        (last + 1..*seq).for_each(|missing| report.find(Fault::Gap, format!("nobody has seq {missing}")));
        last = *seq;
        let id = seen.client_msg_id.as_str();
        if let Some(place) = places.insert(id, *seq) {
            report.find(Fault::Duplicated, format!("{id} is seq {place} and {seq}"));
        }
        if !facts.invoked.contains_key(id) {
            report.find(Fault::Phantom, format!("{id} was never sent"));
        }
    }
    timeline.into_iter().map(|(seq, seen)| (seq, seen.client_msg_id.as_str())).collect()
}

/// Rows one by one from 1; no message twice; each sender's in his order, the others' in the conversation's.
fn check_inbox(user: &str, view: &View<'_>, facts: &Facts<'_>, report: &mut Report) {
    let mut last = 0;
    for (seq, _) in &view.rows {
        match seq {
            seq if *seq <= last => report.find(Fault::Duplicated, format!("{user}: row {seq} after {last}")),
            seq if *seq > last + 1 => report.find(Fault::Gap, format!("{user}: row {seq} after {last}")),
            _ => {}
        }
        last = last.max(*seq);
    }
    let mut ids = BTreeSet::new();
    let (mut by_sender, mut by_side): (HashMap<&str, u64>, HashMap<bool, u64>) = Default::default();
    for seen in view.messages() {
        let id = seen.client_msg_id.as_str();
        if !ids.insert(id) {
            report.find(Fault::Duplicated, format!("{user}: {id} again"));
        }
        let side = seen.from == user;
        if by_side.insert(side, seen.conversation_seq).is_some_and(|last| last >= seen.conversation_seq) {
            report
                .find(Fault::OutOfOrder, format!("{user}: seq {} after a later one", seen.conversation_seq));
        }
        if let Some((_, nth, _)) = facts.invoked.get(id)
            && by_sender.insert(&seen.from, *nth).is_some_and(|last| last >= *nth)
        {
            report.find(Fault::OutOfOrder, format!("{user}: {id} after a later one of its sender"));
        }
    }
}

/// What came into the inbox is what history shows, and it is no more stays than there were: he joined and left in turns,
/// and what he has between is contiguous.
fn check_stays(user: &str, view: &View<'_>, report: &mut Report) {
    let got: BTreeSet<u64> = view.messages().map(|seen| seen.conversation_seq).collect();
    let shown: BTreeSet<u64> = view.history.iter().map(|seen| seen.conversation_seq).collect();
    for seq in shown.difference(&got) {
        report.find(Fault::Lost, format!("{user}: history shows seq {seq}, no row brought it"));
    }
    for seq in got.difference(&shown) {
        report.find(Fault::Phantom, format!("{user}: a row brought seq {seq}, history does not show it"));
    }
    let mut inside = false;
    let mut stays = 0;
    for (seq, row) in &view.rows {
        let Row::Change { joins } = row else { continue };
        if *joins == inside {
            report.find(Fault::Duplicated, format!("{user}: row {seq} tells what he knows"));
        }
        inside = *joins;
        stays += usize::from(*joins);
    }
    let runs = got.iter().filter(|seq| !got.contains(&seq.wrapping_sub(1))).count();
    if runs > stays {
        report.find(Fault::Gap, format!("{user}: {runs} runs of messages in {stays} stays"));
    }
}

/// Who was always in has everything.
fn check_all(user: &str, view: &View<'_>, timeline: &BTreeMap<u64, &str>, report: &mut Report) {
    let got: BTreeSet<u64> = view.messages().map(|seen| seen.conversation_seq).collect();
    for (seq, id) in timeline.iter().filter(|(seq, _)| !got.contains(seq)) {
        report.find(Fault::Lost, format!("{user}: has not seq {seq}, {id}"));
    }
}

/// What was sent and committed while he was surely in, is his; while he was surely out, is not.
fn check_times(user: &str, view: &View<'_>, facts: &Facts<'_>, report: &mut Report) {
    let Some(changes) = facts.changes.get(user) else { return };
    let got: BTreeSet<&str> = view.messages().map(|seen| seen.client_msg_id.as_str()).collect();
    for (n, (_, done, joins)) in changes.iter().enumerate() {
        let until = changes.get(n + 1).map_or(usize::MAX, |next| next.0);
        for (id, (_, _, at)) in facts.invoked.iter().filter(|(_, (_, _, at))| at > done && *at < until) {
            let committed = facts.seen.get(id).is_some_and(|seen| *seen < until);
            if committed && *joins && !got.contains(id) {
                report.find(Fault::Lost, format!("{user}: {id} (event {at}) was said while he was in"));
            }
            if committed && !*joins && got.contains(id) {
                report.find(Fault::Phantom, format!("{user}: {id} (event {at}) was said while he was out"));
            }
        }
    }
}

/// What was accepted is in the timeline, or its sender was told that it failed; never both.
fn check_acked(facts: &Facts<'_>, timeline: &BTreeMap<u64, &str>, report: &mut Report) {
    let held: BTreeSet<&str> = timeline.values().copied().collect();
    let failed: BTreeSet<&str> = facts
        .views
        .values()
        .flat_map(|view| &view.rows)
        .filter_map(|(_, row)| match row {
            Row::Failure(id) => Some(id.as_str()),
            _ => None,
        })
        .collect();
    for id in &facts.acked {
        if !held.contains(id) && !failed.contains(id) {
            report.find(Fault::Lost, format!("{id} was accepted, and nobody has it"));
        }
    }
    for id in held.intersection(&failed) {
        report.find(Fault::Phantom, format!("{id} is there, though its sender was told that it failed"));
    }
}

#[cfg(test)]
mod tests;
