//! A session alone: what it costs and what it says, with the time made up.

use std::net::{IpAddr, Ipv4Addr};

use berth_proto::{
    client::{Endpoint, Hello},
    frame::{Encoding, decode_server},
    ticket::TicketSigner,
};
use server_frame::Frame;

use super::*;
use crate::mover::Order;

#[test]
fn an_idle_session_is_small() {
    // With its socket and the table's slot: PEERS.md's 1.5 KB has room for ten of these.
    assert!(size_of::<Session>() <= 160, "{} bytes", size_of::<Session>());
}

#[test]
fn whose_tickets_key_becomes_void_before_his_welcome_is_not_let_in() {
    for void in [false, true] {
        let mut harness = simulation::Harness::new(1);
        let ticket = harness.sign(&harness.ticket());
        let mut session = harness.arrived(Hello { ticket, ..Hello::default() });
        if void {
            harness.env.verifier = std::sync::Arc::default();
        }
        let opened = link::SessionOpened { handle: 42, session_epoch: 1, ..link::SessionOpened::default() };
        harness.ups.logic.clear();
        harness.with(&mut session, |session, cx| session.deliver(cx, to_gateway::Message::Opened(opened)));
        assert_eq!(matches!(session.stage, Stage::Identified(_)), !void);
        assert_eq!(harness.ups.logic.len(), usize::from(void), "logic is told that it is closed");
    }
}

/// What the last frame of a client on TCP says.
fn disconnected(out: &[u8]) -> (u32, u32) {
    match decode_server(Encoding::Proto, &out[4..]).expect("one frame") {
        Frame::Disconnect(disconnect) => (disconnect.code, disconnect.retry_after_ms),
        other => panic!("expected disconnect, got {other:?}"),
    }
}

#[test]
fn many_whose_tickets_or_tokens_have_ended_ask_schedulers_one_after_the_other() {
    let mut harness = simulation::Harness::new(1);
    harness.env.door = std::sync::Arc::new(crate::door::Door::new(10));
    let late = harness.sign(&link::Ticket { expires_at_ms: harness.now.wall_ms - 1, ..harness.ticket() });
    let over = harness.sign(&link::Ticket { auth_expires_at_ms: harness.now.wall_ms, ..harness.ticket() });
    let unknown = TicketSigner::from_secret(b"another secret").sign(&harness.ticket());
    let mut sessions: Vec<_> = (0..10).map(|_| harness.welcomed()).collect();
    for (nth, ticket) in [&late, &over, &late, &over].into_iter().cycle().take(40).enumerate() {
        let told = disconnected(&harness.said(Hello { ticket: ticket.clone(), ..Hello::default() }));
        let turn = u32::try_from(nth).expect("few").saturating_sub(9) * 100;
        assert_eq!(told, (4005, turn), "number {nth}");
    }
    harness.now.steady_ms += 600_000;
    for (nth, session) in sessions.iter_mut().enumerate() {
        let out = harness.with(session, |session, cx| session.expire(cx));
        assert_eq!(disconnected(&out), (4005, 0), "number {nth} of a second's worth");
    }
    let told = disconnected(&harness.said(Hello { ticket: late, ..Hello::default() }));
    assert_eq!(told, (4005, 100), "those who were connected stand in the same line");
    let told = disconnected(&harness.said(Hello { ticket: unknown, ..Hello::default() }));
    assert_eq!(told, (4005, 0), "who shows nothing genuine has no place in it");
}

#[test]
fn nothing_is_said_before_the_peer_shows_what_it_speaks() {
    let mut harness = simulation::Harness::new(1);
    let mut session =
        Session::new(harness.now, &harness.env.timeouts, (IpAddr::V4(Ipv4Addr::LOCALHOST), 1).into(), false);
    harness.now.steady_ms += limits::HELLO_TIMEOUT_MS;
    let out = harness.with(&mut session, |session, cx| session.expire(cx));
    assert_eq!(out, b"");
    assert!(session.gone(), "and nobody waits for it to be taken");
}

#[test]
fn the_linger_counts_from_the_last_byte_taken_up_to_a_cap() {
    let mut harness = simulation::Harness::new(1);
    let mut session =
        Session::new(harness.now, &harness.env.timeouts, (IpAddr::V4(Ipv4Addr::LOCALHOST), 1).into(), false);
    harness.with(&mut session, |session, cx| session.finish(cx, Closed::Client));
    harness.with(&mut session, |session, cx| session.blocked(cx));
    let decided = harness.now.steady_ms;
    let linger = harness.env.linger_ms(false);
    harness.now.steady_ms += linger - 1;
    harness.with(&mut session, |session, cx| session.unblocked(cx, 1, false));
    assert_eq!(session.deadline_ms(&harness.env), decided + linger - 1 + linger);
    harness.now.steady_ms += linger - 1;
    harness.with(&mut session, |session, cx| session.unblocked(cx, 1, true));
    assert_eq!(session.deadline_ms(&harness.env), decided + 3 * linger - 2);
    harness.now.steady_ms = decided + LINGERS * linger - 1;
    harness.with(&mut session, |session, cx| session.unblocked(cx, 1, true));
    assert_eq!(session.deadline_ms(&harness.env), decided + LINGERS * linger);
    harness.now.steady_ms += 1;
    harness.with(&mut session, |session, cx| session.expire(cx));
    assert!(session.gone());
}

#[test]
fn at_a_stop_only_who_has_the_whole_goodbye_is_waited_for_less() {
    let mut harness = simulation::Harness::new(1);
    let peer = (IpAddr::V4(Ipv4Addr::LOCALHOST), 1).into();
    let mut session = Session::new(harness.now, &harness.env.timeouts, peer, false);
    let linger = harness.env.linger_ms(true);
    harness.with(&mut session, |session, cx| session.finish(cx, Closed::Client));
    let left = |session: &Session, harness: &simulation::Harness| {
        session.deadline_ms(&harness.env) - harness.now.steady_ms
    };
    assert_eq!(left(&session, &harness), linger);
    harness.env.stopping = true;
    harness.with(&mut session, |session, cx| session.evict(cx, Goodbye::new(CloseCode::Draining)));
    assert!(left(&session, &harness) <= 1_000);
    harness.with(&mut session, |session, cx| session.blocked(cx));
    assert_eq!(left(&session, &harness), linger, "its goodbye is not written yet");
    harness.with(&mut session, |session, cx| session.evict(cx, Goodbye::new(CloseCode::Draining)));
    assert_eq!(left(&session, &harness), linger);
    harness.with(&mut session, |session, cx| session.unblocked(cx, 1, true));
    assert!(left(&session, &harness) <= 1_000);
}

#[test]
fn who_takes_a_byte_now_and_then_is_closed_as_slow_and_who_takes_a_kilobyte_a_second_is_not() {
    for (bytes, every_ms, stays) in [(1, 1_000, false), (1_024, 1_000, true), (64 * 1_024, 30_000, true)] {
        let mut harness = simulation::Harness::new(1);
        let timeout = i64::from(harness.env.heartbeat.timeout_ms);
        let mut session = harness.welcomed();
        let begun = harness.now.steady_ms;
        harness.with(&mut session, |session, cx| session.blocked(cx));
        while harness.now.steady_ms < begun + 10 * timeout && !session.closing() {
            harness.now.steady_ms += every_ms;
            harness.with(&mut session, |session, cx| session.unblocked(cx, bytes, false));
            harness.with(&mut session, |session, cx| session.expire(cx));
        }
        let waited = harness.now.steady_ms - begun;
        assert_eq!(!session.closing(), stays, "{bytes} bytes each {every_ms} ms: {waited} ms");
        assert!(stays || (timeout..timeout + 2_000).contains(&waited), "{waited} ms");
    }
}

#[test]
fn who_is_away_from_home_is_asked_about_unless_he_could_not_do_better() {
    let mut harness = simulation::Harness::new(1);
    harness.env.region = "eu".to_owned();
    let there = |gateway_ids: &[&str], elsewhere| link::Ticket {
        home: "us".to_owned(),
        gateway_ids: gateway_ids.iter().map(|id| (*id).to_owned()).collect(),
        elsewhere,
        issued_at_ms: 1_900_000,
        ..simulation::Harness::new(1).ticket()
    };
    let asked = |harness: &mut simulation::Harness, ticket: &link::Ticket, no_scheduler| {
        let hello = Hello { ticket: harness.sign(ticket), no_scheduler, ..Hello::default() };
        harness.arrived(hello);
        let ups = std::mem::take(&mut harness.ups);
        assert_eq!(ups.redirects.len() + ups.logic.len(), 1, "asked about, or let in");
        !ups.redirects.is_empty()
    };
    assert!(asked(&mut harness, &there(&["gw-1", "gw-2"], false), false));
    assert!(!asked(&mut harness, &there(&["gw-1", "gw-2"], true), false), "on purpose");
    assert!(!asked(&mut harness, &there(&["gw-us", "gw-1"], false), false), "he walked his list");
    assert!(!asked(&mut harness, &there(&["gw-1"], false), true), "he reaches no scheduler");
    harness.env.homes_ms = 1_900_000;
    assert!(!asked(&mut harness, &there(&["gw-1"], true), false), "on purpose, and no home came back since");
    harness.env.homes_ms = 1_950_000;
    assert!(asked(&mut harness, &there(&["gw-1"], true), false), "his home may be back");
    assert!(!asked(&mut harness, &there(&["gw-us", "gw-1"], true), false), "he walked his list");
    harness.env.placed_ms = 1_950_000;
    harness.env.placed = false;
    assert!(!asked(&mut harness, &there(&["gw-1"], false), false), "no scheduler knows of homes");
    harness.env.placed = true;
    assert!(asked(&mut harness, &there(&["gw-us", "gw-1"], true), false), "it is older than what decides");
}

#[test]
fn who_is_in_doubt_is_let_in_when_no_scheduler_takes_the_question_or_answers_it() {
    for late in [false, true] {
        let mut harness = simulation::Harness::new(1);
        harness.env.placed_ms = harness.now.wall_ms;
        let mut session =
            harness.arrived(Hello { ticket: harness.sign(&harness.ticket()), ..Hello::default() });
        assert_eq!((harness.ups.redirects.len(), harness.ups.logic.len()), (1, 0));
        if late {
            harness.with(&mut session, |session, _| session.redirect_asked(3));
            let patience = i64::try_from(harness.env.timeouts.redirect.as_millis()).expect("short");
            assert!(session.deadline_ms(&harness.env) <= harness.now.steady_ms + patience);
            harness.now.steady_ms += patience;
            harness.with(&mut session, |session, cx| session.expire(cx));
        } else {
            harness.with(&mut session, |session, cx| session.redirect_refused(cx));
        }
        let silent: &[usize] = if late { &[3] } else { &[] };
        assert_eq!((harness.ups.logic.len(), session.closing()), (1, false), "late: {late}");
        assert_eq!(harness.ups.silent, silent);
    }
}

#[test]
fn who_comes_to_a_drained_gateway_is_sent_where_the_operator_says() {
    let mut harness = simulation::Harness::new(1);
    (harness.env.evacuating, harness.env.to_pool) = (true, "green".into());
    harness.arrived(Hello { ticket: harness.sign(&harness.ticket()), ..Hello::default() });
    let asks: Vec<_> = harness.ups.redirects.iter().map(|ask| (ask.purpose(), ask.pool.as_str())).collect();
    assert_eq!(asks, [(link::MovePurpose::Drain, "green")]);
}

#[test]
fn what_a_client_said_to_a_scheduler_alone_counts_here_too() {
    let mut harness = simulation::Harness::new(1);
    let ticket =
        link::Ticket { platform: "ios".to_owned(), app_version: "7.3.1".to_owned(), ..harness.ticket() };
    let text = harness.sign(&ticket);
    for (app_version, expected) in [("", "7.3.1"), ("8.0.0", "8.0.0")] {
        let mut session = harness.arrived(Hello {
            ticket: text.clone(),
            app_version: app_version.to_owned(),
            ..Hello::default()
        });
        let opened = link::SessionOpened { handle: 42, session_epoch: 1, ..link::SessionOpened::default() };
        harness.with(&mut session, |session, cx| session.deliver(cx, to_gateway::Message::Opened(opened)));
        let order = Order {
            purpose: link::MovePurpose::Sweep,
            id: 1,
            spread_ms: 0,
            pool: String::new(),
            within_permille: 0,
            only_away: false,
        };
        let peer = Ipv4Addr::LOCALHOST.into();
        let ask = session.whereabouts(&order, 42, peer, 0, harness.now).expect("welcomed");
        assert_eq!((ask.platform.as_str(), ask.app_version.as_str()), ("ios", expected));
    }
    let long = link::Ticket { platform: "x".repeat(200), ..ticket };
    let hello = Hello { ticket: harness.sign(&long), ..Hello::default() };
    let session = harness.arrived(hello);
    assert!(!session.closing(), "what is too long is as if it were not said");
}

#[test]
fn an_answer_that_names_this_gateway_first_lets_in() {
    for (first, stays) in [("gw-1", true), ("gw-2", false)] {
        let mut harness = simulation::Harness::new(1);
        harness.env.region = "eu".to_owned();
        let ticket = link::Ticket { home: "us".to_owned(), ..harness.ticket() };
        let mut session = harness.arrived(Hello { ticket: harness.sign(&ticket), ..Hello::default() });
        let endpoint = Endpoint { gateway_id: first.to_owned(), ..Endpoint::default() };
        let answer = link::RedirectAnswer { endpoints: vec![endpoint], ..link::RedirectAnswer::default() };
        harness.with(&mut session, |session, cx| session.redirected(cx, answer));
        assert_eq!((harness.ups.logic.len(), session.closing()), (usize::from(stays), !stays), "{first}");
    }
}

#[test]
fn only_who_showed_a_genuine_ticket_counts_as_lost() {
    let mut harness = simulation::Harness::new(1);
    for number in 0..200 {
        let mut session =
            Session::new(harness.now, &harness.env.timeouts, (Ipv4Addr::LOCALHOST, 1).into(), false);
        // The first bytes of a frame settle the wire.
        let mut bytes = berth_proto::tcp::prefix(100);
        harness.with(&mut session, |session, cx| session.receive(cx, &mut bytes));
        assert!(session.wire != Wire::Unknown);
        harness.with(&mut session, |session, cx| session.peer_gone(cx, number % 2 == 0));
        harness.arrived(Hello { ticket: "junk".into(), ..Hello::default() });
    }
    (0..100).for_each(|_| drop(harness.welcomed()));
    let health = |harness: &simulation::Harness| harness.env.metrics.health.report();
    let told = health(&harness);
    assert_eq!((told.welcomed, told.connects_failed, told.connects_lost), (100, 200, 0));
    for _ in 0..60 {
        let ticket = harness.sign(&harness.ticket());
        let mut session = harness.arrived(Hello { ticket, ..Hello::default() });
        harness.with(&mut session, |session, cx| session.peer_gone(cx, false));
    }
    assert_eq!(health(&harness).connects_lost, 60, "logic is silent, and they leave");
    // Logic says that something is wrong with it.
    let ticket = harness.sign(&harness.ticket());
    let mut session = harness.arrived(Hello { ticket, ..Hello::default() });
    let close_code = CloseCode::Internal.number().into();
    let error = Some(Default::default());
    let opened = link::SessionOpened { handle: 42, error, close_code, ..link::SessionOpened::default() };
    harness.with(&mut session, |session, cx| session.deliver(cx, to_gateway::Message::Opened(opened)));
    assert_eq!(health(&harness).connects_lost, 61);
}
