#!/usr/bin/env bash
# On a machine with a CUDA GPU, a CUDA toolkit and Python packages, but no network: builds, tests, checks with
# compute-sanitizer, and measures. Each step says how it ended and the next one goes on; the exit status is that of the
# worst. Results: $OUT, else bench/results/gpu-<time>; logs of all steps, summary.txt, conv2d.jsonl, ...
#
#   bash bench/gpu.sh [step ...]        steps: build test sanitize bench (default: all, in this order)
#
#   PYTHON      the interpreter that has numpy, pybind11, pytest and hypothesis (default: python3)
#   WHEELS      a folder of wheels to install from what is missing there (default: wheels, where it exists)
#   ARCH        CUDA architectures (default: the GPU's)
#   STEP_LIMIT  seconds for one step (default 580)
#   ONLY        only the benchmark cases whose name contains this
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
WHEELS=${WHEELS:-wheels}
STEP_LIMIT=${STEP_LIMIT:-580}
OUT=${OUT:-bench/results/gpu-$(date -u +%Y%m%dT%H%M%SZ)}
BUILD=${BUILD:-build/gpu}
mkdir -p "$OUT" "$BUILD"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
export PATH=$PATH:/usr/local/cuda/bin
worst=0

# step NAME command...: runs it with a limit, keeps its log, says how it ended
step() {
  local name=$1 start=$SECONDS status
  shift
  echo "== $name: $*"
  timeout -k 10 "$STEP_LIMIT" "$@" >"$OUT/$name.log" 2>&1
  status=$?
  tail -n "${TAIL:-15}" "$OUT/$name.log"
  case $status in
    0) echo "$name: ok, $((SECONDS - start)) s" ;;
    124 | 137) echo "$name: STOPPED after $((SECONDS - start)) s" ;;
    *) echo "$name: FAILED with status $status, $((SECONDS - start)) s" ;;
  esac | tee -a "$OUT/summary.txt"
  ((status > worst)) && worst=$status
  return "$status"
}

has() { "$PYTHON" -c "import $1" >/dev/null 2>&1; }

machine() {
  nvidia-smi || echo "no nvidia-smi"
  nvcc --version || echo "no nvcc"
  "$PYTHON" --version
  "$PYTHON" -c "import numpy; print('numpy', numpy.__version__)"
  "$PYTHON" -c "import torch; print('torch', torch.__version__, torch.cuda.is_available())" || echo "no torch"
}

packages() {
  local missing=()
  for module in numpy scipy pybind11 pytest hypothesis; do has "$module" || missing+=("$module"); done
  ((${#missing[@]} == 0)) && return 0
  echo "missing: ${missing[*]}"
  [ -d "$WHEELS" ] || { echo "expected them as wheels in the folder $WHEELS"; return 1; }
  "$PYTHON" -m pip install --no-index --find-links "$WHEELS" "${missing[@]}" ||
    "$PYTHON" -m pip install --break-system-packages --no-index --find-links "$WHEELS" "${missing[@]}"
}

build() {
  local arch=${ARCH:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d '.')}
  local generator=() version
  version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml | head -1)
  command -v ninja >/dev/null && generator=(-G Ninja)
  cmake -S . -B "$BUILD" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DMEDMPI_CUDA=ON \
    "-DCMAKE_CUDA_ARCHITECTURES=${arch:-90}-real" -DPYBIND11_FINDPYTHON=ON \
    -DSKBUILD_PROJECT_NAME=medmpi "-DSKBUILD_PROJECT_VERSION=${version:-0}" \
    "-DPython_EXECUTABLE=$(command -v "$PYTHON")" "-Dpybind11_DIR=$("$PYTHON" -m pybind11 --cmakedir)" &&
    cmake --build "$BUILD" -j "$(nproc)" &&
    cp "$BUILD"/_core*.so medmpi/kernels/ &&
    "$PYTHON" -c "from medmpi import kernels as K; print(K.backends(), K.devices()); assert K.devices(), K.missing_device()"
}

# the test modules that run on a device
device_tests() { grep -l -E 'devices\(\)|missing_device|why_no_device' tests/*/test_*.py; }

sanitize() {
  compute-sanitizer --tool "$1" --error-exitcode 9 "$PYTHON" -m pytest -q -x --no-header -p no:cacheprovider $(device_tests)
}
export -f machine packages build has device_tests sanitize
export PYTHON WHEELS BUILD OUT ARCH

steps=${*:-build test sanitize bench}
: >"$OUT/summary.txt"
TAIL=40 step machine bash -c machine
step packages bash -c packages
for wanted in $steps; do
  case $wanted in
    build) step build bash -c build ;;
    test)
      step test bash -c '"$PYTHON" -m pytest -q --no-header --maxfail=20 --durations=5 $(device_tests)'
      step tables "$PYTHON" -m pytest -q --no-header --maxfail=20 --durations=5 tests/kernels -k cuda
      ;;
    sanitize)
      if command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck initcheck; do step "$tool" bash -c "sanitize $tool"; done
      else
        echo "sanitize: SKIPPED, there is no compute-sanitizer" | tee -a "$OUT/summary.txt"
      fi
      ;;
    bench)
      rival=none
      "$PYTHON" -c "import torch; assert torch.cuda.is_available()" 2>/dev/null && rival=torch
      for family in conv2d memory_bound linear; do
        TAIL=60 step "bench-$family" "$PYTHON" -m bench "$family" --backend cuda --against "$rival" \
          --only "${ONLY:-}" --out "$OUT/$family.jsonl"
      done
      ;;
    *)
      echo "$wanted: no such step, expected build, test, sanitize or bench" | tee -a "$OUT/summary.txt"
      worst=2
      ;;
  esac
done
echo "== summary"
cat "$OUT/summary.txt"
exit "$worst"
