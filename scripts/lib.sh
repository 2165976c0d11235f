# shellcheck shell=bash disable=SC2034,SC2154  # Scripts use and set variables of this file.
# Functions for all scripts. A script sources this file after it has changed to the top of the checkout.

# The directory that cargo builds into, and that tools are installed into.
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")

log() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    log "$*"
    exit 1
}

has() { command -v "$1" >/dev/null; }

is_listening() { (: >"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

is_running() { kill -0 "$1" 2>/dev/null; }

# Prints the first of COUNT (default 1) free ports in a row. They are below the range that the system uses for outgoing
# connections, so a stopped service finds its port free again.
free_port() {
    local count=${1:-1} first port
    while first=$((21000 + RANDOM % (9000 / count) * count)); do
        for ((port = first; port < first + count; port++)); do
            if is_listening "$port"; then continue 2; fi
        done
        echo "$first"
        return
    done
}

random_hex() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }

# Waits for the lock of a directory and keeps it until this process ends. The lock is descriptor 9.
lock_directory() {
    mkdir -p "$1"
    exec 9<"$1"
    flock 9
}

# Starts the private services if they do not run, and exports DATABASE_URL and AMQP_URL.
export_services() {
    local urls url
    urls=$(scripts/services up) || return
    while IFS= read -r url; do export "${url?}"; done <<<"$urls"
}

# Installs the locked packages of a directory, without the packages' own scripts.
npm_ci() { npm ci --prefix "$1" --loglevel error --ignore-scripts --no-audit --no-fund </dev/null >&2; }

# Waits until a command succeeds. Calls the script's `fail` if `server` ends, or after `patience_seconds`.
wait_for() {
    local awaited=$1 deadline=$((SECONDS + patience_seconds))
    shift
    until "$@" >/dev/null 2>&1; do
        is_running "$server" || fail "shopbell ended before $awaited"
        ((SECONDS < deadline)) || fail "waited $patience_seconds s for $awaited without success"
        sleep 0.1
    done
}
