#!/bin/sh
# Switches TLS on in the nginx container if nginx accepts the certificate and its key. nginx does not start at all when
# it cannot read one of its files, so without this check a wrong certificate would stop plain HTTP too.
# docker-compose.tls.yml mounts this script into /docker-entrypoint.d, whose scripts the image runs before nginx, and
# an empty writable directory as /etc/nginx/tls. The reason why TLS is off is logged, and kept for the health check.
set -eu
cd "${NGINX_DIRECTORY:-/etc/nginx}"

rm -f tls/reason.txt
cp tls.conf tls/tls.conf
if ! reason=$(nginx -t 2>&1); then
    rm tls/tls.conf
    echo "TLS is off and nginx serves plain HTTP only: $reason
The directory in FANFARE_CERTIFICATES must hold fullchain.pem and privkey.pem, both readable by user $(id -u):
chown $(id -u) them, then restart the nginx service." | tee tls/reason.txt >&2
fi
