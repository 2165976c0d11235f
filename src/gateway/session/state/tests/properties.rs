//! The promise of a session as properties, over any order of events.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Happening {
    /// Notifications are stored. Each hint arrives or is lost.
    Stored(Vec<bool>),
    Page,
    /// The client acknowledges this part of its notifications, in percent.
    Ack(i64),
    Sweep,
    Again(i64),
    /// A person handles the notification at this part of the feed, in percent. The mark arrives or
    /// is lost.
    Handled(i64, bool),
    /// The database loses this many notifications. Notifications are of another epoch from now on.
    SetBack(i64),
    Epoch,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        proptest::collection::vec(any::<bool>(), 1..6).prop_map(Happening::Stored),
        Just(Happening::Page),
        (0..=100_i64).prop_map(Happening::Ack),
        Just(Happening::Sweep),
        (1..30_i64).prop_map(Happening::Again),
        (0..=100_i64, any::<bool>())
            .prop_map(|(percent, arrives)| Happening::Handled(percent, arrives)),
    ]
}

/// The same, and the database may lose notifications.
fn happening_with_set_backs() -> impl Strategy<Value = Happening> {
    prop_oneof![
        8 => happening(),
        1 => (0..20_i64).prop_map(Happening::SetBack),
        1 => Just(Happening::Epoch),
    ]
}

/// A client and a database around a session. They check each output against the promise.
struct World {
    session: Session,
    stored: i64,
    /// The number and the version of the page that the session asked for.
    asked: Option<(i64, Option<i64>)>,
    received: i64,
    acked: i64,
    skipped: BTreeSet<i64>,
    /// The notifications that were handled, by version from 1.
    handled: Vec<i64>,
    /// The newest version that the session sent.
    sent_version: i64,
    /// The page, if it was read and has not arrived.
    read: Option<Page>,
    /// The last number that survived a loss in the database.
    set_back_to: Option<i64>,
    closed: bool,
}

impl World {
    fn happen(&mut self, happening: Happening) {
        if self.closed {
            return;
        }
        match happening {
            Happening::Stored(arrivals) => {
                for arrives in arrivals {
                    self.stored += 1;
                    // The hub drops hints of another epoch.
                    if arrives && self.set_back_to.is_none() {
                        self.session
                            .on_hints(vec![self.expiring_every_fifth(self.stored)], wall());
                    }
                }
            }
            Happening::Page => self.deliver_page(),
            Happening::Ack(percent) => {
                let number = self.acked + (self.received - self.acked) * percent / 100;
                ack(&mut self.session, number);
                self.acked = number;
            }
            // The hub drops all of another epoch.
            Happening::Sweep | Happening::Again(_) | Happening::Handled(..)
                if self.set_back_to.is_some() => {}
            Happening::SetBack(by) => {
                // A page that was read before may arrive afterwards.
                let number = (self.stored - by).max(0);
                self.stored = number;
                self.set_back_to =
                    Some(self.set_back_to.map_or(number, |before| before.min(number)));
            }
            Happening::Epoch => self.session.on_epoch(&self.epoch()),
            Happening::Sweep => {
                let newest = stored(self.stored, self.handled.len().try_into().unwrap());
                self.session.on_newest(&feed(), newest);
            }
            Happening::Handled(percent, arrives) if self.stored > 0 => {
                // A page that was read before may arrive afterwards.
                self.read_page();
                let number = 1 + (self.stored - 1) * percent / 100;
                self.handled.push(number);
                if arrives {
                    self.session
                        .on_states(&[state_frame(self.handled.len().try_into().unwrap(), number)]);
                }
            }
            Happening::Handled(..) => {}
            Happening::Again(number) if number <= self.stored => {
                self.session
                    .on_hints(vec![self.expiring_every_fifth(number)], wall());
            }
            Happening::Again(_) => {}
        }
        self.check_outputs();
    }

    fn deliver_page(&mut self) {
        self.read_page();
        if let Some(page) = self.read.take() {
            self.session.on_page(&page, wall());
        }
    }

    fn read_page(&mut self) {
        let Some((after, states_after)) = self.asked.take() else {
            return;
        };
        let mut page = Page::new(feed(), seq(after));
        page.epoch = Some(self.epoch());
        page.last = seq(self.stored);
        page.version = version(self.handled.len().try_into().unwrap());
        for number in after + 1..=self.stored.min(after + 7) {
            match number % 5 {
                0 => page.skip(seq(number), SkipReason::Expired),
                _ => page.push(self.as_it_is(number)),
            }
        }
        page.close();
        let states = (1..)
            .zip(&self.handled)
            .map(|(version, number)| state_frame(version, *number));
        let after = |after: i64| {
            states
                .filter(move |state| state.version.get() > after)
                .take(3)
        };
        page.states = states_after.map(after).into_iter().flatten().collect();
        self.read = Some(page);
    }

    fn epoch(&self) -> Epoch {
        match self.set_back_to {
            None => epoch(),
            Some(_) => Epoch::parse("e2").unwrap(),
        }
    }

    fn expiring_every_fifth(&self, number: i64) -> Arc<Notification> {
        expiring(number, (number % 5 == 0).then(wall))
    }

    /// The notification as stored now. Its id is `handled` if it was handled.
    fn as_it_is(&self, number: i64) -> Arc<Notification> {
        let mut notification = (*notification(number)).clone();
        if self.handled.contains(&number) {
            notification.frame = notification
                .frame
                .replace(r#""id":"e""#, r#""id":"handled""#)
                .into();
        }
        Arc::new(notification)
    }

    fn check_outputs(&mut self) {
        for word in words(&mut self.session) {
            assert!(!self.closed, "{word} after the close");
            if word == "close 4410" {
                assert!(self.set_back_to.is_some(), "the database lost nothing");
                self.closed = true;
                continue;
            }
            let (word, is_handled) = match word.strip_suffix(" handled") {
                Some(word) => (word.to_owned(), true),
                None => (word, false),
            };
            if let Ok(number) = word.parse::<i64>() {
                let sent = &self.handled[..usize::try_from(self.sent_version).unwrap()];
                assert!(
                    is_handled || !sent.contains(&number),
                    "{number} is sent as it was before it was handled"
                );
                assert_eq!(number, self.received + 1, "in order, without a gap, once");
                assert_ne!(number % 5, 0, "an expired notification is sent");
                self.received = number;
            } else if let Some(version) = word.strip_prefix("state ") {
                self.sent_version += 1;
                assert_eq!(
                    version.parse(),
                    Ok(self.sent_version),
                    "in order, without a gap, once"
                );
            } else if let Some(asked) = word.strip_prefix("read ") {
                assert!(
                    self.asked.is_none() && self.read.is_none(),
                    "one page at a time"
                );
                let mut numbers = asked
                    .split(' ')
                    .filter_map(|word| word.parse().ok())
                    .skip(1);
                let (after, states_after) = (numbers.next().unwrap(), numbers.next());
                assert_eq!(
                    after, self.received,
                    "it reads after the last number that it sent"
                );
                assert!(
                    states_after.is_none_or(|after: i64| after == self.sent_version),
                    "and after the last version that it sent"
                );
                self.asked = Some((after, states_after));
            } else if let Some(range) = word.strip_prefix("skip ") {
                let (from, through) = range.split(' ').next().unwrap().split_once('-').unwrap();
                let (from, through) = (
                    from.parse::<i64>().unwrap(),
                    through.parse::<i64>().unwrap(),
                );
                assert_eq!(from, self.received + 1);
                assert!(
                    (from..=through).all(|number| number % 5 == 0),
                    "a notification is skipped that has not expired"
                );
                self.skipped.extend(from..=through);
                self.received = through;
            } else {
                assert!(
                    word.starts_with("ack ") || word.starts_with("caught_up "),
                    "{word}"
                );
            }
            let outstanding = (self.acked + 1..=self.received)
                .filter(|number| !self.skipped.contains(number))
                .count();
            assert!(outstanding <= WINDOW, "{outstanding} are outstanding");
        }
    }
}

proptest! {
    #[test]
    fn everything_stored_is_sent_once_and_in_order(
        stored in 0..20_i64,
        marks_before in 0..3_i64,
        happenings in proptest::collection::vec(happening(), 0..60),
    ) {
        let mut world = World {
            session: session_after(0, stored, marks_before),
            stored,
            asked: None,
            received: 0,
            acked: 0,
            skipped: BTreeSet::new(),
            handled: vec![stored; marks_before.try_into().unwrap()],
            sent_version: marks_before,
            read: None,
            set_back_to: None,
            closed: false,
        };
        world.check_outputs();
        happenings.into_iter().for_each(|happening| world.happen(happening));
        // Then pages, acks and the sweep arrive. Nothing may be stuck.
        for _ in 0..=world.stored + i64::try_from(world.handled.len()).unwrap() {
            [Happening::Sweep, Happening::Page, Happening::Ack(100)].into_iter().for_each(|kind| world.happen(kind));
        }
        prop_assert_eq!(world.received, world.stored, "all notifications arrived");
        prop_assert_eq!(world.sent_version, i64::try_from(world.handled.len()).unwrap(), "all marks arrived");
    }

    #[test]
    fn nothing_of_another_epoch_is_sent_and_the_session_ends(
        stored in 1..20_i64,
        happenings in proptest::collection::vec(happening_with_set_backs(), 0..60),
    ) {
        let mut world = World {
            session: session_after(0, stored, 0),
            stored,
            asked: None,
            received: 0,
            acked: 0,
            skipped: BTreeSet::new(),
            handled: Vec::new(),
            sent_version: 0,
            read: None,
            set_back_to: None,
            closed: false,
        };
        world.check_outputs();
        let (mut was_set_back, mut received) = (false, 0);
        for happening in happenings {
            let is_page_of_before = world.read.is_some();
            world.happen(happening);
            if was_set_back && !is_page_of_before {
                prop_assert_eq!(world.received, received, "only notifications that were read or kept before are sent");
            }
            (was_set_back, received) = (world.set_back_to.is_some(), world.received);
        }
        world.happen(Happening::Epoch);
        prop_assert_eq!(world.closed, world.set_back_to.is_some());
    }
}
