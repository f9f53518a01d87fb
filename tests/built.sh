# Builds a program and prints where cargo has put it: CARGO_TARGET_DIR, a cargo configuration and the profile decide that.
# Sourced by tests/run and tests/bench; it needs nothing but cargo.
# shellcheck shell=bash

# built PROGRAM CARGO-FLAGS...
built() {
    local package=fanfare path
    [ "$1" != chaos ] || package=fanfare-tests
    path=$(cargo build --locked -p "$package" --bin "$1" --message-format json-render-diagnostics "${@:2}" |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
    [ -n "$path" ] || return 1
    printf '%s\n' "$path"
}
