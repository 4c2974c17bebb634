#!/bin/sh
# Before the Debian package goes. The CA in /var/lib/orthanc-dicomweb-oauth and the configuration stay.
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
  systemctl disable --now orthanc-dicomweb-oauth.service
fi
