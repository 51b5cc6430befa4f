//! A gateway that no scheduler is linked to: which tickets are good there, and what becomes of their sessions.

use std::time::Duration;

use berth_proto::{
    client::{Endpoint, Hello, client_frame::Frame, server_frame},
    ticket::TicketSigner,
    wire::{RedirectAnswer, Ticket},
};

use crate::support::{
    Site,
    client::{ALL, Client, Transport},
    eventually, now_ms,
};

const GRACE: Duration = Duration::from_secs(60);

fn site() -> Site {
    Site::with(|config| config.ticket_grace = GRACE)
}

/// A ticket of alice's for that gateway, which ended so long ago.
fn ticket(device: &str, gateway: &str, ago: Duration) -> Ticket {
    let ago_ms = i64::try_from(ago.as_millis()).expect("short");
    Ticket {
        gateway_ids: vec![gateway.to_owned()],
        expires_at_ms: now_ms() - ago_ms,
        ..Site::ticket("alice", device)
    }
}

fn arrive(site: &Site, transport: Transport, ticket: &str, device: &str, no_scheduler: bool) -> Client {
    let mut client = site.connect(transport);
    let hello = Hello { ticket: ticket.into(), device_id: device.into(), no_scheduler, ..Hello::default() };
    client.send(Frame::Hello(hello));
    client
}

fn in_grace(site: &Site, ticket: &str) -> u64 {
    site.metrics.counter(&format!("berth_gateway_grace_sessions_total{{ticket={ticket:?}}}"))
}

#[test]
fn genuine_tickets_are_good_for_the_grace_while_no_scheduler_is_linked() {
    let site = site();
    site.scheduler.away(true);
    let second = Duration::from_secs(1);
    let mut sessions = Vec::new();
    for (n, transport) in ALL.into_iter().enumerate() {
        for (what, gateway, ago) in
            [("late", "gw-1", second), ("far", "gw-2", second), ("both", "gw-2", GRACE / 2)]
        {
            let device = format!("{what}-{n}");
            let ticket = site.scheduler.sign(&ticket(&device, gateway, ago));
            let mut client = arrive(&site, transport, &ticket, &device, true);
            assert_eq!(client.welcome().user_id, "alice", "{what} by {transport:?}");
            sessions.push(client);
        }
        let mut elsewhere = Site::ticket("alice", &format!("elsewhere-{n}"));
        elsewhere.gateway_ids = vec!["gw-2".into()];
        let ticket = site.scheduler.sign(&elsewhere);
        let mut client = arrive(&site, transport, &ticket, &elsewhere.device_id, false);
        client.welcome();
        sessions.push(client);
    }
    assert_eq!((in_grace(&site, "expired"), in_grace(&site, "elsewhere")), (9, 3));
    assert!(site.scheduler.used_tickets().is_empty(), "no assignment of today was used");

    // The schedulers are back: nobody is sent away.
    site.scheduler.away(false);
    for client in &mut sessions {
        client.heartbeat();
        assert!(matches!(client.frame(), server_frame::Frame::HeartbeatAck(_)));
    }
    let connected = sessions.len() as u64;
    eventually("the report counts them", || {
        site.scheduler.last_report().is_some_and(|report| report.connections == connected)
    });
}

#[test]
fn the_grace_the_login_and_the_signature_have_their_ends() {
    let site = site();
    site.scheduler.away(true);
    let second = Duration::from_secs(1);
    let late = ticket("d", "gw-1", GRACE + second);
    let mut logged_out = ticket("d", "gw-1", second);
    logged_out.auth_expires_at_ms = now_ms() - 1;
    let other_key = TicketSigner::from_secret(b"another secret of 32 bytes......");
    for (what, ticket, code) in [
        ("beyond the grace", site.scheduler.sign(&late), 4005),
        ("logged out", site.scheduler.sign(&logged_out), 4005),
        ("of an unknown key", other_key.sign(&ticket("d", "gw-1", second)), 4005),
        ("of another device", site.scheduler.sign(&ticket("other", "gw-1", second)), 4500),
    ] {
        for transport in ALL {
            let goodbye = arrive(&site, transport, &ticket, "d", true).disconnected();
            assert_eq!(goodbye.code, code, "{what}: {goodbye:?}");
        }
    }
    assert!(site.logic.state().opened.is_empty(), "none of them reached logic");

    let strict = Site::with(|config| config.ticket_grace = Duration::ZERO);
    strict.scheduler.away(true);
    for gateway in ["gw-1", "gw-2"] {
        let ticket = strict.scheduler.sign(&ticket("d", gateway, second));
        assert_eq!(arrive(&strict, Transport::Tcp, &ticket, "d", true).disconnected().code, 4005);
    }
}

#[test]
fn with_a_scheduler_who_has_none_is_sent_where_that_says_and_who_has_is_to_ask() {
    let site = site();
    let to = Endpoint { gateway_id: "gw-1".into(), url: "tcp://gw-1:1".into(), ..Endpoint::default() };
    site.scheduler.answer_redirects(RedirectAnswer {
        endpoints: vec![to.clone()],
        ticket: "fresh".into(),
        ticket_expires_at_ms: 99,
        ..RedirectAnswer::default()
    });
    let late = site.scheduler.sign(&ticket("d", "gw-1", Duration::from_secs(1)));
    let too_late = site.scheduler.sign(&ticket("d", "gw-1", GRACE + Duration::from_secs(1)));
    for transport in ALL {
        assert_eq!(arrive(&site, transport, &late, "d", false).disconnected().code, 4005);
        let goodbye = arrive(&site, transport, &late, "d", true).disconnected();
        assert_eq!((goodbye.code, goodbye.ticket.as_str()), (4002, "fresh"));
        assert_eq!(goodbye.redirect, std::slice::from_ref(&to));
        assert_eq!(arrive(&site, transport, &too_late, "d", true).disconnected().code, 4005);
    }
    assert_eq!(site.scheduler.asks().len(), ALL.len());
    assert_eq!((in_grace(&site, "expired"), in_grace(&site, "elsewhere")), (0, 0));
}
