#!/usr/bin/env bash
# WMT 2014, English to German: see --help.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib/prepare_mt_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/prepare_mt_common.sh"

prepare_mt \
  --name wmt14_ende \
  --title "WMT 2014, English to German (Bojar et al. 2014)" \
  --licence "for research; Europarl, Common Crawl and news texts belong to their authors" \
  --usage "train: Europarl v7, Common Crawl and News Commentary v9 (4.5 million pairs); those of 1 to
250 pieces and a length ratio of at most 1.5 stay. valid: newstest2013 (3,000), test: newstest2014,
all of it (3,003). No checksum of News Commentary v9 is published: that of the first download is
recorded and kept to. Needs 1.7 GB to download and 12 GB in all." \
  --langs en de \
  --archive training-parallel-europarl-v7.tgz \
  https://www.statmt.org/wmt13/training-parallel-europarl-v7.tgz \
  sha256:0224c7c710c8a063dfd893b0cc0830202d61f4c75c17eb8e31836103d27d96e7 \
  --archive training-parallel-commoncrawl.tgz \
  https://www.statmt.org/wmt13/training-parallel-commoncrawl.tgz \
  sha256:c7a74e2ea01ac6c920123108627e35278d4ccb5701e15428ffa34de86fa3a9e5 \
  --archive training-parallel-nc-v9.tgz \
  https://www.statmt.org/wmt14/training-parallel-nc-v9.tgz - \
  --part train training/europarl-v7.de-en.{en,de} \
  --part train commoncrawl.de-en.{en,de} \
  --part train training/news-commentary-v9.de-en.{en,de} \
  --test-set valid wmt13 --test-set test wmt14/full \
  --pairs 4520620 3000 3003 \
  --normalise --bpe-codes 32000 --max-length 250 --max-ratio 1.5 \
  -- "$@"
