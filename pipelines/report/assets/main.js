"use strict";
// Draws the sections of the report, in the order in which a reader needs them.

const SECTIONS = [
  ["verdict", "Verdict", drawVerdict],
  ["scores", "Scores", drawScores],
  ["readings", "Readings, length and truncation", drawReadings],
  ["changed", "Gained and lost questions", drawChanged],
  ["funnel", "From questions to examples", drawFunnel],
  ["guidelines", "Guidelines", drawGuidelines],
  ["coverage", "Coverage", drawCoverage],
  ["rounds", "Rounds", drawRounds],
  ["training", "Training", drawTraining],
  ["execution", "Tokens, time and cost", drawExecution],
  ["provenance", "How it was made", drawProvenance],
];

function drawReport() {
  const report = readData("report");
  const main = document.getElementById("report");
  const contents = document.getElementById("contents");
  document.title = `${label(report.title, 100)} \u2013 ReGenesis report`;
  document.getElementById("top").append(
    element("h1", {}, label(report.title, 200)),
    element("p", { class: "note" }, `ReGenesis report, made ${report.made_at}`),
  );
  for (const [id, title, draw] of SECTIONS) {
    const section = element("section", { id, "aria-labelledby": `${id}-title` });
    section.append(element("h2", { id: `${id}-title` }, title));
    draw(section, report);
    main.append(section);
    contents.append(element("a", { href: `#${id}` }, title));
  }
  drawPaths(main, contents);
}

/** The browser of paths, where the file has their index. */
function drawPaths(main, contents) {
  const section = element("section", { id: "paths" });
  main.append(section);
  const index = readData("paths");
  if (index === null) return;
  contents.append(element("a", { href: "#paths" }, "Paths"));
  startPathBrowser(section, index, (number) => openChunk("paths", number));
}

drawReport();
