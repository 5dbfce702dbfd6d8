#!/usr/bin/env bash
# WMT 2017, English to German: see --help.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib/prepare_mt_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/prepare_mt_common.sh"

prepare_mt \
  --name wmt17_ende \
  --title "WMT 2017, English to German (Bojar et al. 2017)" \
  --licence "for research; Europarl, Common Crawl and news texts belong to their authors" \
  --usage "train: Europarl v7, Common Crawl and News Commentary v12 (4.6 million pairs); those of 1 to
250 pieces and a length ratio of at most 1.5 stay. valid: newstest2016 (2,999), test: newstest2017
(3,004). Needs 1.7 GB to download and 12 GB in all." \
  --langs en de \
  --archive training-parallel-europarl-v7.tgz \
  https://www.statmt.org/wmt13/training-parallel-europarl-v7.tgz \
  sha256:0224c7c710c8a063dfd893b0cc0830202d61f4c75c17eb8e31836103d27d96e7 \
  --archive training-parallel-commoncrawl.tgz \
  https://www.statmt.org/wmt13/training-parallel-commoncrawl.tgz \
  sha256:c7a74e2ea01ac6c920123108627e35278d4ccb5701e15428ffa34de86fa3a9e5 \
  --archive training-parallel-nc-v12.tgz \
  https://data.statmt.org/wmt17/translation-task/training-parallel-nc-v12.tgz \
  sha256:2b45f30ef1d550d302fd17dd3a5cbe19134ccc4c2cf50c2dae534aee600101a2 \
  --part train training/europarl-v7.de-en.{en,de} \
  --part train commoncrawl.de-en.{en,de} \
  --part train training/news-commentary-v12.de-en.{en,de} \
  --test-set valid wmt16 --test-set test wmt17 \
  --normalise --bpe-codes 40000 --max-length 250 --max-ratio 1.5 \
  -- "$@"
