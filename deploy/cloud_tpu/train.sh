#!/usr/bin/env bash
# A training run on a Cloud TPU slice by gcloud: it creates the slice, installs, and runs the command on every worker.
#
#     IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/afloc_jax:tpu deploy/cloud_tpu/train.sh NAME ZONE v5litepod-16 \
#         --config=configs/afloc.py --workdir=gs://BUCKET/run --config.data.dataset=mimic_cxr \
#         --config.data.directory=gs://BUCKET/data --config.data.cache=/shared/cache
#
#     IMAGE       an image from deploy/docker/tpu.Dockerfile; its container sees /shared of the worker
#     REPOSITORY  instead of IMAGE: a git repository that the workers can fetch and install
#     REVISION    branch, tag or whole commit hash of it (default: main)
#     RUNTIME     software version of the slice, which has to fit the accelerator (default: v2-alpha-tpuv5-lite)
#     SETUP       a command for every worker before anything else, such as the one that mounts /shared
#
# The same command creates a preempted spot slice again, and the run continues from its last checkpoint. --workdir must
# be in a bucket (gs://), or an absolute path on storage that every worker mounts as /shared (Filestore); so must the
# data, which are copied from a bucket to the cache of every worker.
set -euo pipefail
if [ "$#" -lt 4 ] || [ -z "${REPOSITORY:-}${IMAGE:-}" ]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
name=$1 zone=$2 accelerator=$3
shift 3
repository=$(printf %q "${REPOSITORY:-}") revision=$(printf %q "${REVISION:-main}") image=$(printf %q "${IMAGE:-}")
version=${RUNTIME:-v2-alpha-tpuv5-lite}

everywhere() {
    gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

state=$(gcloud compute tpus tpu-vm describe "$name" --zone="$zone" --format='value(state)' 2>/dev/null || true)
if [ "$state" = PREEMPTED ] || [ "$state" = TERMINATED ]; then
    gcloud compute tpus tpu-vm delete "$name" --zone="$zone" --quiet
    state=
fi
if [ -z "$state" ]; then
    gcloud compute tpus tpu-vm create "$name" --zone="$zone" --accelerator-type="$accelerator" --version="$version" --spot
fi
if [ -n "${SETUP:-}" ]; then
    everywhere "$SETUP"
fi
if [ -n "${IMAGE:-}" ]; then
    everywhere "gcloud auth configure-docker --quiet ${image%%/*} && sudo HOME=\$HOME docker pull --quiet $image"
    # Host network and devices, as Cloud TPU needs them in a container.
    everywhere "sudo docker run --rm --privileged --network=host --volume=/shared:/shared $image \
        python launch.py $(printf '%q ' "$@") --distributed"
    exit
fi
everywhere "test -d afloc_jax/.git || git init --quiet afloc_jax
    cd afloc_jax && git fetch --quiet $repository $revision && git checkout --quiet --detach FETCH_HEAD"
# Some runtimes have Python 3.10, and 3.11 is needed: there uv, from PyPI, fetches one.
everywhere "cd afloc_jax || exit 1
    if [ ! -x .venv/bin/pip ]; then
        {
            python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' && python3 -m venv .venv
        } || {
            python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --clear --seed --python 3.11 .venv
        } || { echo \"no Python 3.11 or newer: \$(python3 --version), and none could be made; see above\" >&2; exit 1; }
    fi
    .venv/bin/pip install --quiet -r requirements.txt -r requirements-gcs.txt 'jax[tpu]>=0.10.2,<0.13'"
everywhere "cd afloc_jax && .venv/bin/python launch.py $(printf '%q ' "$@") --distributed"
