//! A publisher that follows the AMQP contract: persistent, confirmed, mandatory, and bounded in
//! flight.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection, ConnectionProperties, PublisherConfirm};
use tokio::time::timeout;

use super::event::Parcel;
use super::{PATIENCE, eventually};

/// Publishes that wait for their confirms at once.
const IN_FLIGHT_MAX: usize = 256;
/// A broker needs time to start after a fault.
const FAULT_BOUND: Duration = Duration::from_secs(120);

/// An upstream system with one channel. Its events stay in order.
pub struct Publisher {
    amqp_url: String,
    exchange: String,
    channel: Channel,
    /// Held because the channel ends with its connection.
    connection: Connection,
}

impl Publisher {
    /// Connects. All events go to `exchange`.
    pub async fn connect(amqp_url: &str, exchange: &str) -> Self {
        let (connection, channel) = open(amqp_url)
            .await
            .expect("the publisher reaches RabbitMQ");
        Self {
            amqp_url: amqp_url.to_owned(),
            exchange: exchange.to_owned(),
            channel,
            connection,
        }
    }

    /// Publishes one event, and waits for its confirm.
    pub async fn publish(&self, parcel: impl Into<Parcel>) {
        self.publish_all([parcel]).await;
    }

    /// Publishes all in this order, and waits for the confirms.
    pub async fn publish_all(&self, parcels: impl IntoIterator<Item = impl Into<Parcel>>) {
        let parcels: Vec<Parcel> = parcels.into_iter().map(Into::into).collect();
        if let Err((confirmed, error)) = self.attempt(&parcels).await {
            panic!(
                "the broker confirmed {confirmed} of {}, then: {error:#}",
                parcels.len()
            );
        }
    }

    /// Publishes all in this order across every fault. It reconnects and repeats each event without
    /// a confirm.
    pub async fn publish_until_confirmed(
        &mut self,
        parcels: impl IntoIterator<Item = impl Into<Parcel>>,
    ) {
        let mut parcels: VecDeque<Parcel> = parcels.into_iter().map(Into::into).collect();
        while let Err((confirmed, _)) = self.attempt(parcels.make_contiguous()).await {
            parcels.drain(..confirmed);
            let amqp_url = &self.amqp_url;
            let reconnect = async || open(amqp_url).await.map_err(|error| format!("{error:#}"));
            (self.connection, self.channel) =
                eventually("the publisher connects again", FAULT_BOUND, reconnect).await;
        }
        assert!(
            self.connection.status().connected(),
            "confirmed on a connection that is gone"
        );
    }

    /// If not all were confirmed: the number of confirmed `parcels`, from the first on.
    async fn attempt(&self, parcels: &[Parcel]) -> Result<(), (usize, anyhow::Error)> {
        let (mut confirmed, mut waiting) = (0, VecDeque::new());
        for parcel in parcels {
            if waiting.len() == IN_FLIGHT_MAX {
                settle(&mut waiting)
                    .await
                    .map_err(|error| (confirmed, error))?;
                confirmed += 1;
            }
            waiting.push_back(
                self.send(parcel)
                    .await
                    .map_err(|error| (confirmed, error))?,
            );
        }
        while !waiting.is_empty() {
            settle(&mut waiting)
                .await
                .map_err(|error| (confirmed, error))?;
            confirmed += 1;
        }
        Ok(())
    }

    async fn send(&self, parcel: &Parcel) -> anyhow::Result<PublisherConfirm> {
        let options = BasicPublishOptions {
            mandatory: true,
            immediate: false,
        };
        let publish = self.channel.basic_publish(
            self.exchange.as_str().into(),
            parcel.routing_key.as_str().into(),
            options,
            &parcel.body,
            parcel.properties(),
        );
        Ok(timeout(PATIENCE, publish)
            .await
            .context("the broker accepts nothing")??)
    }
}

/// Waits for the oldest confirm.
async fn settle(waiting: &mut VecDeque<PublisherConfirm>) -> anyhow::Result<()> {
    let Some(confirm) = waiting.pop_front() else {
        return Ok(());
    };
    let confirmation = timeout(PATIENCE, confirm).await.context("no confirm")??;
    ensure!(
        confirmation == Confirmation::Ack(None),
        "not taken: {confirmation:?}"
    );
    Ok(())
}

async fn open(amqp_url: &str) -> anyhow::Result<(Connection, Channel)> {
    let connect = Connection::connect(amqp_url, ConnectionProperties::default());
    // lapin bounds the TCP connect, but not the AMQP handshake after it.
    let connection = timeout(PATIENCE, connect)
        .await
        .context("the broker does not answer")??;
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    Ok((connection, channel))
}
