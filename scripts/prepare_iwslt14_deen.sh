#!/usr/bin/env bash
# IWSLT 2014, German to English: see --help.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib/prepare_mt_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/prepare_mt_common.sh"

tests=()
for name in TED.dev2010 TEDX.dev2012 TED.tst2010 TED.tst2011 TED.tst2012; do
  tests+=(--part test "de-en/IWSLT14.$name.de-en.de.xml" "de-en/IWSLT14.$name.de-en.en.xml")
done

prepare_mt \
  --name iwslt14_deen \
  --title "IWSLT 2014, German to English: transcripts of TED talks (Cettolo et al. 2014)" \
  --licence "CC BY-NC-ND 4.0 (talks and transcripts, by TED)" \
  --usage "train: 174,443 pairs; those of 1 to 175 words and a length ratio of at most 1.5 stay,
every 23rd of them is valid (7,283), the others train (160,239 as published). test: dev2010,
dev2012, tst2010, tst2011 and tst2012 together (6,750). Lower-cased in the moses-bpe form.
No checksum of the archive is published: that of the first download is recorded and kept to." \
  --langs de en \
  --archive de-en.tgz https://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz - \
  --part train de-en/train.tags.de-en.de de-en/train.tags.de-en.en \
  "${tests[@]}" \
  --pairs 174443 7283 6750 \
  --apostrophes --lowercase after --valid-every 23 --clean-at words \
  --bpe-codes 10000 --max-length 175 --max-ratio 1.5 \
  -- "$@"
