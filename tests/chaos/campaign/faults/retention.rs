//! Time passes for the stored notifications, so that retention removes them under load.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt as _;
use tokio::time::timeout;

use crate::campaign::nemesis::{End, Plan};
use crate::campaign::stage::Stage;

/// Older than `SHOPBELL_RETENTION_DAYS`, and each row only once. Young rows stay young, because RabbitMQ or a
/// publisher may still send their events again, and without the row an event would be stored twice.
const AGE: &str = "update notifications set created_at = created_at - interval '31 days'
                   where created_at between now() - interval '1 day' and now() - interval '40 seconds'";
/// Begins a walk of retention over all feeds.
const WALK: &str = "update retention set begins_at = now(), after_feed = '', leased_until = null";
/// Postgres may be away because of another fault. Then nothing ages.
const BOUND: Duration = Duration::from_secs(5);

/// Makes all present notifications old.
pub fn age(stage: &Arc<Stage>, _: &mut Rng) -> Plan {
    let stage = Arc::clone(stage);
    Plan {
        hits: vec!["retention".to_owned()],
        target: "the stored notifications are 31 days old".to_owned(),
        total: false,
        begin: async move {
            let aging = async {
                let aged = sqlx::query(AGE).execute(&stage.pool).await?;
                sqlx::query(WALK).execute(&stage.pool).await?;
                Ok::<_, sqlx::Error>(aged.rows_affected())
            };
            let aged = match timeout(BOUND, aging).await {
                Ok(Ok(rows)) => rows,
                Ok(Err(_)) | Err(_) => 0,
            };
            End::by(async move { aged })
        }
        .boxed(),
    }
}
