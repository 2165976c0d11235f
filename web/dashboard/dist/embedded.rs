Embedded {
    page: include_str!("index.html"),
    page_tag: "\"fb56ad09d8a3\"",
    assets: &[
        ("app-fcda79b4a53b.js", include_bytes!("app-fcda79b4a53b.js"), include_bytes!("app-fcda79b4a53b.js.gz")),
        ("style-2c236b7bfb4d.css", include_bytes!("style-2c236b7bfb4d.css"), include_bytes!("style-2c236b7bfb4d.css.gz")),
    ],
}
