-- Presence: which devices have a session, on which gateway. It is advisory, and no delivery depends on it.
--
-- A session counts only while its gateway has a lease. So the sessions of a killed gateway are offline when its lease
-- ends, and an idle session costs nothing: only the lease is renewed, one row for each gateway.
--
-- Both tables are unlogged, because they are written often and describe only the present. A crash of Postgres empties
-- both, and a standby has neither. Each gateway then finds no lease, and writes all of its sessions again.

-- The gateways that run, or ran not long ago. An id is never used again after its lease has ended.
create unlogged table gateways (
    gateway_id   uuid        primary key,
    leased_until timestamptz not null
);

-- The devices with a session on a gateway.
create unlogged table presences (
    feed         text        collate "C" not null,
    subscriber   text        collate "C" not null,
    device       text        collate "C" not null,
    gateway_id   uuid        not null, -- no foreign key: a row without its gateway does not count
    sessions     integer     not null check (sessions > 0),
    connected_at timestamptz not null, -- begin of the oldest of these sessions
    can_ring     text,                 -- yes, muted, blocked or asleep; null if the device never reported it
    visible      boolean,              -- whether a person sees the page; null if the device never reported it
    stated_at    timestamptz,          -- time of this report
    primary key (feed, subscriber, device, gateway_id)
);

-- For the removal of the rows of a gateway.
create index presences_gateway on presences (gateway_id);
