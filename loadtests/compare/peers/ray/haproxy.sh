#!/bin/sh
# Ray's own haproxy, with the statistics and metrics that Ray opens to everyone on loopback only.
follows=
for argument in "$@"; do
  if [ "$follows" = -f ] && [ -f "$argument" ]; then
    sed -i -E 's/^( *bind )\*?:/\1127.0.0.1:/' "$argument"
  fi
  follows=$argument
done
exec "$PEER_HAPROXY" "$@"
