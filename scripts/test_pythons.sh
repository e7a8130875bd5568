#!/usr/bin/env bash
# Unit tests with each Python that is here (on PATH, of pyenv, or of uv), each in an environment of its own with the
# built wheel: scripts/test_pythons.sh 3.10 3.13. EXTRAS: what is installed with it. Tests that need more are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRAS=${EXTRAS:-report}

interpreter() {
  "python$1" -c '' 2> /dev/null && command -v "python$1" && return  # pyenv puts names on PATH that run nothing
  compgen -G "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1.*/bin/python" | tail -1 | grep . && return
  command -v uv > /dev/null && uv python find "$1" 2> /dev/null
}

failed=()
for version in "$@"; do
  if ! python=$(interpreter "$version"); then
    echo "Python $version: not here (uv python install $version)"
    continue
  fi
  folder=.venv-$version
  [ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
  "$folder/bin/python" -m pip install --quiet ".[$EXTRAS]" pytest hypothesis
  mkdir -p "$folder/elsewhere"
  (cd "$folder/elsewhere" && ../bin/python -c 'import hesnr_tasks; print(hesnr_tasks.__file__)' && ../bin/hesnr --version)
  echo "Python $("$folder/bin/python" -c 'import platform; print(platform.python_version())'):"
  "$folder/bin/python" -m pytest tests/unit || failed+=("$version")
done
[ ${#failed[@]} = 0 ] || { echo "failed with Python ${failed[*]}"; exit 1; }
