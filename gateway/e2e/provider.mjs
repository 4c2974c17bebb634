// A real authorization server for the end-to-end tests: oidc-provider over HTTPS on loopback.
//
//   CLIENT_SECRET=... node provider.mjs --port 0 --mtls-port 0 --cert cert.pem --key key.pem [--ca ca.pem]
//     [--jwks keys.json] [--ttl 300] [--resource URL]
//
// Its clients are named for how they authenticate; those with a secret share CLIENT_SECRET:
//   basic, post, and `odd:...` (client_secret_basic with characters that must be encoded);
//   RS384, ES384: private_key_jwt, with the key of that alg in --jwks, a JWK Set of public keys;
//   tls: tls_client_auth with a certificate of --ca whose subject is CN=gateway, on --mtls-port only, which the discovery
//     document names in mtls_endpoint_aliases; its tokens are bound to the certificate (RFC 8705);
//   refresh: client_secret_basic and the refresh token grant; each refresh token is good once, and the replay of a used one
//     revokes its successors. GET /test/seed-refresh returns the first one.
// A client credentials grant that names the resource gives a JWT for it; one that names none gives an opaque token, good
// for nothing here; one that names another resource is refused (RFC 8707).
// It prints one line of JSON, {"issuer": "https://localhost:PORT"}, as soon as it answers.
// GET /test/tokens tells how many token requests it granted and how many it refused.
import { X509Certificate, generateKeyPairSync, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { parseArgs } from 'node:util';

import { Provider, errors } from 'oidc-provider';

const { values: options } = parseArgs({
  options: {
    port: { type: 'string', default: '0' },
    'mtls-port': { type: 'string', default: '0' },
    cert: { type: 'string' },
    ca: { type: 'string' },
    jwks: { type: 'string' },
    key: { type: 'string' },
    ttl: { type: 'string', default: '300' }, // seconds that an access token lives
    resource: { type: 'string', default: 'https://dicom.example.test' },
  },
});

const scope = 'dicom';
const ttl = Number(options.ttl);

function client(id, method, more = {}) {
  return {
    client_id: id,
    client_secret: process.env.CLIENT_SECRET,
    token_endpoint_auth_method: method,
    id_token_signed_response_alg: 'ES256', // no id token is ever made; the default needs an RSA key
    grant_types: ['client_credentials'],
    redirect_uris: [],
    response_types: [],
    ...more,
  };
}

// A client that signs its assertions with the algorithm of its name.
function signing(alg) {
  const { keys } = JSON.parse(readFileSync(options.jwks));
  return client(alg, 'private_key_jwt', {
    client_secret: undefined,
    token_endpoint_auth_signing_alg: alg,
    jwks: { keys: keys.filter((key) => key.alg === alg) },
  });
}

function clients() {
  const all = [
    client('basic', 'client_secret_basic'),
    client('post', 'client_secret_post'),
    client('odd: id/+&%41=', 'client_secret_basic'),
    client('refresh', 'client_secret_basic', {
      grant_types: ['authorization_code', 'refresh_token'],
      redirect_uris: ['https://client.example.test/'], // it is never sent there: the first refresh token is seeded
      response_types: ['code'],
    }),
  ];
  if (options.jwks) all.push(signing('RS384'), signing('ES384'));
  if (options.ca) {
    all.push(client('tls', 'tls_client_auth', {
      client_secret: undefined,
      tls_client_auth_subject_dn: 'CN=gateway',
      tls_client_certificate_bound_access_tokens: true,
    }));
  }
  return all;
}

function shownCertificate(ctx) {
  const certificate = ctx.req.socket.getPeerCertificate?.();
  return certificate?.raw && new X509Certificate(certificate.raw);
}

// A new signing key at each start, as after a real rotation: whoever verifies must look up an unknown kid.
function signingKey() {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return { ...privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg: 'ES256' };
}

function configuration(mtlsOrigin) {
  return {
    clients: clients(),
    clientAuthMethods: ['client_secret_basic', 'client_secret_post', 'private_key_jwt', 'tls_client_auth'],
    enabledJWA: { clientAuthSigningAlgValues: ['RS384', 'ES384'] },
    discovery: { mtls_endpoint_aliases: { token_endpoint: `${mtlsOrigin}/token` } },
    findAccount: (_ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    rotateRefreshToken: true,
    cookies: { keys: [randomUUID()] },
    jwks: { keys: [signingKey()] },
    scopes: [scope, 'offline_access'],
    ttl: { AccessToken: ttl, ClientCredentials: ttl, Grant: 3600, RefreshToken: 3600 },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      mTLS: {
        enabled: true,
        certificateBoundAccessTokens: true,
        tlsClientAuth: true,
        getCertificate: shownCertificate,
        certificateAuthorized: (ctx) => ctx.req.socket.authorized === true,
        certificateSubjectMatches: (ctx, property, expected) => property === 'tls_client_auth_subject_dn'
          && shownCertificate(ctx)?.subject === expected,
      },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo(_ctx, resource) {
          if (resource !== options.resource) throw new errors.InvalidTarget();
          return {
            scope,
            audience: resource,
            accessTokenTTL: ttl,
            accessTokenFormat: 'jwt',
            jwt: { sign: { alg: 'ES256' } },
          };
        },
      },
    },
  };
}

const tokens = { granted: 0, refused: 0 };
let seed; // makes a refresh token
let answer; // the provider's own request handler: its issuer needs the port, so it comes after listen

async function seedRefresh(provider) {
  const who = { accountId: 'somebody', clientId: 'refresh' };
  const grant = new provider.Grant(who);
  grant.addOIDCScope('offline_access');
  grant.addResourceScope(options.resource, scope);
  const token = new provider.RefreshToken({
    ...who,
    client: await provider.Client.find('refresh'),
    grantId: await grant.save(),
    gty: 'authorization_code',
    resource: options.resource,
    scope: `offline_access ${scope}`,
  });
  return token.save();
}

const tls = { cert: readFileSync(options.cert), key: readFileSync(options.key) };

// For clients with certificates.
const mtlsServer = createServer({
  ...tls, ca: options.ca && readFileSync(options.ca), requestCert: true, rejectUnauthorized: true,
}, (req, res) => answer(req, res));

const server = createServer(tls, (req, res) => {
  if (req.url === '/test/tokens') {
    res.setHeader('Content-Type', 'application/json');
    res.end(JSON.stringify(tokens));
    return;
  }
  if (req.url === '/test/seed-refresh') {
    seed().then((token) => res.end(token), (err) => { res.statusCode = 500; res.end(String(err)); });
    return;
  }
  answer(req, res);
});

mtlsServer.listen(Number(options['mtls-port']), '127.0.0.1', () => server.listen(Number(options.port), '127.0.0.1', () => {
  const issuer = `https://localhost:${server.address().port}`;
  const provider = new Provider(issuer, configuration(`https://localhost:${mtlsServer.address().port}`));
  provider.on('grant.success', () => { tokens.granted += 1; });
  provider.on('grant.error', (_ctx, err) => {
    tokens.refused += 1;
    console.log(JSON.stringify({ refused: err.error, because: err.error_detail ?? err.error_description }));
  });
  seed = () => seedRefresh(provider);
  answer = provider.callback();
  console.log(JSON.stringify({ issuer }));
}));
