Embedded {
    page: include_str!("index.html"),
    page_tag: "\"7291bb5d5345\"",
    assets: &[
        ("app-fac91a4b1085.js", include_bytes!("app-fac91a4b1085.js"), include_bytes!("app-fac91a4b1085.js.gz")),
        ("style-ad75b66b38be.css", include_bytes!("style-ad75b66b38be.css"), include_bytes!("style-ad75b66b38be.css.gz")),
    ],
}
