# syntax=docker/dockerfile:1
# Server and worker are one program: `docker run IMAGE serve`, `docker run IMAGE worker`. See docs/operations.md.

FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /source
COPY . .
# SQLite and the cryptography of TLS are compiled from C, with the compiler that the image has.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target \
    cargo build --release --locked --package lowtide-cli \
    && cp target/release/lowtide /lowtide
# Folders that volumes are mounted over take their owner from here.
RUN mkdir -p /rooms/data /rooms/files /rooms/models

# The C library and certificates; no shell, no packages. Its user has the number 65532.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /lowtide /usr/local/bin/lowtide
COPY --from=build --chown=65532:65532 /rooms/ /
USER 65532:65532
ENV LOWTIDE_SERVER_HOST=0.0.0.0 \
    LOWTIDE_SERVER_DATA_DIR=/data \
    LOWTIDE_MODELS_DIRS=/models \
    HF_HOME=/models/hub \
    HOME=/data
VOLUME ["/data"]
EXPOSE 7860
STOPSIGNAL SIGTERM
# For `serve`; whoever runs `worker` turns it off.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=3 \
    CMD ["/usr/local/bin/lowtide", "ps", "--server", "http://127.0.0.1:7860"]
ENTRYPOINT ["/usr/local/bin/lowtide"]
CMD ["serve"]
