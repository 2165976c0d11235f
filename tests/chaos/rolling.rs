//! A rolling update behind nginx, while two thousand dashboards are open and orders are placed.
//!
//! It follows a Deployment with `maxSurge: 1` and `maxUnavailable: 0`: a new replica starts, is
//! ready and becomes an endpoint. Then an old one stops, and is no endpoint any more. This is the
//! worst order in Kubernetes, because a kubelet does not wait for a load balancer. So nginx sends
//! clients to a replica that drains, and the statuses in its log show the result. A reload replaces
//! the list of endpoints, as an ingress does. A list with all six replicas from the start would
//! hide which ones answer.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::dashboards::{Dashboards, Diary, LAST_EVENT, Move};
use crate::files;
use crate::it::support::{Event, PATIENCE, Replica, World, eventually, holds, http};
use crate::nginx::{Answered, Nginx};
use crate::services::Services;

/// Merchants, and the open dashboards of each.
const MERCHANTS: usize = 500;
const DEVICES: usize = 4;
const DASHBOARDS: usize = MERCHANTS * DEVICES;
/// Replicas, all of which are replaced.
const REPLICAS: usize = 3;
/// Time over which each replica spreads its closes.
const DRAIN: Duration = Duration::from_secs(10);
/// Orders come in small batches at this interval: 200 a second.
const BATCH: usize = 10;
const BATCH_EVERY: Duration = Duration::from_millis(50);
/// Interval at which another dashboard opens and closes.
const VISIT_EVERY: Duration = Duration::from_millis(50);
/// Slices of the drain.
const SLICES: usize = 5;
/// Time for a reconnect beyond the pause that the close asked for.
const BACK_BOUND: Duration = Duration::from_secs(1);
/// Bound for the whole story on a loaded machine of two cores.
const BOUND: Duration = Duration::from_secs(150);
/// Open files of a process, with a margin. nginx has two for each client.
const FILES: u64 = 8_192;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_behind_nginx_loses_nothing_and_sends_nobody_an_error() {
    let began = Instant::now();
    files::allow(FILES);
    let services = Services::up().await;
    let world = World::at(services.database_url.clone(), services.amqp_url.clone()).await;
    let mut replicas = Vec::new();
    for _ in 0..REPLICAS {
        replicas.push(start_one(&world).await);
    }
    let nginx = Nginx::start(&replicas).await;
    let merchants: Vec<_> = (0..MERCHANTS)
        .map(|number| format!("merchant-{number}"))
        .collect();
    let dashboards = Dashboards::open(&world, nginx.address(), &merchants, DEVICES);
    all_are_open(&replicas).await;

    let updated = Cell::new(false);
    let updating = async {
        let drains = update(&world, &nginx, &mut replicas).await;
        updated.set(true);
        drains
    };
    let placing = place_orders(&world, &merchants, &updated);
    let visiting = visit(&world, &nginx, &updated);
    let (drains, orders, visits, diaries) =
        tokio::join!(updating, placing, visiting, dashboards.closed(BOUND));

    assert_eq!(diaries.len(), DASHBOARDS);
    for Diary {
        feed,
        ids,
        refusals,
        ..
    } in &diaries
    {
        assert_eq!(
            *ids, orders[feed],
            "{feed} received exactly the confirmed events, in order"
        );
        assert_eq!(*refusals, Vec::<String>::new(), "{feed} was refused");
    }
    for (merchant, orders) in &orders {
        world.expect_stored(merchant, orders.len() as u64).await;
    }
    eventually("every order is acknowledged", PATIENCE, async || {
        let undelivered = world.number("select count(*) from undelivered").await;
        holds(undelivered == 0, undelivered)
    })
    .await;
    let answers = nginx.finish().await;
    let events: usize = orders.values().map(Vec::len).sum();
    let repeated: u64 = diaries.iter().map(|diary| diary.repeated).sum();
    eprintln!(
        "{events} events to {MERCHANTS} merchants, {DEVICES} dashboards each; {repeated} came again in a later session"
    );
    check_moves(&diaries, &drains);
    check_answers(&answers, &diaries, visits);
    world.finish().await;
    eprintln!("the whole story took {:.1?}", began.elapsed());
}

async fn start_one(world: &World) -> Replica {
    let replica = world
        .replica()
        .with("SHOPBELL_DRAIN_SECONDS", DRAIN.as_secs());
    replica.with("SHOPBELL_HEARTBEAT_SECONDS", 5).start().await
}

async fn all_are_open(replicas: &[Replica]) {
    eventually("all dashboards are open", BOUND, async || {
        let mut sessions = 0;
        for replica in replicas {
            sessions += replica.metric("shopbell_sessions").await;
        }
        holds(sessions == DASHBOARDS as u64, sessions)
    })
    .await;
}

/// Replaces one replica after the other, never with fewer than all of them ready. Returns the time
/// of each stop.
async fn update(world: &World, nginx: &Nginx, replicas: &mut Vec<Replica>) -> Vec<Instant> {
    let mut drains = Vec::new();
    for _ in 0..REPLICAS {
        replicas.push(start_one(world).await);
        nginx.send_to(replicas);
        let leaving = replicas.remove(0);
        drains.push(Instant::now());
        leaving.ask_to_leave();
        nginx.has_given_up(drains.len()).await;
        nginx.send_to(replicas);
        let status = leaving.ended().await;
        assert!(
            status.success(),
            "a replica asked to leave ended with {status}"
        );
    }
    drains
}

/// Places orders, one for each merchant in each round and in random order, until the update is
/// over. Then it publishes the last event. Returns the confirmed ids.
async fn place_orders(
    world: &World,
    merchants: &[String],
    updated: &Cell<bool>,
) -> BTreeMap<String, Vec<String>> {
    let publisher = world.publisher().await;
    let mut placed: BTreeMap<_, _> = merchants
        .iter()
        .map(|merchant| (merchant.clone(), Vec::new()))
        .collect();
    let mut round = merchants.to_vec();
    let mut pace = interval(BATCH_EVERY);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_last = false;
    while !is_last {
        is_last = updated.get();
        Rng::new().shuffle(&mut round);
        for batch in round.chunks(BATCH) {
            pace.tick().await;
            let event = |merchant: &String| match is_last {
                true => Event::new(LAST_EVENT, merchant, "{}"),
                false => Event::order(merchant),
            };
            let events: Vec<_> = batch.iter().map(event).collect();
            publisher.publish_all(&events).await;
            for (merchant, event) in batch.iter().zip(events) {
                placed
                    .entry(merchant.clone())
                    .or_default()
                    .push(event.event_id().to_owned());
            }
        }
    }
    placed
}

/// Opens a dashboard now and then, reads its history, and closes it, until the update is over. It
/// must never fail. Returns the count.
async fn visit(world: &World, nginx: &Nginx, updated: &Cell<bool>) -> usize {
    const VISITOR: &str = "visitor";
    let (handshake, token) = (world.merchant(VISITOR), world.token(VISITOR).sign());
    let authorization = format!("Bearer {token}");
    let mut pace = interval(VISIT_EVERY);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut visits = 0;
    while !updated.get() {
        pace.tick().await;
        let visitor = handshake.connect(nginx.address()).await;
        let path = format!("/v1/feeds/{VISITOR}/notifications");
        let history =
            http::get_with(nginx.address(), &path, &[("Authorization", &authorization)]).await;
        let history = history.expect("history is answered");
        assert_eq!(history.status, 200, "{history:?}");
        visitor.leave().await;
        visits += 1;
    }
    visits
}

/// The closes are spread over each drain, and the dashboards reconnect at the time that they were
/// asked for.
fn check_moves(diaries: &[Diary], drains: &[Instant]) {
    let moves: Vec<Move> = diaries
        .iter()
        .flat_map(|diary| diary.moves.clone())
        .collect();
    for (number, began) in drains.iter().enumerate() {
        // A dashboard on a loaded machine may receive the close late. Only a replica that leaves
        // closes with 1012.
        let next = drains.get(number + 1);
        let is_of_this =
            |one: &&Move| one.closed >= *began && next.is_none_or(|next| one.closed < *next);
        let moves: Vec<_> = moves.iter().filter(is_of_this).collect();
        check_spread("closes", *began, moves.iter().map(|one| one.closed));
        check_spread("comebacks", *began, moves.iter().map(|one| one.back));
    }
    let mut gaps: Vec<_> = moves.iter().map(|one| one.back - one.closed).collect();
    let mut late: Vec<_> = moves
        .iter()
        .map(|one| (one.back - one.closed).saturating_sub(one.retry_after))
        .collect();
    gaps.sort_unstable();
    late.sort_unstable();
    let line = |of: &[Duration]| {
        format!(
            "p50 {:.1?}, p99 {:.1?}, max {:.1?}",
            at(of, 0.5),
            at(of, 0.99),
            at(of, 1.0)
        )
    };
    eprintln!(
        "{} moves; without a session: {}; beyond retry_after: {}",
        moves.len(),
        line(&gaps),
        line(&late)
    );
    assert!(
        at(&late, 0.99) < BACK_BOUND,
        "a reconnect took too long: {}",
        line(&late)
    );
}

/// No slice of the drain has more than twice its share, and together they have most of the closes.
fn check_spread(what: &str, began: Instant, moments: impl Iterator<Item = Instant>) {
    let mut after: Vec<_> = moments.map(|moment| moment - began).collect();
    after.sort_unstable();
    let mut slices = [0; SLICES];
    for after in &after {
        let slice = (after.as_secs_f64() / DRAIN.as_secs_f64() * SLICES as f64) as usize;
        slices[slice.min(SLICES - 1)] += 1;
    }
    let span = at(&after, 0.99) - at(&after, 0.01);
    let seen = format!(
        "{} {what} in slices of {:?}: {slices:?}, over {span:.1?}",
        after.len(),
        DRAIN / SLICES as u32
    );
    eprintln!("{seen}");
    assert!(
        after.len() >= DASHBOARDS / REPLICAS / 2,
        "too few closes to judge: {seen}"
    );
    assert!(
        slices.iter().all(|slice| slice * SLICES <= 2 * after.len()),
        "not spread over the drain: {seen}"
    );
    assert!(
        span >= DRAIN.mul_f64(0.6),
        "not spread over the drain: {seen}"
    );
}

/// Every request has the right status, also if nginx sent it to a replica that was leaving.
fn check_answers(answers: &[Answered], diaries: &[Diary], visits: usize) {
    let mut statuses = BTreeMap::<_, usize>::new();
    for answered in answers {
        *statuses
            .entry((answered.status, answered.upstream.clone()))
            .or_default() += 1;
    }
    eprintln!("statuses of nginx and of the replicas: {statuses:?}");
    let wrong: Vec<_> = answers
        .iter()
        .filter(|answered| answered.status >= 400)
        .collect();
    assert!(wrong.is_empty(), "clients got errors: {wrong:?}");
    // A replica that leaves refuses new requests with a status. It does not close its port on them.
    let unanswered = |answered: &&Answered| {
        answered
            .upstream
            .iter()
            .any(|status| [502, 504].contains(status))
    };
    let unanswered: Vec<_> = answers.iter().filter(unanswered).collect();
    assert!(
        unanswered.is_empty(),
        "replicas did not answer nginx: {unanswered:?}"
    );
    let sessions: usize = diaries.iter().map(|diary| diary.sessions).sum();
    let upgraded = answers
        .iter()
        .filter(|answered| answered.status == 101)
        .count();
    assert_eq!(upgraded, sessions + visits, "the log has every session");
}

/// The value at this quantile of a sorted list.
fn at(sorted: &[Duration], part: f64) -> Duration {
    let place = (sorted.len().saturating_sub(1) as f64 * part) as usize;
    sorted.get(place).copied().unwrap_or_default()
}
