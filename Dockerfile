# Shopbell's image: the one binary, in an image without a shell. docker-compose.yml and k8s/ run it.
#   docker build --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" --tag shopbell .

# The Rust that the tests run with, on the Debian that the runtime image has: they share a libc.
FROM rust:1.95.0-trixie AS chef
WORKDIR /shopbell
# What is downloaded is in a cache for all that build; what is built from it is not: a layer keeps that.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    cargo install --locked --version 0.1.78 cargo-chef

# What the dependencies are, and nothing else: it stays the same when only our sources change.
FROM chef AS planner
COPY . .
RUN cargo chef prepare

FROM chef AS builder
# The dependencies, before our sources come in. The one that is patched is in the checkout and not in the recipe.
COPY vendor vendor
COPY --from=planner /shopbell/recipe.json recipe.json
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    cargo chef cook --release --locked --bin shopbell
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    cargo build --release --locked --bin shopbell

# With libc, libgcc and the certificates of the public authorities; without a shell, so every command is a list.
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
# distroless's `nonroot`, by number: Kubernetes cannot see that a name is not root.
USER 65532:65532
EXPOSE 8080 9090
# Asks /readyz on the operations port.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --start-interval=1s \
    CMD ["/usr/local/bin/shopbell", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/shopbell"]
CMD ["serve"]
