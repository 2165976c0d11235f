//! Just enough of URLs to direct a service's address to another database or to a proxy.

/// The `host:port` of a service's URL, with the default port of its scheme.
pub fn authority(url: &str) -> String {
    let (start, end) = authority_span(url);
    let authority = &url[start..end];
    if authority.contains(':') {
        return authority.to_owned();
    }
    let port = if url.starts_with("amqp") { 5672 } else { 5432 };
    format!("{authority}:{port}")
}

/// The same URL at another `host:port`.
pub fn at(url: &str, authority: &str) -> String {
    let (start, end) = authority_span(url);
    format!("{}{authority}{}", &url[..start], &url[end..])
}

/// The user and the password, unchanged.
pub fn user_and_password(url: &str) -> (String, String) {
    user_and_any_password(url).expect("a URL with a password")
}

/// The same, or nothing if the URL has no password.
pub fn user_and_any_password(url: &str) -> Option<(String, String)> {
    let after_scheme = url.find("://").expect("a URL has a scheme") + 3;
    let (start, _) = authority_span(url);
    let (user, password) = url[after_scheme..start]
        .trim_end_matches('@')
        .split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// The same URL for another user with the same password.
pub fn with_user(url: &str, user: &str) -> String {
    let after_scheme = url.find("://").expect("a URL has a scheme") + 3;
    let (start, _) = authority_span(url);
    let password = user_and_any_password(url).map_or(String::new(), |(_, it)| format!(":{it}"));
    format!("{}{user}{password}@{}", &url[..after_scheme], &url[start..])
}

/// The same URL for another user with another password.
pub fn with_user_and_password(url: &str, user: &str, password: &str) -> String {
    let after_scheme = url.find("://").expect("a URL has a scheme") + 3;
    let (start, _) = authority_span(url);
    format!(
        "{}{user}:{password}@{}",
        &url[..after_scheme],
        &url[start..]
    )
}

/// The host and the port, with the default port of its scheme.
pub fn host_and_port(url: &str) -> (String, String) {
    let authority = authority(url);
    let (host, port) = authority
        .rsplit_once(':')
        .expect("an authority with a port");
    (host.to_owned(), port.to_owned())
}

/// The same server, another database.
pub fn with_database(url: &str, database: &str) -> String {
    let (_, end) = authority_span(url);
    let query = url.find('?').map_or("", |query| &url[query..]);
    format!("{}/{database}{query}", &url[..end])
}

/// The range of `host:port`: after the scheme and the password, before the path.
fn authority_span(url: &str) -> (usize, usize) {
    let after_scheme = url.find("://").expect("a URL has a scheme") + 3;
    let end = url[after_scheme..]
        .find(['/', '?'])
        .map_or(url.len(), |path| after_scheme + path);
    let start = url[after_scheme..end]
        .rfind('@')
        .map_or(after_scheme, |at| after_scheme + at + 1);
    (start, end)
}
