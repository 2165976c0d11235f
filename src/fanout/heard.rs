//! The numbers that this gateway has heard from each process. Announcements come in, and evidence of
//! lost hints goes out. Takes the time as an argument. No I/O.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::announcement::Announcement;
use crate::telemetry::labels::Evidence;

/// Missed heartbeats after which a process is silent.
const HEARTBEATS_MISSED: u32 = 3;
/// Silence of a process whose interval is not known yet.
const SILENT_AFTER: Duration = Duration::from_secs(3);
/// Longest silence that a process can promise.
const SILENT_AFTER_MAX: Duration = Duration::from_secs(60);
/// Time after which a silent process counts as dead and is forgotten. The slow poll finds all that
/// it may still store.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// Interval of evidence while a fault lasts. An event that is stored meanwhile waits for this time.
const REPEATED_EVERY: Duration = Duration::from_secs(2);
/// Time without a delivery after a confirmed heartbeat of this process, after which the binding of
/// the queue is gone.
const DEAF_AFTER: Duration = Duration::from_secs(10);
/// Most processes. Each costs some hundred bytes.
const PROCESSES_MAX: usize = 4_096;
/// Most streams of a process: the connections of ingest, the held feeds and the marks.
const STREAMS_MAX: usize = 256;

/// The processes that this gateway hears.
#[derive(Debug)]
pub struct Heard {
    own: String,
    processes: HashMap<String, Process>,
    /// The time of the last delivery, or of the connection.
    delivered_at: Option<Instant>,
    /// The begin of the first heartbeat of this process that RabbitMQ confirmed since the last
    /// delivery.
    undelivered_since: Option<Instant>,
    repeated_at: Option<Instant>,
    /// Numbers that did not arrive.
    missed: u64,
}

#[derive(Debug)]
struct Process {
    /// The highest number of each stream. `None` if none was heard.
    numbers: Vec<Option<u64>>,
    heard_at: Instant,
    silent_after: Duration,
}

impl Heard {
    /// Begins without a connection. `own` is the name of this process.
    pub fn new(own: String) -> Self {
        Self {
            own,
            processes: HashMap::new(),
            delivered_at: None,
            undelivered_since: None,
            repeated_at: None,
            missed: 0,
        }
    }

    /// Begins again with a new queue, which receives only publishes from now on.
    pub fn connected(&mut self, now: Instant) {
        self.processes.clear();
        self.processes.insert(self.own.clone(), Process::new(now));
        self.delivered(now);
    }

    /// The queue is gone.
    pub fn disconnected(&mut self) {
        self.delivered_at = None;
    }

    /// RabbitMQ confirmed a heartbeat of this process.
    pub fn confirmed(&mut self, begun: Instant) {
        if self.delivered_at.is_some_and(|at| at < begun) {
            self.undelivered_since.get_or_insert(begun);
        }
    }

    /// Takes a delivery without an announcement, such as one of an older version.
    pub fn delivered(&mut self, now: Instant) {
        self.delivered_at = Some(now);
        self.undelivered_since = None;
    }

    /// Takes the announcement of a process. Returns evidence of a loss.
    pub fn hear(
        &mut self,
        name: &str,
        announcement: &Announcement,
        now: Instant,
    ) -> Option<Evidence> {
        self.delivered(now);
        let is_own = name == self.own;
        if !is_own && let Announcement::Farewell { .. } = announcement {
            let mut process = self.processes.remove(name);
            let (missed, evidence) = match &mut process {
                Some(process) => process.take(announcement),
                None => (0, Some(Evidence::NewStream)),
            };
            self.missed += missed;
            return evidence;
        }
        let is_new = !self.processes.contains_key(name);
        if is_new {
            self.make_room();
        }
        let process = self
            .processes
            .entry(name.to_owned())
            .or_insert_with(|| Process::new(now));
        process.heard_at = now;
        let (missed, evidence) = process.take(announcement);
        if is_own {
            // The hub has the hints of this process already.
            return None;
        }
        self.missed += missed;
        evidence.or(is_new.then_some(Evidence::NewStream))
    }

    /// Returns evidence of a fault that lasts, from time to time. Forgets the dead.
    pub fn check(&mut self, now: Instant) -> Option<Evidence> {
        let own = &self.own;
        self.processes.retain(|name, process| {
            name == own || now.duration_since(process.heard_at) < FORGOTTEN_AFTER
        });
        let evidence = match self.delivered_at {
            None => Evidence::Disconnect,
            Some(_) if self.processes.values().any(|one| one.is_silent(now)) => Evidence::Silence,
            Some(_) => return None,
        };
        let is_due = self
            .repeated_at
            .is_none_or(|at| now.duration_since(at) >= REPEATED_EVERY);
        if is_due {
            self.repeated_at = Some(now);
        }
        is_due.then_some(evidence)
    }

    /// Whether RabbitMQ confirms the heartbeats of this process and delivers nothing, so that the
    /// queue must be bound again. The time without heartbeats, as in an alarm, does not count.
    pub fn is_deaf(&self, now: Instant) -> bool {
        self.undelivered_since
            .is_some_and(|since| now.duration_since(since) >= DEAF_AFTER)
    }

    /// Returns how many numbers were missed since the last call.
    pub fn take_missed(&mut self) -> u64 {
        std::mem::take(&mut self.missed)
    }

    /// Forgets the process that was heard longest ago if there are too many.
    fn make_room(&mut self) {
        if self.processes.len() < PROCESSES_MAX {
            return;
        }
        let others = self.processes.iter().filter(|(name, _)| **name != self.own);
        let oldest = others.min_by_key(|(_, process)| process.heard_at);
        if let Some(name) = oldest.map(|(name, _)| name.clone()) {
            self.processes.remove(&name);
        }
    }
}

impl Process {
    fn new(now: Instant) -> Self {
        Self {
            numbers: Vec::new(),
            heard_at: now,
            silent_after: SILENT_AFTER,
        }
    }

    fn is_silent(&self, now: Instant) -> bool {
        now.duration_since(self.heard_at) > self.silent_after
    }

    /// Returns the count of missed numbers, and the evidence of a loss.
    fn take(&mut self, announcement: &Announcement) -> (u64, Option<Evidence>) {
        match announcement {
            Announcement::Hints { stream, number } => self.raise(*stream, *number, 1),
            Announcement::Heartbeat { every_ms, numbers } => {
                self.silent_after = Duration::from_millis(*every_ms)
                    .saturating_mul(HEARTBEATS_MISSED)
                    .clamp(SILENT_AFTER, SILENT_AFTER_MAX);
                self.raise_all(numbers)
            }
            Announcement::Farewell { numbers } => self.raise_all(numbers),
        }
    }

    fn raise_all(&mut self, numbers: &[u64]) -> (u64, Option<Evidence>) {
        let raised = numbers.iter().enumerate();
        let raised = raised.map(|(stream, number)| self.raise(stream, *number, 0));
        raised.fold((0, None), |(missed, evidence), (more, other)| {
            (missed + more, evidence.or(other))
        })
    }

    /// Raises the number of a stream. `carried` is 1 if the message with this number has arrived.
    ///
    /// Earlier numbers may arrive late, if their publisher has changed its channel.
    fn raise(&mut self, stream: usize, number: u64, carried: u64) -> (u64, Option<Evidence>) {
        if stream >= STREAMS_MAX {
            return (0, None);
        }
        if self.numbers.len() <= stream {
            self.numbers.resize(stream + 1, None);
        }
        let known = self.numbers[stream];
        self.numbers[stream] = known.max(Some(number));
        match known {
            // The numbers before it may have been lost before or after the connection.
            None => (0, (number > 0).then_some(Evidence::NewStream)),
            Some(known) => {
                let missed = number.saturating_sub(known).saturating_sub(carried);
                (missed, (missed > 0).then_some(Evidence::Gap))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    struct World {
        heard: Heard,
        begun: Instant,
    }

    impl World {
        fn connected() -> Self {
            let begun = Instant::now();
            let mut heard = Heard::new("own".into());
            heard.connected(begun);
            Self { heard, begun }
        }

        fn hints(&mut self, name: &str, number: u64) -> Option<Evidence> {
            let announcement = Announcement::Hints { stream: 0, number };
            self.heard.hear(name, &announcement, self.begun)
        }

        fn heartbeat(&mut self, name: &str, number: u64, at: Duration) -> Option<Evidence> {
            let announcement = Announcement::Heartbeat {
                every_ms: 1_000,
                numbers: vec![number],
            };
            self.heard.hear(name, &announcement, self.begun + at)
        }

        fn check(&mut self, at: Duration) -> Option<Evidence> {
            self.heard.check(self.begun + at)
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_number_that_is_left_out_is_a_gap() {
        let mut world = World::connected();
        assert_eq!(world.heartbeat("a", 0, NOW), Some(Evidence::NewStream));
        for number in 1..=3 {
            assert_eq!(world.hints("a", number), None);
        }
        assert_eq!(world.hints("a", 5), Some(Evidence::Gap));
        assert_eq!(world.hints("a", 4), None, "it comes late");
        assert_eq!(world.hints("a", 6), None);
        assert_eq!(world.heartbeat("a", 6, NOW), None);
        assert_eq!(world.heartbeat("a", 9, NOW), Some(Evidence::Gap));
        assert_eq!(world.heard.take_missed(), 1 + 3);
        assert_eq!(world.heard.take_missed(), 0);
    }

    #[test]
    fn a_stream_that_is_heard_for_the_first_time_may_have_lost_hints() {
        let mut world = World::connected();
        assert_eq!(world.hints("a", 1), Some(Evidence::NewStream));
        let two = Announcement::Heartbeat {
            every_ms: 1_000,
            numbers: vec![1, 7],
        };
        let now = world.begun;
        assert_eq!(
            world.heard.hear("a", &two, now),
            Some(Evidence::NewStream),
            "the second stream"
        );
        assert_eq!(world.heard.hear("a", &two, now), None);
        assert_eq!(world.hints("b", 1), Some(Evidence::NewStream));
        assert_eq!(world.hints("own", 9), None, "the hub has them");
    }

    #[test]
    fn silence_is_evidence_until_the_process_is_forgotten() {
        let mut world = World::connected();
        world.heartbeat("a", 0, NOW);
        let mut evidence = Vec::new();
        for second in 1..=90 {
            world.heartbeat("own", 0, seconds(second));
            if let Some(found) = world.check(seconds(second)) {
                assert_eq!(found, Evidence::Silence);
                evidence.push(second);
            }
        }
        assert_eq!(evidence.first(), Some(&4), "{evidence:?}");
        assert!(evidence.windows(2).all(|pair| pair[1] - pair[0] == 2));
        assert!(evidence.last().is_some_and(|last| (57..60).contains(last)));
        assert_eq!(
            world.heartbeat("a", 0, seconds(91)),
            Some(Evidence::NewStream),
            "it came back"
        );
    }

    #[test]
    fn the_own_silence_lasts_as_long_as_the_fault() {
        let mut world = World::connected();
        assert_eq!(world.check(seconds(600)), Some(Evidence::Silence));
        world.heartbeat("own", 0, seconds(601));
        assert_eq!(world.check(seconds(603)), None);
    }

    #[test]
    fn a_process_that_takes_its_leave_is_not_silent() {
        let mut world = World::connected();
        world.heartbeat("a", 2, NOW);
        let farewell = |number| Announcement::Farewell {
            numbers: vec![number],
        };
        let now = world.begun;
        assert_eq!(world.heard.hear("a", &farewell(2), now), None);
        world.heartbeat("own", 0, seconds(5));
        assert_eq!(world.check(seconds(5)), None);
        world.heartbeat("a", 2, NOW);
        let evidence = world.heard.hear("a", &farewell(3), now);
        assert_eq!(evidence, Some(Evidence::Gap));
    }

    #[test]
    fn a_gateway_without_a_connection_has_lost_hints() {
        let mut world = World::connected();
        world.heartbeat("a", 2, NOW);
        world.heard.disconnected();
        assert_eq!(world.check(seconds(1)), Some(Evidence::Disconnect));
        assert_eq!(world.check(seconds(2)), None, "from time to time");
        assert_eq!(world.check(seconds(3)), Some(Evidence::Disconnect));
        world.heard.connected(world.begun + seconds(4));
        assert_eq!(world.check(seconds(5)), None);
    }

    #[test]
    fn a_confirmed_heartbeat_that_does_not_come_back_shows_a_lost_binding() {
        let mut world = World::connected();
        let begun = world.begun;
        for second in 1..=11 {
            world.heard.confirmed(begun + seconds(second));
            let is_deaf = world.heard.is_deaf(begun + seconds(second));
            assert_eq!(is_deaf, second >= 11, "{second}");
        }
        world.heard.delivered(begun + seconds(12));
        assert!(!world.heard.is_deaf(begun + seconds(60)));
    }

    #[test]
    fn the_time_of_an_alarm_does_not_show_a_lost_binding() {
        let mut world = World::connected();
        let begun = world.begun;
        // The confirm of the first heartbeat after the alarm arrives before its delivery.
        world.heard.confirmed(begun + seconds(40));
        assert!(!world.heard.is_deaf(begun + seconds(40)));
        world.heard.delivered(begun + seconds(41));
        // A confirm that is noticed after the delivery.
        world.heard.confirmed(begun + seconds(41));
        assert!(!world.heard.is_deaf(begun + seconds(99)));
    }

    #[test]
    fn processes_and_streams_are_bounded() {
        let mut world = World::connected();
        for name in 0..PROCESSES_MAX + 10 {
            world.hints(&name.to_string(), 1);
        }
        assert_eq!(world.heard.processes.len(), PROCESSES_MAX);
        assert!(world.heard.processes.contains_key("own"));
        let far = Announcement::Hints {
            stream: usize::MAX,
            number: 1,
        };
        let now = world.begun;
        world.heard.hear("own", &far, now);
        let streams = world.heard.processes.values().map(|one| one.numbers.len());
        assert!(streams.max() <= Some(STREAMS_MAX));
    }
}
