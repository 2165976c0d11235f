Embedded {
    page: include_str!("index.html"),
    page_tag: "\"7c0f039e6031\"",
    assets: &[
        ("app-15713d4f45a4.js", include_bytes!("app-15713d4f45a4.js"), include_bytes!("app-15713d4f45a4.js.gz")),
        ("style-ddfad6c1ff8d.css", include_bytes!("style-ddfad6c1ff8d.css"), include_bytes!("style-ddfad6c1ff8d.css.gz")),
    ],
}
