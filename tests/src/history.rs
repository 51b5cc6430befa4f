//! The history checker: a pure function from what clients did and saw to what was lost, doubled, disordered or skipped.
//!
//! Every client writes down, in its own order, what it asked, what was acknowledged and every row it was given; [`check`]
//! then holds that against the promises of ARCHITECTURE.md's first two invariants. It knows nothing of the server.
//!
//! A change of the inbox epoch means that the server rolled the inbox back and said so: a reader starts again from 0, and
//! the promises hold for its view since. What is acknowledged must be in the view of the newest epoch.
//!
//! A sender's own row is written when his message is committed, other people's rows when theirs are spread, so his own
//! inbox may hold his message 5 of a conversation before another's message 4. That is not disorder: everybody agrees on
//! which message is which seq. Rows of one sender, and rows from the other side, must grow. In an epoch that ended between the
//! two, message 4 was never given; in the newest one it must be there.

pub mod groups;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
};

use berth_proto::client::Message;

/// Something a client did or saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// `sender` is about to send; `nth` counts what he sends, to anybody.
    Invoked {
        /// The user.
        sender: String,
        /// Unique per sender.
        client_msg_id: String,
        /// The recipient.
        to: String,
        /// From 0.
        nth: u64,
    },
    /// The server answered `response.send`.
    Acked {
        /// The user.
        sender: String,
        /// As invoked.
        client_msg_id: String,
        /// What the server called it.
        message_id: u64,
    },
    /// A reader pulled an inbox row.
    Row {
        /// Which device of which user.
        reader: Reader,
        /// The inbox epoch of the pull.
        epoch: u64,
        /// The inbox seq.
        seq: u64,
        /// `None`: a row that is no message.
        message: Option<Seen>,
    },
    /// A reader read a row of a conversation's timeline.
    Timeline {
        /// Which device of which user.
        reader: Reader,
        /// The inbox epoch at that time.
        epoch: u64,
        /// The row.
        message: Seen,
    },
}

/// A device of a user.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reader {
    /// The user.
    pub user: String,
    /// The device.
    pub device: String,
}

/// A message as a reader was given it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The server's id.
    pub message_id: u64,
    /// The conversation.
    pub conversation_id: u64,
    /// Its place there.
    pub conversation_seq: u64,
    /// Who sent it.
    pub from: String,
    /// Under which id.
    pub client_msg_id: String,
}

impl From<Message> for Seen {
    fn from(message: Message) -> Self {
        Self {
            message_id: message.message_id,
            conversation_id: message.conversation_id,
            conversation_seq: message.conversation_seq,
            from: message.from,
            client_msg_id: message.client_msg_id,
        }
    }
}

/// What [`check`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Sends begun.
    pub invoked: usize,
    /// Sends acknowledged.
    pub acked: usize,
    /// Acknowledged, but missing in the newest view of a reader who must have it.
    pub lost: usize,
    /// Seen twice, or under two ids.
    pub duplicated: usize,
    /// Seen in another order than sent, or than others saw it.
    pub out_of_order: usize,
    /// Seqs that were skipped, in inboxes and conversations.
    pub gaps: usize,
    /// Seen but never sent.
    pub phantom: usize,
    /// The first few findings in words.
    pub findings: Vec<String>,
}

impl Report {
    /// Whether every promise held.
    #[must_use]
    pub fn clean(&self) -> bool {
        self.lost + self.duplicated + self.out_of_order + self.gaps + self.phantom == 0
    }

    fn find(&mut self, kind: Fault, finding: String) {
        *match kind {
            Fault::Lost => &mut self.lost,
            Fault::Duplicated => &mut self.duplicated,
            Fault::OutOfOrder => &mut self.out_of_order,
            Fault::Gap => &mut self.gaps,
            Fault::Phantom => &mut self.phantom,
        } += 1;
        if self.findings.len() < 20 {
            self.findings.push(format!("{kind:?}: {finding}"));
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acked, lost, duplicated, out_of_order, gaps, .. } = self;
        write!(
            f,
            "acked {acked}, lost {lost}, duplicated {duplicated}, out of order {out_of_order}, gaps {gaps}"
        )
    }
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Lost,
    Duplicated,
    OutOfOrder,
    Gap,
    Phantom,
}

/// A message's identity as its sender knows it.
type Key<'a> = (&'a str, &'a str);

/// What one reader saw in one epoch, in the order it was given.
#[derive(Default)]
struct View<'a> {
    rows: Vec<(u64, Option<&'a Seen>)>,
    timelines: BTreeMap<u64, Vec<&'a Seen>>,
}

/// Everything, sorted out.
#[derive(Default)]
struct Facts<'a> {
    sent: HashMap<Key<'a>, (&'a str, u64)>,
    acked: Vec<(Key<'a>, u64)>,
    views: BTreeMap<(&'a Reader, u64), View<'a>>,
    newest: u64,
}

/// Checks a history. Events of one client are in its order; those of different clients may be mixed anyhow.
#[must_use]
pub fn check(events: &[Event]) -> Report {
    let facts = sort_out(events);
    let mut report = Report { invoked: facts.sent.len(), acked: facts.acked.len(), ..Report::default() };
    for ((reader, epoch), view) in &facts.views {
        let who = format!("{}/{} in epoch {epoch}", reader.user, reader.device);
        check_inbox_seqs(&who, view, &mut report);
        check_once(&who, view, &mut report);
        check_order(&who, (&reader.user, *epoch), view, &facts, &mut report);
        check_timelines(&who, view, &facts, &mut report);
    }
    check_agreement(&facts, &mut report);
    check_identity(&facts, &mut report);
    check_nothing_lost(&facts, &mut report);
    report
}

fn sort_out(events: &[Event]) -> Facts<'_> {
    let mut facts = Facts::default();
    for event in events {
        match event {
            Event::Invoked { sender, client_msg_id, to, nth } => {
                facts.sent.insert((sender, client_msg_id), (to, *nth));
            }
            Event::Acked { sender, client_msg_id, message_id } => {
                facts.acked.push(((sender, client_msg_id), *message_id));
            }
            Event::Row { reader, epoch, seq, message } => {
                facts.newest = facts.newest.max(*epoch);
                facts.views.entry((reader, *epoch)).or_default().rows.push((*seq, message.as_ref()));
            }
            Event::Timeline { reader, epoch, message } => {
                let view = facts.views.entry((reader, *epoch)).or_default();
                view.timelines.entry(message.conversation_id).or_default().push(message);
            }
        }
    }
    facts
}

/// Inbox rows come one by one from 1.
fn check_inbox_seqs(who: &str, view: &View<'_>, report: &mut Report) {
    let mut last = 0;
    for (seq, _) in &view.rows {
        if *seq <= last {
            report.find(Fault::Duplicated, format!("{who}: inbox seq {seq} after {last}"));
        } else if *seq > last + 1 {
            report.find(Fault::Gap, format!("{who}: inbox seq {seq} after {last}"));
        }
        last = last.max(*seq);
    }
}

/// No message has two rows.
fn check_once(who: &str, view: &View<'_>, report: &mut Report) {
    let mut keys = BTreeSet::new();
    for (seq, seen) in view.rows.iter().filter_map(|(seq, seen)| seen.map(|seen| (seq, seen))) {
        if !keys.insert(key(seen)) {
            report.find(Fault::Duplicated, format!("{who}: {} again at inbox seq {seq}", seen.client_msg_id));
        }
    }
}

/// One sender's messages come in the order he sent them: in each conversation to everybody, over all of them to his own
/// devices. The rows of a conversation from the other side, and one's own, come in the conversation's order.
fn check_order(
    who: &str,
    (user, epoch): (&str, u64),
    view: &View<'_>,
    facts: &Facts<'_>,
    report: &mut Report,
) {
    let mut last_nth: HashMap<(&str, u64), u64> = HashMap::new();
    let mut last_seq: HashMap<(bool, u64), u64> = HashMap::new();
    let mut conversations: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for seen in view.rows.iter().filter_map(|(_, seen)| *seen) {
        conversations.entry(seen.conversation_id).or_default().insert(seen.conversation_seq);
        let own = seen.from == user;
        if let Some((_, nth)) = facts.sent.get(&key(seen)) {
            let stream = (seen.from.as_str(), if own { 0 } else { seen.conversation_id });
            if last_nth.insert(stream, *nth).is_some_and(|last| last > *nth) {
                let id = &seen.client_msg_id;
                report.find(Fault::OutOfOrder, format!("{who}: {id} after a later one of {}", seen.from));
            }
        }
        let side = (own, seen.conversation_id);
        if last_seq.insert(side, seen.conversation_seq).is_some_and(|last| last > seen.conversation_seq) {
            let Seen { conversation_id, conversation_seq, .. } = seen;
            report.find(
                Fault::OutOfOrder,
                format!("{who}: conversation {conversation_id} seq {conversation_seq} after a later one"),
            );
        }
    }
    for (conversation, seqs) in conversations {
        let newest = seqs.last().copied().unwrap_or(0);
        let theirs = last_seq.get(&(false, conversation)).copied().unwrap_or(0);
        for missing in (1..=newest).filter(|seq| !seqs.contains(seq)) {
            if missing < theirs || !cut_off(facts, (user, epoch), (conversation, missing)) {
                report.find(Fault::Gap, format!("{who}: conversation {conversation} has no seq {missing}"));
            }
        }
    }
}

/// Whether the epoch ended before the other side's message at this place, behind which `user` saw one of his own already,
/// was due: an epoch ends when the server rolls back, and what was not spread by then is given in the next one.
fn cut_off(facts: &Facts<'_>, (user, epoch): (&str, u64), place: (u64, u64)) -> bool {
    let (conversation, _) = place;
    let of_epoch = facts.views.iter().filter(|((_, at), _)| *at == epoch).map(|(_, view)| view);
    let known = of_epoch.flat_map(all).find(|seen| (seen.conversation_id, seen.conversation_seq) == place);
    let theirs = |seen: &Seen| seen.from != user;
    epoch != facts.newest
        && known.map_or_else(
            // Nobody saw it: it may be theirs if they speak there at all.
            || {
                let mut rows = facts.views.values().flat_map(all);
                rows.any(|seen| seen.conversation_id == conversation && theirs(seen))
            },
            theirs,
        )
}

/// A timeline read from its start is contiguous from 1, holds nobody's message twice, and keeps each sender's order.
fn check_timelines(who: &str, view: &View<'_>, facts: &Facts<'_>, report: &mut Report) {
    for (conversation, rows) in &view.timelines {
        let what = format!("{who}: timeline {conversation}");
        let (mut last, mut keys) = (0, BTreeSet::new());
        let mut last_nth: HashMap<&str, u64> = HashMap::new();
        for seen in rows {
            let (seq, id) = (seen.conversation_seq, &seen.client_msg_id);
            match seq {
                _ if seq <= last => report.find(Fault::Duplicated, format!("{what}: seq {seq} after {last}")),
                _ if seq > last + 1 => report.find(Fault::Gap, format!("{what}: seq {seq} after {last}")),
                _ => {}
            }
            last = last.max(seq);
            if !keys.insert(key(seen)) {
                report.find(Fault::Duplicated, format!("{what}: {id} again at seq {seq}"));
            }
            if let Some((_, nth)) = facts.sent.get(&key(seen))
                && last_nth.insert(&seen.from, *nth).is_some_and(|last| last > *nth)
            {
                report.find(Fault::OutOfOrder, format!("{what}: {id} after a later one of {}", seen.from));
            }
        }
    }
}

/// A conversation's seq is one message, whoever looks.
fn check_agreement(facts: &Facts<'_>, report: &mut Report) {
    let mut order: HashMap<(u64, u64, u64), u64> = HashMap::new();
    for ((reader, epoch), view) in &facts.views {
        for seen in all(view) {
            let place = (*epoch, seen.conversation_id, seen.conversation_seq);
            let first = *order.entry(place).or_insert(seen.message_id);
            if first != seen.message_id {
                let Seen { conversation_id, conversation_seq, message_id, .. } = seen;
                let Reader { user, device } = reader;
                report.find(
                    Fault::OutOfOrder,
                    format!("{user}/{device}: conversation {conversation_id} seq {conversation_seq} is {message_id}, to others {first}"),
                );
            }
        }
    }
}

/// A message has one id: the acknowledged one. Nothing is seen that nobody sent.
fn check_identity(facts: &Facts<'_>, report: &mut Report) {
    let mut ids: BTreeMap<Key<'_>, u64> = BTreeMap::new();
    let mut owners: BTreeMap<u64, Key<'_>> = BTreeMap::new();
    let seen = facts.views.values().flat_map(all).map(|seen| (key(seen), seen.message_id));
    let mut told = BTreeSet::new();
    for (key, id) in facts.acked.iter().copied().chain(seen) {
        if !facts.sent.contains_key(&key) {
            if told.insert((key, id)) {
                report.find(Fault::Phantom, format!("{key:?} was never sent"));
            }
            continue;
        }
        let first = *ids.entry(key).or_insert(id);
        let owner = *owners.entry(id).or_insert(key);
        if (first != id || owner != key) && told.insert((key, id)) {
            report.find(Fault::Duplicated, format!("{key:?} is message {first} and {id} of {owner:?}"));
        }
    }
}

/// What is acknowledged is in the newest view of every reader of both sides, of which each side has one at least; and in
/// every timeline of its conversation read since.
fn check_nothing_lost(facts: &Facts<'_>, report: &mut Report) {
    let readers: BTreeSet<&Reader> = facts.views.keys().map(|(reader, _)| *reader).collect();
    let views: BTreeMap<&Reader, BTreeMap<Key<'_>, u64>> = readers
        .iter()
        .map(|reader| {
            let view = facts.views.get(&(*reader, facts.newest));
            let rows = view.into_iter().flat_map(|v| &v.rows).filter_map(|(_, seen)| *seen);
            (*reader, rows.map(|seen| (key(seen), seen.conversation_id)).collect())
        })
        .collect();
    for (key, message_id) in &facts.acked {
        let Some((to, _)) = facts.sent.get(key) else { continue };
        for user in BTreeSet::from([*to, key.0]) {
            let mut of_user = readers.iter().filter(|reader| reader.user == user).peekable();
            if of_user.peek().is_none() {
                report
                    .find(Fault::Lost, format!("{key:?} (message {message_id}): {user} saw nothing at all"));
            }
            for reader in of_user.filter(|reader| !views[*reader].contains_key(key)) {
                let Reader { user, device } = reader;
                report.find(Fault::Lost, format!("{key:?} (message {message_id}) at {user}/{device}"));
            }
        }
    }
    check_timelines_hold(facts, &views, report);
}

fn check_timelines_hold(
    facts: &Facts<'_>,
    views: &BTreeMap<&Reader, BTreeMap<Key<'_>, u64>>,
    report: &mut Report,
) {
    let conversations: BTreeMap<Key<'_>, u64> = views.values().flatten().map(|(k, c)| (*k, *c)).collect();
    let newest = facts.views.iter().filter(|((_, epoch), _)| *epoch == facts.newest);
    for ((reader, _), view) in newest.filter(|(_, view)| !view.timelines.is_empty()) {
        let unread: Vec<&Seen> = Vec::new();
        let known: BTreeSet<u64> =
            view.rows.iter().filter_map(|(_, seen)| seen.map(|s| s.conversation_id)).collect();
        let never = known.iter().filter(|id| !view.timelines.contains_key(id)).map(|id| (id, &unread));
        for (conversation, rows) in view.timelines.iter().chain(never) {
            let held: BTreeSet<Key<'_>> = rows.iter().map(|seen| key(seen)).collect();
            let must = facts.acked.iter().filter(|(key, _)| conversations.get(key) == Some(conversation));
            for (key, _) in must.filter(|(key, _)| !held.contains(key)) {
                let who = format!("{}/{}", reader.user, reader.device);
                report.find(Fault::Lost, format!("{key:?} in timeline {conversation} as {who} read it"));
            }
        }
    }
}

fn key(seen: &Seen) -> Key<'_> {
    (&seen.from, &seen.client_msg_id)
}

fn all<'a>(view: &'a View<'a>) -> impl Iterator<Item = &'a Seen> {
    let rows = view.rows.iter().filter_map(|(_, seen)| *seen);
    rows.chain(view.timelines.values().flatten().copied())
}

#[cfg(test)]
mod tests;
