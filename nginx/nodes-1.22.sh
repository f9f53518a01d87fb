#!/bin/sh
# Writes the list of nodes for nginx-1.22.conf: nodes-1.22.sh IP:PORT... > nodes-1.22.conf
# Run it when nodes come or go, then reload nginx. It takes addresses, not names: each must be the address that the node
# itself uses (FANFARE_ADVERTISE), because the md5 of that text is the node's route.
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

# upstream NAME PINNED NODE...: writes an upstream whose requests go to the pinned node, and to the others only while
# it is away. With an empty PINNED all nodes are equal. max_fails=0, because nginx lifts the mark of a failed node only
# when a request to it has ended, and WebSockets hardly end.
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
