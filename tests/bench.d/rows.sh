# The rows of tests/bench on one or two nodes. Each function starts what it needs, prints its figures and leaves the ending
# to the caller. Where a row says one core, nodes are on processor 0 and everything else on processor 1.
# shellcheck shell=bash

# p7: the same work through Redis from another node over the embedded broker: gateway CPU per delivery
p7() {
    local memory_url memory_pid members_url members_pid publish_url round work_name
    start_node memory 0
    memory_url=$url memory_pid=$pid
    start_redis 1
    start_node members 0 --redis "$redis_url"
    members_url=$url members_pid=$pid
    start_node publisher 1 --redis "$redis_url"
    publish_url=$url
    for work_name in 'one room of 1,000' '500 rooms of 10'; do
        local flags=(--members 1000 --in-flight 1)
        [ "$work_name" = 'one room of 1,000' ] || flags=(--members 5000 --rooms 500 --in-flight 200)
        local embedded=() redis=()
        # Turns, and the median: the machine's own noise is larger than the difference looked for.
        for round in 1 2 3 4 5; do
            bench 1 --url "$memory_url" --pids "$memory_pid" --seconds "$(seconds 4)" "${flags[@]}" \
                --room-prefix "p7.$round:"
            embedded+=("$(field cpu_us_per_delivery)")
            bench 1 --url "$members_url" --publish-url "$publish_url" --pids "$members_pid" \
                --seconds "$(seconds 4)" "${flags[@]}" --room-prefix "p7.$round:"
            redis+=("$(field cpu_us_per_delivery)")
        done
        local a b
        a=$(median "${embedded[@]}") b=$(median "${redis[@]}")
        printf '   %s, µs per delivery: embedded %s, through Redis %s (medians of 5)\n' "$work_name" \
            "$(calculate "$a")" "$(calculate "$b")"
        figure P7 "$work_name, through Redis over embedded" "$(calculate "$b / $a")" '<=' 1.1
    done
}

# p8: publish to a member on another node, idle cluster: p50 and p99
p8() {
    local members_url
    start_redis any
    start_node members any --redis "$redis_url"
    members_url=$url
    start_node publisher any --redis "$redis_url"
    bench any --url "$members_url" --publish-url "$url" --members 1 --rate 50 --seconds "$(seconds 20)"
    printf '   %s messages at 50/s; late by the load tool itself: p50 %s ms\n' \
        "$(field delivered)" "$(field late_ms.p50)"
    figure P8 'publish to a member on another node, p50' "$(field latency_ms.p50)" '<=' 0.6 ' ms'
    figure P8 'publish to a member on another node, p99' "$(field latency_ms.p99)" '<=' 4 ' ms'
    faultless P8
}

# p9: publishes a second through one gateway into one Redis, without history and with
p9() {
    local node prefix target name before
    start_redis any
    start_node one any --redis "$redis_url"
    node=$pid
    while read -r prefix target name; do
        before=$(cpu_us "$redis_pid")
        bench any --url "$url" --publish-only --rooms 64 --publishers 4 --in-flight 4096 --pids "$node" \
            --seconds "$(seconds 10)" --room-prefix "$prefix"
        printf '   µs per publish: gateway %s, Redis %s; the load tool used %s of a core; acknowledged p99 %s ms\n' \
            "$(calculate "$(field cpu_us_per_publish)")" \
            "$(calculate "($(cpu_us "$redis_pid") - $before) / $(field acknowledged)")" \
            "$(calculate "$(field bench_cores)")" "$(field acknowledged_ms.p99)"
        figure P9 "publishes/s $name" "$(field 'publishes_per_second | floor')" '>=' "$target"
        faultless P9
    done <<- 'END'
		off: 100000 without history
		on: 30000 with history
	END
}

# p11: idle CPU per 10,000 connections at 25 s pings
p11() {
    start_node one 0
    bench 1 --url "$url" --pids "$pid" --members 10000 --rooms 10000 --publishers 0 --seconds 0 --idle "$(seconds 60)"
    local percent
    percent=$(field idle_cpu_percent)
    printf '   10,000 idle connections: %s %% of a core, %s KiB each\n' "$(calculate "$percent")" \
        "$(calculate "$(field rss_kib_per_member)")"
    figure P11 'idle CPU per 1,000 connections' "$(calculate "$percent / 10")" '<=' 0.1 ' %'
}

# p12: a 1-member room at 100 msg/s beside a 4,000-member room at 3 msg/s on one shard: p99 of the small one
p12() {
    local crowd=$work/crowd.json crowd_pid
    start_node one 0
    on 1 "$FANFARE" bench --json --progress --url "$url" --members 4000 --rate 3 --seconds 3600 \
        --room-prefix crowd: > "$crowd" 2> "$crowd.log"
    crowd_pid=$pid
    wait_for 'joining 4,000 members' grep -q '[1-9][0-9]* deliveries/s' "$crowd.log"
    bench 1 --url "$url" --members 1 --rate 100 --seconds "$(seconds 30)" --room-prefix small:
    kill -INT "$crowd_pid"
    wait "$crowd_pid" || true
    printf '   the crowd: %s of 3 messages/s, p99 %s ms; the small room: p50 %s ms\n' \
        "$(calculate "$(field publishes_per_second "$(cat "$crowd")")")" \
        "$(field latency_ms.p99 "$(cat "$crowd")")" "$(field latency_ms.p50)"
    figure P12 'p99 of the small room' "$(field latency_ms.p99)" '<=' 5 ' ms'
    faultless P12
}

# p13: 200 msg/s to 1,000 members (200,000 deliveries/s offered) on one core: sustained, p99
p13() {
    start_node one 0
    bench 1 --url "$url" --pids "$pid" --members 1000 --rate 200 --seconds "$(seconds 15)"
    printf '   gateway %s cores, %s µs per delivery; the load tool %s cores\n' \
        "$(calculate "$(field gateway_cores)")" "$(calculate "$(field cpu_us_per_delivery)")" \
        "$(calculate "$(field bench_cores)")"
    figure P13 'deliveries/s of 200,000 offered' "$(field 'deliveries_per_second | floor')" '>=' 198000
    figure P13 'p99' "$(field latency_ms.p99)" '<=' 90 ' ms'
    faultless P13
}
