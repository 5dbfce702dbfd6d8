#!/usr/bin/env bash
# Translate and score with trained models: see --help.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

use_python fairseq matplotlib sacremoses sacrebleu torch tqdm
python "$root/scripts/lib/score.py" "$@"
