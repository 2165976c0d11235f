Embedded {
    page: include_str!("index.html"),
    page_tag: "\"4945032f7bd4\"",
    assets: &[
        ("app-637f82649797.js", include_bytes!("app-637f82649797.js"), include_bytes!("app-637f82649797.js.gz")),
        ("style-f79ccaaa0231.css", include_bytes!("style-f79ccaaa0231.css"), include_bytes!("style-f79ccaaa0231.css.gz")),
    ],
}
