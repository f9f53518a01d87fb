# The row of tests/bench on four nodes with 72,000 connections. One process may have 20,000 files here, so each node has a
# load tool of its own, which only counts; a fifth one publishes. All nodes are on processor 0 and everything else is on
# processor 1, so that one node and four have the same one. Sourced by tests/bench.
# shellcheck shell=bash

readonly members_each=${MEMBERS:-18000} messages=10

# p10: 4 nodes of 18,000 members: cost per connection over one node's, and one message to all 72,000
p10() {
    local node one_rss one_connect one_delivery
    node_pids=() node_admins=() node_urls=() crowd_pids=() base=() connect=()
    start_redis 1
    for node in 1 2 3 4; do
        add_node "$node"
        if [ "$node" = 1 ]; then
            one_rss=$(calculate "($(rss_kib "${node_pids[0]}") - ${base[0]}) / $members_each")
            one_connect=${connect[0]}
            publish_to_all p10:
            one_delivery=$delivery
            printf '   one node: %s KiB and %s µs per connection, %s µs per delivery\n' \
                "$one_rss" "$(calculate "$one_connect")" "$(calculate "$one_delivery")"
        fi
    done
    local worst_rss=0 worst_connect=0 all=0 rss
    for node in 0 1 2 3; do
        rss=$(calculate "($(rss_kib "${node_pids[node]}") - ${base[node]}) / $members_each")
        printf '   node %s of 4: %s KiB and %s µs per connection\n' $((node + 1)) "$rss" "$(calculate "${connect[node]}")"
        worst_rss=$(printf '%s\n' "$rss" "$worst_rss" | sort -g | tail -1)
        worst_connect=$(printf '%s\n' "${connect[node]}" "$worst_connect" | sort -g | tail -1)
    done
    publish_to_all p10:
    for node in 0 1 2 3; do
        kill -INT "${crowd_pids[node]}"
        wait "${crowd_pids[node]}" || sed 's/^/  /' "$work/crowd$((node + 1)).log" | tail -1
        all=$((all + $(jq .delivered "$work/crowd$((node + 1)).json")))
    done
    printf '   4 nodes: %s µs per delivery, one message to all %s in at most %s ms\n' "$(calculate "$delivery")" \
        $((4 * members_each)) "$(jq -s 'map(.latency_ms.max) | max' "$work"/crowd?.json)"
    figure P10 "deliveries of $messages messages to all $((4 * members_each)) and $messages to the first $members_each" \
        "$all" '==' $((5 * members_each * messages))
    figure P10 'memory per connection, the worst of 4 nodes over one' "$(calculate "$worst_rss / $one_rss")" '<=' 1.05
    figure P10 'CPU per connect and join, the worst of 4 nodes over one' \
        "$(calculate "$worst_connect / $one_connect")" '<=' 1.05
    figure P10 'CPU per delivery, 4 nodes over one' "$(calculate "$delivery / $one_delivery")" '<=' 1.05
}

# add_node K: one more node, and its members from two loopback addresses of their own: past half of the 28,000 ports of one,
# the kernel searches long for a free one.
add_node() {
    local before
    start_node "node$1" 0 --redis "$redis_url"
    node_pids+=("$pid") node_admins+=("$admin") node_urls+=("$url")
    base+=("$(rss_kib "$pid")")
    before=$(cpu_us "$pid")
    on 1 "$FANFARE" bench --json --url "$url" --from "127.0.1.$1,127.0.2.$1" --members "$members_each" --publishers 0 \
        --seconds 3600 --room-prefix p10: > "$work/crowd$1.json" 2> "$work/crowd$1.log"
    crowd_pids+=("$pid")
    wait_for "joining $members_each members" has_members "$admin" "$members_each"
    connect+=("$(calculate "($(cpu_us "${node_pids[-1]}") - $before) / $members_each")")
}

# has_members ADMIN N
has_members() {
    curl -sf "http://$1/metrics" | awk -v n="$2" '/^fanfare_members /{ found = ($2 >= n) } END { exit !found }'
}

# deliveries: what all nodes have written so far.
deliveries() {
    local address
    for address in "${node_admins[@]}"; do
        curl -sf "http://$address/metrics"
    done | awk '/^fanfare_messages_delivered_total/ { sum += $2 } END { printf "%d", sum }'
}

has_delivered() { [ "$(deliveries)" -ge "$1" ]; }

# publish_to_all PREFIX: a few messages to everybody; the nodes' CPU per delivery is in $delivery.
publish_to_all() {
    local node cpu=0 due
    due=$(($(deliveries) + ${#node_pids[@]} * members_each * messages))
    for node in "${node_pids[@]}"; do cpu=$((cpu - $(cpu_us "$node"))); done
    # 72,000 deliveries take one processor the better part of a second.
    bench 1 --url "${node_urls[0]}" --publish-only --rate 0.5 --seconds $((2 * messages)) --room-prefix "$1"
    wait_for 'the last delivery' has_delivered "$due"
    for node in "${node_pids[@]}"; do cpu=$((cpu + $(cpu_us "$node"))); done
    delivery=$(awk "BEGIN { print $cpu / (${#node_pids[@]} * $members_each * $messages) }")
}
