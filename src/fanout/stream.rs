//! Numbers the publishes of one part of this process, so that a receiver notices a lost one. No I/O.
//!
//! Each part that publishes hints has a stream: a connection of ingest, the held feeds, the marks. A
//! hint that is not published uses up a number too. So every loss is a gap in the numbers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The numbers of one part. Its task publishes one message at a time.
#[derive(Debug)]
pub struct Stream {
    place: usize,
    numbers: Mutex<Numbers>,
}

#[derive(Debug, Default)]
struct Numbers {
    last: u64,
    /// The number of the publish that has not ended.
    in_flight: Option<u64>,
}

impl Stream {
    /// Takes the next number for a publish, which is in flight until the number is dropped.
    pub fn begin(&self) -> InFlight<'_> {
        let mut numbers = self.lock();
        numbers.last += 1;
        let number = numbers.last;
        numbers.in_flight = Some(number);
        InFlight {
            stream: self,
            number,
        }
    }

    /// Uses up a number, because a hint may be lost before its publish.
    pub fn skip(&self) {
        self.lock().last += 1;
    }

    /// The highest number whose publish has ended: RabbitMQ has confirmed it, or it is given up.
    fn settled(&self) -> u64 {
        let numbers = self.lock();
        numbers.in_flight.map_or(numbers.last, |number| number - 1)
    }

    fn lock(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of a publish.
#[derive(Debug)]
pub struct InFlight<'a> {
    stream: &'a Stream,
    number: u64,
}

impl InFlight<'_> {
    /// The place of the stream among those of this process.
    pub fn stream(&self) -> usize {
        self.stream.place
    }

    /// The number.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.stream.lock().in_flight = None;
    }
}

/// The streams of this process. They are opened at the start and never closed, which bounds them.
#[derive(Debug, Default)]
pub struct Streams(Mutex<Vec<Arc<Stream>>>);

impl Streams {
    /// Opens the stream of a part.
    pub fn open(&self) -> Arc<Stream> {
        let mut streams = self.lock();
        let stream = Arc::new(Stream {
            place: streams.len(),
            numbers: Mutex::default(),
        });
        streams.push(stream.clone());
        stream
    }

    /// The highest number of each stream whose publish has ended.
    pub fn settled(&self) -> Vec<u64> {
        self.lock().iter().map(|stream| stream.settled()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Stream>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_settled_when_its_publish_has_ended() {
        let streams = Streams::default();
        let (marks, partition) = (streams.open(), streams.open());
        assert_eq!(streams.settled(), [0, 0]);
        let first = partition.begin();
        assert_eq!((first.stream(), first.number()), (1, 1));
        assert_eq!(streams.settled(), [0, 0], "RabbitMQ has not confirmed it");
        drop(first);
        drop(marks.begin());
        assert_eq!(streams.settled(), [1, 1]);
    }

    #[test]
    fn a_hint_that_is_not_published_uses_up_a_number() {
        let streams = Streams::default();
        let stream = streams.open();
        let first = stream.begin();
        stream.skip();
        assert_eq!(streams.settled(), [0], "the first is in flight");
        drop(first);
        assert_eq!(streams.settled(), [2]);
        stream.skip();
        assert_eq!(streams.settled(), [3]);
        assert_eq!(stream.begin().number(), 4);
    }
}
