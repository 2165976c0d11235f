Embedded {
    page: include_str!("index.html"),
    page_tag: "\"256f3166423e\"",
    assets: &[
        ("app-1e652481c4c5.js", include_bytes!("app-1e652481c4c5.js"), include_bytes!("app-1e652481c4c5.js.gz")),
        ("style-8ad6d41c67ca.css", include_bytes!("style-8ad6d41c67ca.css"), include_bytes!("style-8ad6d41c67ca.css.gz")),
    ],
}
