# CPU:  docker build -t mergefront --build-arg TORCH_INDEX=<the index of PyTorch's CPU wheels> .
# CUDA: docker build -t mergefront:cuda --build-arg EXTRAS=postgresql,vllm --build-arg TORCH= .
#
# docker run --rm --init -p 127.0.0.1:8642:8642 -v "$PWD:/data" mergefront   serves the mounted directory; see docs/service.md
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG TORCH="torch>=2.11,<2.15"
ARG TORCH_INDEX=""
ARG EXTRAS="postgresql,dashboard"
WORKDIR /src
RUN python -m venv /opt/mergefront
ENV PATH=/opt/mergefront/bin:$PATH PIP_NO_CACHE_DIR=1
# Ranges stand in pyproject.toml; an image is rebuilt to take newer ones. vLLM brings a torch of its own choice.
# hadolint ignore=DL3013
RUN if [ -n "${TORCH}" ]; then pip install "${TORCH}" ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"}; fi
COPY pyproject.toml README.md LICENSE ./
COPY optimizer optimizer
COPY workers workers
COPY search_spaces search_spaces
COPY storage storage
# hadolint ignore=DL3013
RUN pip install ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
RUN useradd --create-home --uid 1000 mergefront && mkdir /data && chown mergefront /data
COPY --from=build /opt/mergefront /opt/mergefront
# What Ray and the service keep beside the database lies in the mounted directory too.
ENV PATH=/opt/mergefront/bin:$PATH XDG_STATE_HOME=/data/.mergefront HF_HOME=/data/.huggingface
USER 1000
WORKDIR /data
EXPOSE 8642
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8642/healthz', timeout=4)"]
ENTRYPOINT ["mergefront"]
CMD ["serve", "--host", "0.0.0.0", "--first-token"]
