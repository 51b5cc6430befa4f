//! A connection over a real socket, with the time made up.

use std::io::Read;

use socket2::SockRef;

use super::*;
use crate::session::simulation::Harness;

/// A welcomed connection and its client's end; neither end's buffer grows.
fn pair(harness: &mut Harness) -> (Connection, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let far = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
    let (near, _) = listener.accept().expect("comes");
    near.set_nonblocking(true).expect("settable");
    SockRef::from(&near).set_send_buffer_size(16 * 1024).expect("settable");
    SockRef::from(&far).set_recv_buffer_size(16 * 1024).expect("settable");
    (Connection::new(TcpStream::from_std(near), harness.welcomed()), far)
}

const WRITABLE: Readiness = Readiness { readable: false, writable: true, read_closed: false, hung_up: false };

/// Tells the peer of its inbox until the socket takes nothing of it.
fn fill(harness: &mut Harness, connection: &mut Connection) {
    let (mut frames, mut out) = (Frames::default(), Vec::new());
    for seq in 1.. {
        // Large ones are faster, and what tells is whether a small one finds room.
        while connection.stream.write(&[0; 8 * 1024]).is_ok() {}
        connection.session.notify(&harness.cx(&mut out), seq, &[]);
        match connection.tell(&mut frames) {
            Told::All(_) => {}
            Told::Full => break,
            other => panic!("{other:?}"),
        }
    }
    connection.session.blocked(&harness.cx(&mut out));
}

#[test]
fn taking_a_part_of_what_was_said_while_the_socket_was_full_restarts_the_clock_of_slow_peers() {
    let mut harness = Harness::new(1);
    let (mut connection, mut far) = pair(&mut harness);
    fill(&mut harness, &mut connection);
    let full = connection.session.deadline_ms(&harness.env);
    harness.now.steady_ms = full - 1;
    far.read_exact(&mut [0; 12 * 1024]).expect("it is there");
    let mut scratch = [0; 1_024];
    // It has room for a part of this.
    let mut out = vec![0; 4 * 1024 * 1024];
    let before = out.len();
    let mut cx = harness.cx(&mut out);
    connection.on_ready(&mut cx, WRITABLE);
    assert_eq!(connection.settle(&mut cx, &mut scratch), Verdict::Stay);
    let kept = connection.output.as_ref().map_or(0, |held| held.bytes.len());
    assert!((1..before).contains(&kept), "a part was taken: {kept} of {before} are kept");
    let later = connection.session.deadline_ms(&harness.env);
    assert!(later > full, "{later} ms, and {full} ms before it took anything");
}
