# Serves the demo agent as it is. An image of your own adds your agent:
#
#   FROM watchkeeper
#   COPY shop.py .
#   CMD ["watchkeeper", "serve", "--host", "0.0.0.0", "shop:orders"]

FROM python:3.11-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY requirements/build.txt requirements/run.txt requirements/
RUN python -m venv /opt/build && /opt/build/bin/pip install --require-hashes -r requirements/build.txt
RUN python -m venv /opt/watchkeeper \
    && /opt/watchkeeper/bin/pip install --require-hashes -r requirements/run.txt
COPY pyproject.toml README.md LICENSE ./
COPY app app
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/watchkeeper/bin/pip install --no-deps dist/watchkeeper-*.whl \
    && /opt/watchkeeper/bin/python -m compileall -q /opt/watchkeeper/lib

FROM python:3.11-slim
ARG COMMIT=unknown
ENV PATH=/opt/watchkeeper/bin:$PATH PYTHONDONTWRITEBYTECODE=1 WATCHKEEPER_COMMIT=$COMMIT
RUN ["useradd", "--uid", "10001", "--no-create-home", "--shell", "/usr/sbin/nologin", "watchkeeper"]
COPY --from=build /opt/watchkeeper /opt/watchkeeper
WORKDIR /srv
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["python", "-c", "import os, urllib.request as http; http.urlopen(f\"http://127.0.0.1:{os.environ.get('WATCHKEEPER_PORT', 8000)}/health/live\", timeout=2)"]
CMD ["watchkeeper", "serve", "--host", "0.0.0.0"]
