//! Between a client's task and its application: events in order, bounded, and how far the application has taken them.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{
    cursor::Cursor,
    event::{Event, Resync},
};

/// Events waiting for the application.
///
/// Bounded without ever making the task wait: rows are pulled only while [`Mailbox::has_room`] for a page of them, and of
/// lifecycle events nobody has read, only the last two since the last row are kept.
#[derive(Default)]
pub(crate) struct Mailbox {
    inner: Mutex<Inner>,
    /// For the application: something came, or the end.
    arrived: Notify,
    /// For the task: rows were taken.
    room: Notify,
    /// For the saver: the cursor moved, or the end.
    moved: Notify,
}

#[derive(Default)]
struct Inner {
    queue: VecDeque<Item>,
    /// Rows (and what stands for rows) in `queue`.
    rows: usize,
    /// The application holds an item that it has not confirmed.
    held: bool,
    /// Taken by the application, not yet given to the saver.
    taken: Option<Cursor>,
    /// Nothing will come any more.
    finished: bool,
    /// The application does not listen any more.
    abandoned: bool,
}

struct Item {
    event: Event,
    /// Where the cursor is once the application has taken the event.
    cursor: Option<Cursor>,
}

/// What the saver must do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Save {
    /// Store this.
    Cursor(Cursor),
    /// Wait until the cursor moves.
    Wait,
    /// Nothing will come any more.
    End,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event. `cursor` is set for what stands for rows.
    pub fn push(&self, event: Event, cursor: Option<Cursor>) {
        let mut inner = self.lock();
        if inner.abandoned || inner.finished {
            return;
        }
        match event {
            Event::Connected(_) | Event::Disconnected(_) => inner.supersede(&event),
            // Rows of an epoch that is over would only come again.
            Event::Resync(Resync::EpochChanged { .. } | Resync::OtherUser) => {
                inner.drop_rows();
                inner.rows = 1;
            }
            Event::Stopped(_) => {}
            _ => inner.rows += 1,
        }
        inner.queue.push_back(Item { event, cursor });
        drop(inner);
        self.arrived.notify_one();
    }

    /// Whether `page` more rows fit into `bound`.
    pub fn has_room(&self, page: usize, bound: usize) -> bool {
        let inner = self.lock();
        !inner.abandoned && inner.rows + page <= bound
    }

    /// Waits until the application has taken something.
    pub async fn room(&self) {
        self.room.notified().await;
    }

    /// Nothing will come any more. With `discard`, what waits is not delivered either.
    pub fn finish(&self, discard: bool) {
        let mut inner = self.lock();
        inner.finished = true;
        if discard {
            inner.queue.clear();
            inner.rows = 0;
            inner.held = false;
        }
        drop(inner);
        self.arrived.notify_one();
        self.moved.notify_one();
    }

    /// The next thing the saver must do.
    pub fn save(&self) -> Save {
        let mut inner = self.lock();
        if let Some(cursor) = inner.taken.take() {
            return Save::Cursor(cursor);
        }
        let nothing_more = inner.queue.is_empty() && !inner.held || inner.abandoned;
        if inner.finished && nothing_more { Save::End } else { Save::Wait }
    }

    /// Saving failed: the cursor is to be saved again, unless a newer one is waiting.
    pub fn unsaved(&self, cursor: Cursor) {
        self.lock().taken.get_or_insert(cursor);
    }

    /// Waits until [`Mailbox::save`] may have something else to say.
    pub async fn moved(&self) {
        self.moved.notified().await;
    }

    fn confirm(&self, cursor: Option<Cursor>) {
        let mut inner = self.lock();
        inner.held = false;
        let moved = cursor.is_some();
        if moved {
            inner.taken = cursor;
        }
        if moved || inner.finished {
            drop(inner);
            self.moved.notify_one();
        }
    }
}

impl Inner {
    fn last(&self) -> Option<&Event> {
        self.queue.back().map(|item| &item.event)
    }

    /// Drops from the end what `event` makes old news.
    fn supersede(&mut self, event: &Event) {
        let failed = matches!(event, Event::Disconnected(_));
        while match self.last() {
            // A connection nobody has heard of need not be taken back, and the latest (after redirects) is enough.
            Some(Event::Connected(_)) => true,
            // One failure is enough.
            Some(Event::Disconnected(_)) => failed,
            _ => false,
        } {
            self.queue.pop_back();
        }
    }

    /// Drops rows and what stands for rows.
    fn drop_rows(&mut self) {
        for item in std::mem::take(&mut self.queue) {
            if matches!(item.event, Event::Connected(_) | Event::Disconnected(_)) {
                self.supersede(&item.event);
                self.queue.push_back(item);
            }
        }
        self.rows = 0;
    }
}

/// The events of one client, for one reader.
pub struct Events {
    mailbox: Arc<Mailbox>,
    /// Where the cursor is once the event returned last counts as taken.
    held: Option<Cursor>,
}

impl Events {
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox, held: None }
    }

    /// The next event; `None` after [`Event::Stopped`], or after [`crate::Client::close`]. Asking for it says that the one
    /// before has been taken: its row will not come again. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Event> {
        self.confirm();
        loop {
            {
                let mut inner = self.mailbox.lock();
                if let Some(item) = inner.queue.pop_front() {
                    let lifecycle = matches!(
                        item.event,
                        Event::Connected(_) | Event::Disconnected(_) | Event::Stopped(_)
                    );
                    if !lifecycle {
                        inner.rows = inner.rows.saturating_sub(1);
                        self.mailbox.room.notify_one();
                    }
                    inner.held = true;
                    self.held = item.cursor;
                    return Some(item.event);
                }
                if inner.finished {
                    return None;
                }
            }
            self.mailbox.arrived.notified().await;
        }
    }

    /// Says that the event returned last has been taken, without asking for the next. Before [`crate::Client::close`],
    /// it keeps that row from coming again.
    pub fn confirm(&mut self) {
        self.mailbox.confirm(self.held.take());
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let mut inner = self.mailbox.lock();
        inner.abandoned = true;
        inner.queue.clear();
        inner.rows = 0;
        drop(inner);
        self.mailbox.moved.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        event::{Connected, Disconnected},
        transport::Transport,
    };

    fn cursor(seq: u64) -> Cursor {
        Cursor { user_id: "alice".into(), inbox_epoch: 1, seq }
    }

    fn row(mailbox: &Mailbox, seq: u64) {
        mailbox.push(Event::Unknown { seq }, Some(cursor(seq)));
    }

    fn connected() -> Event {
        Event::Connected(Connected {
            user_id: "alice".into(),
            session_id: String::new(),
            gateway_id: String::new(),
            transport: Transport::Tcp,
            inbox_seq: 0,
            inbox_epoch: 1,
            server_time_ms: 0,
        })
    }

    fn disconnected(reason: &str) -> Event {
        let retry_in = Duration::ZERO;
        Event::Disconnected(Disconnected { code: None, reason: reason.into(), retry_in })
    }

    fn new() -> (Arc<Mailbox>, Events) {
        let mailbox = Arc::new(Mailbox::default());
        (Arc::clone(&mailbox), Events::new(mailbox))
    }

    #[tokio::test]
    async fn a_row_is_taken_when_the_next_is_asked_for() {
        let (mailbox, mut events) = new();
        row(&mailbox, 1);
        row(&mailbox, 2);
        assert_eq!(events.next().await, Some(Event::Unknown { seq: 1 }));
        assert_eq!(mailbox.save(), Save::Wait);
        assert_eq!(events.next().await, Some(Event::Unknown { seq: 2 }));
        assert_eq!(mailbox.save(), Save::Cursor(cursor(1)));
        events.confirm();
        assert_eq!(mailbox.save(), Save::Cursor(cursor(2)));
        assert_eq!(mailbox.save(), Save::Wait);
    }

    #[tokio::test]
    async fn the_saver_outlives_the_stop_until_all_is_taken() {
        let (mailbox, mut events) = new();
        row(&mailbox, 1);
        mailbox.finish(false);
        row(&mailbox, 2);
        assert_eq!(mailbox.save(), Save::Wait);
        assert!(events.next().await.is_some());
        assert_eq!(mailbox.save(), Save::Wait);
        assert_eq!(events.next().await, None, "nothing is taken after the end");
        assert_eq!(mailbox.save(), Save::Cursor(cursor(1)));
        assert_eq!(mailbox.save(), Save::End);
    }

    #[tokio::test]
    async fn closing_discards_what_nobody_took() {
        let (mailbox, mut events) = new();
        row(&mailbox, 1);
        row(&mailbox, 2);
        assert!(events.next().await.is_some());
        mailbox.finish(true);
        assert_eq!(mailbox.save(), Save::End);
        assert_eq!(events.next().await, None);
    }

    #[tokio::test]
    async fn rows_are_bounded_and_an_absent_reader_stops_them() {
        let (mailbox, mut events) = new();
        assert!(mailbox.has_room(2, 3));
        row(&mailbox, 1);
        row(&mailbox, 2);
        assert!(!mailbox.has_room(2, 3));
        assert!(events.next().await.is_some());
        mailbox.room().await;
        assert!(mailbox.has_room(2, 3));
        drop(events);
        assert!(!mailbox.has_room(2, 3));
        row(&mailbox, 3);
        assert!(mailbox.lock().queue.is_empty());
    }

    #[tokio::test]
    async fn a_flapping_connection_does_not_pile_up() {
        let (mailbox, mut events) = new();
        for attempt in 0..100 {
            mailbox.push(connected(), None);
            mailbox.push(disconnected(&format!("loss {attempt}")), None);
        }
        mailbox.push(connected(), None);
        assert_eq!(events.next().await, Some(disconnected("loss 99")));
        assert_eq!(events.next().await, Some(connected()));
        assert!(mailbox.lock().queue.is_empty());
    }

    #[tokio::test]
    async fn gateways_that_send_on_in_a_circle_do_not_pile_up() {
        let (mailbox, mut events) = new();
        mailbox.push(disconnected("lost"), None);
        for _ in 0..100 {
            mailbox.push(connected(), None);
        }
        assert_eq!(events.next().await, Some(disconnected("lost")));
        assert_eq!(events.next().await, Some(connected()));
        assert!(mailbox.lock().queue.is_empty());

        for _ in 0..100 {
            mailbox.push(connected(), None);
            mailbox.push(Event::Resync(Resync::OtherUser), Some(cursor(0)));
        }
        assert_eq!(mailbox.lock().queue.len(), 2);
    }

    #[tokio::test]
    async fn a_resync_supersedes_the_rows_before_it() {
        let (mailbox, mut events) = new();
        row(&mailbox, 1);
        mailbox.push(connected(), None);
        for _ in 0..3 {
            mailbox.push(Event::Resync(Resync::OtherUser), Some(cursor(0)));
        }
        assert_eq!(mailbox.lock().rows, 1);
        assert_eq!(events.next().await, Some(connected()));
        assert_eq!(events.next().await, Some(Event::Resync(Resync::OtherUser)));
        assert!(mailbox.lock().queue.is_empty());
    }
}
