#!/usr/bin/env bash
# Environment of every launcher, which sources this file. Variables that the caller has set are kept, except for proxies.
set -euo pipefail

# Lines printed just before a process is killed are not lost in the buffer of a pipe
export PYTHONUNBUFFERED="${PYTHONUNBUFFERED:-1}"

# JAX's processes connect by gRPC, which would send even local calls through a proxy and hang (documentation of
# jax.distributed.initialize). Training needs no connection to the outside.
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY

# Without the informational lines that absl and gRPC print at every start
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}" GRPC_VERBOSITY="${GRPC_VERBOSITY:-ERROR}"
