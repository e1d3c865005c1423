#!/bin/bash
# On all hosts of a TPU slice at once; each of them already has the repository with its .venv:
#
#   ZONE=us-central2-b launch/tpu_vm.sh my-slice \
#       --config=configs/math500_qwen25_math_7b.py --workdir=gs://bucket/math500
#
# DIRECTORY is that of the repository on the hosts (default: jax-power-smc in the home directory).
set -euo pipefail

name=${1:?the name of the TPU VM}
shift

directory=${DIRECTORY:-jax-power-smc}
arguments=$(printf '%q ' "$@")  # quoted again, for the shell on the hosts
exec gcloud compute tpus tpu-vm ssh "$name" --zone="${ZONE:?}" --worker=all \
    --command="cd $directory && exec .venv/bin/python -m launch.evaluate --distributed $arguments"
