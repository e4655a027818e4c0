# syntax=docker/dockerfile:1.7
#
#   docker build --target gpu .                          CUDA 12.1, with nvdiffrast
#   docker build --target gpu --build-arg NVDIFFRAST=0 . the same without nvdiffrast
#   docker build --target gpu --build-arg WEIGHTS=1 .    with the weights of reconviagen, about 10 GB more
#   docker build --target cpu .                          no GPU
#
# The GPU image always compiles gsplat, and nvdiffrast unless it is left out: NVIDIA's CUDA toolkit is pulled for
# that. Keep about 30 GB free for the builder, and as much again for WEIGHTS=1, which lie in its cache, in a stage
# and in the image (reckoned, not measured). A mirror of the Hugging Face hub: --build-arg HF_ENDPOINT=https://...
#
# nvdiffrast (NVIDIA Source Code License) may be used for research and evaluation only. An image for commercial
# use must leave it out: the worker then renders with Warp, by the same code path.
#
# The CUDA run-time libraries come with the Python wheels (torch 2.4.1 brings CUDA 12.1 and cuDNN 9), so the
# images start from Python's own: a CUDA base would add the same gigabytes twice, and Ubuntu 22.04 has only a
# release candidate of Python 3.11. The compiler is borrowed from NVIDIA's image for one stage.

ARG NVDIFFRAST=1
ARG WEIGHTS=0

FROM python:3.11.11-slim-bookworm AS python
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/venv/bin:$PATH
RUN python -m venv /opt/venv
WORKDIR /src

# --- Dependencies. A layer of their own: they change far less often than the code.
# The optional secret `pip` is a pip.conf for a mirror: docker build --secret id=pip,src=pip.conf

FROM python AS dependencies-gpu
COPY pyproject.toml constraints-docker.txt ./
COPY deploy/requirements.py deploy/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python deploy/requirements.py gpu > requirements.txt \
    && pip install -r requirements.txt -c constraints-docker.txt

FROM python AS dependencies-cpu
COPY pyproject.toml constraints.txt ./
COPY deploy/requirements.py deploy/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python deploy/requirements.py cpu > requirements.txt \
    && pip install -r requirements.txt -c constraints.txt

# --- gsplat (Apache-2.0) and nvdiffrast, compiled with the toolkit that torch was built with (CUDA 12.1 takes
# GCC 12, Debian 12's).

FROM nvidia/cuda:12.1.1-devel-ubuntu22.04 AS cuda-toolkit

FROM dependencies-gpu AS compiler
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=cuda-toolkit /usr/local/cuda-12.1 /usr/local/cuda
ENV CUDA_HOME=/usr/local/cuda \
    TORCH_CUDA_ARCH_LIST="7.0 7.5 8.0 8.6 8.9 9.0+PTX" \
    MAX_JOBS=4
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install setuptools==84.2.1 wheel==0.45.1

FROM compiler AS gsplat
RUN git clone --depth 1 --branch v1.5.3 --recurse-submodules --shallow-submodules \
        https://github.com/nerfstudio-project/gsplat.git /src/gsplat \
    && pip wheel --no-deps --no-build-isolation --wheel-dir /wheels /src/gsplat

FROM compiler AS nvdiffrast-1
RUN git clone --depth 1 --branch v0.4.0 https://github.com/NVlabs/nvdiffrast.git /src/nvdiffrast \
    && pip wheel --no-deps --no-build-isolation --wheel-dir /wheels /src/nvdiffrast

FROM python AS nvdiffrast-0
RUN mkdir /wheels

FROM nvdiffrast-${NVDIFFRAST} AS nvdiffrast

# --- Our own code, as a wheel.

FROM python AS package
COPY pyproject.toml README.md LICENSE ./
COPY schemas schemas
COPY models models
COPY pipeline pipeline
COPY consumer consumer
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip wheel --no-deps --wheel-dir /wheels .

# --- The weights of reconviagen, at their pinned revisions, every checksum checked.
# They are kept in a cache of the builder, so that a change of the code does not fetch them again. The optional
# secret `hf_token` is a token of the Hugging Face hub: docker build --secret id=hf_token,env=HF_TOKEN

FROM dependencies-gpu AS weights-1
ARG HF_ENDPOINT=https://huggingface.co
RUN --mount=type=bind,from=package,source=/wheels,target=/wheels pip install --no-deps /wheels/*.whl
RUN --mount=type=cache,id=recon-weights,target=/var/cache/recon,sharing=locked \
    --mount=type=secret,id=hf_token \
    HF_TOKEN_PATH=/run/secrets/hf_token recon weights fetch --folder /var/cache/recon/weights \
    && mkdir -p /opt/recon \
    && cp -a /var/cache/recon/weights /opt/recon/weights \
    && rm -rf /opt/recon/weights/.fetch* \
    && recon weights check --fast --folder /opt/recon/weights

FROM python AS weights-0
RUN mkdir -p /opt/recon/weights

FROM weights-${WEIGHTS} AS weights

# --- What runs

FROM python AS runtime
RUN useradd --uid 10001 --create-home --home-dir /var/lib/recon recon \
    && install -d -o recon -g recon /var/lib/recon/work /var/lib/recon/.cache
# The root file system may be read-only: work folders and compiled kernels go below /var/lib/recon.
ENV HOME=/var/lib/recon \
    RECON_WORK_ROOT=/var/lib/recon/work
COPY deploy/healthcheck.py /opt/healthcheck.py
WORKDIR /var/lib/recon
STOPSIGNAL SIGTERM
ENTRYPOINT ["recon"]
CMD ["worker"]

FROM runtime AS cpu
COPY --from=dependencies-cpu /opt/venv /opt/venv
RUN --mount=type=bind,from=package,source=/wheels,target=/wheels pip install --no-deps /wheels/*.whl
ENV RECON_DEVICE=cpu
USER recon
HEALTHCHECK --interval=30s --timeout=15s --start-period=120s --retries=3 CMD ["python", "/opt/healthcheck.py"]

FROM runtime AS gpu
# Linked: the layer of gigabytes stays the same, whatever changes before it.
COPY --link --from=weights /opt/recon/weights /opt/recon/weights
COPY --from=dependencies-gpu /opt/venv /opt/venv
RUN --mount=type=bind,from=package,source=/wheels,target=/wheels pip install --no-deps /wheels/*.whl
RUN --mount=type=bind,from=gsplat,source=/wheels,target=/wheels pip install --no-deps /wheels/*.whl
RUN --mount=type=bind,from=nvdiffrast,source=/wheels,target=/wheels \
    if ls /wheels/*.whl >/dev/null 2>&1; then pip install --no-deps /wheels/*.whl; fi
# Nothing is downloaded at run time. Weights that are not in the image are mounted there, read-only.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RECON_WEIGHTS=/opt/recon/weights
USER recon
HEALTHCHECK --interval=30s --timeout=15s --start-period=300s --retries=3 CMD ["python", "/opt/healthcheck.py"]
