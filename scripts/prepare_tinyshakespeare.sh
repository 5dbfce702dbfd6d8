#!/usr/bin/env bash
# Tiny Shakespeare, by characters: see --help.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib/prepare_lm_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/prepare_lm_common.sh"

prepare_lm \
  --name tinyshakespeare \
  --title "Tiny Shakespeare, by characters (the first 90 %, the next 5 %, the last 5 %)" \
  --licence "public domain" \
  --url https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare \
  --text all input.txt sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed \
  --types 65 \
  --unit character \
  -- "$@"
