#!/bin/sh
# After the installation of the Debian package. $2 is the version that was there before, empty at the first time.
set -e
user=orthanc-dicomweb-oauth
config=/etc/orthanc-dicomweb-oauth

if [ "$1" = configure ]; then
  getent passwd "$user" >/dev/null ||
    adduser --quiet --system --group --no-create-home --home "/var/lib/$user" "$user"
  if [ -z "$2" ]; then
    # 0600 and the service's own: it may come to hold a secret, and others on this machine must not read that.
    chown "$user:$user" "$config/gateway.toml"
    # The secret stays root's. Empty, so that the service does not start before somebody has put it there.
    [ -e "$config/client_secret" ] || install -m 0600 /dev/null "$config/client_secret"
  fi
  if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    [ -z "$2" ] || systemctl try-restart "$user.service"
  fi
fi
