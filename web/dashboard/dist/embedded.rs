Embedded {
    page: include_str!("index.html"),
    page_tag: "\"2bdc49eb6e8e\"",
    assets: &[
        ("app-15713d4f45a4.js", include_bytes!("app-15713d4f45a4.js"), include_bytes!("app-15713d4f45a4.js.gz")),
        ("style-78e509b9b7f5.css", include_bytes!("style-78e509b9b7f5.css"), include_bytes!("style-78e509b9b7f5.css.gz")),
    ],
}
