# Serves the demo agent as it is. An image of your own adds your agent:
#
#   FROM watchkeeper
#   COPY shop.py .
#   CMD ["watchkeeper", "serve", "shop:orders"]
#
# docs/deploy.md says how to add libraries, and how to mount agents instead.

# Any base with Python 3.11 or newer, its venv, and libstdc++ (which all but the barest have).
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/watchkeeper
# What seldom changes comes first, so that a change to the code does not install it again.
COPY requirements/build.txt requirements/run.txt requirements/
RUN /opt/build/bin/pip install --require-hashes -r requirements/build.txt \
    && /opt/build/bin/pip --python /opt/watchkeeper/bin/python install --no-compile --require-hashes -r requirements/run.txt
COPY pyproject.toml README.md LICENSE ./
COPY app app
# The compiled files are never checked against their sources: neither changes in an image, and a
# build that rewrites times would make every one of them look stale.
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/build/bin/pip --python /opt/watchkeeper/bin/python install --no-compile --no-deps dist/watchkeeper-*.whl \
    && /opt/watchkeeper/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/watchkeeper/lib
RUN echo "watchkeeper:x:10001:10001::/var/lib/watchkeeper:/usr/sbin/nologin" >> /etc/passwd \
    && echo "watchkeeper:x:10001:" >> /etc/group \
    && install --directory --owner 10001 --group 10001 --mode 700 /data

# Nothing is run from here on, so the base of this stage may be one without a shell.
FROM ${BASE}
ARG COMMIT=unknown
ARG VERSION=unknown
LABEL org.opencontainers.image.title="watchkeeper" \
      org.opencontainers.image.description="Serves LangChain agents over FastAPI and keeps watch over them in production." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}"
ENV PATH=/opt/watchkeeper/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    WATCHKEEPER_HOST=0.0.0.0 \
    WATCHKEEPER_PORT=8000 \
    WATCHKEEPER_DATA_DIR=/var/lib/watchkeeper \
    WATCHKEEPER_COMMIT=${COMMIT}
COPY --from=build /etc/passwd /etc/group /etc/
COPY --from=build /opt/watchkeeper /opt/watchkeeper
COPY --from=build --chown=10001:10001 /data /var/lib/watchkeeper
WORKDIR /srv
USER 10001:10001
EXPOSE 8000
VOLUME /var/lib/watchkeeper
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["python", "-c", "import os, urllib.request as http; http.urlopen(f\"http://127.0.0.1:{os.environ['WATCHKEEPER_PORT']}/health/live\", timeout=2)"]
CMD ["watchkeeper", "serve"]
