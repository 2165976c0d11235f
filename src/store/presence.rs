//! Presence: the leases of gateways, and the devices with a session on each of them. Advisory.

use serde::Serialize;
use sqlx::FromRow;
use time::OffsetDateTime;
use time::serde::rfc3339;
use uuid::Uuid;

use super::StoreError;
use super::cursors::CursorKey;
use super::pool::Pool;
use crate::model::feed::Feed;
use crate::model::protocol::DeviceState;

/// Time for which sessions count after the last renewal of the lease of their gateway.
const LEASE: &str = "30 seconds";
/// Age of a lease that has ended, after which its rows are deleted. A statement that found the lease
/// valid has ended by then.
const DEAD_AFTER: &str = "1 minute";
/// The time of an ack or a note that is not older is precise enough as the time when a device was seen.
const SEEN_WITHIN: &str = "10 seconds";
/// Most rows of dead gateways that one statement deletes.
const DEAD_PER_STEP: i64 = 500;
/// Most devices in the presence of a feed.
pub const DEVICES_MAX: i64 = 200;
/// Most cursors of a feed that are read for it.
const CURSORS_READ_MAX: i64 = 1_000;

/// The state of a device, and the time of its report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stated {
    /// The state.
    pub state: DeviceState,
    /// The time, by the clock of the gateway that received it.
    pub at: OffsetDateTime,
}

/// A device with sessions on one gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    /// The device, and the feed that it reads.
    pub key: CursorKey,
    /// Number of its sessions.
    pub sessions: i32,
    /// The begin of the oldest one.
    pub connected_at: OffsetDateTime,
    /// The last state that it reported here.
    pub stated: Option<Stated>,
}

/// The presence of a feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FeedPresence {
    /// The feed.
    pub feed: Feed,
    /// Whether it has a session.
    pub online: bool,
    /// Number of its sessions.
    pub sessions: i64,
    /// Its devices: those with a session first, then those that were seen last.
    pub devices: Vec<DevicePresence>,
}

/// The presence of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
pub struct DevicePresence {
    /// The subscriber.
    pub subscriber: String,
    /// The device; empty for all devices without a name.
    pub device: String,
    /// Whether it has a session.
    pub online: bool,
    /// Number of its sessions.
    pub sessions: i64,
    /// Begin of the oldest one.
    #[serde(with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub connected_at: Option<OffsetDateTime>,
    /// The time at which it was connected the last time.
    #[serde(with = "rfc3339")]
    pub last_seen: OffsetDateTime,
    /// Its last report, if it has a session and reported one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_ring: Option<String>,
    /// The same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub visible: Option<bool>,
    /// Number of all sessions of the feed.
    #[serde(skip)]
    pub sessions_of_feed: i64,
}

/// Begins a lease of a new gateway.
pub async fn begin_lease(pool: &Pool, gateway: Uuid) -> Result<(), StoreError> {
    let query = sqlx::query(
        "insert into gateways (gateway_id, leased_until) values ($1, now() + $2::interval)
         on conflict (gateway_id) do nothing",
    );
    super::execute(pool, query.bind(gateway).bind(LEASE)).await
}

/// Renews a lease; returns false if it has ended. Locks the row of the gateway.
pub async fn renew_lease(pool: &Pool, gateway: Uuid) -> Result<bool, StoreError> {
    let query = sqlx::query(
        "update gateways set leased_until = now() + $2::interval
         where gateway_id = $1 and leased_until > now() returning true",
    );
    let renewed: Vec<(bool,)> = super::fetch(pool, query.bind(gateway).bind(LEASE)).await?;
    Ok(!renewed.is_empty())
}

/// Ends a lease. Locks the row of the gateway.
pub async fn end_lease(pool: &Pool, gateway: Uuid) -> Result<(), StoreError> {
    let query = sqlx::query(
        "update gateways set leased_until = now() where gateway_id = $1 and leased_until > now()",
    );
    super::execute(pool, query.bind(gateway)).await
}

/// Stores devices with sessions on a gateway, in the order of their keys. Stores nothing and returns
/// false if the lease has ended. A state that another gateway received later stays.
///
/// Locks the rows in C order; uses `presences_pkey`.
pub async fn put(pool: &Pool, gateway: Uuid, devices: &[Present]) -> Result<bool, StoreError> {
    let query = sqlx::query(
        "with lease as materialized (select gateway_id from gateways where gateway_id = $1 and leased_until > now()),
         put as (
             insert into presences as p (feed, subscriber, device, gateway_id, sessions, connected_at, can_ring, visible, stated_at)
             select w.feed, w.subscriber, w.device, l.gateway_id, w.sessions, w.connected_at, w.can_ring, w.visible, w.stated_at
             from lease l
             cross join unnest($2::text[], $3::text[], $4::text[], $5::integer[], $6::timestamptz[], $7::text[], $8::boolean[],
                               $9::timestamptz[])
                 as w (feed, subscriber, device, sessions, connected_at, can_ring, visible, stated_at)
             order by w.feed collate \"C\", w.subscriber collate \"C\", w.device collate \"C\"
             on conflict (feed, subscriber, device, gateway_id) do update
                 set sessions = excluded.sessions, connected_at = excluded.connected_at,
                     (can_ring, visible, stated_at) = (
                         select s.can_ring, s.visible, s.stated_at
                         from (values (excluded.can_ring, excluded.visible, excluded.stated_at), (p.can_ring, p.visible, p.stated_at))
                             s (can_ring, visible, stated_at)
                         order by s.stated_at desc nulls last limit 1))
         select exists (select from lease)",
    );
    let keys = Keys::of(devices.iter().map(|device| &device.key));
    let state = |device: &Present| device.stated.map(|stated| stated.state);
    let can_ring = |device| state(device).map(|state| state.can_ring.as_str());
    let visible = |device| state(device).and_then(|state| state.visible);
    let stated_at = |device: &Present| device.stated.map(|stated| stated.at);
    let query = query
        .bind(gateway)
        .bind(keys.feeds)
        .bind(keys.subscribers)
        .bind(keys.devices)
        .bind(
            devices
                .iter()
                .map(|device| device.sessions)
                .collect::<Vec<_>>(),
        )
        .bind(
            devices
                .iter()
                .map(|device| device.connected_at)
                .collect::<Vec<_>>(),
        )
        .bind(devices.iter().map(can_ring).collect::<Vec<_>>())
        .bind(devices.iter().map(visible).collect::<Vec<_>>())
        .bind(devices.iter().map(stated_at).collect::<Vec<_>>());
    let (is_leased,) = super::fetch_one(pool, query).await?;
    Ok(is_leased)
}

/// Removes devices whose sessions on a gateway have ended, and notes when they were seen.
///
/// Locks the removed rows, and those cursors that nobody else has locked; uses `presences_pkey` and
/// `cursors_pkey`. The commit does not wait for the disk.
pub async fn remove(pool: &Pool, gateway: Uuid, keys: &[CursorKey]) -> Result<(), StoreError> {
    let query = sqlx::query(
        "with settings as materialized (select set_config('synchronous_commit', 'off', true) as commits),
         gone as (
             delete from presences p using settings s, unnest($2::text[], $3::text[], $4::text[]) as w (feed, subscriber, device)
             where s.commits is not null
                 and p.feed = w.feed and p.subscriber = w.subscriber and p.device = w.device and p.gateway_id = $1
         ), stale as (
             select c.feed, c.subscriber, c.device
             from unnest($2::text[], $3::text[], $4::text[]) as w (feed, subscriber, device)
             join cursors c on c.feed = w.feed and c.subscriber = w.subscriber and c.device = w.device
             where greatest(c.updated_at, c.seen_at) < now() - $5::interval
             for update of c skip locked
         )
         update cursors c set seen_at = now()
         from stale s where c.feed = s.feed and c.subscriber = s.subscriber and c.device = s.device",
    );
    let keys = Keys::of(keys);
    let query = query
        .bind(gateway)
        .bind(keys.feeds)
        .bind(keys.subscribers)
        .bind(keys.devices)
        .bind(SEEN_WITHIN);
    super::execute(pool, query).await
}

/// Stores states of devices whose sessions may be on any gateway. Locks their rows; uses
/// `presences_pkey`.
pub async fn state(pool: &Pool, states: &[(CursorKey, Stated)]) -> Result<(), StoreError> {
    let query = sqlx::query(
        "update presences p set can_ring = w.can_ring, visible = w.visible, stated_at = w.stated_at
         from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::boolean[], $6::timestamptz[])
             as w (feed, subscriber, device, can_ring, visible, stated_at)
         where p.feed = w.feed and p.subscriber = w.subscriber and p.device = w.device
             and (p.stated_at is null or p.stated_at < w.stated_at)",
    );
    let keys = Keys::of(states.iter().map(|(key, _)| key));
    let of = |(_, stated): &(CursorKey, Stated)| stated.state;
    let query = query
        .bind(keys.feeds)
        .bind(keys.subscribers)
        .bind(keys.devices)
        .bind(
            states
                .iter()
                .map(|state| of(state).can_ring.as_str())
                .collect::<Vec<_>>(),
        )
        .bind(
            states
                .iter()
                .map(|state| of(state).visible)
                .collect::<Vec<_>>(),
        )
        .bind(
            states
                .iter()
                .map(|(_, stated)| stated.at)
                .collect::<Vec<_>>(),
        );
    super::execute(pool, query).await
}

/// Reads the presence of a feed in one snapshot. A device of a gateway whose lease has ended was seen
/// until then.
///
/// Locks nothing; uses `presences_pkey`, `gateways_pkey` and `cursors_pkey`.
pub async fn read(pool: &Pool, feed: &Feed) -> Result<FeedPresence, StoreError> {
    let query = sqlx::query(
        "with here as materialized (
             select p.*, g.leased_until, g.leased_until > now() as is_leased
             from presences p join gateways g on g.gateway_id = p.gateway_id
             where p.feed = $1
         ), seen as (
             select subscriber, device, 0 as sessions, null::timestamptz as connected_at, greatest(updated_at, seen_at) as seen_at
             from (select * from cursors where feed = $1 order by feed, subscriber, device limit $2) c
             union all
             select subscriber, device, 0, null, leased_until from here where not is_leased
             union all
             select subscriber, device, sessions, connected_at, now() from here where is_leased
         ), states as (
             select distinct on (subscriber, device) subscriber, device, can_ring, visible from here
             where is_leased and stated_at is not null
             order by subscriber, device, stated_at desc
         )
         select s.subscriber, s.device, sum(s.sessions) > 0 as online, sum(s.sessions) as sessions,
                min(s.connected_at) as connected_at, max(s.seen_at) as last_seen,
                min(t.can_ring) as can_ring, bool_and(t.visible) as visible,
                sum(sum(s.sessions)) over ()::bigint as sessions_of_feed
         from seen s left join states t on t.subscriber = s.subscriber and t.device = s.device
         group by s.subscriber, s.device
         order by sum(s.sessions) > 0 desc, max(s.seen_at) desc, s.subscriber, s.device
         limit $3",
    );
    let query = query
        .bind(feed.as_str())
        .bind(CURSORS_READ_MAX)
        .bind(DEVICES_MAX);
    let devices: Vec<DevicePresence> = super::fetch(pool, query).await?;
    let sessions = devices.first().map_or(0, |device| device.sessions_of_feed);
    Ok(FeedPresence {
        feed: feed.clone(),
        online: sessions > 0,
        sessions,
        devices,
    })
}

/// Returns those of these feeds that have a session. Locks nothing; uses `presences_pkey` and
/// `gateways_pkey`.
pub async fn online(pool: &Pool, feeds: &[Feed]) -> Result<Vec<Feed>, StoreError> {
    let query = sqlx::query(
        "select w.feed from unnest($1::text[]) as w (feed)
         where exists (
             select from presences p join gateways g on g.gateway_id = p.gateway_id
             where p.feed = w.feed and g.leased_until > now())",
    );
    let names: Vec<_> = feeds.iter().map(Feed::as_str).collect();
    let rows: Vec<(String,)> = super::fetch(pool, query.bind(names)).await?;
    Ok(rows
        .iter()
        .filter_map(|(feed,)| Feed::parse(feed).ok())
        .collect())
}

/// Deletes one step of the rows of a gateway whose lease ended a while ago, and notes when its
/// devices were seen. The gateway goes when it has no rows. Returns whether more may exist.
///
/// Locks the gateway, the deleted rows and their cursors, and leaves out locked ones; uses
/// `presences_gateway` and `cursors_pkey`.
pub async fn delete_dead(pool: &Pool) -> Result<bool, StoreError> {
    let query = sqlx::query(
        "with dead as materialized (
             select gateway_id, leased_until from gateways where leased_until < now() - $1::interval
             order by gateway_id limit 1 for update skip locked
         ), old as materialized (
             select p.feed, p.subscriber, p.device, p.gateway_id, d.leased_until
             from dead d join presences p on p.gateway_id = d.gateway_id limit $2
         ), gone as (
             delete from presences p using old o
             where (p.feed, p.subscriber, p.device, p.gateway_id) = (o.feed, o.subscriber, o.device, o.gateway_id)
         ), stale as (
             select c.feed, c.subscriber, c.device, o.leased_until
             from old o join cursors c on c.feed = o.feed and c.subscriber = o.subscriber and c.device = o.device
             where greatest(c.updated_at, c.seen_at) < o.leased_until
             for update of c skip locked
         ), seen as (
             update cursors c set seen_at = s.leased_until
             from stale s where c.feed = s.feed and c.subscriber = s.subscriber and c.device = s.device
         ), ended as (
             delete from gateways g using dead d where g.gateway_id = d.gateway_id and not exists (select from old)
         )
         select exists (select from dead)",
    );
    let query = query.bind(DEAD_AFTER).bind(DEAD_PER_STEP);
    let (more,) = super::fetch_one(pool, query).await?;
    Ok(more)
}

/// The columns of keys.
#[derive(Default)]
struct Keys<'a> {
    feeds: Vec<&'a str>,
    subscribers: Vec<&'a str>,
    devices: Vec<&'a str>,
}

impl<'a> Keys<'a> {
    fn of(keys: impl IntoIterator<Item = &'a CursorKey>) -> Self {
        let mut columns = Self::default();
        for key in keys {
            columns.feeds.push(key.feed.as_str());
            columns.subscribers.push(key.subscriber.as_str());
            columns.devices.push(key.device.as_str());
        }
        columns
    }
}
