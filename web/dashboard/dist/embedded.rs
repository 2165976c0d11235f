Embedded {
    page: include_str!("index.html"),
    page_tag: "\"7acb91ebf6ef\"",
    assets: &[
        ("app-bae3be170354.js", include_bytes!("app-bae3be170354.js"), include_bytes!("app-bae3be170354.js.gz")),
        ("style-2c236b7bfb4d.css", include_bytes!("style-2c236b7bfb4d.css"), include_bytes!("style-2c236b7bfb4d.css.gz")),
    ],
}
