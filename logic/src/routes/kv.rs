//! The routes over an ordered key-value engine: one row per user, one row per gateway boot.
//!
//! A route names a lease, not a boot: when a boot's lease ends and begins again it gets another number, so that routes
//! of the ended one never come back to life. Rows of dead leases are dropped when their user is next written.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

use super::{
    Connection, Connections, DEVICES, GatewayKey, LATE_MS, Opened, Opening, Route, Routes, RoutesError,
};
use crate::kv::{Batch, Direction, Durability, Key, Kv, KvError, Space, Txn, decode, last_number};

/// Session epochs reserved by one durable write: a restart skips at most these.
const EPOCHS: u64 = 10_000;

/// For how long an ended lease is remembered, so that its boot is told to announce its sessions again: 7 days, in
/// milliseconds. A gateway that was cut off for longer is started again by then.
const REMEMBER_MS: i64 = 7 * 24 * 60 * 60 * 1000;

const COUNTER: &[u8] = b"c";

/// Routes over a [`Kv`].
pub struct KvRoutes {
    kv: Arc<dyn Kv>,
    space: Space,
    lease_ms: i64,
    devices: usize,
    table: Mutex<Table>,
}

struct Table {
    leases: HashMap<GatewayKey, Lease>,
    /// Leases that have not ended, by number.
    alive: HashMap<u64, GatewayKey>,
    next: u64,
    reserved: u64,
}

struct Lease {
    number: u64,
    expires_at_ms: i64,
    ended: bool,
    /// It ended before; the boot has yet to announce its sessions again.
    forgotten: bool,
    /// Another boot of the gateway attached since: what of this one still comes is late, while that one lives.
    superseded: bool,
    /// The operator was told that two processes share the id.
    warned: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LeaseRow {
    #[prost(string, tag = "1")]
    gateway: String,
    #[prost(fixed64, tag = "2")]
    boot: u64,
    #[prost(uint64, tag = "3")]
    number: u64,
    /// 0: it has not.
    #[prost(int64, tag = "4")]
    ended_at_ms: i64,
    #[prost(bool, tag = "5")]
    forgotten: bool,
    #[prost(bool, tag = "6")]
    superseded: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct UserRow {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<DeviceRow>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DeviceRow {
    #[prost(string, tag = "1")]
    device: String,
    #[prost(string, tag = "2")]
    platform: String,
    #[prost(uint64, tag = "3")]
    lease: u64,
    #[prost(fixed64, tag = "4")]
    handle: u64,
    #[prost(uint64, tag = "5")]
    epoch: u64,
    /// When its client said hello; 0: not known.
    #[prost(int64, tag = "6")]
    said_ms: i64,
    /// As in [`Route`].
    #[prost(int64, tag = "7")]
    auth_issued_at_ms: i64,
}

/// A [`UserRow`] of which only the places are read: the rest is passed over.
#[derive(Clone, PartialEq, prost::Message)]
struct PlacesRow {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<PlaceRow>,
}

/// The place of a [`DeviceRow`].
#[derive(Clone, PartialEq, prost::Message)]
struct PlaceRow {
    #[prost(uint64, tag = "3")]
    lease: u64,
    #[prost(fixed64, tag = "4")]
    handle: u64,
}

impl KvRoutes {
    /// Opens what `space` of the engine holds. Leases that had not ended run for one whole lease from now: they could
    /// not be renewed while this was away.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn open(kv: Arc<dyn Kv>, space: Space, lease_ms: i64, now_ms: i64) -> Result<Self, RoutesError> {
        let mut rows = Vec::new();
        let reserved = {
            let view = kv.view();
            let all = Key::new(b'b');
            view.scan(space, all.bytes(), &all.after_prefix(), Direction::Forward, &mut |_, value| {
                rows.push(<LeaseRow as prost::Message>::decode(value));
                ControlFlow::Continue(())
            })?;
            view.get(space, COUNTER)?.map_or(0, |bytes| last_number(&bytes))
        };
        let mut table = Table { leases: HashMap::new(), alive: HashMap::new(), next: reserved + 1, reserved };
        let mut batch = Batch::default();
        for row in rows {
            let row = row.map_err(|e| KvError { action: "decode a lease", detail: e.to_string() })?;
            let key = GatewayKey { id: row.gateway, boot: row.boot };
            if row.ended_at_ms > 0 && row.ended_at_ms + REMEMBER_MS < now_ms {
                batch.remove(space, lease_key(&key));
                continue;
            }
            let ended = row.ended_at_ms > 0;
            if !ended {
                table.alive.insert(row.number, key.clone());
            }
            let LeaseRow { number, forgotten, superseded, .. } = row;
            let expires_at_ms = now_ms + lease_ms;
            let lease = Lease { number, expires_at_ms, ended, forgotten, superseded, warned: false };
            table.leases.insert(key, lease);
        }
        if !batch.is_empty() {
            kv.write(batch, Durability::Buffered)?;
        }
        Ok(Self { kv, space, lease_ms, devices: DEVICES, table: Mutex::new(table) })
    }

    /// With another number of devices that a user may have connected at a time than [`DEVICES`].
    #[must_use]
    pub fn with_devices(self, devices: usize) -> Self {
        Self { devices, ..self }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next number for a session or a lease; reserves more, durably, before it gives one that is not reserved.
    fn number(&self, table: &mut Table, at_least: u64) -> Result<u64, KvError> {
        table.next = table.next.max(at_least);
        if table.next > table.reserved {
            let reserved = table.next + EPOCHS;
            let mut batch = Batch::default();
            batch.put(self.space, COUNTER, reserved.to_be_bytes().to_vec());
            self.kv.write(batch, Durability::Synced)?;
            table.reserved = reserved;
        }
        let number = table.next;
        table.next += 1;
        Ok(number)
    }

    /// The number of a boot's lease, begun if it has none, or none any more. Nothing: it is over for good.
    fn lease(&self, table: &mut Table, gateway: &GatewayKey, now_ms: i64) -> Result<Option<u64>, KvError> {
        let known = table.leases.get(gateway);
        if let Some(lease) = known.filter(|lease| lease.superseded || !lease.ended) {
            return Ok((!lease.superseded).then_some(lease.number));
        }
        let forgotten = known.is_some();
        let number = self.number(table, 0)?;
        let expires_at_ms = now_ms + self.lease_ms;
        let (ended, superseded, warned) = (false, false, false);
        let lease = Lease { number, expires_at_ms, ended, forgotten, superseded, warned };
        let mut batch = Batch::default();
        self.put_lease(&mut batch, gateway, &lease, 0);
        self.kv.write(batch, Durability::Buffered)?;
        table.alive.insert(number, gateway.clone());
        table.leases.insert(gateway.clone(), lease);
        Ok(Some(number))
    }

    /// The boot is the one process of its gateway's id: the leases of all others end, its own begins or goes on.
    fn take_over(&self, table: &mut Table, gateway: &GatewayKey, now_ms: i64) -> Result<(), KvError> {
        self.end(table, now_ms, true, |key, _| key.id == gateway.id && key.boot != gateway.boot)?;
        if let Some(lease) = table.leases.get_mut(gateway) {
            (lease.superseded, lease.warned) = (false, false);
        }
        self.lease(table, gateway, now_ms).map(drop)
    }

    fn put_lease(&self, batch: &mut Batch, gateway: &GatewayKey, lease: &Lease, ended_at_ms: i64) {
        let row = LeaseRow {
            gateway: gateway.id.clone(),
            boot: gateway.boot,
            number: lease.number,
            ended_at_ms,
            forgotten: lease.forgotten,
            superseded: lease.superseded,
        };
        batch.put(self.space, lease_key(gateway), prost::Message::encode_to_vec(&row));
    }

    /// Ends the leases that `over` picks, `superseded` or until their boots are heard of again: one step for all their routes.
    fn end(
        &self,
        table: &mut Table,
        now_ms: i64,
        superseded: bool,
        over: impl Fn(&GatewayKey, &Lease) -> bool,
    ) -> Result<Vec<GatewayKey>, KvError> {
        let mut ended = Vec::new();
        let mut batch = Batch::default();
        for (key, lease) in &mut table.leases {
            let changes = !lease.ended || (superseded && !lease.superseded);
            if changes && over(key, lease) {
                lease.ended = true;
                lease.superseded |= superseded;
                table.alive.remove(&lease.number);
                self.put_lease(&mut batch, key, lease, now_ms.max(1));
                ended.push(key.clone());
            }
        }
        if !batch.is_empty() {
            self.kv.write(batch, Durability::Buffered)?;
        }
        Ok(ended)
    }

    /// Whether the boot has yet to announce its sessions again.
    fn set_forgotten(&self, table: &mut Table, gateway: &GatewayKey, forgotten: bool) -> Result<(), KvError> {
        let Some(lease) = table.leases.get_mut(gateway).filter(|lease| lease.forgotten != forgotten) else {
            return Ok(());
        };
        lease.forgotten = forgotten;
        let mut batch = Batch::default();
        self.put_lease(&mut batch, gateway, lease, 0);
        self.kv.write(batch, Durability::Buffered)
    }

    fn open_one(
        &self,
        txn: &mut Txn<'_>,
        table: &mut Table,
        opening: Opening,
        lease: u64,
        now_ms: i64,
    ) -> Result<Opened, KvError> {
        let key = user_key(&opening.user);
        let mut row: UserRow = txn.message(self.space, key.bytes())?.unwrap_or_default();
        row.devices.retain(|device| table.alive.contains_key(&device.lease));
        let place = row.devices.iter().position(|device| device.device == opening.device);
        let epoch = match (opening.announced, place) {
            (0, None) if row.devices.len() >= self.devices => {
                return Ok(Opened::TooManyDevices(self.devices));
            }
            (0, Some(place)) if overtaken(&opening, &row.devices[place], now_ms) => return Ok(Opened::Stale),
            (0, _) => self.number(table, 0)?,
            (announced, Some(place)) if row.devices[place].epoch > announced => return Ok(Opened::Stale),
            (announced, _) => {
                // Later epochs stay above it even if this table never gave it.
                table.next = table.next.max(announced + 1);
                announced
            }
        };
        let old = place.map(|place| row.devices.swap_remove(place));
        let known_ms = old.as_ref().filter(|old| old.epoch == epoch).map_or(0, |old| old.said_ms);
        // The same connection opened again (its answer was lost) or announced again replaces nobody.
        let old = old.filter(|old| old.epoch != epoch && (old.lease, old.handle) != (lease, opening.handle));
        row.devices.push(DeviceRow {
            device: opening.device,
            platform: opening.platform,
            lease,
            handle: opening.handle,
            epoch,
            said_ms: if opening.said_ms > 0 { opening.said_ms } else { known_ms },
            auth_issued_at_ms: opening.auth_issued_at_ms,
        });
        txn.put_message(self.space, key, &row);
        Ok(Opened::Registered { epoch, replaced: old.and_then(|old| route(&table.alive, old)) })
    }
}

#[async_trait]
impl Routes for KvRoutes {
    async fn attach(&self, gateway: &GatewayKey, now_ms: i64) -> Result<(), RoutesError> {
        // Whoever attaches is alive, though a later boot may have been there.
        self.take_over(&mut self.table(), gateway, now_ms)?;
        Ok(())
    }

    async fn register(&self, openings: Vec<Opening>, now_ms: i64) -> Result<Vec<Opened>, RoutesError> {
        let mut table = self.table();
        // Before the transaction: a thread does not write while it holds a view.
        let leases: Vec<Option<u64>> = openings
            .iter()
            .map(|opening| self.lease(&mut table, &opening.gateway, now_ms))
            .collect::<Result<_, _>>()?;
        let announced = openings.iter().map(|opening| opening.announced).max().unwrap_or(0);
        let needed = table.next.max(announced + 1) + openings.len() as u64;
        if needed > table.reserved {
            let next = table.next;
            self.number(&mut table, needed)?;
            table.next = next;
        }
        for (announced, lease) in openings.iter().zip(&leases) {
            if announced.announced != 0 && lease.is_some() {
                self.set_forgotten(&mut table, &announced.gateway, false)?;
            }
        }
        let mut txn = Txn::begin(&*self.kv);
        let opened = openings
            .into_iter()
            .zip(leases)
            .map(|(opening, lease)| match lease {
                Some(lease) => self.open_one(&mut txn, &mut table, opening, lease, now_ms),
                None => Ok(Opened::Superseded),
            })
            .collect::<Result<_, _>>()?;
        txn.commit(Durability::Buffered)?;
        Ok(opened)
    }

    async fn close(&self, user: &str, device: &str, epoch: u64) -> Result<bool, RoutesError> {
        let table = self.table();
        let mut txn = Txn::begin(&*self.kv);
        let key = user_key(user);
        let Some(mut row) = txn.message::<UserRow>(self.space, key.bytes())? else { return Ok(false) };
        let before = row.devices.len();
        row.devices.retain(|route| route.device != device || route.epoch > epoch);
        let closed = row.devices.len() < before;
        row.devices.retain(|route| table.alive.contains_key(&route.lease));
        if row.devices.is_empty() {
            txn.remove(self.space, key);
        } else if row.devices.len() < before {
            txn.put_message(self.space, key, &row);
        }
        txn.commit(Durability::Buffered)?;
        Ok(closed)
    }

    async fn lookup(&self, users: &[String]) -> Result<Vec<Vec<Route>>, RoutesError> {
        let rows: Vec<UserRow> = {
            let view = self.kv.view();
            let row = |user: &String| match view.get(self.space, user_key(user).bytes())? {
                Some(bytes) => decode(bytes),
                None => Ok(UserRow::default()),
            };
            users.iter().map(row).collect::<Result<_, KvError>>()?
        };
        let table = self.table();
        let live =
            |row: UserRow| row.devices.into_iter().filter_map(|row| route(&table.alive, row)).collect();
        Ok(rows.into_iter().map(live).collect())
    }

    async fn locate(&self, users: &[&str]) -> Result<Connections, RoutesError> {
        let mut found: Vec<(usize, PlaceRow)> = Vec::with_capacity(users.len());
        {
            let view = self.kv.view();
            let (mut row, mut key) = (PlacesRow::default(), Key::new(b'r'));
            for (user, id) in users.iter().enumerate() {
                key.set(b'r', id);
                let Some(bytes) = view.get(self.space, key.bytes())? else { continue };
                prost::Message::clear(&mut row);
                prost::Message::merge(&mut row, bytes)
                    .map_err(|e| KvError { action: KvError::DECODE, detail: e.to_string() })?;
                found.extend(row.devices.drain(..).map(|place| (user, place)));
            }
        }
        let table = self.table();
        let mut all = Connections { gateways: Vec::new(), connections: Vec::with_capacity(found.len()) };
        // Which of the gateways a lease is of: a handful of them, and neighbours often share one.
        let mut leases: Vec<(u64, Option<usize>)> = Vec::new();
        for (user, place) in found {
            let gateway = match leases.iter().find(|(lease, _)| *lease == place.lease) {
                Some((_, gateway)) => *gateway,
                None => {
                    let gateway = table.alive.get(&place.lease).map(|key| {
                        all.gateways.push(key.clone());
                        all.gateways.len() - 1
                    });
                    leases.push((place.lease, gateway));
                    gateway
                }
            };
            if let Some(gateway) = gateway {
                all.connections.push(Connection { user, gateway, handle: place.handle });
            }
        }
        Ok(all)
    }

    async fn renew(&self, gateway: &GatewayKey, sessions: u64, now_ms: i64) -> Result<bool, RoutesError> {
        let mut table = self.table();
        let unknown = !table.leases.contains_key(gateway);
        if table.leases.get(gateway).is_some_and(|lease| lease.superseded) {
            match table.alive.values().find(|other| other.id == gateway.id) {
                // The boot that took its place is gone, and this one still serves.
                None => self.take_over(&mut table, gateway, now_ms)?,
                Some(other) => {
                    let other = other.boot;
                    warn_once(&mut table, gateway, other);
                }
            }
        }
        if self.lease(&mut table, gateway, now_ms)?.is_none() {
            return Ok(false);
        }
        let Some(lease) = table.leases.get_mut(gateway) else { return Ok(unknown) };
        lease.expires_at_ms = now_ms + self.lease_ms;
        let forgotten = sessions > 0 && (lease.forgotten || unknown);
        self.set_forgotten(&mut table, gateway, forgotten)?;
        Ok(forgotten)
    }

    async fn expire(&self, now_ms: i64) -> Result<Vec<GatewayKey>, RoutesError> {
        let mut table = self.table();
        self.end(&mut table, now_ms, false, |_, lease| lease.expires_at_ms <= now_ms)
            .map_err(RoutesError::from)
    }
}

/// Tells the operator that a process serves nobody, since another one has its id.
fn warn_once(table: &mut Table, gateway: &GatewayKey, other: u64) {
    if let Some(lease) = table.leases.get_mut(gateway).filter(|lease| !lease.warned) {
        lease.warned = true;
        tracing::warn!(
            gateway = gateway.id,
            boot = gateway.boot,
            other,
            "two processes have one gateway id: the boot that attached last serves until its lease ends; stop one"
        );
    }
}

/// Whether a late opening was overtaken by the session that is there. A time that is still to come is of a clock that went
/// back while nothing ran: it tells nothing.
fn overtaken(late: &Opening, there: &DeviceRow, now_ms: i64) -> bool {
    let is_late = late.said_ms > 0 && now_ms - late.said_ms > LATE_MS;
    is_late && late.said_ms < there.said_ms && there.said_ms <= now_ms
}

fn user_key(user: &str) -> Key {
    Key::new(b'r').text(user)
}

fn lease_key(gateway: &GatewayKey) -> Key {
    Key::new(b'b').text(&gateway.id).number(gateway.boot)
}

fn route(alive: &HashMap<u64, GatewayKey>, row: DeviceRow) -> Option<Route> {
    let gateway = alive.get(&row.lease)?.clone();
    let DeviceRow { device, platform, handle, epoch, auth_issued_at_ms, .. } = row;
    Some(Route { device, platform, gateway, handle, epoch, auth_issued_at_ms })
}
