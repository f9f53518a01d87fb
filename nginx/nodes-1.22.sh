#!/bin/sh
# The node list for nginx-1.22.conf: nodes-1.22.sh IP:PORT... > nodes-1.22.conf
# Called by operators and tests whenever nodes come or go, followed by a reload. Never looks a name up: the addresses
# must be the ones the nodes know themselves by (FANFARE_ADVERTISE), since md5 of that text is their route.
# In Docker: nodes-1.22.sh $(getent ahostsv4 gateway | awk '{print $1 ":8080"}' | sort -u)
set -eu

[ $# -gt 0 ] || { echo "usage: $0 IP:PORT..." >&2; exit 64; }
for node in "$@"; do
    case "$node" in
    *[!0-9a-fA-F.:\[\]]* | *: | :*) echo "$0: not IP:PORT: $node" >&2; exit 64 ;;
    *:*) ;;
    *) echo "$0: not IP:PORT: $node" >&2; exit 64 ;;
    esac
done

route() { printf %s "$1" | md5sum | cut -c 1-32; }

# upstream NAME PINNED NODE...: the pinned node first and the others for when it is away; no pinned node: all alike.
# max_fails=0: nginx forgives a failed node only when a request to it has ended, and a WebSocket does not end.
upstream() {
    name=$1 pinned=$2
    shift 2
    echo "upstream $name {"
    echo "    zone $name 64k;"
    [ -n "$pinned" ] || echo "    least_conn;"
    for node in "$@"; do
        role=' backup'
        if [ -z "$pinned" ] || [ "$node" = "$pinned" ]; then role=''; fi
        echo "    server $node max_fails=0$role;"
    done
    echo "    keepalive 64;"
    echo "    keepalive_timeout 4s;"
    echo "}"
}

echo "# Written by nodes-1.22.sh $*"
upstream gateway '' "$@"
for node in "$@"; do
    upstream "gateway_$(route "$node")" "$node" "$@"
done
echo 'map $arg_n $fanfare_upstream {'
echo '    default gateway;'
for node in "$@"; do
    echo "    $(route "$node") gateway_$(route "$node");"
done
echo '}'
