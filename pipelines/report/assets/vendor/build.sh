#!/usr/bin/env bash
# Bundles Observable Plot, with the parts of d3 that it uses, into plot.js. Nothing is changed by
# hand. Needs Node 20 and the npm registry; package-lock.json has the hash of each package.
# The report needs plot.js only, so Node is not needed to make one.
set -euo pipefail
cd "$(dirname "$0")"
npm ci --ignore-scripts --no-audit --no-fund
node node_modules/esbuild/install.js # places esbuild's binary, which npm has verified
echo 'export * from "@observablehq/plot";' > entry.js
node_modules/.bin/esbuild entry.js --bundle --format=iife --global-name=Plot --minify \
  --legal-comments=none --charset=ascii --target=es2020 --outfile=plot.js
for folder in $(npm ls --all --parseable --omit=dev | tail -n +2 | LC_ALL=C sort -u); do
  node -p '`== ${require(process.argv[1]).name} ${require(process.argv[1]).version}`' "$folder/package.json"
  cat "$(find "$folder" -maxdepth 1 -iname 'license*' | head -n 1)"
done > LICENSES.txt
sha256sum plot.js > plot.js.sha256
rm -rf entry.js node_modules
