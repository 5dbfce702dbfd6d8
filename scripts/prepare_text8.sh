#!/usr/bin/env bash
# text8, by characters: see --help.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib/prepare_lm_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/prepare_lm_common.sh"

prepare_lm \
  --name text8 \
  --title "text8, by characters (90, 5 and 5 million of them; a to z and space)" \
  --licence "CC BY-SA and GFDL (a dump of Wikipedia, by its authors)" \
  --url http://mattmahoney.net/dc \
  --archive text8.zip \
  sha256:a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232 \
  --text all text8 sha256:6e890197040d37d85beb962ae1f041ff1d9a9ca8d20c7d99c85027eebf51dca7 \
  --tokens 90000000 5000000 5000000 --types 27 \
  --unit character \
  -- "$@"
