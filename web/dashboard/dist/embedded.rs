Embedded {
    page: include_str!("index.html"),
    page_tag: "\"7ee003db957d\"",
    assets: &[
        ("app-d1da84f833f8.js", include_bytes!("app-d1da84f833f8.js"), include_bytes!("app-d1da84f833f8.js.gz")),
        ("style-f79ccaaa0231.css", include_bytes!("style-f79ccaaa0231.css"), include_bytes!("style-f79ccaaa0231.css.gz")),
    ],
}
