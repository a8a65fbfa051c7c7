#!/usr/bin/env bash
# A training run on a Cloud TPU slice, with gcloud: make the slice, install, run the same command on every worker.
#
#     deploy/cloud_tpu/train.sh NAME ZONE v5litepod-16 --config=configs/afloc.py --workdir=gs-mount/run
#
# A spot slice that was taken away is made anew by the same command, and the run goes on from its last checkpoint.
# --workdir and the data must lie on storage that every worker mounts (Filestore, or a bucket by gcsfuse).
set -euo pipefail
if [ "$#" -lt 4 ]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
name=$1 zone=$2 accelerator=$3
shift 3
repository=${REPOSITORY:?the address of a git repository that the workers can clone}
version=${RUNTIME:-v2-alpha-tpuv5-lite} # the runtime that fits the accelerator

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
everywhere "test -d afloc_jax || git clone --quiet $(printf %q "$repository") afloc_jax"
everywhere "cd afloc_jax && python3 -m venv .venv && .venv/bin/pip install --quiet -r requirements.txt 'jax[tpu]'"
everywhere "cd afloc_jax && .venv/bin/python launch.py $(printf '%q ' "$@") --distributed"
