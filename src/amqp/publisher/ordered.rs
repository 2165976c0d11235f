//! Publishes in order for each key, also if RabbitMQ nacks a publish.
//!
//! RabbitMQ may nack a publish and store a later one of the same channel. So a publish waits for the
//! confirm of the one before it with its key. Publishes of different keys do not wait for each other.

use std::collections::{HashMap, VecDeque};

use futures_util::stream::{FuturesUnordered, StreamExt};
use lapin::Confirmation;
use tokio_util::sync::CancellationToken;

use super::{CONFIRM_TIMEOUT, IN_FLIGHT_MAX, Incarnation, Outgoing, Publisher, check};
use crate::amqp::{BrokerError, within};

/// A publish with the key that it keeps its order in.
#[derive(Debug)]
pub struct Keyed {
    /// The key.
    pub key: String,
    /// The publish.
    pub outgoing: Outgoing,
}

/// The result of [`Publisher::publish_in_order`].
#[derive(Debug, Default)]
pub struct InOrder {
    /// The indexes of the publishes that RabbitMQ confirmed.
    pub confirmed: Vec<usize>,
    /// The indexes of those that were sent and not confirmed, so it is unknown whether they arrived.
    pub unconfirmed: Vec<usize>,
    /// The reason why not all were published. `None` also after a stop.
    pub failure: Option<BrokerError>,
}

impl Publisher {
    /// Publishes, and keeps the order of each key. After `stop` it sends no more, and waits for the
    /// confirms of those that were sent.
    ///
    /// After a failure it sends no more, too. The caller repeats all that are not confirmed, in the
    /// same order.
    pub async fn publish_in_order(
        &mut self,
        publishes: &[Keyed],
        stop: &CancellationToken,
    ) -> InOrder {
        let incarnation = match self.incarnation.take() {
            Some(incarnation) if incarnation.connection.is_connected() => Ok(incarnation),
            _ => self.unless_blocked(Incarnation::open(&self.broker).await),
        };
        let incarnation = match incarnation {
            Ok(incarnation) => incarnation,
            Err(error) => {
                return InOrder {
                    failure: Some(error),
                    ..InOrder::default()
                };
            }
        };
        let mut result = incarnation.publish_in_order(publishes, stop).await;
        match &result.failure {
            None => self.incarnation = Some(incarnation),
            Some(BrokerError::Timeout(..)) if incarnation.is_blocked() => {
                // Otherwise lapin keeps these publishes and all repeats until the alarm ends.
                incarnation.connection.cut();
                result.failure = Some(BrokerError::Blocked);
            }
            Some(_) => incarnation.close().await,
        }
        result
    }
}

impl Incarnation {
    async fn publish_in_order(&self, publishes: &[Keyed], stop: &CancellationToken) -> InOrder {
        let mut waiting = Waiting::of(publishes);
        let mut sent = vec![false; publishes.len()];
        let mut is_confirmed = vec![false; publishes.len()];
        let mut confirms = FuturesUnordered::new();
        let (mut failure, mut is_returned) = (None, false);
        loop {
            while failure.is_none()
                && !stop.is_cancelled()
                && confirms.len() < IN_FLIGHT_MAX
                && let Some((index, keyed)) = waiting.next(publishes)
            {
                sent[index] = true;
                let sending = self.send(&keyed.outgoing);
                match within(CONFIRM_TIMEOUT, "sending publishes", sending).await {
                    Ok(confirm) => confirms.push(async move { (index, confirm.await) }),
                    Err(error) => failure = Some(error),
                }
            }
            let answered = tokio::time::timeout(CONFIRM_TIMEOUT, confirms.next()).await;
            let (index, answer) = match answered {
                Ok(Some(answer)) => answer,
                Ok(None) => break,
                // The publishes wait in the connection, and are confirmed after the alarm.
                Err(_) if self.is_blocked() && !stop.is_cancelled() => continue,
                Err(_) => {
                    let timeout = BrokerError::Timeout(CONFIRM_TIMEOUT, "confirming publishes");
                    failure.get_or_insert(timeout);
                    break;
                }
            };
            let outcome = answer
                .map_err(BrokerError::from)
                .and_then(|answer| checked(&answer, publishes.get(index)));
            match outcome {
                Ok(()) => {
                    is_confirmed[index] = true;
                    waiting.confirmed(index);
                }
                // It outweighs the others, because it makes every confirm doubtful.
                Err(error @ BrokerError::Unroutable(_)) => {
                    is_returned = true;
                    failure = Some(error);
                }
                Err(_) if is_returned => {}
                // An error that names a publish explains a channel that is closed.
                Err(error) if failure.is_none() || error.refuses_a_publish() => {
                    failure = Some(error);
                }
                Err(_) => {}
            }
        }
        // lapin may attach a returned message to the confirm of another publish.
        if is_returned {
            is_confirmed.fill(false);
        }
        let indexes = |confirmed: bool| {
            let sent = sent.iter().zip(&is_confirmed).enumerate();
            sent.filter(|(_, (sent, is_confirmed))| **sent && **is_confirmed == confirmed)
                .map(|(index, _)| index)
                .collect()
        };
        InOrder {
            confirmed: indexes(true),
            unconfirmed: indexes(false),
            failure,
        }
    }
}

fn checked(answer: &Confirmation, keyed: Option<&Keyed>) -> Result<(), BrokerError> {
    keyed.map_or(Ok(()), |keyed| check(answer, &keyed.outgoing))
}

/// The publishes that are not sent, by key.
struct Waiting<'a> {
    /// The next publishes of keys without an unconfirmed one.
    ready: VecDeque<usize>,
    /// The later ones of each key.
    later: HashMap<&'a str, VecDeque<usize>>,
    keys: Vec<&'a str>,
}

impl<'a> Waiting<'a> {
    fn of(publishes: &'a [Keyed]) -> Self {
        let mut waiting = Self {
            ready: VecDeque::new(),
            later: HashMap::new(),
            keys: publishes.iter().map(|keyed| keyed.key.as_str()).collect(),
        };
        for (index, key) in waiting.keys.iter().enumerate() {
            match waiting.later.get_mut(key) {
                Some(later) => later.push_back(index),
                None => {
                    waiting.later.insert(key, VecDeque::new());
                    waiting.ready.push_back(index);
                }
            }
        }
        waiting
    }

    /// The next publish that may be sent now.
    fn next(&mut self, publishes: &'a [Keyed]) -> Option<(usize, &'a Keyed)> {
        let index = self.ready.pop_front()?;
        Some((index, publishes.get(index)?))
    }

    /// The one after it with the same key may be sent.
    fn confirmed(&mut self, index: usize) {
        let key = self.keys.get(index);
        let later = key.and_then(|key| self.later.get_mut(key));
        self.ready.extend(later.and_then(VecDeque::pop_front));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_waits_for_the_one_before_it_with_its_key() {
        let publishes: Vec<Keyed> = ["a", "a", "b", "a", "b"]
            .map(|key| Keyed {
                key: key.into(),
                outgoing: Outgoing::event("x".into(), "t", key, Vec::new()),
            })
            .into();
        let mut waiting = Waiting::of(&publishes);
        let mut next = |confirmed: Option<usize>| {
            if let Some(index) = confirmed {
                waiting.confirmed(index);
            }
            waiting.next(&publishes).map(|(index, _)| index)
        };
        assert_eq!(next(None), Some(0));
        assert_eq!(next(None), Some(2));
        assert_eq!(next(None), None);
        assert_eq!(next(Some(2)), Some(4));
        assert_eq!(next(Some(0)), Some(1));
        assert_eq!(next(Some(4)), None);
        assert_eq!(next(Some(1)), Some(3));
        assert_eq!(next(Some(3)), None);
    }
}
