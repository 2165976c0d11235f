Embedded {
    page: include_str!("index.html"),
    page_tag: "\"83af31ac6d87\"",
    assets: &[
        ("app-89836a080b29.js", include_bytes!("app-89836a080b29.js"), include_bytes!("app-89836a080b29.js.gz")),
        ("style-2c236b7bfb4d.css", include_bytes!("style-2c236b7bfb4d.css"), include_bytes!("style-2c236b7bfb4d.css.gz")),
    ],
}
