#!/usr/bin/env bash
# Build the documentation site, or serve it while it is written; see --help.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: bash scripts/build_docs.sh [--serve] [--out DIR] [MKDOCS ARGUMENTS]

Builds the site of docs/ with mkdocs; any warning (a link to nothing, a page that is not in the
navigation of configs/mkdocs.yml, an undocumented name) stops it. Open DIR/index.html.

  --serve    build, show on http://127.0.0.1:8000 and build again whenever a page changes
  --out DIR  where the site goes (default: runs/site)

Needs the extra [docs], which scripts/setup.sh installs. Reads sources, imports nothing of them.
HELP
}

command=(build --strict)
arguments=()
out=""
while (($#)); do
  case "$1" in
    -h | --help)
      usage
      exit 0
      ;;
    --serve) command=(serve) ;;
    --out)
      out=${2:?--out needs a folder}
      shift
      ;;
    *) arguments+=("$1") ;;
  esac
  shift
done

# shellcheck source-path=SCRIPTDIR source=lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
use_python mkdocs material mkdocstrings mkdocstrings_handlers
export NO_MKDOCS_2_WARNING=1 # the theme's note about its successor

if [[ ${command[0]} == serve ]]; then
  command+=(--watch "$root/README.md" --watch "$root/fairseq_fwm")
else
  out=$(realpath -m "${out:-$root/runs/site}")
  command+=(--site-dir "$out")
fi
python -m mkdocs "${command[@]}" --config-file "$root/configs/mkdocs.yml" "${arguments[@]}"
[[ -z $out ]] || say "done: $out/index.html"
