// node verify.cjs KEY.pem BUNDLE.json: what Sigstore's own verifier says of a bundle that names a key by a hint.
const { readFileSync } = require("node:fs");
const { createPublicKey } = require("node:crypto");
const { bundleFromJSON } = require("@sigstore/bundle");
const { Verifier, toSignedEntity } = require("@sigstore/verify");

const [keyFile, bundleFile] = process.argv.slice(2);
const publicKey = createPublicKey(readFileSync(keyFile));
const trust = {
  certificateAuthorities: [],
  timestampAuthorities: [],
  tlogs: [],
  ctlogs: [],
  publicKey: () => ({ publicKey, validFor: () => true }),
};
const nobodyElse = { tlogThreshold: 0, ctlogThreshold: 0, timestampThreshold: 0 };
const bundle = bundleFromJSON(JSON.parse(readFileSync(bundleFile)));
new Verifier(trust, nobodyElse).verify(toSignedEntity(bundle));
console.log("verified");
