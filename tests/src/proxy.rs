//! A network between two processes that can be cut: while it is, nothing is accepted, nothing is forwarded, and nobody is
//! told (no FIN, no RST). Healed, what was held back goes on its way, as after a partition that TCP outlived. Or one that breaks some of
//! its connections at their hello.

use std::{
    net::{Ipv4Addr, SocketAddr},
    thread::JoinHandle,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// Read at once.
const CHUNK: usize = 64 * 1024;

/// A listening port from which everything goes to one address, while the network is whole.
pub struct Proxy {
    address: SocketAddr,
    /// None: it ends.
    whole: watch::Sender<Option<bool>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts one, on a thread of its own: a test that blocks does not stop the network.
    ///
    /// # Errors
    /// When there is no port or no thread to be had.
    pub fn start(target: SocketAddr) -> anyhow::Result<Self> {
        Self::breaking(target, 0)
    }

    /// One that breaks each `every`th connection of a client at its hello, while it is whole; 0: none.
    ///
    /// # Errors
    /// As [`Proxy::start`].
    pub fn breaking(target: SocketAddr, every: usize) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (whole, mut watched) = watch::channel(Some(true));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("proxy".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).expect("it is not blocking");
                let mut ended = watched.clone();
                tokio::select! {
                    () = serve(listener, target, every, &mut watched) => {}
                    _ = ended.wait_for(Option::is_none) => {}
                }
            });
        })?;
        Ok(Self { address, whole, thread: Some(thread) })
    }

    /// Where to connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on nothing passes.
    pub fn cut(&self) {
        self.whole.send_replace(Some(false));
    }

    /// From now on everything passes again.
    pub fn heal(&self) {
        self.whole.send_replace(Some(true));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.whole.send_replace(None);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the proxy does not panic");
        }
    }
}

type Whole = watch::Receiver<Option<bool>>;

async fn is_whole(whole: &mut Whole) {
    // An error means that the proxy ends, and this task with it.
    let _ = whole.wait_for(|whole| *whole == Some(true)).await;
}

async fn serve(listener: TcpListener, target: SocketAddr, every: usize, whole: &mut Whole) {
    let mut pipes = JoinSet::new();
    for number in 1_usize.. {
        is_whole(whole).await;
        let accepted = tokio::select! {
            biased;
            _ = whole.changed() => continue,
            accepted = listener.accept() => accepted,
        };
        let Ok((near, _)) = accepted else { continue };
        let whole = whole.clone();
        let breaks = every > 0 && number.is_multiple_of(every);
        pipes.spawn(async move {
            // Dropped, the connection is refused as the target refuses it.
            let Ok(far) = TcpStream::connect(target).await else { return };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            if breaks {
                // Whatever fails now is broken as well.
                let _ = break_at_hello(near, far).await;
                return;
            }
            let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
            tokio::join!(
                pump(near_read, far_write, whole.clone()),
                pump(far_read, near_write, whole.clone())
            );
        });
        while pipes.try_join_next().is_some() {}
    }
}

/// Carries what comes before the hello, and ends both sides: a WebSocket's upgrade, or the head of a TCP client's first frame.
async fn break_at_hello(mut near: TcpStream, mut far: TcpStream) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let read = near.read(&mut chunk).await?;
    if !chunk[..read].starts_with(b"GET ") {
        return far.write_all(&chunk[..read.min(4)]).await;
    }
    far.write_all(&chunk[..read]).await?;
    let answer = far.read(&mut chunk).await?;
    near.write_all(&chunk[..answer]).await?;
    near.read(&mut chunk).await.map(|_hello| ())
}

/// Carries bytes one way until their end.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut whole: Whole) {
    let mut chunk = vec![0; CHUNK];
    loop {
        is_whole(&mut whole).await;
        let read = tokio::select! {
            biased;
            _ = whole.changed() => continue,
            read = from.read(&mut chunk) => read,
        };
        // An end, or a reset, does not pass a cut network either.
        is_whole(&mut whole).await;
        let Ok(read @ 1..) = read else { break };
        if to.write_all(&chunk[..read]).await.is_err() {
            break;
        }
    }
    // Who is gone needs no end.
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wait;

    #[tokio::test]
    async fn nothing_passes_a_cut_and_nothing_is_lost_by_it() -> crate::TestResult {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let proxy = Proxy::start(listener.local_addr()?)?;
        let mut near = TcpStream::connect(proxy.address()).await?;
        let (mut far, _) = wait::within("accept", listener.accept()).await??;
        near.write_all(b"a").await?;
        ensure_next(&mut far, b'a').await?;

        proxy.cut();
        near.write_all(b"b").await?;
        let mut byte = [0];
        let silence = tokio::time::timeout(Duration::from_millis(200), far.read(&mut byte)).await;
        anyhow::ensure!(silence.is_err(), "a byte, or an end, passed");
        let _late = TcpStream::connect(proxy.address()).await?;
        let silence = tokio::time::timeout(Duration::from_millis(200), listener.accept()).await;
        anyhow::ensure!(silence.is_err(), "a connection passed");

        proxy.heal();
        ensure_next(&mut far, b'b').await?;
        wait::within("the late one", listener.accept()).await??;
        drop(near);
        anyhow::ensure!(wait::within("the end", far.read(&mut byte)).await?? == 0);
        Ok(())
    }

    #[tokio::test]
    async fn one_of_so_many_is_broken_at_its_hello() -> crate::TestResult {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let proxy = Proxy::breaking(listener.local_addr()?, 2)?;
        for (first, passes) in [("hello", "hello"), ("hello", "hell"), ("hello", "hello")] {
            let mut near = TcpStream::connect(proxy.address()).await?;
            let (mut far, _) = wait::within("accept", listener.accept()).await??;
            near.write_all(first.as_bytes()).await?;
            let mut passed = vec![0; passes.len()];
            wait::within("what passes", far.read_exact(&mut passed)).await??;
            anyhow::ensure!(passed == passes.as_bytes(), "{passed:?}");
            if passes.len() < first.len() {
                let ended = wait::within("the end", far.read(&mut passed)).await?;
                anyhow::ensure!(!matches!(ended, Ok(1..)), "{ended:?}");
            }
        }
        Ok(())
    }

    async fn ensure_next(stream: &mut TcpStream, expected: u8) -> crate::TestResult {
        let byte = wait::within("a byte", stream.read_u8()).await??;
        anyhow::ensure!(byte == expected);
        Ok(())
    }
}
