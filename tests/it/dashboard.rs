//! The dashboard is served only if it is enabled, with a policy that no script in an event can
//! pass.

use tokio::net::TcpStream;

use crate::support::{Replica, World, http};

#[tokio::test]
async fn the_dashboard_is_served_with_a_policy_that_lets_nothing_in() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_DASHBOARD", "true")
        .start()
        .await;
    let page = http::get(replica.public(), "/").await.expect("a page");
    assert_eq!(
        (page.status, page.header("content-type")),
        (200, Some("text/html; charset=utf-8")),
        "{page:?}"
    );
    assert_eq!(page.header("cache-control"), Some("no-cache"), "{page:?}");
    expect_safe(&page);

    let text = page.text();
    let assets: Vec<_> = text
        .split('"')
        .filter(|part| part.starts_with("/assets/"))
        .collect();
    assert_eq!(assets.len(), 2, "a script and a style sheet: {text}");
    for asset in assets {
        let plain = http::get(replica.public(), asset).await.expect("an asset");
        assert_eq!(
            (plain.status, plain.header("content-encoding")),
            (200, None),
            "{asset}"
        );
        assert!(
            plain
                .header("cache-control")
                .is_some_and(|cache| cache.ends_with("immutable")),
            "{asset}"
        );
        expect_safe(&plain);
        let gzipped = ask(&replica, asset, "Accept-Encoding: br, gzip\r\n").await;
        assert_eq!(
            (gzipped.status, gzipped.header("content-encoding")),
            (200, Some("gzip")),
            "{asset}"
        );
        assert!(
            gzipped.body.starts_with(&[0x1f, 0x8b]) && gzipped.body.len() < plain.body.len(),
            "{asset}"
        );
        assert_eq!(gzipped.header("vary"), Some("accept-encoding"), "{asset}");
        let refused = ask(&replica, asset, "Accept-Encoding: gzip;q=0.0\r\n").await;
        assert_eq!(refused.header("content-encoding"), None, "{asset}");
    }
    http::get(replica.public(), "/assets/app.js")
        .await
        .expect("an answer")
        .expect_problem(404);
    world.finish().await;
}

#[tokio::test]
async fn a_browser_with_a_current_dashboard_gets_304() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_DASHBOARD", "true")
        .start()
        .await;
    let page = http::get(replica.public(), "/").await.expect("a page");
    let tag = page.header("etag").expect("a tag").to_owned();
    let again = ask(
        &replica,
        "/",
        &format!("If-None-Match: \"other\", W/{tag}\r\n"),
    )
    .await;
    assert_eq!((again.status, again.body.len()), (304, 0), "{again:?}");
    let changed = ask(&replica, "/", "If-None-Match: \"other\"\r\n").await;
    assert_eq!(changed.status, 200, "{changed:?}");
    world.finish().await;
}

#[tokio::test]
async fn there_is_no_dashboard_unless_it_is_enabled() {
    let world = World::new().await;
    let replica = world.serve().await;
    for path in ["/", "/assets/app.js"] {
        http::get(replica.public(), path)
            .await
            .expect("an answer")
            .expect_problem(404);
    }
    world.finish().await;
}

async fn ask(replica: &Replica, path: &str, header: &str) -> http::Reply {
    let mut stream = TcpStream::connect(replica.public())
        .await
        .expect("a connection");
    let request = format!("GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n{header}\r\n");
    http::exchange(&mut stream, &request)
        .await
        .expect("an answer")
}

#[track_caller]
fn expect_safe(reply: &http::Reply) {
    let policy = reply.header("content-security-policy").expect("a policy");
    let directives = [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ];
    for directive in directives {
        assert!(
            policy.split("; ").any(|one| one == directive),
            "{directive} is not in {policy}"
        );
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    for (header, value) in [
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
    ] {
        assert_eq!(reply.header(header), Some(value), "{reply:?}");
    }
    assert!(
        reply
            .header("permissions-policy")
            .is_some_and(|policy| policy.contains("camera=()")),
        "{reply:?}"
    );
}
