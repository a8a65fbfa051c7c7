#!/usr/bin/env bash
# A training run on a Cloud TPU slice by gcloud: it creates the slice, installs, and runs the command on every worker.
#
#     REPOSITORY=https://host/afloc_jax.git deploy/cloud_tpu/train.sh NAME ZONE v5litepod-16 \
#         --config=configs/afloc.py --workdir=/shared/run \
#         --config.data.directory=/shared/data --config.data.dataset=mimic_cxr
#
#     REPOSITORY  required: a git repository that the workers can fetch
#     REVISION    branch, tag or whole commit hash of it (default: main)
#     RUNTIME     software version of the slice, which has to fit the accelerator (default: v2-alpha-tpuv5-lite)
#     SETUP       a command for every worker before anything else, such as the one that mounts /shared
#
# The same command creates a preempted spot slice again, and the run continues from its last checkpoint. --workdir and
# the data must be absolute paths on storage that every worker mounts (Filestore, or a bucket by gcsfuse).
set -euo pipefail
if [ "$#" -lt 4 ] || [ -z "${REPOSITORY:-}" ]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
name=$1 zone=$2 accelerator=$3
shift 3
repository=$(printf %q "$REPOSITORY") revision=$(printf %q "${REVISION:-main}")
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
    .venv/bin/pip install --quiet -r requirements.txt 'jax[tpu]>=0.10.2,<0.13'"
everywhere "cd afloc_jax && .venv/bin/python launch.py $(printf '%q ' "$@") --distributed"
