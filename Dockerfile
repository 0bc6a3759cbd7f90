# The service and its demo models. Three stages: what it depends on, the models, and the image that runs.
#
#   docker build -t presage .
#   docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges -p 127.0.0.1:8000:8000 \
#     -e JWT_SECRET="$(openssl rand -hex 32)" presage
ARG BASE=python:3.13-slim-trixie

FROM ${BASE} AS dependencies
WORKDIR /build
COPY requirements.txt .
# The environment has no pip, and not the packages' own tests: nothing at run time needs them.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/venv \
    && python -m pip --python /opt/venv/bin/python install --disable-pip-version-check --require-hashes -r requirements.txt \
    && find /opt/venv -type d -name tests -prune -exec rm -rf {} +

FROM ${BASE} AS models
COPY --from=dependencies /opt/venv /opt/venv
WORKDIR /app
COPY app app
# The models are signed, since production loads nothing else, by a key that ends with this step: nobody can sign more.
# Bytecode that is never compared with its source: a read-only file system could not hold a fresh one anyway.
RUN /opt/venv/bin/python -m app models keygen image --folder /tmp/keys \
    && MODEL_SIGNING_KEY=/tmp/keys/image.key /opt/venv/bin/python -m app train \
    && install -D --mode=644 /tmp/keys/image.pub model-keys/image.pub \
    && rm -r /tmp/keys \
    && /opt/venv/bin/python -m compileall -q -f --invalidation-mode unchecked-hash app

FROM ${BASE}
# The code and the models belong to root; var/ is all that the service may write.
RUN useradd --no-log-init --uid 10001 --user-group --home-dir /app/var --shell /usr/sbin/nologin presage \
    && install -d -o presage -g presage /app/var
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=models /app /app
WORKDIR /app
COPY alembic.ini .
COPY alembic alembic
# Without a named volume it gets one of its own, so that the journal can be written where all else is read-only.
VOLUME /app/var
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ENVIRONMENT=production \
    HOST=0.0.0.0 \
    PORT=8000 \
    WORKERS=auto \
    MODEL_KEYS_DIR=/app/model-keys
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Ready, not only alive; http.client, since urllib would ask a proxy from the environment for 127.0.0.1.
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=3 \
    CMD ["python", "-ISc", "import os, sys, http.client as http; c = http.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=3); c.request('GET', '/health/ready'); sys.exit(c.getresponse().status != 200)"]
# Its first process supervises, and SIGTERM reaches it; a database that is away or busy does not keep it from serving.
CMD ["python", "-m", "app", "serve", "--migrate"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Presage" \
      org.opencontainers.image.description="A FastAPI server for fitted scikit-learn pipelines" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
