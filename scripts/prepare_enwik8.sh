#!/usr/bin/env bash
# enwik8, by bytes: see --help.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib/prepare_lm_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/prepare_lm_common.sh"

prepare_lm \
  --name enwik8 \
  --title "enwik8, by bytes (90, 5 and 5 million of them)" \
  --licence "CC BY-SA and GFDL (a dump of Wikipedia, by its authors)" \
  --url http://mattmahoney.net/dc \
  --archive enwik8.zip \
  sha256:547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc \
  --text all enwik8 sha256:2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8 \
  --tokens 90000000 5000000 5000000 --types 205 \
  --unit byte \
  -- "$@"
