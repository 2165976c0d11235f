//! Sessions that connect together do not delay each other, even if one of them fails.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::support::{Handshake, PATIENCE, Replica, World, eventually, holds};

const MERCHANT: &str = "merchant-42";
/// Far below the timeout of a handshake.
const SOON: Duration = Duration::from_secs(4);
/// From now on every new connection to this database is read-only, as after a fail-over to a
/// standby.
const READ_ONLY: &str = "
    do $$ begin execute format('alter database %I set default_transaction_read_only = on', current_database()); end $$;
    select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
const WRITABLE: &str = "
    set default_transaction_read_only = off;
    do $$ begin execute format('alter database %I reset default_transaction_read_only', current_database()); end $$;
    select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
/// Inserts of one merchant's cursors fail, as on a full disk.
const NO_ROOM_FOR_MERCHANT_13: &str = "
    create function no_room() returns trigger language plpgsql as $$
    begin
        raise exception using errcode = 'disk_full', message = 'no room';
    end $$;
    create trigger no_room before insert on cursors for each row when (new.subscriber = 'merchant-13')
        execute function no_room()";

#[tokio::test]
async fn eighty_devices_that_return_together_delay_no_other_merchant() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_MAX_SESSIONS_PER_SUBSCRIBER", 100)
        .start()
        .await;
    let devices =
        (0..80).map(|number| world.merchant(MERCHANT).device(&format!("device-{number}")));
    let others = (0..15).map(|number| world.merchant(&format!("merchant-{number}")));
    let handshakes: Vec<_> = devices.chain(others).collect();
    for _ in 0..2 {
        let begun = Instant::now();
        let merchants = connect_together(&replica, &handshakes).await;
        assert!(
            begun.elapsed() < SOON,
            "{:?} passed until all were connected",
            begun.elapsed()
        );
        drop(merchants);
    }
    assert_eq!(world.cursors(MERCHANT).await, 64);
    world.finish().await;
}

#[tokio::test]
async fn known_devices_connect_while_postgres_takes_no_write() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_MAX_SESSIONS_PER_SUBSCRIBER", 100)
        .start()
        .await;
    let known: Vec<_> = (0..100)
        .map(|number| world.merchant(&format!("merchant-{number}")))
        .collect();
    drop(connect_together(&replica, &known).await);

    world.change_database(READ_ONLY).await;
    let unknown = world.merchant("merchant-new");
    // Each connection that was ended may cost one attempt.
    eventually(
        "a known device connects to a read-only database",
        PATIENCE,
        async || {
            let connected = known[0].try_connect(replica.public()).await;
            holds(connected.is_ok(), connected.err().unwrap_or_default())
        },
    )
    .await;
    let begun = Instant::now();
    let (merchants, refusal) = tokio::join!(
        connect_together(&replica, &known),
        unknown.refused(replica.public())
    );
    assert!(
        begun.elapsed() < SOON,
        "{:?} passed until all were answered",
        begun.elapsed()
    );
    assert_eq!(merchants.len(), 100);
    refusal.expect_problem(503);
    assert!(
        refusal.text().contains("cannot be stored"),
        "{}",
        refusal.text()
    );
    assert!(refusal.header("retry-after").is_some(), "{refusal:?}");
    drop(merchants);

    world.change_database(WRITABLE).await;
    eventually("the new subscriber connects too", PATIENCE, async || {
        let connected = unknown.try_connect(replica.public()).await;
        holds(connected.is_ok(), connected.err().unwrap_or_default())
    })
    .await;
    world.finish().await;
}

#[tokio::test]
async fn a_new_subscriber_that_cannot_be_stored_refuses_no_other() {
    let world = World::new().await;
    let replica = world.serve().await;
    world.change_database(NO_ROOM_FOR_MERCHANT_13).await;
    let others: Vec<_> = (0..40)
        .filter(|number| *number != 13)
        .map(|number| world.merchant(&format!("merchant-{number}")))
        .collect();
    let unlucky = world.merchant("merchant-13");
    let begun = Instant::now();
    let (merchants, refusal) = tokio::join!(
        connect_together(&replica, &others),
        unlucky.refused(replica.public())
    );
    assert!(
        begun.elapsed() < SOON,
        "{:?} passed until all were answered",
        begun.elapsed()
    );
    assert_eq!(merchants.len(), 39);
    refusal.expect_problem(503);
    drop(merchants);
    world.finish().await;
}

#[tokio::test]
async fn a_new_subscriber_whose_row_is_locked_delays_nobody() {
    let world = World::new().await;
    let replica = world.serve().await;
    let known: Vec<_> = (0..20)
        .map(|number| world.merchant(&format!("merchant-{number}")))
        .collect();
    drop(connect_together(&replica, &known).await);
    let lock = world.lock_new_cursor_of_merchant_42().await;

    let new: Vec<_> = (20..40)
        .map(|number| world.merchant(&format!("merchant-{number}")))
        .collect();
    let blocked = world.merchant(MERCHANT);
    let begun = Instant::now();
    let serving = async {
        let merchants = tokio::join!(
            connect_together(&replica, &known),
            connect_together(&replica, &new)
        );
        (merchants, begun.elapsed())
    };
    let (refusal, (merchants, took)) = tokio::join!(blocked.refused(replica.public()), serving);
    assert!(
        took < SOON,
        "{took:?} passed until all others were connected"
    );
    refusal.expect_problem(503);
    drop((lock, merchants));
    blocked.connect(replica.public()).await;
    world.finish().await;
}

/// Connects all at the same time. Panics if one of them receives no welcome.
async fn connect_together(
    replica: &Replica,
    handshakes: &[Handshake],
) -> Vec<crate::support::Merchant> {
    join_all(
        handshakes
            .iter()
            .map(|handshake| handshake.connect(replica.public())),
    )
    .await
}
