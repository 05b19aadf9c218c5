# The official image of this torch. With a driver older than 580, which CUDA 13 needs, build with
#   --build-arg BASE=pytorch/pytorch:2.11.0-cuda12.8-cudnn9-runtime
# and for a V100, P100 or GTX 10 with cuda12.6 in its place.
# A tag can move. To pin the base, look up its digest and build from that:
#   docker buildx imagetools inspect pytorch/pytorch:2.11.0-cuda13.0-cudnn9-runtime
#   --build-arg BASE=pytorch/pytorch@sha256:<digest>
ARG BASE=pytorch/pytorch:2.11.0-cuda13.0-cudnn9-runtime
FROM ${BASE} AS base

# torch.compile builds with g++ on a CPU, and with gcc and Python's headers on a GPU.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ python3-dev \
 && rm -rf /var/lib/apt/lists/*

# A virtual environment on top of the image's Python: it sees the image's torch and torchvision,
# and pip uninstalls nothing that the image or apt has installed. It uses the image's pip.
# Ubuntu makes home folders that only their users may enter; `docker run --user` runs as others.
RUN python3 -m venv --system-site-packages --without-pip /opt/venv \
 && useradd --create-home --uid 1001 researcher \
 && chmod 755 /home/researcher
ENV PATH=/opt/venv/bin:${PATH} PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["python3"]
CMD ["evaluate_robustness.py", "--help"]

# Of both images: the lock leaves out torch and torchvision. The second pip command installs
# nothing: it fails where the image's torch or any other package is not the pinned one.

# Brain-Score's plugins (--source brainscore), whose package wants older numpy and pandas:
#   docker build --target brainscore -t alignment-security-brainscore .
FROM base AS brainscore
COPY requirements-brainscore.txt requirements-htcondor.txt /tmp/requirements/
COPY locks/requirements-brainscore.txt /tmp/requirements/locks/
WORKDIR /tmp/requirements
RUN version="import torch; print(torch.__version__, torch.version.cuda)" \
 && before=$(python3 -c "$version") \
 && python3 -m pip install --require-hashes -r locks/requirements-brainscore.txt \
 && python3 -m pip install --no-index -r requirements-brainscore.txt -r requirements-htcondor.txt \
 && test "$before" = "$(python3 -c "$version")"

ARG GIT_COMMIT=unknown
ENV GIT_COMMIT=${GIT_COMMIT}
WORKDIR /home/researcher/alignment-security
COPY --chown=researcher . .
USER 1001

# The last one is what `docker build .` makes.
FROM base AS pipeline
COPY requirements.txt requirements-htcondor.txt /tmp/requirements/
COPY locks/requirements-docker.txt /tmp/requirements/locks/
WORKDIR /tmp/requirements
RUN version="import torch; print(torch.__version__, torch.version.cuda)" \
 && before=$(python3 -c "$version") \
 && python3 -m pip install --require-hashes -r locks/requirements-docker.txt \
 && python3 -m pip install --no-index -r requirements.txt -r requirements-htcondor.txt \
 && test "$before" = "$(python3 -c "$version")"

ARG GIT_COMMIT=unknown
ENV GIT_COMMIT=${GIT_COMMIT}
WORKDIR /home/researcher/alignment-security
COPY --chown=researcher . .
USER 1001
