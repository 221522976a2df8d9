//! Connections whose server closes them while they are idle, and over which the client sends afterwards, or not.

use tcpwatch::events::decode::IdleRecord;

use crate::scenario::*;

/// The kernel's errno of a reset in CLOSE_WAIT (EPIPE).
const EPIPE: u8 = 32;

/// A connection from 10.0.0.1 to 10.0.0.2:80.
#[derive(Clone, Copy)]
pub(crate) struct Pooled {
    /// The client's port.
    pub(crate) port: u16,
    pub(crate) idle_ms: u32,
    /// When the server closes.
    pub(crate) closed_ns: u64,
    /// From there to the request.
    pub(crate) delay_ms: u64,
    /// Of the request.
    pub(crate) bytes: u64,
}

impl Pooled {
    pub(crate) fn client(self) -> Socket {
        Socket::new(self.port.into(), NETNS, end("10.0.0.1", self.port), end("10.0.0.2", 80), HELD)
    }

    fn server(self, flags: u8) -> Socket {
        let cookie = 100_000 + u64::from(self.port);
        Socket::new(cookie, NETNS, end("10.0.0.2", 80), end("10.0.0.1", self.port), PASSIVE | flags)
    }

    fn opened_ns(self) -> u64 {
        self.closed_ns - u64::from(self.idle_ms) * 1_000_000 - SECOND
    }

    fn met_ns(self) -> u64 {
        self.closed_ns + self.delay_ms * 1_000_000
    }

    fn idle(self, world: &mut World, cookie: u64, ticks: (u32, u32)) {
        let (sent_ticks, received_ticks) = ticks;
        let record = IdleRecord { cookie, time_ns: self.closed_ns, sent_ticks, received_ticks };
        world.tracker.apply(&Record::Idle(record));
    }

    /// At the client: the server's close.
    fn closed_by_server(self, world: &mut World, farewell: bool) {
        world.report(self.opened_ns(), self.client(), to(Close, SynSent, CURL));
        world.report(self.opened_ns(), self.client(), to(SynSent, Established, 0));
        let received = if farewell { 0 } else { self.idle_ms };
        self.idle(world, self.port.into(), (self.idle_ms, received));
        let what = to(Established, CloseWait, 0);
        world.report_with_traffic(self.closed_ns, self.client(), what, (100, 100));
    }

    /// The client sends afterwards.
    pub(crate) fn client_meets_close(self, world: &mut World) {
        self.closed_by_server(world, false);
        world.report_reset(received_reset(self.met_ns(), self.client(), CloseWait));
        let sent = 100 + self.bytes;
        world.report_with_traffic(self.met_ns(), self.client(), ended(CloseWait, EPIPE), (sent, 100));
    }

    /// The client has sent before the close came.
    pub(crate) fn client_has_sent(self, world: &mut World) {
        self.closed_by_server(world, false);
        let unacknowledged = u32::try_from(self.bytes).unwrap();
        let reset = received_reset(self.met_ns(), self.client(), CloseWait);
        world.report_reset(ResetRecord { unacknowledged, ..reset });
        let traffic = (100 + self.bytes, 100);
        world.report_with_traffic(self.met_ns(), self.client(), ended(CloseWait, EPIPE), traffic);
    }

    /// The client closes, and has sent nothing.
    pub(crate) fn client_closes(self, world: &mut World, farewell: bool) {
        self.closed_by_server(world, farewell);
        let at_ns = self.met_ns();
        world.report_with_traffic(at_ns, self.client(), to(CloseWait, LastAck, CURL), (100, 100));
        world.report_with_traffic(at_ns, self.client(), ended(LastAck, 0), (100, 100));
    }

    /// The client closes first.
    pub(crate) fn client_closes_first(self, world: &mut World) {
        world.report(self.opened_ns(), self.client(), to(Close, SynSent, CURL));
        world.report(self.opened_ns(), self.client(), to(SynSent, Established, 0));
        self.idle(world, self.port.into(), (self.idle_ms, self.idle_ms));
        world.report_with_traffic(self.closed_ns, self.client(), to(Established, FinWait1, CURL), (100, 100));
        world.report(self.closed_ns, self.client(), to(FinWait1, FinWait2, 0));
        let client = self.client();
        let orphan = Socket::new(client.cookie, NETNS, client.local, client.remote, ORPHAN | FIN);
        world.report(self.closed_ns, orphan, ended(FinWait2, 0));
    }

    /// At the server: data comes after its close.
    pub(crate) fn server_gets_data(self, world: &mut World) {
        let held = self.server(HELD);
        world.report(self.opened_ns(), held, to(SynRecv, Established, 0));
        world.report(self.opened_ns(), held, What::Accept { state: Established, pid: Some(NGINX) });
        self.idle(world, held.cookie, (self.idle_ms, self.idle_ms));
        world.report_with_traffic(self.closed_ns, held, to(Established, FinWait1, NGINX), (100, 100));
        world.report(self.closed_ns, self.server(ORPHAN), to(FinWait1, FinWait2, 0));
        world.report(self.closed_ns, self.server(ORPHAN), ended(FinWait2, 0));
        let minisock = reset(self.met_ns(), self.server(MINISOCK), FinWait2);
        world.report_reset(ResetRecord { answers: true, ..minisock });
    }
}
