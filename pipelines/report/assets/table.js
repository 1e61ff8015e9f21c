"use strict";
// Tables that sort, that a keyboard reaches, and that come as CSV.

const FORMATS = {
  text: (value) => label(value, 120),
  id: (value) => label(value, 60),
  group: (value) => groupName(value),
  count: (value) => count(value),
  share: (value) => percent(value),
  points: (value) => signed(100 * value),
  number: (value) => (Math.abs(value) >= 100 ? count(Math.round(value)) : value.toPrecision(3)),
  p: (value) => (value < 0.0001 ? "<0.0001" : value.toFixed(4)),
  seconds: (value) => duration(value),
};

function duration(seconds) {
  if (seconds < 120) return `${seconds.toFixed(1)} s`;
  if (seconds < 7200) return `${(seconds / 60).toFixed(1)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function formatted(value, kind) {
  if (value === null || value === undefined || value === "") return "";
  return typeof value === "number" || !isNumeric({ kind }) ? FORMATS[kind](value) : label(value);
}

/** One cell of a CSV file. A text that a spreadsheet would take for a formula gets a "'". */
function csvCell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "string") return String(value);
  const safe = /^\s*[=+\-@]|^[\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

/** Rows as CSV with the names of all their columns. */
function csvText(rows) {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const lines = rows.map((row) => names.map((name) => csvCell(row[name])).join(","));
  return [names.map(csvCell).join(","), ...lines, ""].join("\r\n");
}

function csvButton(name, rows) {
  const save = () => {
    const url = URL.createObjectURL(new Blob([csvText(rows)], { type: "text/csv" }));
    element("a", { href: url, download: `${name}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  };
  return element("button", { type: "button", class: "csv", onclick: save }, "CSV");
}

function compareValues(left, right) {
  const missing = [left, right].map((each) => each === null || each === undefined || each === "");
  if (missing[0] || missing[1]) return missing[0] - missing[1];
  return typeof left === "number" && typeof right === "number"
    ? left - right
    : String(left).localeCompare(String(right), "en", { numeric: true });
}

/**
 * A table with a caption, and a button that saves all its rows as CSV.
 *
 * A column is `{key, label, kind, cell, title}`; `cell(row)` may give a node in place of the text.
 * The first column names the row, and a column `run` is shown where there are several runs. Options: `sort` ([key, descending]), `limit` (rows shown first),
 * `folded` (shown only when it is opened), `csv` (other rows for the file).
 */
function dataTable(name, caption, allColumns, rows, options = {}) {
  const isOfOneRun = new Set(rows.map((row) => row.run)).size < 2;
  const columns = allColumns.filter((column) => column.key !== "run" || !isOfOneRun);
  const { limit = 15, folded = false, csv = rows } = options;
  let [key, descending] = options.sort ?? [null, false];
  let shown = limit;
  const body = element("tbody");
  const more = element("button", { type: "button", class: "more", onclick: showAll });
  const heads = columns.map((column) =>
    element(
      "th",
      { scope: "col", class: isNumeric(column) ? "number" : null, title: column.title },
      element("button", { type: "button", onclick: () => sortBy(column) }, column.label),
    ),
  );
  function ordered() {
    if (key === null) return rows;
    const sign = descending ? -1 : 1;
    return [...rows].sort((a, b) => sign * compareValues(a[key], b[key]));
  }
  function sortBy(column) {
    descending = key === column.key ? !descending : isNumeric(column);
    key = column.key;
    fill();
  }
  function showAll() {
    shown = rows.length;
    fill();
  }
  function fill() {
    columns.forEach((column, place) =>
      heads[place].setAttribute(
        "aria-sort",
        column.key !== key ? "none" : descending ? "descending" : "ascending",
      ),
    );
    body.replaceChildren(...ordered().slice(0, shown).map((row) => tableRow(columns, row)));
    more.hidden = shown >= rows.length;
    more.textContent = `Show all ${count(rows.length)} rows`;
  }
  fill();
  const table = element("table", {}, element("thead", {}, element("tr", {}, heads)), body);
  table.prepend(element("caption", { class: folded ? "hidden" : null }, caption));
  const region = { class: "scroll", tabindex: "0", role: "region", "aria-label": caption };
  const parts = [element("div", region, table), element("p", { class: "tools" }, more)];
  parts[1].append(csvButton(name, csv));
  if (!folded) return element("div", { class: "table" }, parts);
  return element("details", { class: "table" }, element("summary", {}, caption), parts);
}

function isNumeric(column) {
  return !["text", "id", "group"].includes(column.kind);
}

function tableRow(columns, row) {
  return element(
    "tr",
    {},
    columns.map((column, place) =>
      element(
        place === 0 ? "th" : "td",
        { scope: place === 0 ? "row" : null, class: isNumeric(column) ? "number" : null },
        column.cell ? column.cell(row) : formatted(row[column.key], column.kind),
      ),
    ),
  );
}

/** Columns by short notes: `["task", "n:num_questions:count"]` is label:key:kind. */
function columnsOf(...notes) {
  return notes.map((note) => {
    if (typeof note !== "string") return note;
    const [name, key = name, kind = "text"] = note.split(":");
    return { label: name, key, kind };
  });
}
