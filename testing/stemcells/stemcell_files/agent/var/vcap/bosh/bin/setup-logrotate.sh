#!/bin/sh
# Rotate every quarter of an hour, beginning at a minute of this machine's own.
first=$(( $(od -An -N2 -tu2 /dev/urandom) % 15 ))
minutes="$first,$((first + 15)),$((first + 30)),$((first + 45))"
printf '%s * * * * root nice -n 19 /usr/sbin/logrotate /etc/logrotate.conf\n' "$minutes" \
  > /etc/cron.d/logrotate
