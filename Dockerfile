# The project with all that it needs, for every node of a cluster: cluster.yaml and study/cluster/rayjob.yaml run this
# image, so that no worker spends billed minutes on pip.
#
#   docker build -t REGISTRY/zerosweep:0.1.0 . && docker push REGISTRY/zerosweep:0.1.0
#
# One image for heads and GPU workers. It starts from Python and not from rayproject/ray: the wheel of torch brings its
# own CUDA, and rayproject's GPU images bring a second one. The host brings the driver alone, 580 or newer.
# For machines without a GPU, smaller by the whole of CUDA: give the index of torch's CPU builds as
# --build-arg PIP_EXTRA_INDEX_URL=URL.
FROM python:3.11-slim-bookworm

# `ray up` copies files with rsync, and a head starts its workers over SSH; KubeRay before 1.6 probes nodes with wget.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/*

# User 1000, as on rayproject/ray and on Ubuntu's machine images: files that `ray up` mounts (the token) can be read.
RUN useradd --create-home --uid 1000 --shell /bin/bash ray \
    && mkdir --parents /home/ray/.ray /home/ray/zerosweep \
    && chown --recursive ray:ray /home/ray
WORKDIR /home/ray/zerosweep

# Dependencies first: the next layer changes with every commit, this one with pyproject.toml and constraints.txt.
# boto3 starts machines (autoscaler on AWS), psycopg keeps a ledger in PostgreSQL, ray[default] has the dashboard and jobs.
ARG PIP_EXTRA_INDEX_URL=
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > /tmp/requirements.txt \
    && pip install --no-cache-dir --constraint constraints.txt --requirement /tmp/requirements.txt \
        "ray[default]" boto3 "psycopg[binary]" "setuptools>=77" \
    && rm /tmp/requirements.txt

# The code, installed where it lies: `ray up` puts the copy of today over this folder, and nothing is installed again.
COPY README.md LICENSE ./
COPY data_prep data_prep
COPY models models
COPY search_spaces search_spaces
COPY study study
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .

# What a container sees of the host's driver; NVIDIA's own images say the same.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Threads of torch sleep soon while they wait for each other (study/cluster/README.md, "When something is wrong").
ENV GOMP_SPINCOUNT=1000
# A node without this starts without authentication, and the others refuse it.
ENV RAY_AUTH_MODE=token
USER ray
