//! Reads settings that are not secrets, by the kinds of the table.
//!
//! White space around a value is removed, because a line break is easily left at its end. A default
//! is parsed like a given value.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use url::Url;

use super::effective::Origin;
use super::environment::Environment;
use super::settings::{Default, Kind, NETWORKS_MAX, ORIGINS_MAX, Setting, TEXT_BYTES_MAX};
use crate::model::feed::Feed;

/// Every reader returns `None` if the setting has no value, or a bad one: then a complaint is
/// noted.
impl Environment {
    pub(super) fn number<T: TryFrom<u64>>(&mut self, setting: &Setting) -> Option<T> {
        let Kind::Number { min, max, .. } = setting.kind else {
            return self.mismatch(setting);
        };
        let parse = |text: &str| {
            let number = text.parse().ok()?;
            let number = (min..=max).contains(&number).then_some(number)?;
            Some((T::try_from(number).ok()?, number))
        };
        let (value, _) = self.read(setting, parse, |(_, number)| number.to_string())?;
        Some(value)
    }

    pub(super) fn seconds(&mut self, setting: &Setting) -> Option<Duration> {
        self.number(setting).map(Duration::from_secs)
    }

    pub(super) fn flag(&mut self, setting: &Setting) -> Option<bool> {
        self.read(setting, |text| text.parse().ok(), bool::to_string)
    }

    pub(super) fn address(&mut self, setting: &Setting) -> Option<SocketAddr> {
        self.read(setting, |text| text.parse().ok(), SocketAddr::to_string)
    }

    pub(super) fn prefix(&mut self, setting: &Setting) -> Option<String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let parse = |text: &str| {
            let is_prefix = (1..=100).contains(&text.len()) && text.chars().all(allowed);
            is_prefix.then(|| text.to_owned())
        };
        self.read(setting, parse, String::clone)
    }

    /// A control character is invisible, and no name in a token has one.
    pub(super) fn text(&mut self, setting: &Setting) -> Option<String> {
        let parse = |text: &str| {
            let is_text = text.len() <= TEXT_BYTES_MAX && !text.contains(char::is_control);
            is_text.then(|| text.to_owned())
        };
        self.read(setting, parse, String::clone)
    }

    /// A feed that no canary uses.
    pub(super) fn feed(&mut self, setting: &Setting) -> Option<Feed> {
        let feed = self.read(
            setting,
            |text| Feed::parse(text).ok(),
            |feed| feed.to_string(),
        )?;
        if feed.is_of_a_canary() {
            self.complain(setting.variable, "must not begin with shopbell-canary/");
            return None;
        }
        Some(feed)
    }

    /// Origins as browsers write them: in lower case, in ASCII, without a default port.
    pub(super) fn origins(&mut self, setting: &Setting) -> Option<Vec<String>> {
        self.list(setting, ORIGINS_MAX, serialized_origin, String::clone)
    }

    /// One of the words of the setting.
    pub(super) fn choice(&mut self, setting: &Setting) -> Option<String> {
        let Kind::Choice(words) = setting.kind else {
            return self.mismatch(setting);
        };
        let parse = |text: &str| words.contains(&text).then(|| text.to_owned());
        self.read(setting, parse, String::clone)
    }

    /// Networks of IP addresses. An address alone is a network of one.
    pub(super) fn networks(&mut self, setting: &Setting) -> Option<Vec<IpNet>> {
        self.list(setting, NETWORKS_MAX, network, IpNet::to_string)
    }

    /// A web URL without a user, because the URL is no secret.
    pub(super) fn key_set_url(&mut self, setting: &Setting) -> Option<Url> {
        let parse = |text: &str| {
            let url = Url::parse(text).ok()?;
            let is_web = ["http", "https"].contains(&url.scheme()) && url.has_host();
            let is_plain =
                url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
            (is_web && is_plain).then_some(url)
        };
        self.read(setting, parse, Url::to_string)
    }

    /// One to `count_max` items, separated by commas. Two commas may follow each other. A list of
    /// nothing is a mistake, because its setting would not be unset.
    fn list<T>(
        &mut self,
        setting: &Setting,
        count_max: usize,
        parse: impl Fn(&str) -> Option<T>,
        shown: impl Fn(&T) -> String,
    ) -> Option<Vec<T>> {
        let mut is_empty = false;
        let parse = |list: &str| {
            let items = list.split(',').map(str::trim);
            let mut items = items.filter(|item| !item.is_empty()).peekable();
            is_empty = items.peek().is_none();
            let items: Vec<_> = items.map(parse).collect::<Option<_>>()?;
            (items.len() <= count_max).then_some(items)
        };
        let shown = |items: &Vec<T>| items.iter().map(shown).collect::<Vec<_>>().join(",");
        let items = self.read(setting, parse, shown);
        if is_empty {
            self.complain(
                setting.variable,
                "has only commas: name an item, or unset it",
            );
            return None;
        }
        items
    }

    fn read<T>(
        &mut self,
        setting: &Setting,
        parse: impl FnOnce(&str) -> Option<T>,
        shown: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        let (text, origin) = match (self.take(setting.variable), setting.default) {
            (Some(text), _) => (text, Origin::Set),
            (None, Default::Value(text)) => (text.to_owned(), Origin::Default),
            (None, Default::Unset(_)) => {
                self.note(setting, None, Origin::Default, None);
                return None;
            }
            (None, Default::Required) => {
                self.complain(setting.variable, "is required");
                return None;
            }
        };
        let text = text.trim();
        if text.is_empty() {
            self.complain(setting.variable, "is only white space");
            return None;
        }
        let Some(value) = parse(text) else {
            return self.mismatch(setting);
        };
        self.note(setting, Some(shown(&value)), origin, None);
        Some(value)
    }

    fn mismatch<T>(&mut self, setting: &Setting) -> Option<T> {
        let problem = format!("must be {}", setting.kind.expected());
        self.complain(setting.variable, &problem);
        None
    }
}

/// An origin as browsers write it (RFC 6454 §6.2); `None` if no page can have it.
fn serialized_origin(origin: &str) -> Option<String> {
    let (scheme, host) = origin.split_once("://")?;
    let is_web = ["http", "https"]
        .iter()
        .any(|web| scheme.eq_ignore_ascii_case(web));
    let is_host = !host.is_empty() && !host.contains(['/', '\\', '*', '@', '?', '#', '%']);
    if !is_web || !is_host {
        return None;
    }
    let url = Url::parse(origin).ok()?;
    Some(url.origin().ascii_serialization())
}

/// A network of proxies; `None` if it is not one, or if it contains every address: then every client
/// could choose its own.
fn network(text: &str) -> Option<IpNet> {
    let one_address = || text.parse::<IpAddr>().ok().map(IpNet::from);
    let network = text.parse().ok().or_else(one_address)?;
    let IpNet::V6(of_v6) = network else {
        return (network.prefix_len() > 0).then(|| network.trunc());
    };
    // Addresses of IPv4 are compared as such.
    let is_mapped = of_v6.addr().to_ipv4_mapped().is_some();
    (network.prefix_len() > 0 && !is_mapped).then(|| network.trunc())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::super::settings;
    use super::*;

    fn read<T>(
        setting: &Setting,
        value: &str,
        read: impl FnOnce(&mut Environment, &Setting) -> T,
    ) -> (T, Vec<String>) {
        let mut environment = Environment::of(vec![(setting.variable.into(), value.into())]);
        let value = read(&mut environment, setting);
        (value, environment.complaints().to_vec())
    }

    #[test]
    fn white_space_around_a_value_is_removed() {
        let text = read(&settings::JWT_ISSUER, "shop\n", Environment::text);
        assert_eq!(text.0, Some("shop".into()));
        let number = read(&settings::WINDOW, " 7\t\n", Environment::number::<usize>);
        assert_eq!(number.0, Some(7));
        let flag = read(&settings::DASHBOARD, "true\n", Environment::flag);
        assert_eq!(flag.0, Some(true));
        let prefix = read(&settings::AMQP_PREFIX, "a\n", Environment::prefix);
        assert_eq!(prefix.0, Some("a".into()));
    }

    #[test]
    fn a_value_of_white_space_is_rejected() {
        for white_space in [" ", "\n", " \r\n"] {
            let complaints = read(&settings::JWT_ISSUER, white_space, Environment::text).1;
            assert_eq!(complaints, ["SHOPBELL_JWT_ISSUER is only white space"]);
        }
    }

    #[test]
    fn a_text_has_no_control_characters() {
        for text in ["a\nb", "a\tb", "a\u{7f}b", "a\u{85}b"] {
            let (value, complaints) = read(&settings::JWT_ISSUER, text, Environment::text);
            assert_eq!(value, None);
            assert_eq!(
                complaints,
                [
                    "SHOPBELL_JWT_ISSUER must be text of at most 1024 bytes without control characters"
                ]
            );
        }
        let long = |bytes| read(&settings::JWT_ISSUER, &"a".repeat(bytes), Environment::text).0;
        assert!(long(TEXT_BYTES_MAX).is_some() && long(TEXT_BYTES_MAX + 1).is_none());
    }

    #[test]
    fn a_number_is_whole_and_within_its_bounds() {
        let window = |text| read(&settings::WINDOW, text, Environment::number::<usize>);
        assert_eq!(window("1").0, Some(1));
        assert_eq!(window("65536").0, Some(65_536));
        for bad in ["0", "65537", "1.5", "-1", "many", "99999999999999999999"] {
            let (value, complaints) = window(bad);
            assert_eq!(value, None, "{bad}");
            assert_eq!(
                complaints,
                ["SHOPBELL_WINDOW must be a whole number from 1 to 65536"]
            );
        }
    }

    #[test]
    fn the_broadcast_feed_is_not_of_a_canary() {
        let feed = |text| read(&settings::BROADCAST_FEED, text, Environment::feed);
        assert_eq!(feed("everyone").0.unwrap().as_str(), "everyone");
        assert_eq!(
            feed("shopbell-canary/x").1,
            ["SHOPBELL_BROADCAST_FEED must not begin with shopbell-canary/"]
        );
        assert_eq!(feed("a b").1.len(), 1);
    }

    #[test]
    fn allowed_origins_are_kept_as_browsers_write_them() {
        let origins = |list: &str| read(&settings::ALLOWED_ORIGINS, list, Environment::origins).0;
        let kept = [
            "https://shop.example",
            "http://shop.example:443",
            "https://xn--mnchen-3ya.example",
            "http://[::1]:8080",
        ];
        let list = "HTTPS://Shop.Example:443, http://shop.example:443,https://münchen.example,http://[0:0::1]:8080";
        assert_eq!(origins(list), Some(kept.map(String::from).into()));
        for bad in [
            "shop.example",
            "https://shop.example/",
            "https://*.shop.example",
            "https://user@shop.example",
            "https://shop.example:99999",
            "https://shop example",
            "ftp://shop.example",
            "null",
            "https://",
        ] {
            assert_eq!(origins(bad), None, "{bad}");
        }
        let many = |count| vec!["https://shop.example"; count].join(",");
        assert!(origins(&many(ORIGINS_MAX)).is_some());
        assert_eq!(origins(&many(ORIGINS_MAX + 1)), None);
    }

    #[test]
    fn a_list_of_commas_is_refused() {
        for commas in [",", " , ,, "] {
            let origins = read(&settings::ALLOWED_ORIGINS, commas, Environment::origins);
            let networks = read(&settings::TRUSTED_PROXIES, commas, Environment::networks);
            let complaint = "has only commas: name an item, or unset it";
            assert_eq!(
                (origins.0, origins.1),
                (None, vec![format!("SHOPBELL_ALLOWED_ORIGINS {complaint}")])
            );
            assert_eq!(
                (networks.0, networks.1),
                (None, vec![format!("SHOPBELL_TRUSTED_PROXIES {complaint}")])
            );
        }
    }

    #[test]
    fn networks_are_bounded_and_never_all_addresses() {
        let networks = |list: &str| read(&settings::TRUSTED_PROXIES, list, Environment::networks);
        let given = "10.1.2.3/8, 192.0.2.7,2001:db8::7/32,,::1";
        let shown: Vec<_> = networks(given)
            .0
            .unwrap()
            .iter()
            .map(IpNet::to_string)
            .collect();
        let expected = ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32", "::1/128"];
        assert_eq!(shown, expected);
        for bad in [
            "0.0.0.0/0",
            "::/0",
            "::ffff:10.0.0.0/104",
            "10.0.0.0/33",
            "10.0.0",
            "proxy.example",
            "10.0.0.1:80",
        ] {
            assert_eq!(networks(bad).0, None, "{bad}");
        }
        let many = |count| vec!["10.0.0.1"; count].join(",");
        assert_eq!(networks(&many(NETWORKS_MAX)).0.unwrap().len(), NETWORKS_MAX);
        assert_eq!(networks(&many(NETWORKS_MAX + 1)).0, None);
    }

    #[test]
    fn a_choice_is_one_of_its_words() {
        let header = |word| read(&settings::PROXY_HEADER, word, Environment::choice);
        assert_eq!(header("forwarded").0, Some("forwarded".into()));
        assert_eq!(
            header("Via").1,
            ["SHOPBELL_PROXY_HEADER must be x-forwarded-for or forwarded"]
        );
    }

    #[test]
    fn a_prefix_has_up_to_100_characters() {
        let prefix = |length| {
            read(
                &settings::AMQP_PREFIX,
                &"a".repeat(length),
                Environment::prefix,
            )
        };
        assert!(prefix(100).0.is_some());
        assert_eq!(prefix(101).0, None);
    }
}
