#!/usr/bin/env bash
# The Python standard library's source files, in SentencePiece's pieces: see --help.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib/prepare_lm_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/prepare_lm_common.sh"

prepare_lm \
  --name stdlib \
  --title "the Python standard library's source files, in pieces (SentencePiece, BPE)" \
  --licence "PSF License Version 2 (Python Software Foundation)" \
  --unit piece --pieces 4000 \
  --value --pieces --usage "\
  --pieces N   size of the vocabulary, learned from the training files (default 4000)

A file trains, validates or tests (90, 5 and 5 % of the files) by a hash of its path. Left out are
tests, idlelib, turtledemo, tkinter, lib2to3, distutils and ensurepip, which many distributions of
Python pack apart or drop, and what a program made (encodings, pydoc_data, _sysconfigdata*).
" \
  -- "$@"
