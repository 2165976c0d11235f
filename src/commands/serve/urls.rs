//! Uses the URLs of Postgres and RabbitMQ when their files change, so that a new password needs no
//! restart.

use std::time::Duration;

use crate::amqp::Broker;
use crate::config::UrlFiles;
use crate::store::pools::Pools;

/// Interval between two reads of the files.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Reads the files again and again, for ever. A URL from a variable stays.
pub(super) async fn follow(files: UrlFiles, broker: Broker, pools: Pools) {
    if files.is_empty() {
        return std::future::pending().await;
    }
    let mut following = Following {
        files,
        broker,
        pools,
        problems: Vec::new(),
        is_first: true,
    };
    loop {
        let reading = tokio::task::spawn_blocking(move || {
            following.refresh();
            following
        });
        // It fails only while the runtime stops.
        let Ok(read) = reading.await else {
            return std::future::pending().await;
        };
        following = read;
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

struct Following {
    files: UrlFiles,
    broker: Broker,
    pools: Pools,
    /// The problems of the last read, which are logged already.
    problems: Vec<String>,
    /// The first read returns the URLs of the start.
    is_first: bool,
}

impl Following {
    fn refresh(&mut self) {
        let Self {
            files,
            broker,
            pools,
            ..
        } = self;
        let database = files.read_database();
        let database = database.map(|changed| changed.map(|options| pools.use_options(&options)));
        let amqp = files.read_amqp(|url| broker.use_url(url));
        let mut problems = Vec::new();
        for (variable, changed) in [("DATABASE_URL", database), ("AMQP_URL", amqp)] {
            match changed {
                Ok(Some(())) if !self.is_first => {
                    tracing::info!(variable, "new connections use a new URL");
                }
                Ok(_) => {}
                Err(problem) => problems.push(problem),
            }
        }
        for problem in problems
            .iter()
            .filter(|problem| !self.problems.contains(*problem))
        {
            tracing::error!(problem, "a URL cannot be read; the last one stays in use");
        }
        if problems.is_empty() && !self.problems.is_empty() {
            tracing::info!("the URLs can be read again");
        }
        (self.problems, self.is_first) = (problems, false);
    }
}
