# What the rows of tests/bench share: starting and ending processes, running `fanfare bench`, reading its report, and the
# line with a figure and its target. Sourced by tests/bench; it measures nothing by itself.
# shellcheck shell=bash

pids=()
work=

prepare() {
    local tool
    for tool in redis-server jq curl taskset; do
        command -v "$tool" > /dev/null || { echo "tests/bench: $tool is missing" >&2; exit 2; }
    done
    [ -n "${FANFARE:-}" ] || FANFARE=$(built fanfare --release --quiet)
    FANFARE=$(realpath "$FANFARE")
    # One connection is one file in the gateway and one in the tool.
    ulimit -n "$(ulimit -Hn)"
    work=$(mktemp -d)
    trap 'end_all; rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM
}

# note_load: other work on the machine hardly moves a CPU figure, but a latency is then the machine's and not the gateway's.
note_load() {
    local idle_before total_before idle total
    read -r idle_before total_before < <(processor_time)
    read -rt 1 <> <(:) || true
    read -r idle total < <(processor_time)
    local percent=$(((idle - idle_before) * 100 / (total - total_before)))
    [ "$percent" -ge 90 ] || echo "   this machine was $((100 - percent)) % busy before: latencies and rates below are not the gateway's alone"
}

# idle and total ticks of all processors.
processor_time() { awk '/^cpu /{ for (i = 2; i <= 9; i++) sum += $i; print $5 + $6, sum }' /proc/stat; }

# Ends what was started, last first: a node says goodbye to Redis.
end_all() {
    local index
    for ((index = ${#pids[@]} - 1; index >= 0; index--)); do
        kill -KILL "${pids[index]}" 2> /dev/null || true
        wait "${pids[index]}" 2> /dev/null || true
    done
    pids=()
}

# wait_for WHAT COMMAND...: until the command succeeds, 60 s at most.
wait_for() {
    local what=$1 deadline=$((SECONDS + 60))
    shift
    until "$@" 2> /dev/null; do
        [ "$SECONDS" -lt "$deadline" ] || { echo "tests/bench: $what took more than a minute" >&2; exit 1; }
        read -rt 0.2 <> <(:) || true
    done
}

listens() { (exec 3<> "/dev/tcp/127.0.0.1/$1"); }

# on CPUS COMMAND...: the command in the background on these processors, `any` for all; its id is in $pid.
on() {
    local cpus=$1
    shift
    [ "$cpus" = any ] || set -- taskset -c "$cpus" "$@"
    "$@" &
    pid=$!
    pids+=("$pid")
}

# start_redis CPUS: an empty Redis that keeps nothing; its URL is in $redis_url.
start_redis() {
    local port
    until port=$((20000 + RANDOM % 12000)) && ! listens "$port" 2> /dev/null; do :; done
    on "$1" redis-server --port "$port" --bind 127.0.0.1 --save '' --appendonly no --dir "$work" \
        > "$work/redis.log" 2>&1
    redis_pid=$pid
    redis_url=redis://127.0.0.1:$port
    wait_for redis-server listens "$port"
}

# start_node NAME CPUS FLAGS...: $url, $admin and $pid are its own.
start_node() {
    local name=$1 cpus=$2 ready=$work/$1.json
    shift 2
    rm -f "$ready"
    # The peers have no rate limits either. Nothing else is tuned.
    cat > "$work/node.toml" <<- 'END'
		[limits]
		publishes_per_second = 0
		[[rooms]]
		match = "off:*"
		history = "off"
	END
    on "$cpus" "$FANFARE" serve --config "$work/node.toml" --node "$name" --log-level warn \
        --listen 127.0.0.1:0 --admin 127.0.0.1:0 --ready-file "$ready" "$@" 2> "$work/$name.log"
    wait_for "node $name" test -s "$ready"
    url=ws://$(jq -r .listen "$ready")
    admin=$(jq -r .admin "$ready")
}

# bench CPUS FLAGS...: runs the load tool; its report is in $report. What it finds fault with is shown, and is no end.
bench() {
    local cpus=$1 prefix=()
    shift
    [ "$cpus" = any ] || prefix=(taskset -c "$cpus")
    report=$("${prefix[@]}" "$FANFARE" bench --json "$@" 2> "$work/bench.log") || sed 's/^/  /' "$work/bench.log"
    [ -n "$report" ] || { echo 'tests/bench: the load tool gave no report' >&2; exit 1; }
}

# seconds N: N, shortened by TIMES.
seconds() { awk -v n="$1" -v times="${TIMES:-1}" 'BEGIN { print n * times }'; }

# field NAME [REPORT]: a figure of the last report.
field() { jq -r ".${1}" <<< "${2:-$report}"; }

# calculate EXPRESSION: with two decimals, or three below 10.
calculate() { awk "BEGIN { x = $1; printf(x < 10 && x > -10 ? \"%.3f\" : \"%.1f\", x) }"; }

# median NUMBERS...
median() { printf '%s\n' "$@" | sort -g | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }

# cpu_us PID: user and system time so far; a tick of /proc is 10 ms.
cpu_us() { awk '{ sub(/.*\) /, ""); print ($12 + $13) * 10000 }' "/proc/$1/stat"; }

rss_kib() { awk '/^VmRSS/ { print $2 }' "/proc/$1/status"; }

# figure ROW NAME VALUE OPERATOR TARGET UNIT: the line that the scoreboard quotes.
figure() {
    local verdict
    verdict=$(awk -v a="$3" -v b="$5" "BEGIN { print (a $4 b) ? \"met\" : \"short\" }")
    printf '%s %s: %s%s (target %s %s%s) %s\n' "$1" "$2" "$3" "${6:-}" "$4" "$5" "${6:-}" "$verdict"
}

# faultless ROW: nothing may have gone wrong in the last run.
faultless() {
    local faults
    faults=$(field 'lost + .repeated + .out_of_order + .gaps + .disconnected + .refused + .unanswered')
    figure "$1" 'lost, repeated, out of order, disconnected or refused' "$faults" '<=' 0
}
