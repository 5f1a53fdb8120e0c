# Three images: `api` (no extra), `runner` (Optuna and Ray) and `worker` (PyTorch, NumPy, Ray and data sets).
# Each environment is made in a stage of its own and copied whole: no image holds pip's cache or a build's leftovers.

FROM python:3.11-slim-bookworm AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
# pip reads both from the environment; empty means its default. A mirror goes here, or the index of PyTorch's CPU builds.
ARG PIP_INDEX_URL=""
ARG PIP_EXTRA_INDEX_URL=""
WORKDIR /src
RUN python -m venv /opt/einsearch
ENV PATH=/opt/einsearch/bin:$PATH
COPY pyproject.toml constraints.txt ./
# The metadata names a README; an empty one keeps an edit of the real one from installing everything again.
RUN touch README.md

FROM builder AS wheel
COPY README.md ./
COPY api api
COPY einlayers einlayers
COPY einsearch einsearch
COPY migrations migrations
COPY search search
COPY service service
COPY workers workers
RUN pip wheel --no-deps --wheel-dir /dist .

# Dependencies first, through the project without its code: a changed module does not install PyTorch again.
FROM builder AS api-env
RUN pip install -c constraints.txt '.[parquet]'
COPY --from=wheel /dist /dist
RUN pip install --no-deps --force-reinstall /dist/*.whl

FROM builder AS runner-env
RUN pip install -c constraints.txt '.[runner]'
COPY --from=wheel /dist /dist
RUN pip install --no-deps --force-reinstall /dist/*.whl

FROM builder AS worker-env
RUN pip install -c constraints.txt '.[huggingface,workers]'
COPY --from=wheel /dist /dist
RUN pip install --no-deps --force-reinstall /dist/*.whl

FROM python:3.11-slim-bookworm AS base
# The folders exist and are owned before a volume is mounted: a new named volume takes its owner from them.
RUN useradd --uid 10001 --user-group --create-home --no-log-init einsearch \
    && install --directory --owner=einsearch --group=einsearch /var/lib/einsearch /var/lib/einsearch-corpora
# One thread per process: every worker is one core's worth of work.
ENV PATH=/opt/einsearch/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1
WORKDIR /var/lib/einsearch
# By number, so that an orchestrator can see that it is not root.
USER 10001:10001

FROM base AS api
COPY --from=api-env /opt/einsearch /opt/einsearch
EXPOSE 8000
# Any answer but a success raises; a proxy of the host's environment has no business here.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["python", "-m", "api"]

FROM base AS runner
COPY --from=runner-env /opt/einsearch /opt/einsearch
COPY --chmod=755 deploy/runner-entrypoint.sh /usr/local/bin/runner-entrypoint
CMD ["runner-entrypoint"]

FROM base AS worker
COPY --from=worker-env /opt/einsearch /opt/einsearch
