Embedded {
    page: include_str!("index.html"),
    page_tag: "\"97a4a4413f02\"",
    assets: &[
        ("app-2dfe2a4f1dd7.js", include_bytes!("app-2dfe2a4f1dd7.js"), include_bytes!("app-2dfe2a4f1dd7.js.gz")),
        ("style-296ccbd785fb.css", include_bytes!("style-296ccbd785fb.css"), include_bytes!("style-296ccbd785fb.css.gz")),
    ],
}
