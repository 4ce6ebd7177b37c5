#!/usr/bin/env bash
# Holds the anatomy to the oldest and the newest transformers that it claims (pyproject.toml: transformers>=5.0).
#   scripts/anatomy_versions.sh                      both
#   scripts/anatomy_versions.sh 5.0.0 5.10.0         these
# Each runs in a temporary environment laid over the one of $PYTHON (default: .venv/bin/python, else python3),
# so that torch and the rest are not installed again.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
below=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
versions=("$@")
if [ ${#versions[@]} -eq 0 ]; then
  oldest=$(sed -n 's/.*"transformers>=\([0-9.]*\)".*/\1/p' pyproject.toml)
  versions=("$oldest.*" newest)
fi
failed=0
for version in "${versions[@]}"; do
  folder=$(mktemp -d)
  "$python" -m venv "$folder"
  over=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  echo "$below" >"$over/below.pth"
  wanted=$([ "$version" = newest ] && echo transformers || echo "transformers==$version")
  "$folder/bin/python" -m pip install --quiet --upgrade --disable-pip-version-check "$wanted"
  echo "== $("$folder/bin/python" -c 'import transformers; print("transformers", transformers.__version__)')"
  PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1 "$folder/bin/python" -m pytest tests/anatomy -q -p no:cacheprovider || failed=1
  rm -rf "$folder"
done
exit "$failed"
