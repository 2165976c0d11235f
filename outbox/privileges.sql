-- The roles of the outbox, with the least privileges. Run it in the database of the shop, after outbox.sql, as its owner with
-- CREATEROLE, or as a superuser. It may run again at any time. It sets no passwords.
--
-- `shopbell_relay` runs `shopbell relay`: it reads and removes rows, and publishes none of its own.
-- `shopbell_outbox_publisher` is a group without a login. Make the roles of the shop members of it:
--     grant shopbell_outbox_publisher to shop;

do $$
begin
    -- Roles belong to all databases of the server, so they may exist already.
    if not exists (select from pg_roles where rolname = 'shopbell_relay') then
        create role shopbell_relay login;
    end if;
    if not exists (select from pg_roles where rolname = 'shopbell_outbox_publisher') then
        create role shopbell_outbox_publisher nologin;
    end if;
    execute format('grant connect on database %I to shopbell_relay', current_database());
end
$$;

grant usage on schema shopbell_outbox to shopbell_relay, shopbell_outbox_publisher;
grant select, delete on shopbell_outbox.events to shopbell_relay;
grant select, insert on shopbell_outbox.set_aside to shopbell_relay;
grant select, update (asleep) on shopbell_outbox.relay to shopbell_relay;
grant execute on function
    shopbell_outbox.shopbell_publish(text, text, text, text, text, text, timestamptz, timestamptz, jsonb),
    shopbell_outbox.shopbell_publish(text, text, json, text, text, text, timestamptz, timestamptz, jsonb),
    shopbell_outbox.shopbell_publish(text, text, jsonb, text, text, text, timestamptz, timestamptz, jsonb)
    to shopbell_outbox_publisher;
