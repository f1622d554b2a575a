#!/bin/bash
# GPT-2 on several machines by torchrun alone; on each of them, with its number and the address of machine 0:
#
#     NODES=2 NODE=0 HEAD=10.0.0.1 bash docs/cluster/torchrun.sh --data.path my_texts/
#     NODES=2 NODE=1 HEAD=10.0.0.1 bash docs/cluster/torchrun.sh --data.path my_texts/
#
# PROCESSES: those of one machine, one for each GPU. On CPUs: ACCELERATE_USE_CPU=true. Where machines have several networks:
# NCCL_SOCKET_IFNAME (on CPUs GLOO_SOCKET_IFNAME) names the one between them.
set -eu
exec torchrun --nnodes "${NODES:-1}" --node-rank "${NODE:-0}" --nproc-per-node "${PROCESSES:-8}" \
    --master-addr "${HEAD:-127.0.0.1}" --master-port "${PORT:-29500}" \
    "${RECIPE:-recipes/gpt2_clm.py}" --output "${OUTPUT:-out/torchrun}" --resume auto "$@"
