# The official image of this torch. With a driver older than CUDA 13's, build with
#   --build-arg BASE=pytorch/pytorch:2.11.0-cuda12.8-cudnn9-runtime
# A tag can move. To pin the base, look up its digest and build from that:
#   docker buildx imagetools inspect pytorch/pytorch:2.11.0-cuda13.0-cudnn9-runtime
#   --build-arg BASE=pytorch/pytorch@sha256:<digest>
ARG BASE=pytorch/pytorch:2.11.0-cuda13.0-cudnn9-runtime
FROM ${BASE}

# A virtual environment on top of the image's Python: it sees the image's torch and torchvision,
# and pip uninstalls nothing that the image or apt has installed. It uses the image's pip.
RUN python3 -m venv --system-site-packages --without-pip /opt/venv
ENV PATH=/opt/venv/bin:${PATH} PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

# The lock leaves out torch and torchvision. The second pip command installs nothing: it fails where
# the image's torch or any other package is not the pinned one.
COPY requirements.txt requirements-htcondor.txt locks/requirements-docker.txt /tmp/requirements/
WORKDIR /tmp/requirements
RUN version="import torch; print(torch.__version__, torch.version.cuda)" \
 && before=$(python3 -c "$version") \
 && python3 -m pip install --require-hashes -r requirements-docker.txt \
 && python3 -m pip install --no-index -r requirements.txt -r requirements-htcondor.txt \
 && test "$before" = "$(python3 -c "$version")"

ARG GIT_COMMIT=unknown
ENV GIT_COMMIT=${GIT_COMMIT}
RUN useradd --create-home --uid 1001 researcher
WORKDIR /home/researcher/alignment-security
COPY --chown=researcher . .
USER 1001
ENTRYPOINT ["python3"]
CMD ["evaluate_robustness.py", "--help"]
