# Builds Shopbell's image: one binary in an image without a shell. docker-compose.yml and k8s/ run it.
#
#   docker build --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" --tag shopbell .

# The Rust of rust-toolchain.toml, on the Debian of the runtime image, because the binary needs the same libc.
FROM rust:1.95.0-trixie AS chef
WORKDIR /shopbell
# All builds share a cache of downloads. Layers keep the compiled dependencies.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    cargo install --locked --version 0.1.78 cargo-chef

# The recipe lists the dependencies only, so it does not change if only our sources change.
FROM chef AS planner
COPY . .
RUN cargo chef prepare

FROM chef AS builder
# Compiles the dependencies before our sources are copied. The recipe lacks the patched crate.
COPY vendor vendor
COPY --from=planner /shopbell/recipe.json recipe.json
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    cargo chef cook --release --locked --bin shopbell
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    cargo build --release --locked --bin shopbell

# This image has libc, libgcc and public CA certificates. It has no shell, so every command is a list.
FROM gcr.io/distroless/cc-debian13:nonroot
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="Shopbell" \
      org.opencontainers.image.description="Order events from RabbitMQ to the merchant's dashboard, stored and acknowledged" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.source="$SOURCE" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY LICENSE-APACHE LICENSE-MIT /usr/share/doc/shopbell/
COPY --from=builder /shopbell/target/release/shopbell /usr/local/bin/shopbell
# The user `nonroot` of distroless, by number, because Kubernetes cannot check a name for runAsNonRoot.
USER 65532:65532
EXPOSE 8080 9090
# Requests /readyz on the operations port.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --start-interval=1s \
    CMD ["/usr/local/bin/shopbell", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/shopbell"]
CMD ["serve"]
