#!/usr/bin/env bash
# Train one variant on IWSLT14 German-English.
# shellcheck disable=SC2034  # what is set here is read by what is sourced
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib/translation_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/translation_common.sh"

corpus=iwslt14 prepared=iwslt14_deen micro_batches=1 languages=(-s de -t en)
recipe=(
  --arch fwm_transformer_iwslt_de_en --share-decoder-input-output-embed --max-tokens 4096
  --lr 0.0005 --weight-decay 0.0001 --max-update 50000 --keep-last-epochs 10
  --eval-bleu-args '{"beam": 5, "max_len_a": 1.2, "max_len_b": 10}'
)

title="Trains a transformer of 6 + 6 layers, 512, 4 heads on IWSLT14, German to English, by the recipe in
fairseq's README for transformer_iwslt_de_en: 4,096 tokens an update, Adam, learning rate 0.0005
after 4,000 updates, dropout 0.3, label smoothing 0.1; here 50,000 updates. No variant has a
published number; the last ten epochs are kept, to be averaged."

# A function and an exit: bash has read all of this before the hours of training begin.
train_translation "$@"
exit
