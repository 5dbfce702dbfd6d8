#!/usr/bin/env bash
# WikiText-103, by words: see --help.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib/prepare_lm_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/prepare_lm_common.sh"

prepare_lm \
  --name wikitext103 \
  --title "WikiText-103, by words (Merity et al. 2016, arXiv 1609.07843)" \
  --licence "CC BY-SA 3.0 and GFDL (articles of Wikipedia, by their authors)" \
  --url https://wikitext.smerity.com \
  --archive wikitext-103-v1.zip \
  sha256:242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590 \
  --text train wiki.train.tokens sha1:b7497e2dfe77e72cfef5e3dbc61b7b53712ac211 \
  --text valid wiki.valid.tokens sha1:c326ac59dc587676d58c422eb8a03e119582f92b \
  --text test wiki.test.tokens sha1:8a5befc548865cec54ed4273cf87dbbad60d1e47 \
  --tokens 103227021 217646 245569 --types 267735 \
  --unit word \
  -- "$@"
