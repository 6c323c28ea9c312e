# syntax=docker/dockerfile:1
# One image for the functions, the workers, the portal and the migration: `args` and FUNCTION_* select
# one. No HEALTHCHECK: Kubernetes ignores it, and each manifest has its own probes.

# A tag for a first try. For permanent use name the digest: --build-arg PYTHON=python:…@sha256:…
# CI requires one. This prints it:
#   docker buildx imagetools inspect python:3.11-slim-bookworm --format '{{.Manifest.Digest}}'
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore UV_LINK_MODE=copy
WORKDIR /build
COPY requirements/image-build.txt requirements/image.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=cache,target=/root/.cache/uv \
    python -m venv --without-pip /opt/lowtide && \
    python -m pip install --require-hashes --only-binary :all: -r requirements/image-build.txt && \
    python -m uv pip install --python /opt/lowtide/bin/python --require-hashes \
        --only-binary :all: -r requirements/image.txt
COPY pyproject.toml README.md LICENSE ./
COPY lowtide lowtide
COPY portal portal
COPY functions /app/functions
# Compiled here, as the root file system is read-only later; unchecked hashes, as a copied layer may
# change timestamps.
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist . && \
    python -m uv pip install --python /opt/lowtide/bin/python --no-deps dist/*.whl && \
    python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/lowtide/lib /app

FROM ${PYTHON}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Lowtide" \
      org.opencontainers.image.description="OpenAI's Batch API on your own spot and dedicated GPUs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# As PID 1 Python would lose a SIGTERM during its imports: the kernel drops signals that PID 1 does not
# handle. Manifests set `args`, never `command`, which would replace tini.
RUN apt-get update && \
    apt-get install -y --no-install-recommends "tini=0.19.0-1*" && \
    rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/lowtide/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
COPY --from=build /opt/lowtide /opt/lowtide
COPY --from=build /app /app
WORKDIR /app
# A number, so that `runAsNonRoot` can be verified; nothing needs a user name or a home.
USER 10001:10001
EXPOSE 8080 8081 8090
ENTRYPOINT ["tini", "--"]
CMD ["gunicorn", "-c", "python:lowtide.serving", "functions_framework:create_app()"]
