Embedded {
    page: include_str!("index.html"),
    page_tag: "\"970850adc8a9\"",
    assets: &[
        ("app-ded31658ca10.js", include_bytes!("app-ded31658ca10.js"), include_bytes!("app-ded31658ca10.js.gz")),
        ("style-2c236b7bfb4d.css", include_bytes!("style-2c236b7bfb4d.css"), include_bytes!("style-2c236b7bfb4d.css.gz")),
    ],
}
