# CPU:  docker build -t mergefront --build-arg TORCH_INDEX=<the index of PyTorch's CPU wheels> .
# CUDA: docker build -t mergefront:cuda --build-arg EXTRAS=postgresql,dashboard,vllm .
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG TORCH="torch>=2.11,<2.15"
ARG TORCH_INDEX=""
ARG EXTRAS="postgresql,dashboard"
WORKDIR /src
RUN python -m venv /opt/mergefront
ENV PATH=/opt/mergefront/bin:$PATH PIP_NO_CACHE_DIR=1
# Ranges stand in pyproject.toml; an image is rebuilt to take newer ones.
# hadolint ignore=DL3013
RUN pip install "${TORCH}" ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"}
COPY pyproject.toml README.md LICENSE ./
COPY optimizer optimizer
COPY workers workers
COPY search_spaces search_spaces
COPY storage storage
# hadolint ignore=DL3013
RUN pip install ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
RUN useradd --create-home --uid 1000 mergefront
COPY --from=build /opt/mergefront /opt/mergefront
ENV PATH=/opt/mergefront/bin:$PATH
USER 1000
WORKDIR /data
ENTRYPOINT ["mergefront"]
CMD ["--help"]
