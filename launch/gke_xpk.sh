#!/bin/bash
# A workload of a GKE cluster that xpk made; IMAGE holds the repository with its .venv:
#
#   CLUSTER=my-cluster IMAGE=gcr.io/project/power-smc TPU_TYPE=v5litepod-16 \
#       launch/gke_xpk.sh math500 --config=configs/math500_qwen25_7b.py --workdir=gs://bucket/math500
#
# ZONE and PROJECT are those of gcloud's own configuration, unless XPK_FLAGS names them.
set -euo pipefail

workload=${1:?a name for the workload}
shift

arguments=$(printf '%q ' "$@")  # quoted once more, for the shell of the container
read -ra more <<< "${XPK_FLAGS:-}"
# A workload that was stopped has to fail: Kubernetes starts no other one again.
exec xpk workload create --workload="$workload" --cluster="${CLUSTER:?}" \
    --docker-image="${IMAGE:?}" --tpu-type="${TPU_TYPE:?}" --max-restarts="${RESTARTS:-100}" \
    "${more[@]}" --command=".venv/bin/python -m launch.evaluate --distributed --stopped_exit_code=75 $arguments"
