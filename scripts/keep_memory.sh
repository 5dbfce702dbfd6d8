# shellcheck shell=bash
# Sourced before training on a CPU: keep freed memory in the process. glibc hands every large tensor
# back to the kernel, which has to clear the pages again: an update of fwm_transformer_tiny took
# 2.1 s of one core without this and 1.2 s with it.
export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0}
export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-100000000000}
export MALLOC_TOP_PAD_=${MALLOC_TOP_PAD_:-268435456}
