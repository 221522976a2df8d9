//! Connections of HTTP clients: accepted, bounded and closed.
//!
//! A client that asks is served; one that connects and does not ask loses its place to the next one. So neither clients
//! that hang nor clients in great number keep a probe or a person from an answer.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, http::Request, middleware::from_fn_with_state};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Notify,
    task::JoinSet,
};
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt as _;

use crate::http::{
    guard::{Client, Guard, Names, guard},
    held::Held,
    listen::Listener,
    web_config::{Tls, WebConfig},
};

/// Connections at once, of one listener.
const MAX_CONNECTIONS: usize = 128;
/// Connections at once from one address.
const MAX_FROM_ADDRESS: usize = 64;
/// Limit for a request's header, from its first moment: that of the connection, or the end of the answer before.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit for a client that does not read an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause when no connection can be accepted: descriptors or memory are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who may ask.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Names of this machine beside `localhost`, where only this machine reaches the listener.
    pub allowed_hosts: Vec<String>,
    /// TLS and users of TCP listeners. Those of a Unix socket are decided by the rights of its file.
    pub web_config: Option<WebConfig>,
}

/// Serves until `stop` completes, then until the requests under way are answered.
///
/// # Errors
/// When the listener cannot be used.
pub async fn serve(
    listener: Listener,
    router: Router,
    access: Access,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let local = listener.is_local();
    let names = if local { Names::Local(access.allowed_hosts.into()) } else { Names::Any };
    let web_config = access.web_config.filter(|_| matches!(listener, Listener::Tcp(_)));
    let asked = Guard { names, web_config: web_config.clone() };
    let router = router.layer(from_fn_with_state(asked, guard));
    let places = Arc::new(Places::default());
    let stopping = Arc::new(Notify::new());
    let mut tasks = JoinSet::new();
    let mut accept = Accept::new(&listener)?;
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = accept.next() => accepted,
            Some(_) = tasks.join_next() => continue,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Without a place it is closed.
        if let Some(place) = Places::take(&places, from) {
            let stream = protected(stream, web_config.as_ref());
            tasks.spawn(connection(stream, from, router.clone(), place, Arc::clone(&stopping)));
        }
    }
    stopping.notify_waiters();
    while tasks.join_next().await.is_some() {}
    Ok(())
}

trait Stream: AsyncRead + AsyncWrite + Send {}
impl<S: AsyncRead + AsyncWrite + Send> Stream for S {}

enum Accept {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Accept {
    fn new(listener: &Listener) -> io::Result<Self> {
        match listener {
            Listener::Tcp(listener) => TcpListener::from_std(listener.try_clone()?).map(Self::Tcp),
            Listener::Unix(listener, _) => UnixListener::from_std(listener.try_clone()?).map(Self::Unix),
        }
    }

    async fn next(&mut self) -> io::Result<(Pin<Box<dyn Stream>>, Option<IpAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, from) = listener.accept().await?;
                // Small answers must not wait for an acknowledgement; one that does not work is slower, not wrong.
                let _ = stream.set_nodelay(true);
                Ok((Box::pin(stream), Some(from.ip())))
            }
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| (Box::pin(stream) as _, None)),
        }
    }
}

/// The stream under the limit for clients that do not read, inside TLS where that is configured.
fn protected(stream: Pin<Box<dyn Stream>>, web_config: Option<&WebConfig>) -> Pin<Box<dyn Stream>> {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let stream = Box::pin(stream);
    match web_config.and_then(|web| web.current().tls.clone()) {
        Some(tls) => Box::pin(Tls::new(tls, stream)),
        None => stream,
    }
}

async fn connection(
    stream: Pin<Box<dyn Stream>>,
    from: Option<IpAddr>,
    router: Router,
    place: Place,
    stopping: Arc<Notify>,
) {
    let answer = service_fn(|mut request: Request<Incoming>| {
        let (router, asks) = (router.clone(), Asks::begin(&place.requests));
        request.extensions_mut().insert(Client(from));
        async move {
            let response = router.oneshot(request.map(Body::new)).await?;
            Ok::<_, Infallible>(response.map(|body| Held { body, _until_sent: asks }))
        }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let mut served = pin!(server.serve_connection(TokioIo::new(stream), answer));
    // What ends a connection is the client's affair: it hung up, sent no HTTP or asked for nothing in time.
    tokio::select! {
        _ = &mut served => {}
        () = place.close.notified() => {}
        () = stopping.notified() => {
            served.as_mut().graceful_shutdown();
            let _ = served.await;
        }
    }
}

/// The connections of one listener.
#[derive(Default)]
struct Places {
    /// By number, so the oldest first.
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    next: u64,
    by_number: BTreeMap<u64, Holder>,
}

struct Holder {
    from: Option<IpAddr>,
    requests: Arc<AtomicUsize>,
    close: Arc<Notify>,
}

/// A connection's place, free again when dropped.
struct Place {
    number: u64,
    requests: Arc<AtomicUsize>,
    close: Arc<Notify>,
    places: Arc<Places>,
}

impl Places {
    /// A place for a connection from this address. Where all are taken, the oldest connection on which no request is under
    /// way is closed for it; `None` when there is none.
    fn take(places: &Arc<Self>, from: Option<IpAddr>) -> Option<Place> {
        let mut taken = places.lock();
        let same = |holder: &Holder| from.is_some() && holder.from == from;
        let of_address = taken.by_number.values().filter(|holder| same(holder)).count();
        let full = of_address >= MAX_FROM_ADDRESS;
        if full || taken.by_number.len() >= MAX_CONNECTIONS {
            let idle = |holder: &Holder| holder.requests.load(Ordering::Relaxed) == 0;
            let oldest = taken.by_number.iter().find(|(_, holder)| idle(holder) && (!full || same(holder)));
            let oldest = *oldest?.0;
            // Its task may not have run yet: the notification is kept for it.
            taken.by_number.remove(&oldest)?.close.notify_one();
        }
        let number = taken.next;
        taken.next += 1;
        let (requests, close) = (Arc::default(), Arc::new(Notify::new()));
        let holder = Holder { from, requests: Arc::clone(&requests), close: Arc::clone(&close) };
        taken.by_number.insert(number, holder);
        drop(taken);
        Some(Place { number, requests, close, places: Arc::clone(places) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Taken> {
        // Nothing panics while it is held.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().by_number.remove(&self.number);
    }
}

/// A request under way, from its header to the last byte of the answer.
struct Asks(Arc<AtomicUsize>);

impl Asks {
    fn begin(requests: &Arc<AtomicUsize>) -> Self {
        requests.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(requests))
    }
}

impl Drop for Asks {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(last: usize) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, u8::try_from(last).unwrap()).into()
    }

    fn is_closed(place: &Place) -> bool {
        futures_util::FutureExt::now_or_never(place.close.notified()).is_some()
    }

    #[test]
    fn the_oldest_connection_that_asks_nothing_gives_its_place_to_the_next() {
        let places = Arc::new(Places::default());
        let held: Vec<_> =
            (0..MAX_CONNECTIONS).map(|n| Places::take(&places, Some(address(n % 4))).unwrap()).collect();
        let asks = Asks::begin(&held[0].requests);
        let next = Places::take(&places, Some(address(9))).unwrap();
        assert_eq!(held.iter().position(is_closed), Some(1));
        assert!(!is_closed(&next));
        drop(asks);
        let _another = Places::take(&places, Some(address(9))).unwrap();
        assert_eq!(held.iter().position(is_closed), Some(0));
    }

    #[test]
    fn one_address_closes_its_own_connections_and_where_all_ask_none() {
        let places = Arc::new(Places::default());
        let other = Places::take(&places, Some(address(1))).unwrap();
        let held: Vec<_> =
            (0..MAX_FROM_ADDRESS).map(|_| Places::take(&places, Some(address(2))).unwrap()).collect();
        let next = Places::take(&places, Some(address(2))).unwrap();
        assert_eq!((held.iter().position(is_closed), is_closed(&other)), (Some(0), false));
        let asks: Vec<_> = held.iter().chain([&next]).map(|place| Asks::begin(&place.requests)).collect();
        assert!(Places::take(&places, Some(address(2))).is_none());
        drop((asks, held));
        assert!(Places::take(&places, Some(address(2))).is_some());
    }
}
