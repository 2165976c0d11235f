Embedded {
    page: include_str!("index.html"),
    page_tag: "\"34bda1b9cdc2\"",
    assets: &[
        ("app-8367840f4aba.js", include_bytes!("app-8367840f4aba.js"), include_bytes!("app-8367840f4aba.js.gz")),
        ("style-f79ccaaa0231.css", include_bytes!("style-f79ccaaa0231.css"), include_bytes!("style-f79ccaaa0231.css.gz")),
    ],
}
