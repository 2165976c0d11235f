Embedded {
    page: include_str!("index.html"),
    page_tag: "\"0ee40a7e2dc3\"",
    assets: &[
        ("app-5a21ca90f291.js", include_bytes!("app-5a21ca90f291.js"), include_bytes!("app-5a21ca90f291.js.gz")),
        ("style-f79ccaaa0231.css", include_bytes!("style-f79ccaaa0231.css"), include_bytes!("style-f79ccaaa0231.css.gz")),
    ],
}
