-- The roles of Postgres. docs/security.md explains them, and every story of tests/it runs with them.
--
-- `shopbell_owner` runs `shopbell migrate`, and owns every table and function.
-- `shopbell_app` runs `shopbell serve` and every other command: it reads and writes rows, and changes no schema.
-- `shopbell_reader` reads rows, for `shopbell inspect`, `shopbell doctor` and dashboards.
--
-- Run it in Shopbell's database as a superuser, or as the owner of the database with CREATEROLE. That owner becomes a member
-- of `shopbell_owner`. Run it before the first `shopbell migrate` and once after it. It may run again at any time. It sets
-- no passwords.

do $$
declare
    role text;
begin
    foreach role in array array['shopbell_owner', 'shopbell_app', 'shopbell_reader'] loop
        -- Roles belong to all databases of the server, so they may exist already.
        if not exists (select from pg_roles where rolname = role) then
            execute format('create role %I login', role);
        end if;
    end loop;
    -- By default every user of the server may connect to every database and create temporary tables in it.
    execute format('revoke all on database %I from public', current_database());
    execute format('grant connect on database %I to shopbell_owner, shopbell_app, shopbell_reader', current_database());
end
$$;

do $$
begin
    -- Only a member may set the default privileges of the owner and grant its tables. A superuser needs no membership.
    if not pg_has_role('shopbell_owner', 'usage') then
        if current_setting('server_version_num')::integer >= 160000 then
            -- The creator of a role may grant it to itself, but does not inherit its privileges.
            execute 'grant shopbell_owner to current_user with inherit true';
        else
            grant shopbell_owner to current_user;
        end if;
    end if;
end
$$;

-- Before Postgres 15, every user could create tables in this schema.
revoke create on schema public from public;
grant usage on schema public to shopbell_owner, shopbell_app, shopbell_reader;
grant create on schema public to shopbell_owner;

-- For the tables and functions of later migrations.
alter default privileges for role shopbell_owner grant select, insert, update, delete on tables to shopbell_app;
alter default privileges for role shopbell_owner grant usage on sequences to shopbell_app;
alter default privileges for role shopbell_owner grant select on tables to shopbell_reader;
-- By default every user may execute every function. A function has the privileges of its caller, so the reader writes nothing.
alter default privileges for role shopbell_owner revoke execute on functions from public;
alter default privileges for role shopbell_owner grant execute on functions to shopbell_app, shopbell_reader;

-- For existing ones.
grant select, insert, update, delete on all tables in schema public to shopbell_app;
grant usage on all sequences in schema public to shopbell_app;
grant select on all tables in schema public to shopbell_reader;
revoke execute on all functions in schema public from public;
grant execute on all functions in schema public to shopbell_app, shopbell_reader;

do $$
begin
    -- Only the owner records migrations.
    if to_regclass('public._sqlx_migrations') is not null then
        revoke insert, update, delete on public._sqlx_migrations from shopbell_app;
    end if;
    begin
        -- The epoch contains the identity of the cluster. Some providers do not permit to read it.
        grant execute on function pg_control_system() to shopbell_owner, shopbell_app, shopbell_reader;
    exception when insufficient_privilege or undefined_function then
        raise notice 'the identity of the cluster stays hidden: restores are found by the other parts of the epoch';
    end;
    begin
        -- For the sessions and standbys in the report of `shopbell doctor`.
        grant pg_read_all_stats to shopbell_reader;
    exception when insufficient_privilege then
        raise notice 'shopbell_reader does not see the sessions of other users';
    end;
end
$$;
