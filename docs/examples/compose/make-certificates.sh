#!/bin/sh
# Makes a CA and a certificate for each server of the example, unless they are there.
set -eu
umask 022 # each server reads its key as another user; the volume is for this example only
cd /certificates
if [ -e ready ]; then
  exit 0
fi
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=CA of the example" \
  -keyout ca-key.pem -out ca.pem
for name in cloud keycloak; do
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$name" -keyout "$name-key.pem" -out "$name.csr"
  printf 'subjectAltName = DNS:%s\n' "$name" >"$name.ext"
  openssl x509 -req -in "$name.csr" -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 3650 -extfile "$name.ext" -out "$name.pem"
done
chmod 644 ./*-key.pem
rm ca-key.pem
touch ready
