# Pin the base by its digest for builds that can be repeated:
#   docker buildx imagetools inspect python:3.13-slim-trixie
#   docker build --build-arg BASE=python:3.13-slim-trixie@sha256:... -t webhook-dispatcher .
ARG BASE=python:3.13-slim-trixie

# Installs the pinned wheels and the package's own into /opt/dispatcher. Both stages are the same image, so
# the virtual environment's interpreter is at the same place in both.
FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/build && python -m venv --without-pip /opt/dispatcher
# For the hot path, which mypyc compiles to C (hatch_build.py). This stage only: the image has no compiler.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
# A dependency without a wheel for this platform stops the build here.
COPY requirements.txt requirements-compile.txt ./
RUN /opt/build/bin/pip install --require-hashes --only-binary :all: -r requirements-compile.txt \
    && /opt/build/bin/pip --python /opt/dispatcher/bin/python install \
       --require-hashes --only-binary :all: -r requirements.txt
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY dispatcher dispatcher
# --build-arg DISPATCHER_COMPILE=0 leaves the sources as they are: the same, and slower.
ARG DISPATCHER_COMPILE=1
RUN DISPATCHER_COMPILE=${DISPATCHER_COMPILE} /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /opt/wheels . \
    && /opt/build/bin/pip --python /opt/dispatcher/bin/python install --no-deps --no-index /opt/wheels/*.whl
# Every package in the image, with its licence and the licence's text: /opt/dispatcher/sbom.cdx.json (CycloneDX).
COPY requirements-sbom.txt ./
RUN python -m venv /opt/sbom \
    && /opt/sbom/bin/pip install --require-hashes --only-binary :all: -r requirements-sbom.txt \
    && /opt/sbom/bin/cyclonedx-py environment --gather-license-texts --output-reproducible \
       --output-file /opt/dispatcher/sbom.cdx.json /opt/dispatcher/bin/python

FROM ${BASE}
COPY --from=build /opt/dispatcher /opt/dispatcher
# Every setting at its default; mount a file of your own over it, or a directory over /etc/dispatcher.
COPY config/dispatcher.yaml /etc/dispatcher/dispatcher.yaml
# The embedded broker keeps its file here; with Kafka nothing is written, and the root may be read-only.
RUN mkdir -m 700 /var/lib/dispatcher && chown 10001:10001 /var/lib/dispatcher
VOLUME /var/lib/dispatcher
WORKDIR /var/lib/dispatcher
# On a container's loopback nobody would reach the API and the probes. The API wants a key then: DISPATCHER_API__KEYS.
ENV PATH=/opt/dispatcher/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DISPATCHER_CONFIG=/etc/dispatcher/dispatcher.yaml \
    DISPATCHER_HTTP__HOST=0.0.0.0
USER 10001:10001
EXPOSE 8080
# Give it longer than shutdown.drain (20 s) to stop: `docker stop -t 30`, terminationGracePeriodSeconds: 30.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-m", "dispatcher.commands.health"]
ENTRYPOINT ["dispatcher"]
CMD ["run"]
