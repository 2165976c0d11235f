//! The end of a story: the checks that hold for every story, and the removal of its world.

use std::sync::PoisonError;

use super::super::{Broker, PATIENCE, eventually, holds, template};
use super::World;

impl World {
    /// Asserts that the stored counts equal the counts of the rows.
    async fn check_counts(&self) {
        let feeds = "select count(*) from feeds f
            left join (select feed, max(seq) as last, min(seq) as oldest, count(*) filter (where read_at is null) as unread,
                              count(*) filter (where handled_at is null) as unhandled,
                              min(seq) filter (where read_at is null) as oldest_unread
                       from notifications group by feed) n on n.feed = f.feed
            where (f.last_seq, f.unread, f.unhandled) <>
                  (greatest(n.last, f.trimmed_seq), coalesce(n.unread, 0), coalesce(n.unhandled, 0))
               or n.oldest <= f.trimmed_seq
               or n.oldest_unread <= f.read_seq
               or f.version <> (select coalesce(max(m.version), 0) from marks m where m.feed = f.feed)";
        assert_eq!(
            self.number(feeds).await,
            0,
            "feeds whose counts differ from their rows"
        );
        // Retention removes items and keeps totals, so feeds that it has trimmed are left out.
        // An item counts once, with its last status. If an import has several runs, its newest item
        // has the counts of the last run.
        let imports = "select count(*) from imports i
            cross join lateral (
                select count(*) filter (where newest) as items, count(*) filter (where newest and failed) as failures
                from (select n.data::json ->> 'status' = 'failed' as failed,
                             row_number() over (partition by n.data::json ->> 'index' order by n.seq desc) = 1 as newest
                      from notifications n
                      where n.feed = i.feed and n.event_type = 'import.item' and n.data::json ->> 'import_id' = i.import_id) n) n
            left join lateral (
                select n.import_done as done, n.import_failed as failed from notifications n
                where n.feed = i.feed and n.event_type like 'import.%' and n.data::json ->> 'import_id' = i.import_id
                order by n.seq desc limit 1) last on true
            where (select f.trimmed_seq from feeds f where f.feed = i.feed) = 0
              and ((i.done, i.failed) <> (last.done, last.failed)
                   or i.run = 1 and (i.done, i.failed) <> (n.items, n.failures))";
        assert_eq!(
            self.number(imports).await,
            0,
            "imports whose totals differ from their items"
        );
    }

    /// Ends the story. It checks that the counters balance (received = stored + duplicate +
    /// dead-lettered + abandoned) and that the stored counts equal the rows. `shopbell verify` must
    /// find no problem. Each replica must exit with status 0 and without a panic, and no queue may
    /// hold a delivery.
    pub async fn finish(self) {
        self.shopbell(&["verify"]).await.succeeded();
        self.finish_unverified().await;
    }

    /// Does the same without `shopbell verify`, for a story that writes contradictory rows itself.
    pub async fn finish_unverified(self) {
        let replicas = self.replicas();
        let running: Vec<_> = replicas
            .iter()
            .filter(|replica| replica.is_running())
            .collect();
        eventually("the counters balance", PATIENCE, async || {
            let mut sums = [0; 5];
            for replica in &running {
                let counted = ["received", "stored", "duplicate", "dead_lettered", "abandoned"];
                for (sum, what) in sums.iter_mut().zip(counted) {
                    *sum += replica.metric(&format!("shopbell_events_{what}_total")).await;
                }
            }
            let [received, stored, duplicate, dead_lettered, abandoned] = sums;
            let seen = format!(
                "{received} received, {stored} stored, {duplicate} duplicate, {dead_lettered} dead letters, {abandoned} abandoned"
            );
            holds(received == stored + duplicate + dead_lettered + abandoned, seen)
        })
        .await;
        self.check_counts().await;
        for replica in &running {
            let status = replica.terminate().await;
            assert!(
                status.success(),
                "a replica asked to leave ended with {status}"
            );
        }
        for replica in &replicas {
            assert_eq!(replica.panics(), Vec::<String>::new(), "a replica panicked");
        }
        let broker = self.broker().await;
        for prefix in self.prefixes() {
            let queues = ["ingest", "ingest.2", "ingest.3", "ingest.4", "unroutable"];
            for queue in queues.map(|queue| format!("{prefix}.{queue}")) {
                // The queue holds all unacknowledged deliveries again, because its consumers are
                // gone.
                eventually(
                    &format!("nothing is left in {queue}"),
                    PATIENCE,
                    async || {
                        let depth = broker.depth(&queue).await.unwrap_or(0);
                        holds(depth == 0, depth)
                    },
                )
                .await;
            }
        }
    }
}

impl Drop for World {
    /// Removes the world, also if the story failed.
    fn drop(&mut self) {
        for replica in self.replicas() {
            replica.kill();
        }
        let (server_url, amqp_url) = (self.server_url.clone(), self.amqp_urls.admin.clone());
        let (mut databases, prefixes) = (vec![self.database.clone()], self.prefixes());
        databases.append(
            &mut self
                .more_databases
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        // On a thread of its own, because a runtime cannot wait inside another one.
        let cleaning = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                for database in databases {
                    template::drop_database(&server_url, &database).await;
                }
                let broker = Broker::connect(&amqp_url).await;
                for prefix in prefixes {
                    broker.clear(&prefix).await;
                }
            });
        });
        if cleaning.join().is_err() && !std::thread::panicking() {
            panic!("the world could not be removed");
        }
    }
}
