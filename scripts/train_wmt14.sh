#!/usr/bin/env bash
# Train one row of the paper's WMT14 English-German table, or one that nobody has published.
# shellcheck disable=SC2034  # what is set here is read by what is sourced
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib/translation_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/translation_common.sh"

corpus=wmt14 prepared=wmt14_ende micro_batches=48 languages=(-s en -t de)
recipe=(
  --arch fwm_transformer_wmt_en_de_big --share-all-embeddings --max-tokens 3584
  --lr 0.001 --weight-decay 0.0 --max-epoch 45 --no-epoch-checkpoints
  --eval-bleu-args '{"beam": 4, "lenpen": 0.6}'
)

title="Trains the big transformer on WMT14, English to German, as arXiv 2102.11174 (Sec. 6.2, App. E)
did: 45 epochs, an update from 48 batches of up to 3,584 tokens (there 3 GPUs, 16 batches each),
best checkpoint by validation BLEU, no averaging. What the paper leaves open is as in fairseq's
README for this model: Adam, learning rate 0.001 after 4,000 updates, dropout 0.3, label smoothing 0.1."

# A function and an exit: bash has read all of this before the days of training begin.
train_translation "$@"
exit
