# shellcheck shell=bash
# Owns what the scripts share: finding the repository, installing what is missing, building the
# servers, making and removing a run's network namespaces, starting and stopping its processes.
# Sourced, never run.

set -euo pipefail

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
readonly ROOT

# libbpf-sys builds libbpf with a makefile that fails if the path of cargo's target directory has a space:
# such a clone builds in the user's cache, each clone in a directory of its own.
if [[ -z ${CARGO_TARGET_DIR:-} && $ROOT == *[[:space:]]* ]]; then
    CARGO_TARGET_DIR=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/interruptlet/$(printf %s "$ROOT" | sha256sum | cut -c1-16)
    export CARGO_TARGET_DIR
fi

# What each task needs, as KIND:WHAT:PACKAGE. KIND is `cmd` (a command) or `file` (a header).
# libxdp-sys builds libxdp with make, hence libpcap-dev, m4 and gcc beside clang.
# shellcheck disable=SC2034  # read by the scripts that source this file
readonly BUILD_NEEDS=(
    cmd:clang:clang cmd:llvm-strip:llvm cmd:gcc:gcc cmd:make:make cmd:m4:m4 cmd:pkg-config:pkg-config
    file:/usr/include/libelf.h:libelf-dev file:/usr/include/zlib.h:zlib1g-dev
    file:/usr/include/pcap.h:libpcap-dev file:/usr/include/stdio.h:libc6-dev
)
# shellcheck disable=SC2034
readonly LAB_NEEDS=(
    cmd:ip:iproute2 cmd:ethtool:ethtool cmd:ping:iputils-ping cmd:nc.openbsd:netcat-openbsd
    cmd:curl:curl cmd:setsid:util-linux cmd:timeout:coreutils
)

# Ends the script with one line on stderr.
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Ends the script unless it runs as root. $1: what for.
need_root() {
    ((EUID == 0)) || die "$1 needs root (network namespaces, AF_XDP): run it with sudo"
}

# Puts cargo on the PATH (sudo drops a user's own), or ends the script if it is not there or too old.
need_cargo() {
    local wanted tool version
    if ! command -v cargo >/dev/null && [[ -x ${HOME:-/root}/.cargo/bin/cargo ]]; then
        PATH="${HOME:-/root}/.cargo/bin:$PATH"
    fi
    wanted=$(sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' "$ROOT/Cargo.toml")
    # A distribution's cargo and rustc are packages of their own; rustup's need a toolchain behind them.
    for tool in cargo rustc; do
        command -v "$tool" >/dev/null ||
            die "$tool not found: install Rust $wanted or later (https://rustup.rs) for the user $(id -un)"
        version=$("$tool" --version 2>/dev/null) ||
            die "$tool does not run: get a toolchain with \`rustup default stable\`"
        version=${version#* }
        version=${version%%[ -]*}
        printf '%s\n' "$wanted" "$version" | sort -CV ||
            die "$tool is $version, Rust $wanted or later is needed: \`rustup update stable\` (https://rustup.rs)"
    done
}

# Ends the script if rustfmt or clippy is not there: rustup's minimal profile is without them.
need_lints() {
    local lacking=()
    cargo fmt --version >/dev/null 2>&1 || lacking+=(rustfmt)
    cargo clippy --version >/dev/null 2>&1 || lacking+=(clippy)
    ((${#lacking[@]} == 0)) ||
        die "missing with cargo: ${lacking[*]}: get it with \`rustup component add ${lacking[*]}\`"
}

# Prints the package of every need in "$@" that is not met, one a line.
missing_packages() {
    local need kind what
    for need in "$@"; do
        kind=${need%%:*}
        what=${need#*:}
        what=${what%:*}
        case $kind in
            cmd) command -v "$what" >/dev/null || printf '%s\n' "${need##*:}" ;;
            file) [[ -e $what ]] || printf '%s\n' "${need##*:}" ;;
            *) die "unknown kind of need: $need" ;;
        esac
    done | sort -u
}

# Takes the lock that lets one copy at a time install and build; waits with a line if another has it.
# libxdp-sys's build script runs make in its own source in cargo's registry, which cargo does not lock:
# two clones that build at once would break each other's objects. apt-get waits for dpkg's lock only.
take_build_lock() {
    local home=${CARGO_HOME:-${HOME:-/root}/.cargo} lock
    lock=$home/interruptlet-build.lock
    mkdir -p -- "$home"
    # Opened to read: a lock file that root made serves the user too.
    [[ -e $lock ]] || : >"$lock" || die "cannot make $lock"
    # Descriptor 9 goes to cargo and apt-get too: one that outlives the script keeps the lock.
    exec 9<"$lock"
    flock -n 9 && return 0
    printf 'another copy is installing or building: waiting for it\n'
    flock -w 3600 9 || die "still locked after an hour: $lock"
}

release_build_lock() { exec 9<&-; }

# Installs what is missing of the needs "$@" and builds the servers. Sets BIN_DIR.
prepare_servers() {
    take_build_lock
    install_missing "$@"
    printf 'building (the first time takes some minutes)\n'
    build_servers
    release_build_lock
}

# Installs the packages whose needs are not met. Quiet and instant when nothing is missing.
# The caller holds the build lock.
install_missing() {
    local packages output
    # One that a killed run left, with the lock: nobody else is at it.
    ((EUID != 0)) || remove_policy
    mapfile -t packages < <(missing_packages "$@")
    ((${#packages[@]} > 0)) || return 0
    ((EUID == 0)) || die "missing packages: ${packages[*]}: install them, or run this as root"
    command -v apt-get >/dev/null || die "missing packages (Debian names): ${packages[*]}: this machine has no apt, install them by hand"
    printf 'installing: %s\n' "${packages[*]}"
    # The package lists may be absent or old: refresh them only if a first attempt fails.
    if ! output=$(apt_install "${packages[@]}" 2>&1) &&
        ! output=$(apt-get -q update 2>&1 && apt_install "${packages[@]}" 2>&1); then
        tail -n 5 <<<"$output" >&2
        die "apt-get could not install: ${packages[*]}"
    fi
}

readonly POLICY=/usr/sbin/policy-rc.d
readonly POLICY_MARK='# by interruptlet, while it installs packages'

# Removes our policy file and no other: one of the machine's own, as containers have, stays.
remove_policy() {
    if grep -qsxF "$POLICY_MARK" "$POLICY"; then rm -f "$POLICY"; fi
}

# apt-get install, in a subshell for the trap.
apt_install() (
    # nginx alone has a service, which must not start on the machine's own port 80.
    if [[ " $* " == *" nginx"* && ! -e $POLICY ]]; then
        trap remove_policy EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM
        printf '#!/bin/sh\n%s\nexit 101\n' "$POLICY_MARK" >"$POLICY"
        chmod 755 "$POLICY"
    fi
    # Something else on the machine may be installing: wait for dpkg's lock.
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 \
        install --no-install-recommends "$@"
)

# More packages whose programs a script needs beside the servers.
BUILD_ALSO=()

# Builds the servers in release, showing cargo's output only when it fails. Sets BIN_DIR.
# The caller holds the build lock.
build_servers() {
    local output package packages=()
    for package in interruptlet-apps "${BUILD_ALSO[@]}"; do packages+=(-p "$package"); done
    if ! output=$(cargo build --manifest-path "$ROOT/Cargo.toml" --release --locked --bins "${packages[@]}" 2>&1); then
        tail -n 40 <<<"$output" >&2
        die "building the servers failed"
    fi
    BIN_DIR=$(target_dir)/release
    [[ -x $BIN_DIR/ilet-echo && -x $BIN_DIR/ilet-httpd ]] || die "the build left no ilet-echo and ilet-httpd in $BIN_DIR"
}

# Prints cargo's target directory, wherever the environment or a configuration put it.
target_dir() {
    cargo metadata --manifest-path "$ROOT/Cargo.toml" --locked --no-deps --format-version 1 |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

# --- one run's namespaces -------------------------------------------------------------------------

# What this run made; cleanup removes this and nothing else.
RUN_ID=
RUN_DIR=
SERVER_NS=
CLIENT_NS=
# Addresses by pair index. The client's are on its interface; the server's are only reserved: in the
# own-address deployment the stack has them, not the kernel.
# shellcheck disable=SC2034  # read by the scripts that source this file
CLIENT4=() CLIENT6=() SERVER4=() SERVER6=()

# Sets RUN_ID and what is named after it. The directory is beside the namespaces' names: it lives as
# long as they do, only root can make anything there, and it does not depend on TMPDIR.
name_run() {
    RUN_ID=$1
    SERVER_NS=ilet-s-$RUN_ID
    CLIENT_NS=ilet-c-$RUN_ID
    RUN_DIR=/run/ilet-run-$RUN_ID
}

# Makes a directory and two namespaces with names that no other run has.
lab_create() {
    local id
    while id=$(printf '%d-%04x' $$ $((RANDOM * 2))); do
        [[ -e /run/netns/ilet-s-$id || -e /run/netns/ilet-c-$id || -e /run/ilet-run-$id ]] || break
    done
    # Named first, so that an interruption from here on removes what is there by then. Nothing was: each
    # of these fails rather than take over what another run has, and is then not this run's to remove.
    name_run "$id"
    mkdir -m 700 -- "$RUN_DIR" || { SERVER_NS='' CLIENT_NS='' RUN_DIR=''; die "cannot make a directory in /run"; }
    ip netns add "$SERVER_NS" || { SERVER_NS='' CLIENT_NS=''; die "cannot make network namespaces: is ip netns permitted here?"; }
    ip netns add "$CLIENT_NS" || { CLIENT_NS=''; die "cannot make the second network namespace"; }
    # The namespaces isolate the addresses; random ones also keep logs of parallel runs apart.
    NET4=10.$((RANDOM % 200 + 20)).$((RANDOM % 60 * 4))
    NET6=$(printf 'fd%02x:%04x:%04x' $((RANDOM % 256)) $((RANDOM * 2)) $((RANDOM * 2)))
    local ns
    for ns in "$SERVER_NS" "$CLIENT_NS"; do
        # No duplicate address detection: nothing waits for tentative addresses.
        ip netns exec "$ns" sh -c 'echo 0 | tee /proc/sys/net/ipv6/conf/all/accept_dad /proc/sys/net/ipv6/conf/default/accept_dad >/dev/null'
        ip -n "$ns" link set lo up
    done
}

# Sets the addresses of a pair. $1: its index.
# shellcheck disable=SC2034
lab_addresses() {
    local i=$1 net4
    net4=${NET4%.*}.$((${NET4##*.} + i))
    CLIENT4[i]=$net4.1 SERVER4[i]=$net4.2
    CLIENT6[i]=$NET6:$i::1 SERVER6[i]=$NET6:$i::2
}

# Joins the namespaces with a veth pair: srvI in the server's, cliI in the client's.
# $1: index (0 to 3), $2: queues, $3: `plain` to leave the client's offloads as they are.
lab_pair() {
    local i=$1 queues=$2 offloads=${3-}
    lab_addresses "$i"
    # Made inside the namespaces: the root namespace never sees either end.
    ip -n "$CLIENT_NS" link add "cli$i" numtxqueues "$queues" numrxqueues "$queues" type veth \
        peer name "srv$i" numtxqueues "$queues" numrxqueues "$queues" netns "$SERVER_NS"
    # The kernel would send partial checksums over veth, and the stack verifies them. GRO gives the
    # client's end the NAPI context that frames sent back by XDP need.
    if [[ $offloads != plain ]]; then
        in_client ethtool -K "cli$i" tx off gro on >/dev/null
    fi
    ip -n "$CLIENT_NS" address add "${CLIENT4[i]}/24" dev "cli$i"
    ip -n "$CLIENT_NS" address add "${CLIENT6[i]}/64" dev "cli$i" nodad
    ip -n "$SERVER_NS" link set "srv$i" up
    ip -n "$CLIENT_NS" link set "cli$i" up
}

# Joins the namespaces like lab_pair, but with room for a relay: srvI's other end is relay-srvI, cliI's is
# relay-cliI, both in the client's namespace, and nobody forwards between them. IPv4 only. $1: index (0 to 3).
lab_relayed_pair() {
    local i=$1 end
    lab_addresses "$i"
    ip -n "$CLIENT_NS" link add "relay-srv$i" type veth peer name "srv$i" netns "$SERVER_NS"
    ip -n "$CLIENT_NS" link add "relay-cli$i" type veth peer name "cli$i"
    for end in "relay-srv$i" "relay-cli$i"; do
        # The kernel there says nothing by itself, and merges no segments on their way.
        in_client sh -c "echo 1 >/proc/sys/net/ipv6/conf/$end/disable_ipv6"
        ip -n "$CLIENT_NS" link set "$end" arp off up
        in_client ethtool -K "$end" gro off >/dev/null
    done
    # What is sent has its own checksum and is no longer than a packet.
    in_client ethtool -K "cli$i" tx off tso off gso off gro on >/dev/null
    in_server ethtool -K "srv$i" tx off tso off gso off >/dev/null
    ip -n "$CLIENT_NS" address add "${CLIENT4[i]}/24" dev "cli$i"
    ip -n "$SERVER_NS" link set "srv$i" up
    ip -n "$CLIENT_NS" link set "cli$i" up
}

in_server() { ip netns exec "$SERVER_NS" "$@"; }
in_client() { ip netns exec "$CLIENT_NS" "$@"; }

# Starts a process of this run in a namespace; its output goes to $RUN_DIR/NAME.out and NAME.err.
# Sets STARTED_PID. $1: namespace, $2: NAME, rest: the command.
lab_start() {
    local ns=$1 name=$2
    shift 2
    # A session of its own: a Ctrl-C reaches this script only, which then stops servers in order.
    # `ip` and `setsid` both exec the command, so the pid is the command's.
    setsid ip netns exec "$ns" "$@" </dev/null >"$RUN_DIR/$name.out" 2>"$RUN_DIR/$name.err" &
    # shellcheck disable=SC2034  # read by the scripts that source this file
    STARTED_PID=$!
}

# Waits until the server NAME (pid $2) printed its ready line, at most 15 s; prints that line.
wait_ready() {
    local name=$1 pid=$2 tries
    for ((tries = 0; tries < 150; tries++)); do
        grep -m 1 '^ready:' "$RUN_DIR/$name.out" && return 0
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    printf '%s did not get ready: %s\n' "$name" "$(tail -n 3 "$RUN_DIR/$name.err")" >&2
    return 1
}

# Whether the process $1 is a child of this shell that has not ended. `kill -0` cannot tell: the
# shell reaps its children at once, and the kernel may give the pid to another process.
is_child() {
    [[ $'\n'$(jobs -pr)$'\n' == *$'\n'"$1"$'\n'* ]]
}

# Tenths of a second from SIGTERM to SIGKILL: a server takes up to 10 s to end its connections, and then
# at least one more to stop.
readonly GRACE=150

# SIGTERM, then SIGKILL if that did not help. $1: a pid that this script started. Returns its exit status.
stop_process() {
    local pid=$1 tries status=0
    ! is_child "$pid" || kill -TERM "$pid" 2>/dev/null || true
    for ((tries = 0; tries < GRACE; tries++)); do
        is_child "$pid" || break
        sleep 0.1
    done
    ! is_child "$pid" || kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || status=$?
    return "$status"
}

# Prints the pids of this run: the shell's own children, and whatever is in the run's namespaces.
# Not for a pipeline: a part of one does not see the shell's children.
run_pids() {
    local ns
    jobs -pr
    for ns in "$SERVER_NS" "$CLIENT_NS"; do
        [[ -z $ns || ! -e /run/netns/$ns ]] || ip netns pids "$ns" 2>/dev/null || true
    done
}

# Sends the signal $1 once to each process of this run, after another look at whether it is still one.
signal_run() {
    local pid net sent=' '
    for pid in $(run_pids); do
        # A child is listed again once it is in its namespace. This shell is, if it runs in one.
        [[ $sent != *" $pid "* && $pid != "$$" ]] || continue
        sent+="$pid "
        net=/proc/$pid/ns/net
        if is_child "$pid" || [[ $net -ef /run/netns/$SERVER_NS || $net -ef /run/netns/$CLIENT_NS ]]; then
            kill "-$1" "$pid" 2>/dev/null || true
        fi
    done
}

# Ends the processes of this run, all at once: SIGTERM, then SIGKILL if that did not help.
end_processes() {
    local tries
    # Once each: one more than a second later ends a server without its grace.
    signal_run TERM
    for ((tries = 0; tries < GRACE; tries++)); do
        [[ -n $(run_pids) ]] || return 0
        sleep 0.1
    done
    signal_run KILL
}

# Removes what this run made: its processes, its namespaces (and with them its links), its directory.
# Works at any point of lab_create.
lab_remove() {
    local ns
    end_processes 2>/dev/null
    for ns in "$CLIENT_NS" "$SERVER_NS"; do
        [[ -z $ns || ! -e /run/netns/$ns ]] || ip netns del "$ns" || true
    done
    [[ -z $RUN_DIR ]] || rm -rf -- "$RUN_DIR"
    CLIENT_NS='' SERVER_NS='' RUN_DIR=''
}

# Has lab_remove run however the script ends.
remove_lab_at_exit() {
    # A second Ctrl-C does not stop the removal.
    trap 'status=$?; trap "" INT TERM HUP; lab_remove; exit $status' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
}
