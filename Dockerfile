# One image with all programs: certeus-dataplane (what it runs by default), certeus-operator, certeus.
#
#   docker build -t certeus/dataplane .                         from source, for this machine's architecture
#   docker buildx build --platform linux/amd64,linux/arm64 .    for both; compiled on one, without emulation
#   scripts/image.sh && docker build --target prebuilt .        from programs that are compiled already, without a registry
#
# The same commit gives the same programs: compiler, base images and dependencies are pinned. For the same image as well:
#   SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) docker buildx build --output type=image,rewrite-timestamp=true .
#
# glibc and not musl, whose allocator has one lock for all threads. Compiler and base are the same release of Debian, so that the
# programs find the glibc they were linked against.
ARG RUST_IMAGE=docker.io/library/rust:1.95.0-slim-bookworm@sha256:d7482085ff5b415f84dba5647ae71606650bdef00db7aeb69f4b3d170c3e4082
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot@sha256:9dac0a79194e45a7da0158a9c6da57b217585af0786db3845d1f0ec1a0dd182f

FROM --platform=$BUILDPLATFORM ${RUST_IMAGE} AS build
ARG BUILDARCH
ARG TARGETARCH
# The image's own toolchain: rust-toolchain.toml also asks for what only development needs.
ENV RUSTUP_TOOLCHAIN=1.95.0 \
    CARGO_INCREMENTAL=0 \
    CARGO_PROFILE_DIST_STRIP=debuginfo \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc
WORKDIR /src
# The cross compiler's version is not pinned: Debian keeps one version of it per release, and removes it with the next fix.
# hadolint ignore=DL3008
RUN case "$TARGETARCH" in \
        amd64) triple=x86_64-unknown-linux-gnu; gcc=x86-64 ;; \
        arm64) triple=aarch64-unknown-linux-gnu; gcc=aarch64 ;; \
        *) echo "no image for $TARGETARCH" >&2; exit 1 ;; \
    esac \
    && echo "$triple" >/triple \
    && if [ "$TARGETARCH" != "$BUILDARCH" ]; then \
        apt-get update -q \
        && apt-get install -q -y --no-install-recommends "gcc-$gcc-linux-gnu" "libc6-dev-$TARGETARCH-cross" \
        && rm -rf /var/lib/apt/lists/* \
        && rustup target add "$triple"; \
    fi
COPY Cargo.lock Cargo.toml ./
COPY bench bench
COPY crds crds
COPY dataplane dataplane
COPY e2e e2e
COPY localpg localpg
COPY operator operator
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,id=certeus-$TARGETARCH \
    triple=$(cat /triple) \
    && cargo build --locked --profile dist --target "$triple" \
        --package certeus-dataplane --package certeus-operator --package certeus \
    && mkdir -p /out/bin /out/state \
    && for program in certeus-dataplane certeus-operator certeus; do \
        install -m 755 "target/$triple/dist/$program" /out/bin; \
    done

# What scripts/image.sh put together below target/image: the programs, the libraries they load, certificates.
FROM scratch AS prebuilt
ARG TARGETARCH
COPY target/image/${TARGETARCH}/ /
COPY --chown=65532:65532 target/image/state/ /var/lib/certeus/
ENV PATH=/usr/local/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
EXPOSE 8000 9090
CMD ["certeus-dataplane"]

FROM ${RUNTIME_IMAGE} AS runtime
LABEL org.opencontainers.image.title="Certeus" \
      org.opencontainers.image.description="Verifiable event ledgers on PostgreSQL: data plane, operator, command line" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /out/bin/ /usr/local/bin/
# An empty folder of the image's user: a volume that Docker creates for it is the user's, too.
COPY --from=build --chown=65532:65532 /out/state/ /var/lib/certeus/
USER 65532:65532
EXPOSE 8000 9090
# No shell, and no entry point in between: `docker run IMAGE certeus-operator crd` runs just that.
ENTRYPOINT []
CMD ["certeus-dataplane"]
