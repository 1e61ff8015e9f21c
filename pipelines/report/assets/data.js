"use strict";
// Reads the inert elements of the file.

/** The JSON value with a name, or null where the file has none. */
function readData(name) {
  const found = document.getElementById(`data-${name}`);
  return found === null ? null : JSON.parse(found.textContent);
}

/** The JSON value of a compressed part, opened when it is needed. */
async function openChunk(name, number) {
  const found = document.getElementById(`chunk-${name}-${number}`);
  if (found === null) throw new Error(`the file has no part ${name} ${number}`);
  const stream = new Blob([decoded(found.textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

/** The bytes of a text in base64. */
function decoded(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let n = 0; n < bytes.length; n += 1) bytes[n] = characters.charCodeAt(n);
  return bytes;
}

/** The rows of a table `{columns, rows}` as objects. */
function records(table) {
  if (!table) return [];
  return table.rows.map((row) =>
    Object.fromEntries(table.columns.map((name, place) => [name, row[place]])),
  );
}

/** The values of a key in the order in which they come first. */
function distinct(rows, key) {
  return [...new Set(rows.map((row) => row[key]))];
}
