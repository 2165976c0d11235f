Embedded {
    page: include_str!("index.html"),
    page_tag: "\"7df9d61dc419\"",
    assets: &[
        ("app-3388211ff513.js", include_bytes!("app-3388211ff513.js"), include_bytes!("app-3388211ff513.js.gz")),
        ("style-f79ccaaa0231.css", include_bytes!("style-f79ccaaa0231.css"), include_bytes!("style-f79ccaaa0231.css.gz")),
    ],
}
