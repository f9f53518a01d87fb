# The row of tests/bench on what a client costs that does nothing, on each transport. Sourced by tests/bench.
# shellcheck shell=bash

readonly idle_clients=${CLIENTS:-10000} idle_target=3

# p14: memory per idle event stream, stream of lines and parked long poll, each in a room of its own, beside a WebSocket
p14() {
    local transport name kib websocket
    [ -n "${CHAOS:-}" ] || CHAOS=$(built chaos --release --quiet)
    # A node of its own for each: memory that one kind has left behind is not the next one's.
    while read -r transport name; do
        start_node "$transport" 0
        kib=$(taskset -c 1 "$CHAOS" idle "$transport" "$idle_clients" "$pid" "${url#ws://}" "$admin")
        end_all
        if [ "$transport" = ws ]; then
            websocket=$kib
            printf '   %s idle clients of each; %s: %s KiB\n' "$idle_clients" "$name" "$kib"
        else
            printf '   %s: %s times a WebSocket\n' "$name" "$(calculate "$kib / $websocket")"
            figure P14 "memory per $name" "$kib" '<=' "$idle_target" ' KiB'
        fi
    done <<- 'END'
		ws WebSocket
		sse idle event stream
		stream idle stream of lines
		poll parked long poll
	END
}
