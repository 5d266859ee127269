# SPDX-License-Identifier: Apache-2.0
#
# Sourced by the other scripts: ensure_environment makes a virtual environment and keeps it up to date.
# An install needs the network; an environment that is up to date needs nothing.

# the environments are installed uncompiled, so that a process that may not keep bytecode compiles PyTorch anew each time
unset PYTHONDONTWRITEBYTECODE

# Print the first Python that is new enough and can make environments; PYTHON names one to try before the others.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3 python3.12 python3.13 python3.14 python; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "environment: no Python >= 3.11 with its venv module found; install one, or name it: PYTHON=... $0" >&2
    return 1
}

# Join files of pins `name==version`; where two pin the same package, the later file wins.
merge_constraints() {
    awk -F '==' '!/^[[:space:]]*(#|$)/ { name = tolower($1); gsub(/[-_.]+/, "-", name); pins[name] = $0 }
        END { for (name in pins) print pins[name] }' "$@" | LC_ALL=C sort
}

# Usage: ensure_environment VENV_DIR EXTRAS CONSTRAINTS...
#
# Afterwards VENV_DIR holds svit-hf, editable, with the comma-separated EXTRAS. Paths are relative to the checkout.
# It installs when pyproject.toml, the pins or the extras differ from the last complete install, and starts from
# nothing when that one was cut short or the checkout has moved (an environment's scripts hold its absolute path).
ensure_environment() (
    cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
    venv=$1 extras=$2
    shift 2
    stamp=$venv/installed.txt
    wanted=$(pwd -P && { echo "$extras" && cat pyproject.toml && merge_constraints "$@"; } | cksum) || exit

    if [ -e "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        echo "environment: $venv is up to date"
        exit
    fi
    # an environment without a stamp was made by hand: keep what is in it
    if [ ! -e "$venv/bin/python" ] || { [ -e "$stamp" ] && [ "$(head -n 1 "$stamp")" != "$(pwd -P)" ]; }; then
        python=$(find_python) || exit
        echo "environment: making $venv with $python"
        rm -rf "$venv" && mkdir -p "$venv" && echo unfinished >"$stamp" && "$python" -m venv "$venv" || exit
    fi
    echo "environment: installing svit-hf[$extras] into $venv, which takes a minute or more"
    echo unfinished >"$stamp"
    merge_constraints "$@" >"$venv/constraints.txt" || exit
    # compiling everything would double the time; Python compiles what is used, when it is used
    if ! "$venv/bin/python" -m pip install --no-input --no-compile --progress-bar off \
        -c "$venv/constraints.txt" -e ".[$extras]" >"$venv/pip.log" 2>&1; then
        tail -n 30 "$venv/pip.log" >&2
        echo "environment: the install failed; all that pip said is in $venv/pip.log" >&2
        exit 1
    fi
    echo "$wanted" >"$stamp"
)

# The environment of scripts/check.sh and scripts/test.sh. It is not .venv: torchvision is in it, and beside a CPU
# build of torch only the tests can live with that (tests/torchvision_on_cpu.py).
ensure_test_environment() {
    ensure_environment .venv-test dev,train,vision,kernels,export,openvino,quantization,curves,visualize,demo,dense,video,docs constraints.txt &&
        fetch_web_runtime .venv-test
}

# Put the archive of ONNX Runtime Web into an environment, where the test of web pages looks for it. Without npm or a
# network that test skips, and says so; where only a browser has a network, the file can be put there by hand.
fetch_web_runtime() (
    cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
    version=$(sed -n 's/^RUNTIME_VERSION = "\(.*\)"$/\1/p' src/svit_hf/export/web_page.py)
    archive=onnxruntime-web-$version.tgz
    [ ! -e "$1/$archive" ] || exit 0
    folder=$(mktemp -d "$1/npm.XXXXXX") || exit
    trap 'rm -rf "$folder"' EXIT
    # its file appears as a whole; which files are right, the package knows by their SHA-256
    if npm pack "onnxruntime-web@$version" --loglevel=error --fetch-retries=0 --fetch-timeout=60000 \
        --pack-destination "$folder" >"$1/npm.log" 2>&1; then
        mv "$folder/$archive" "$1/$archive"
        echo "environment: $1/$archive is there"
    else
        echo "environment: npm could not fetch $archive, so that no web page is tried in a browser; see $1/npm.log"
    fi
)
