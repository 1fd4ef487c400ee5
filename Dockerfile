# The same environment as `make demo`: Python, git, and requirements.lock.
#   docker build -t reperfuse . && docker run --rm -v "$PWD:/work" reperfuse dvc repro
FROM python:3.11-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*
ENV MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=1 PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/reperfuse
COPY requirements.lock ./
RUN pip install --no-cache-dir -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir --no-deps .
# Data, params.yaml and dvc.yaml come with the checkout that is mounted here.
RUN useradd --create-home researcher && git config --system --add safe.directory /work
USER researcher
WORKDIR /work
CMD ["reperfuse", "--help"]
