#!/bin/bash
# A workload on a GKE cluster made by xpk; IMAGE holds the repository with its .venv:
#
#   CLUSTER=my-cluster IMAGE=gcr.io/project/power-smc TPU_TYPE=v5litepod-16 \
#       launch/gke_xpk.sh math500 --config=configs/math500_qwen25_7b.py --workdir=gs://bucket/math500
#
# ZONE and PROJECT are those of gcloud's configuration, unless XPK_FLAGS sets them.
set -euo pipefail

workload=${1:?a name for the workload}
shift

arguments=$(printf '%q ' "$@")  # quoted again, for the shell in the container
read -ra more <<< "${XPK_FLAGS:-}"
# A workload that was stopped must fail: Kubernetes restarts only those.
exec xpk workload create --workload="$workload" --cluster="${CLUSTER:?}" \
    --docker-image="${IMAGE:?}" --tpu-type="${TPU_TYPE:?}" --max-restarts="${RESTARTS:-100}" \
    "${more[@]}" --command=".venv/bin/python -m launch.evaluate --distributed --stopped_exit_code=75 $arguments"
