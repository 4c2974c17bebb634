// A real authorization server for the end-to-end tests: oidc-provider over HTTPS on loopback.
//
//   CLIENT_SECRET=... node provider.mjs --port 0 --cert cert.pem --key key.pem [--ttl 300] [--resource URL]
//
// Its two clients, `basic` and `post`, are named for how they authenticate and share CLIENT_SECRET. A client credentials
// grant that names the resource gives a JWT for it; one that names none gives an opaque token, good for nothing here.
// It prints one line of JSON, {"issuer": "https://localhost:PORT"}, as soon as it answers.
// GET /test/tokens tells how many token requests it granted and how many it refused.
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { parseArgs } from 'node:util';

import { Provider, errors } from 'oidc-provider';

const { values: options } = parseArgs({
  options: {
    port: { type: 'string', default: '0' },
    cert: { type: 'string' },
    key: { type: 'string' },
    ttl: { type: 'string', default: '300' }, // seconds that an access token lives
    resource: { type: 'string', default: 'https://dicom.example.test' },
  },
});

const scope = 'dicom';
const ttl = Number(options.ttl);

function client(id, method) {
  return {
    client_id: id,
    client_secret: process.env.CLIENT_SECRET,
    token_endpoint_auth_method: method,
    id_token_signed_response_alg: 'ES256', // no id token is ever made; the default needs an RSA key
    grant_types: ['client_credentials'],
    redirect_uris: [],
    response_types: [],
  };
}

// A new signing key at each start, as after a real rotation: whoever verifies must look up an unknown kid.
function signingKey() {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return { ...privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg: 'ES256' };
}

function configuration() {
  return {
    clients: [client('basic', 'client_secret_basic'), client('post', 'client_secret_post')],
    cookies: { keys: [randomUUID()] },
    jwks: { keys: [signingKey()] },
    scopes: [scope],
    ttl: { ClientCredentials: ttl },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
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
let answer; // the provider's own request handler: its issuer needs the port, so it comes after listen

const server = createServer({ cert: readFileSync(options.cert), key: readFileSync(options.key) }, (req, res) => {
  if (req.url === '/test/tokens') {
    res.setHeader('Content-Type', 'application/json');
    res.end(JSON.stringify(tokens));
    return;
  }
  answer(req, res);
});

server.listen(Number(options.port), '127.0.0.1', () => {
  const issuer = `https://localhost:${server.address().port}`;
  const provider = new Provider(issuer, configuration());
  provider.on('grant.success', () => { tokens.granted += 1; });
  provider.on('grant.error', () => { tokens.refused += 1; });
  answer = provider.callback();
  console.log(JSON.stringify({ issuer }));
});
