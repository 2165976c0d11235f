//! A publisher that records each step. It repeats an event with the same id until it is confirmed.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection, ConnectionProperties, PublisherConfirm};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};

use super::history::Book;
use super::mix::{Draft, Mix};
use super::stage::{Phase, Stage};

/// Publishes that wait for their confirms at once.
const IN_FLIGHT_MAX: usize = 128;
/// Interval of new events.
const TICK: Duration = Duration::from_millis(20);
/// Longer than any fault. Otherwise a blocked connection would be replaced again and again.
const CONFIRM_BOUND: Duration = Duration::from_secs(30);
/// Bound of a connection, and the pause after a failed one.
const CONNECT_BOUND: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(300);

/// An event that is not confirmed.
struct Pending {
    draft: Draft,
    attempt: u32,
}

/// An event that waits for its confirm.
struct Waiting {
    pending: Pending,
    confirm: Pin<Box<PublisherConfirm>>,
    sent: Instant,
}

/// Publishes about `rate` events a second until the run drains, and returns when all are confirmed.
pub async fn publish(stage: Arc<Stage>, mut mix: Mix, rate: f64) {
    let mut phase = stage.phase();
    let (mut unconfirmed, mut life) = (VecDeque::new(), 0);
    loop {
        if *phase.borrow_and_update() >= Phase::Finishing
            || (*phase.borrow() == Phase::Draining && unconfirmed.is_empty())
        {
            return;
        }
        match timeout(CONNECT_BOUND, open(&stage.publishers_url())).await {
            Ok(Ok((connection, channel))) => {
                life += 1;
                let line = Line {
                    stage: &stage,
                    channel,
                    life,
                };
                unconfirmed = line.live(unconfirmed, &mut mix, rate).await;
                drop(connection);
            }
            Ok(Err(_)) | Err(_) => sleep(PAUSE).await,
        }
    }
}

/// One connection of a publisher.
struct Line<'a> {
    stage: &'a Stage,
    channel: Channel,
    life: u32,
}

impl Line<'_> {
    /// Publishes until the connection fails, or until the run drains and all is confirmed. Returns
    /// the unconfirmed events in their order.
    async fn live(
        &self,
        mut queue: VecDeque<Pending>,
        mix: &mut Mix,
        rate: f64,
    ) -> VecDeque<Pending> {
        let mut waiting: VecDeque<Waiting> = VecDeque::new();
        // Of these, RabbitMQ has stored none. They go first when the others are settled.
        let mut nacked = VecDeque::new();
        let (mut tick, mut due, phase) = (interval(TICK), 0.0, self.stage.phase());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let load = &self.stage.load;
        loop {
            if waiting.is_empty() && !nacked.is_empty() {
                sleep(PAUSE).await;
                nacked.append(&mut queue);
                std::mem::swap(&mut nacked, &mut queue);
            }
            while waiting.len() < IN_FLIGHT_MAX && nacked.is_empty() {
                let Some(pending) = queue.pop_front() else {
                    break;
                };
                // Before the publish, because it does not return while RabbitMQ blocks the connection.
                let sent = Instant::now();
                let sent_at = waiting.front().map_or(sent, |waiting| waiting.sent);
                load.set_unconfirmed(
                    mix.publisher(),
                    waiting.len() + queue.len() + 1,
                    Some(sent_at),
                );
                match self.send(&pending).await {
                    Some(confirm) => waiting.push_back(Waiting {
                        pending,
                        confirm,
                        sent,
                    }),
                    None => {
                        queue.push_front(again(pending));
                        return self.give_up("publish_unknown", VecDeque::new(), waiting, queue);
                    }
                }
            }
            let sent_at = waiting.front().map(|waiting| waiting.sent);
            load.set_unconfirmed(mix.publisher(), waiting.len() + queue.len(), sent_at);
            let running = *phase.borrow() == Phase::Running;
            if !running && queue.is_empty() && waiting.is_empty() {
                return queue;
            }
            tokio::select! {
                confirmation = oldest(&mut waiting) => {
                    let Some(waited) = waiting.pop_front() else { continue };
                    match confirmation {
                        Ok(Ok(Confirmation::Ack(None))) => self.note("publish_confirmed", &waited.pending),
                        Ok(Ok(Confirmation::Ack(Some(_)))) => {
                            self.note("publish_returned", &waited.pending);
                            return self.give_up("publish_unknown", [again(waited.pending)].into(), waiting, queue);
                        }
                        Ok(Ok(Confirmation::Nack(_))) => {
                            self.note("publish_nacked", &waited.pending);
                            nacked.push_back(again(waited.pending));
                        }
                        _ => {
                            waiting.push_front(waited);
                            // If some before them were nacked, these may have been too.
                            let kind = match nacked.is_empty() {
                                true => "publish_unknown",
                                false => "publish_nacked",
                            };
                            return self.give_up(kind, nacked, waiting, queue);
                        }
                    }
                }
                _ = tick.tick(), if running && queue.is_empty() && nacked.is_empty() => if load.is_open() {
                    due = (due + rate * TICK.as_secs_f64()).min(IN_FLIGHT_MAX as f64);
                    while due >= 1.0 {
                        due -= 1.0;
                        let draft = mix.next(&self.stage.history, load);
                        queue.push_back(Pending { draft, attempt: 1 });
                    }
                }
            }
        }
    }

    /// `None` if the connection is gone.
    async fn send(&self, pending: &Pending) -> Option<Pin<Box<PublisherConfirm>>> {
        let mut note = pending.draft.note.clone();
        note["life"] = self.life.into();
        note["attempt"] = pending.attempt.into();
        self.stage
            .history
            .note(Book::Publishes, "publish_invoked", note);
        let options = BasicPublishOptions {
            mandatory: true,
            immediate: false,
        };
        let parcel = &pending.draft.parcel;
        let publish = self.channel.basic_publish(
            self.stage.exchange().into(),
            parcel.routing_key.as_str().into(),
            options,
            &parcel.body,
            parcel.properties(),
        );
        match timeout(CONFIRM_BOUND, publish).await {
            Ok(Ok(confirm)) => Some(Box::pin(confirm)),
            _ => {
                self.note("publish_unknown", pending);
                None
            }
        }
    }

    /// The connection is over. `kind` is the outcome of all that wait.
    fn give_up(
        &self,
        kind: &str,
        mut unconfirmed: VecDeque<Pending>,
        waiting: VecDeque<Waiting>,
        queue: VecDeque<Pending>,
    ) -> VecDeque<Pending> {
        unconfirmed.extend(waiting.into_iter().map(|waiting| {
            self.note(kind, &waiting.pending);
            again(waiting.pending)
        }));
        unconfirmed.extend(queue);
        unconfirmed
    }

    fn note(&self, kind: &str, pending: &Pending) {
        let field = |name: &str| -> Value { pending.draft.note[name].clone() };
        let fields = json!({
            "publisher": field("publisher"), "source": field("source"), "id": field("id"), "feed": field("feed"),
            "life": self.life, "attempt": pending.attempt,
        });
        self.stage.history.note(Book::Publishes, kind, fields);
    }
}

fn again(pending: Pending) -> Pending {
    Pending {
        attempt: pending.attempt + 1,
        ..pending
    }
}

/// The confirm of the oldest publish. Without any, it waits for ever.
async fn oldest(
    waiting: &mut VecDeque<Waiting>,
) -> Result<Result<Confirmation, lapin::Error>, tokio::time::error::Elapsed> {
    match waiting.front_mut() {
        Some(oldest) => timeout_at(oldest.sent + CONFIRM_BOUND, oldest.confirm.as_mut()).await,
        None => std::future::pending().await,
    }
}

async fn open(amqp_url: &str) -> Result<(Connection, Channel), lapin::Error> {
    let connection = Connection::connect(amqp_url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    Ok((connection, channel))
}
