"use strict";
// How the runs were made: settings that differ, commands, versions, prompts and guidelines.

function drawProvenance(root, report) {
  if (!isOnly(report)) {
    const columns = columnsOf("setting:setting").concat(
      report.runs.map((run) => ({ label: label(run.name, 40), key: run.name, kind: "text" })),
    );
    root.append(
      dataTable("settings", "Settings in which the runs differ", columns, records(report.tables.settings), { limit: 40 }),
    );
  }
  for (const run of report.runs) root.append(runProvenance(report, run));
}

function runProvenance(report, run) {
  const versions = Object.entries(run.versions).map(([name, number]) => `${name} ${number}`);
  const parts = [
    element("h3", {}, label(run.name)),
    run.commands.length > 0
      ? block("Commands", run.commands.join("\n"))
      : nothing("No command is recorded."),
    element("p", { class: "note" }, versions.length > 0 ? `Versions: ${label(versions.join(", "), 400)}.` : ""),
    folded("Settings", [block(null, run.config)]),
  ];
  if (run.prompts.length > 0)
    parts.push(folded("Prompts, verbatim", run.prompts.map((each) => block(each.name, each.text))));
  if (run.guidelines.length > 0)
    parts.push(
      dataTable(
        `guidelines-${run.name}`, "Guidelines, verbatim",
        [
          { label: "guideline", key: "guideline_id", kind: "id", cell: guidelineLink },
          { label: "text", key: "text", kind: "text", cell: (row) => element("span", { class: "long" }, visible(row.text)) },
        ],
        run.guidelines, { folded: true, limit: 100 },
      ),
    );
  return element("div", { class: "made" }, parts);
}

function folded(title, children) {
  return element("details", {}, element("summary", {}, title), children);
}

/** A text as it is, with what would not be seen made visible. */
function block(title, text) {
  const lines = String(text).split("\n").map((line) => visible(line));
  const shown = element("pre", { tabindex: "0" }, lines.join("\n"));
  return element("div", {}, title === null ? [] : element("h4", {}, label(title)), shown);
}
