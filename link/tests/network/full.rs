//! A role that has no room: what it refuses is answered or kept, and holds up nothing else.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use berth_proto::client::response;

use super::*;

/// Logic whose lanes are full: it has no room for closes, for sessions announced again and for requests.
#[derive(Default)]
struct Full {
    /// Until this is said.
    room: AtomicBool,
    taken: Mutex<Vec<ToLogic>>,
    down: Mutex<Option<Arc<dyn Link<ToGateway>>>>,
}

struct FullLink(Arc<Full>);

impl Full {
    fn taken(&self) -> Vec<ToLogic> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hears_of_the_gateway(&self) -> bool {
        self.down.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|down| down.connected())
    }
}

struct FullService(Arc<Full>);

impl LogicService for FullService {
    fn attach(&self, _: AttachGateway, down: Arc<dyn Link<ToGateway>>) -> Arc<dyn Link<ToLogic>> {
        *self.0.down.lock().unwrap_or_else(PoisonError::into_inner) = Some(down);
        Arc::new(FullLink(Arc::clone(&self.0)))
    }
}

impl Link<ToLogic> for FullLink {
    fn send(&self, batch: Vec<ToLogic>) -> Result<(), Refused<ToLogic>> {
        let room = self.0.room.load(Ordering::Relaxed);
        let fits = |message: &ToLogic| room || matches!(message.message, Some(to_logic::Message::Renew(_)));
        let (taken, rest): (Vec<_>, Vec<_>) = batch.into_iter().partition(fits);
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner).extend(taken);
        if rest.is_empty() { Ok(()) } else { Err(Refused { rest, reason: RefusedReason::Full }) }
    }
}

struct Site {
    full: Arc<Full>,
    server: Server,
    remote: berth_link::RemoteLogic,
    up: Arc<dyn Link<ToLogic>>,
    told: mpsc::Receiver<ToGateway>,
}

async fn site(gateways: Handle) -> Site {
    let full = Arc::new(Full::default());
    let service = Arc::new(FullService(Arc::clone(&full)));
    let server = Server::logic(anywhere(), key(KEY), no_metrics(), service).await.expect("binds");
    let remote = Remote::logic(dial(server.local_addr(), KEY), gateways);
    let (down, told) = probe();
    let up = remote.attach(gateway(), down);
    until(|| up.connected()).await;
    Site { full, server, remote, up, told }
}

fn open(session_epoch: u64) -> ToLogic {
    let (user_id, device_id) = ("alice".into(), "d".into());
    let open = wire::OpenSession { user_id, device_id, session_epoch, handle: 5, ..Default::default() };
    to_logic(to_logic::Message::Open(open))
}

fn renew(now_ms: i64) -> ToLogic {
    to_logic(to_logic::Message::Renew(wire::RenewLease { sessions: 1, now_ms }))
}

#[tokio::test]
async fn what_cannot_be_lost_waits_for_room_and_the_rest_is_answered() {
    let mut site = site(Handle::current()).await;
    site.up.send(vec![request(3), open(0), open(7), close(7)]).expect("room on the way");
    let ToGateway { message: Some(to_gateway::Message::Response(answer)) } = soon(site.told.recv()).await
    else {
        panic!("a response was expected");
    };
    let answer = answer.response.expect("there");
    let Some(response::Result::Error(error)) = answer.result else { panic!("an error was expected") };
    assert_eq!((answer.id, error.code.as_str(), error.retryable), (3, "UNAVAILABLE", true));
    let ToGateway { message: Some(to_gateway::Message::Opened(opened)) } = soon(site.told.recv()).await
    else {
        panic!("an answer to the new session was expected");
    };
    assert_eq!((opened.handle, opened.close_code), (5, 4009));

    // What is kept holds up no renewal: the leases of living gateways must not end for it. But its answer proves nothing.
    site.up.send(vec![close(8)]).expect("room on the way");
    site.up.send(vec![renew(1)]).expect("room on the way");
    until(|| site.full.taken() == [renew(0)]).await;
    site.full.room.store(true, Ordering::Relaxed);
    until(|| site.full.taken() == [renew(0), open(7), close(7), close(8)]).await;
    site.up.send(vec![renew(2)]).expect("room on the way");
    until(|| site.full.taken().last() == Some(&renew(2))).await;
    assert!(site.told.try_recv().is_err(), "the session that was announced again was not refused");
    site.remote.stop().await;
    site.server.stop().await;
}

/// A role that takes nothing for so long that nothing more is read, and a gateway that ends meanwhile.
#[tokio::test]
async fn a_stop_waits_for_nobody_who_takes_nothing_and_is_noticed() {
    let gateways = tokio::runtime::Runtime::new().expect("threads");
    let site = site(gateways.handle().clone()).await;
    let mut said = 0;
    // What the role keeps, what is under way, and all that may wait.
    while site.up.send((0..1_000).map(|n| close(said + n)).collect()).is_ok() {
        said += 1_000;
        tokio::task::yield_now().await;
    }
    assert!(said > 100_000, "{said}");
    let begun = std::time::Instant::now();
    site.remote.stop().await;
    // Two seconds; the rest is for a busy machine.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    // The process ends.
    gateways.shutdown_background();
    until(|| !site.full.hears_of_the_gateway()).await;

    // The closes that the link had read are not lost with it.
    assert!(site.full.taken().is_empty());
    site.full.room.store(true, Ordering::Relaxed);
    until(|| site.full.taken().len() >= 16_384).await;
    assert!(site.full.taken().iter().zip(0..).all(|(taken, n)| *taken == close(n)), "in order");
    site.server.stop().await;
}
