#!/usr/bin/env bash
# Sets everything up, once: system packages, .venv, PyTorch, this package.
#
#   bash tools/setup.sh          what training and the demo need
#   bash tools/setup.sh --dev    and what the tests need, Debian packages of ssh, Slurm and a browser included
#
# A second run finds its stamp and ends at once. Where packages come from is pip's own configuration (PIP_INDEX_URL and so on).
# tools/demo.sh and tools/test.sh source this file: they get its environment too.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
log=$root/.venv/setup.log
extras=""
[ "${1:-}" = --dev ] && extras="[dev]"
child=""
as_root=(env)
[ "$(id -u)" -eq 0 ] || as_root=(sudo)

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# A phase: its command runs with its output in the log; every 10 s the log's last line shows that it lives. It has its own
# process group, so that Ctrl-C or SIGTERM here ends all of it.
phase() {
    local what=$1 began=$SECONDS told=$SECONDS code=0
    shift
    mkdir -p "$(dirname "$log")"
    say "$what ..."
    set -m
    "$@" >"$log" 2>&1 </dev/null 9>&- &
    child=$!
    set +m
    while kill -0 "$child" 2>/dev/null; do
        sleep 0.2 & wait $! || true
        if [ $((SECONDS - told)) -ge 10 ]; then
            told=$SECONDS
            say "    $((SECONDS - began)) s  $(tail -n 1 "$log" | tr -d '\r' | cut -c 1-100)"
        fi
    done
    wait "$child" || code=$?
    child=""
    if [ "$code" -ne 0 ]; then
        tail -n 30 "$log" >&2
        [ -z "${optional:-}" ] || { say "$what failed (exit code $code)"; return "$code"; }
        fail "$what failed (exit code $code); the whole log is $log"
    fi
    say "$what: $((SECONDS - began)) s"
}

stop() {
    if [ -n "$child" ]; then kill -TERM -- "-$child" 2>/dev/null || true; fi
    exit "$1"
}

has_gpu() { nvidia-smi -L >/dev/null 2>&1; }

find_python() {
    local name
    for name in "${PYTHON:-python3}" python3.11 python3.12 python3.13; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    return 1
}

# Debian splits Python into parts, and a bare machine has no compiler; DeepSpeed compiles what offload to NVMe needs at first use.
install_system_packages() {
    local missing=()
    [ -n "$python" ] || missing+=(python3)
    [ -n "$python" ] && "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    [ -n "$python" ] && "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null \
        || missing+=(python3-dev)
    command -v g++ >/dev/null || missing+=(g++)
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || fail "missing: ${missing[*]} (Debian's names); install them and run this again"
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "as root, run: apt-get install ${missing[*]}"
        sudo -v || fail "as root, run: apt-get install ${missing[*]}"
    fi
    phase "apt-get update" "${as_root[@]}" apt-get update
    phase "apt-get install ${missing[*]}" "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends "${missing[@]}"
}

# Programs that some tests start: four machines with ssh, Slurm, a browser. Training needs none of them, so whatever keeps them
# from being installed is a warning, and those tests skip and say why.
install_test_packages() {
    local missing=() pair
    for pair in sshd:openssh-server ssh:openssh-client pdsh:pdsh slurmctld:slurm-wlm munged:munge ip:iproute2 numactl:numactl \
        chromium:chromium; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    [ -e /usr/include/libaio.h ] || missing+=(libaio-dev)
    [ ${#missing[@]} -gt 0 ] || return 0
    local skipped="some tests will skip without Debian's ${missing[*]}"
    command -v apt-get >/dev/null || { say "no apt-get here: $skipped"; return 0; }
    [ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null || { say "neither root nor sudo without a password: $skipped"; return 0; }
    optional=yes phase "apt-get update" "${as_root[@]}" apt-get update || { say "$skipped"; return 0; }
    optional=yes phase "apt-get install ${missing[*]}, for tests" \
        "${as_root[@]}" bash -c "$programs_without_services" - "${missing[@]}" || say "$skipped"
}

# Only the programs are wanted. Debian asks policy-rc.d before it starts a service (101: do not), and what was not there before is
# not started with the machine either.
programs_without_services='
    set -e
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf "#!/bin/sh\nexit 101\n" >$policy
        chmod +x $policy
        trap "rm -f $policy" EXIT
    fi
    new=""
    for unit in ssh.service ssh.socket munge.service slurmctld.service slurmd.service; do
        [ -e /lib/systemd/system/$unit ] || new="$new $unit"
    done
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
    [ -z "$new" ] || ! command -v systemctl >/dev/null || systemctl disable $new || true
'

# A folder that was moved or copied has scripts that point to the old place: start over.
make_venv() {
    if "$venv/bin/python" -c 'import pip' 2>/dev/null && grep -qF "$venv/bin/python" "$venv/bin/pip"; then return; fi
    rm -rf "$venv"
    log=$(mktemp)
    phase "new environment $venv" "$python" -m venv "$venv"
    rm -f "$log"
    log=$venv/setup.log
}

install_packages() {
    local pip=("$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off)
    # Without a GPU the exact version keeps pip from weighing newer CUDA builds of several gigabytes.
    has_gpu || phase "PyTorch for CPU" "${pip[@]}" torch==2.13.0
    phase "mri_ds$extras and what it needs" "${pip[@]}" -e "$root$extras"
    # for the viewer in reports; without what it needs in Jupyter
    phase "NiiVue, for reports" "${pip[@]}" --no-deps "ipyniivue>=2.4,<2.5"
    case $extras in # without what it needs: its timm would bring torchvision, which breaks PyTorch for CPU
    *dev*) phase "nnU-Net's networks, to compare with" "${pip[@]}" --no-deps "dynamic-network-architectures>=0.4,<0.5" ;;
    esac
}

stamp() { printf '%s %s ' "$root" "$1"; cat "$root/setup.py" "$root/tools/setup.sh" "$venv/pyvenv.cfg" | sha256sum; }

is_done() { [ -f "$venv/stamp$1" ] && [ "$(cat "$venv/stamp$1")" = "$(stamp "$1" 2>/dev/null)" ]; }

set_up() {
    python=$(find_python || true)
    install_system_packages
    [ -n "$python" ] || python=$(find_python) || fail "Python 3.11 or newer is needed; name it with PYTHON=/path/to/python3"
    make_venv
    rm -f "$venv"/stamp*
    install_packages
    stamp "" >"$venv/stamp"
    [ -z "$extras" ] || stamp "$extras" >"$venv/stamp$extras"
}

export TORCH_EXTENSIONS_DIR=$venv/torch_extensions
trap 'stop 130' INT
trap 'stop 143' TERM HUP
exec 9<"${BASH_SOURCE[0]}"
flock 9 # two terminals: the second waits for the first and finds everything done
is_done "$extras" || set_up
[ -z "$extras" ] || install_test_packages
exec 9<&-
trap - INT TERM HUP

export PATH=$venv/bin:$PATH
has_gpu || export DS_ACCELERATOR=cpu
say "ready in $SECONDS s ($venv)"
