# A static binary, the system's CA certificates, and nothing else: no shell, no package to patch.
# docker build --build-arg VERSION=1.2.3 -t orthanc-dicomweb-oauth .

FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=""
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=${VERSION}" -o /out/orthanc-dicomweb-oauth .
# The CA's folder, in which Orthanc reads bundle.pem (0711: it cannot list it, and ca-key.pem is 0600), and /tmp for
# aws_sigv4 with payload = "hash".
RUN install -d -m 0711 /state/orthanc-dicomweb-oauth/ca && install -d -m 1777 /root-of-image/tmp

FROM scratch
COPY --from=build /root-of-image/ /
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build --chown=65532:65532 /state/ /var/lib/
COPY --from=build /out/orthanc-dicomweb-oauth /usr/bin/
ENV DICOMWEB_OAUTH_CONFIG=/etc/orthanc-dicomweb-oauth/gateway.toml
# The only state. Keep it: with a new CA, Orthanc must trust a new bundle.pem.
VOLUME /var/lib/orthanc-dicomweb-oauth/ca
EXPOSE 3128 3129
USER 65532:65532
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s CMD ["/usr/bin/orthanc-dicomweb-oauth", "health"]
ENTRYPOINT ["/usr/bin/orthanc-dicomweb-oauth"]
CMD ["run"]
