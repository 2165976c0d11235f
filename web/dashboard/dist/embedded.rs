Embedded {
    page: include_str!("index.html"),
    page_tag: "\"fa592108f352\"",
    assets: &[
        ("app-5b5c1d4a6941.js", include_bytes!("app-5b5c1d4a6941.js"), include_bytes!("app-5b5c1d4a6941.js.gz")),
        ("style-8ad6d41c67ca.css", include_bytes!("style-8ad6d41c67ca.css"), include_bytes!("style-8ad6d41c67ca.css.gz")),
    ],
}
