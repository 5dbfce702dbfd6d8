#!/usr/bin/env bash
# WikiText-2, by words: see --help.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib/prepare_lm_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/prepare_lm_common.sh"

prepare_lm \
  --name wikitext2 \
  --title "WikiText-2, by words (Merity et al. 2016, arXiv 1609.07843)" \
  --licence "CC BY-SA 3.0 and GFDL (articles of Wikipedia, by their authors)" \
  --url https://wikitext.smerity.com \
  --archive wikitext-2-v1.zip \
  sha256:92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c \
  --text train wiki.train.tokens sha1:863f29c46ef9d167fff4940ec821195882fe29d1 \
  --text valid wiki.valid.tokens \
  sha256:f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8 \
  --text test wiki.test.tokens \
  sha256:d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0 \
  --tokens 2088628 217646 245569 --types 33278 \
  --unit word \
  --switch --small --usage "\
  --small      do without the training text, for quick comparisons: the first nine tenths of the
               lines of the validation text train, the rest validate; words that these nine tenths
               lack become <unk>" \
  -- "$@"
