Embedded {
    page: include_str!("index.html"),
    page_tag: "\"6a8d8e39cc1e\"",
    assets: &[
        ("app-15713d4f45a4.js", include_bytes!("app-15713d4f45a4.js"), include_bytes!("app-15713d4f45a4.js.gz")),
        ("style-70e9abcff5f2.css", include_bytes!("style-70e9abcff5f2.css"), include_bytes!("style-70e9abcff5f2.css.gz")),
    ],
}
