//! Changes of queues, unknown to Shopbell, and their repair by an operator.

use std::time::Duration;

use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::campaign::history::Book;
use crate::campaign::stage::Stage;

/// Bound of a repair, with a RabbitMQ that is busy.
const REPAIR_BOUND: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(200);
/// Polls without an unroutable event that end a rescue.
const QUIET_POLLS: u32 = 10;

/// Deletes the ingest queue. With `wrong`, a classic queue takes its name.
pub async fn delete(stage: &Stage, wrong: bool) {
    let queue = stage.world.name("ingest");
    let deadline = Instant::now() + REPAIR_BOUND;
    loop {
        let deleted = async {
            let (_connection, channel) = connect(stage).await?;
            channel
                .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
                .await?;
            if wrong {
                let options = QueueDeclareOptions {
                    durable: true,
                    ..QueueDeclareOptions::default()
                };
                // Fails if a replica was faster.
                channel
                    .queue_declare(queue.as_str().into(), options, FieldTable::default())
                    .await?;
            }
            Ok::<_, lapin::Error>(())
        };
        match deleted.await {
            Ok(()) => return,
            Err(error) => assert!(Instant::now() < deadline, "{queue} stays: {error}"),
        }
    }
}

/// Deletes the wrong queue, waits for the right one, and moves the unroutable events to the exchange.
pub async fn repair(stage: &Stage, wrong: bool) {
    let (ingest, unroutable) = (stage.world.name("ingest"), stage.world.name("unroutable"));
    let work = async {
        let (mut removed, mut quiet) = (!wrong, 0);
        while quiet < QUIET_POLLS {
            let pass = async {
                let (_connection, channel) = connect(stage).await?;
                if !removed {
                    channel
                        .queue_delete(ingest.as_str().into(), QueueDeleteOptions::default())
                        .await?;
                    removed = true;
                }
                rescue(stage, &channel, &unroutable).await
            };
            match pass.await {
                Ok(0) => quiet += 1,
                Ok(_) | Err(_) => quiet = 0,
            }
            sleep(PAUSE).await;
        }
    };
    timeout(REPAIR_BOUND, work)
        .await
        .expect("the operator repairs the ingest queue in time");
}

/// Publishes each unroutable event again. Returns their number.
async fn rescue(stage: &Stage, channel: &Channel, unroutable: &str) -> Result<usize, lapin::Error> {
    let mut letters = Vec::new();
    while let Some(letter) = channel
        .basic_get(unroutable.into(), BasicGetOptions::default())
        .await?
    {
        letters.push(letter);
    }
    for letter in &letters {
        let delivery = &letter.delivery;
        // For the order, it is like an event that RabbitMQ returned to its publisher.
        if let Ok(event) = serde_json::from_slice::<Value>(&delivery.data) {
            let note =
                json!({"publisher": "operator", "source": event["source"], "id": event["id"]});
            stage
                .history
                .note(Book::Publishes, "publish_returned", note);
        }
        channel
            .basic_publish(
                stage.exchange().into(),
                delivery.routing_key.clone(),
                BasicPublishOptions::default(),
                &delivery.data,
                delivery.properties.clone(),
            )
            .await?
            .await?;
        delivery.ack(BasicAckOptions::default()).await?;
    }
    Ok(letters.len())
}

async fn connect(stage: &Stage) -> Result<(Connection, Channel), lapin::Error> {
    let properties = ConnectionProperties::default();
    let connection = Connection::connect(stage.world.amqp_url(), properties).await?;
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    Ok((connection, channel))
}
