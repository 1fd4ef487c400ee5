# The environment of requirements.lock with git and make; data, params.yaml and dvc.yaml come with the checkout that
# is mounted at /work. docs/operations.md ("In a container") has the commands.
#   docker build -t reperfuse . && docker run --rm -v "$PWD:/work" --entrypoint dvc reperfuse repro
#
# The base is pinned by the tag of an exact patch version, which its makers may still build anew. A digest is exact,
# but has to be looked up in a network: --build-arg BASE=python@sha256:...
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS builder
# Where torch is looked for beside pip's own index; empty asks that index alone. An index of CPU builds gives the
# small image that needs no GPU, one of CUDA builds the large one. Without it, torch is what pip's index has for the
# platform: on x86-64 usually the CUDA build, which runs on a CPU as well and is some gigabytes larger.
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements.lock ./
# Only torch may come from the other index: any name it offers could otherwise shadow a package of the lock.
RUN grep '^torch==' requirements.lock > torch.txt \
    && pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r torch.txt -c requirements.lock \
    && pip install -r requirements.lock \
    && python -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-deps . && pip check

FROM ${BASE}
LABEL org.opencontainers.image.title="reperfuse" \
      org.opencontainers.image.description="Experiment-tracked stroke imaging; research use only" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
# Debian keeps only the newest git and make of a release: a pinned one could not be built tomorrow.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    # A checkout belongs to whoever mounts it, and git refuses other people's.
    && git config --system --add safe.directory /work \
    # The home of whichever user `docker run --user` names.
    && useradd --uid 1000 --create-home researcher && chmod 1777 /home/researcher
COPY --from=builder /opt/venv /opt/venv
# The checkout's own code comes first where it is mounted: it is what DVC watches and what lineage names.
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/work/src HOME=/home/researcher PYTHONUNBUFFERED=1 \
    MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=1
USER 1000
WORKDIR /work
# The program answers, and so do the services where this container keeps them up.
HEALTHCHECK --interval=1m --timeout=30s --start-period=2m \
    CMD ["sh", "-c", \
         "reperfuse --version && { [ ! -e .reperfuse/services/processes.json ] || python -m flows.serve status; }"]
# Services need longer than ten seconds to end: docker stop --timeout 60.
STOPSIGNAL SIGINT
ENTRYPOINT ["reperfuse"]
CMD ["--help"]
