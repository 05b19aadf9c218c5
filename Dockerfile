# The official image of this torch; with a driver older than CUDA 13's build with
#   --build-arg BASE=pytorch/pytorch:2.11.0-cuda12.8-cudnn9-runtime
ARG BASE=pytorch/pytorch:2.11.0-cuda13.0-cudnn9-runtime
FROM ${BASE}

# the image's Python is Ubuntu's, externally managed; torch and torchvision are in it and satisfy requirements.txt
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY requirements.txt /tmp/requirements.txt
RUN before=$(python3 -c "import torch; print(torch.__version__, torch.version.cuda)") \
 && python3 -m pip install -r /tmp/requirements.txt \
 && test "$before" = "$(python3 -c "import torch; print(torch.__version__, torch.version.cuda)")" \
 && rm /tmp/requirements.txt

ARG GIT_COMMIT=unknown
ENV GIT_COMMIT=${GIT_COMMIT}
RUN useradd --create-home --uid 1001 researcher
WORKDIR /home/researcher/alignment-security
COPY --chown=researcher . .
USER 1001
ENTRYPOINT ["python3"]
CMD ["evaluate_robustness.py", "--help"]
