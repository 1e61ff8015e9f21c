"use strict";
// Elements and texts. Every text is set as text and never parsed as HTML.

/** An element with attributes, listeners (`onclick`) and children (nodes or texts). */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined)
      made.setAttribute(key, String(value));
  }
  made.append(...children.flat().filter((each) => each !== null && each !== undefined));
  return made;
}

const HIDDEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** The text with what nobody would see made visible: controls, bidi marks, lone surrogates. */
function visible(text) {
  return String(text).replace(
    HIDDEN,
    (found) => `\\u${found.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** The visible text in one line of at most `limit` characters. */
function label(text, limit = 80) {
  const line = visible(String(text).slice(0, 4 * limit)).replace(/\s+/g, " ");
  return line.length > limit ? `${line.slice(0, limit - 1)}\u2026` : line;
}

function percent(share, digits = 1) {
  return share === null || share === undefined ? "" : `${(100 * share).toFixed(digits)}`;
}

function signed(points, digits = 1) {
  const text = Math.abs(points).toFixed(digits);
  if (Number(text) === 0) return text;
  return `${points < 0 ? "\u2212" : "+"}${text}`;
}

function count(number) {
  return number === null || number === undefined ? "" : Number(number).toLocaleString("en");
}

function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}
