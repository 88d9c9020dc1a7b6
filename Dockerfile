# syntax=docker/dockerfile:1
# Images with DMamba, its simulators and nothing of the build; docs/install.md says how to run them.
#
#   docker build --target cpu  -t dmamba:cpu  .
#   docker build --target cuda -t dmamba:cuda .     (no GPU is needed to build)
#
# A stage builds the wheel as scripts/build_wheel.sh does anywhere; another installs it. Both stand on
# the same distribution, since a wheel runs with the C library that it was built with, or a newer one.
ARG CPU_IMAGE=python:3.12-slim-bookworm
ARG CUDA_BUILD_IMAGE=nvidia/cuda:13.0.1-devel-ubuntu24.04
ARG CUDA_IMAGE=ubuntu:24.04

FROM ${CPU_IMAGE} AS build-cpu
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends \
      binutils ccache g++ libhdf5-dev libspdlog-dev libyaml-cpp-dev nlohmann-json3-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /dmamba
COPY . .
RUN scripts/build_wheel.sh --cpu --output /wheels

FROM ${CUDA_BUILD_IMAGE} AS build-cuda
# CMake's list of architectures, such as "80;90".
ARG ARCHITECTURES=90
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends \
      binutils ccache g++ libhdf5-dev libspdlog-dev libyaml-cpp-dev nlohmann-json3-dev \
      python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /dmamba
COPY . .
RUN scripts/build_wheel.sh --architectures "${ARCHITECTURES}" --output /wheels

FROM ${CPU_IMAGE} AS cpu
# pip prefers PyTorch's 2.x.y+cpu to the CUDA build 2.x.y of its own index.
RUN --mount=type=bind,from=build-cpu,source=/wheels,target=/wheels \
    python3 -m venv /opt/dmamba \
    && /opt/dmamba/bin/pip install --no-cache-dir \
      --extra-index-url https://download.pytorch.org/whl/cpu "$(echo /wheels/*.whl)[eval,video]" \
    && useradd --create-home --uid 10001 dmamba
ENV PATH=/opt/dmamba/bin:$PATH
USER 10001
WORKDIR /home/dmamba
ENTRYPOINT ["dmamba"]
CMD ["info"]

FROM ${CUDA_IMAGE} AS cuda
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,from=build-cuda,source=/wheels,target=/wheels \
    python3 -m venv /opt/dmamba \
    && /opt/dmamba/bin/pip install --no-cache-dir "$(echo /wheels/*.whl)[eval,video]" \
    && useradd --create-home --uid 10001 dmamba
ENV PATH=/opt/dmamba/bin:$PATH
USER 10001
WORKDIR /home/dmamba
ENTRYPOINT ["dmamba"]
CMD ["info"]
