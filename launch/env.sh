#!/usr/bin/env bash
# The environment of every launcher here: sourced by them, so it is one. What the caller has set stays.
set -euo pipefail

# A line that a process prints before it is killed shall not be lost in a pipe's buffer.
export PYTHONUNBUFFERED="${PYTHONUNBUFFERED:-1}"

# JAX's processes talk by gRPC, which would send even local calls through a proxy and wait for ever (documentation of
# jax.distributed.initialize). Training needs nothing from outside.
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY

# Two levels of C++ log less: absl's and gRPC's informational lines, several from each process at each start.
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}" GRPC_VERBOSITY="${GRPC_VERBOSITY:-ERROR}"
