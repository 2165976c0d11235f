-- The outbox of a shop: events that are published if, and only if, their transaction commits. docs/outbox.md explains it.
--
-- Run it in the database of the shop, as the role that owns its tables. It may run again at any time: it then adds the
-- missing parts, replaces the functions, and keeps the rows. It needs Postgres 15 or newer with a database in UTF8.
-- outbox/privileges.sql has the privileges.

create schema if not exists shopbell_outbox;

-- The rows that `shopbell relay` has not published yet. It publishes the rows of a recipient in the order of `id`, and removes
-- a row after RabbitMQ has confirmed it.
--
-- A sequence numbers rows when they are written, and not when they are committed. That suffices: if a transaction begins
-- after another has committed, its rows have greater numbers. A snapshot that shows them shows the other rows too. And the
-- relay skips nothing, because it keeps no position: each read begins with the lowest numbers that still exist.
create table if not exists shopbell_outbox.events (
    -- A sequence with a cache would number the rows of two connections out of order.
    id          bigint generated always as identity (cache 1) primary key,
    recipient   text collate "C" not null,
    type        text not null,
    event_id    text not null,
    source      text not null,
    subject     text,
    time        timestamptz not null,
    expirytime  timestamptz,
    extensions  jsonb,
    -- JSON that is published byte for byte. `jsonb` would change it.
    data        text,
    created_at  timestamptz not null default clock_timestamp()
);

-- The relay reads the first rows of each recipient, so one recipient with many rows does not delay the others.
create index if not exists events_of_recipient on shopbell_outbox.events (recipient, id);

-- Every row is removed soon, so vacuum often.
alter table shopbell_outbox.events set (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000,
    toast.autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_threshold = 5000
);

-- The rows that RabbitMQ can never take, each with the reason. They delay nothing, and an operator decides.
create table if not exists shopbell_outbox.set_aside (
    like shopbell_outbox.events,
    reason        text not null,
    set_aside_at  timestamptz not null default clock_timestamp(),
    primary key (id)
);

-- One row. While the relay works, it reads again soon anyway. So a transaction sends a notification only to a relay that sleeps:
-- Postgres commits transactions that notify one after the other, and that would slow down a busy shop.
create table if not exists shopbell_outbox.relay (
    only_row  boolean primary key default true check (only_row),
    asleep    boolean not null
) with (fillfactor = 20);
insert into shopbell_outbox.relay (asleep) values (true) on conflict do nothing;

-- Time-ordered, because Shopbell's index of ids then grows at its end (RFC 9562, version 7).
create or replace function shopbell_outbox.new_id() returns text
language sql volatile
as $$
    select encode(
        set_bit(set_bit(
            overlay(uuid_send(gen_random_uuid())
                placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6),
            52, 1), 53, 1), 'hex')::uuid::text
$$;

-- Publishes an event with the current transaction, and returns its id.
--
-- It raises an error for a value that no Shopbell accepts. Rules that a setting can change, such as the greatest size, and the
-- schemas of types are checked by Shopbell: they must not abort an order.
create or replace function shopbell_outbox.shopbell_publish(
    recipient   text,
    type        text,
    data        text default null,
    id          text default null,
    source      text default '/outbox',
    subject     text default null,
    "time"      timestamptz default null,
    expirytime  timestamptz default null,
    extensions  jsonb default null
) returns text
-- With the privileges of its owner, so that the shop's role needs none on the tables.
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    -- Control characters, without those of the locale.
    control constant text := E'[\u0001-\u001f\u007f-\u009f]';
    event_id constant text := coalesce(id, shopbell_outbox.new_id());
    event_time constant timestamptz := coalesce("time", clock_timestamp());
    extension record;
begin
    if recipient is null or recipient !~ '^[A-Za-z0-9._~/-]{1,128}$' then
        raise invalid_parameter_value using message = 'shopbell_publish: recipient must be 1 to 128 of A-Z a-z 0-9 . _ ~ / -';
    end if;
    if starts_with(recipient, 'shopbell-canary/') then
        raise invalid_parameter_value using message = 'shopbell_publish: a recipient must not begin with shopbell-canary/';
    end if;
    if type is null or octet_length(type) not between 1 and 255 or type ~ control then
        raise invalid_parameter_value using message = 'shopbell_publish: type must have 1 to 255 bytes without control characters';
    end if;
    if octet_length(event_id) not between 1 and 512 or event_id ~ control then
        raise invalid_parameter_value using message = 'shopbell_publish: id must have 1 to 512 bytes without control characters';
    end if;
    if source is null or octet_length(source) not between 1 and 1024 or source ~ control then
        raise invalid_parameter_value using message = 'shopbell_publish: source must have 1 to 1024 bytes without control characters';
    end if;
    if octet_length(subject) not between 1 and 1024 or subject ~ control then
        raise invalid_parameter_value using message = 'shopbell_publish: subject must have 1 to 1024 bytes without control characters';
    end if;
    if event_time not between '0001-01-02 00:00:00+00' and '9999-12-30 00:00:00+00'
        or expirytime not between '0001-01-02 00:00:00+00' and '9999-12-30 00:00:00+00' then
        raise invalid_parameter_value using message = 'shopbell_publish: time and expirytime must be between the years 1 and 9999';
    end if;
    if octet_length(data) > 16777216 then
        raise invalid_parameter_value using message = 'shopbell_publish: data must have at most 16 MiB';
    end if;
    -- Raises an error if it is no JSON. A block that catches it would cost a subtransaction.
    perform data::json;
    if extensions is not null then
        if jsonb_typeof(extensions) <> 'object' or octet_length(extensions::text) > 16384 then
            raise invalid_parameter_value using message = 'shopbell_publish: extensions must be a JSON object of at most 16 KiB';
        end if;
        for extension in select key, jsonb_typeof(value) as kind from jsonb_each(extensions)
        loop
            if extension.key !~ '^[a-z0-9]{1,64}$' or extension.kind not in ('string', 'number', 'boolean', 'null')
                or extension.key in ('specversion', 'id', 'source', 'type', 'recipient', 'subject', 'time', 'expirytime',
                    'datacontenttype', 'dataschema', 'data') then
                raise invalid_parameter_value using message = 'shopbell_publish: extensions must have names of 1 to 64 of a-z 0-9 '
                    'that no other parameter has, and texts, numbers or booleans as values';
            end if;
        end loop;
    end if;
    -- Otherwise the relay could publish an event whose transaction a crash of Postgres undoes. It lasts until the end of the
    -- transaction.
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    insert into shopbell_outbox.events (recipient, type, event_id, source, subject, time, expirytime, extensions, data)
    values (recipient, type, event_id, source, subject, event_time, expirytime, extensions, data);
    if (select relay.asleep from shopbell_outbox.relay) then
        perform pg_notify('shopbell_outbox', '');
    end if;
    return event_id;
end
$$;

-- The same for data of type json, which stays byte for byte.
create or replace function shopbell_outbox.shopbell_publish(
    recipient text, type text, data json, id text default null, source text default '/outbox', subject text default null,
    "time" timestamptz default null, expirytime timestamptz default null, extensions jsonb default null
) returns text
language sql volatile
as $$ select shopbell_outbox.shopbell_publish($1, $2, $3::text, $4, $5, $6, $7, $8, $9) $$;

-- The same for data of type jsonb, as Postgres writes it.
create or replace function shopbell_outbox.shopbell_publish(
    recipient text, type text, data jsonb, id text default null, source text default '/outbox', subject text default null,
    "time" timestamptz default null, expirytime timestamptz default null, extensions jsonb default null
) returns text
language sql volatile
as $$ select shopbell_outbox.shopbell_publish($1, $2, $3::text, $4, $5, $6, $7, $8, $9) $$;

-- Gives rows that were set aside another try, after all others. Returns their number.
create or replace function shopbell_outbox.try_again(ids bigint[]) returns bigint
language sql volatile
as $$
    with again as (delete from shopbell_outbox.set_aside where id = any(ids) returning *),
    tried as (
        insert into shopbell_outbox.events (recipient, type, event_id, source, subject, time, expirytime, extensions, data)
        select recipient, type, event_id, source, subject, time, expirytime, extensions, data from again order by id
        returning 1
    )
    select count(*) from tried
$$;

revoke all on all functions in schema shopbell_outbox from public;
