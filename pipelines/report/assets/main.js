"use strict";
// Draws the sections of the report, in the order in which a reader needs them.

/** The id, the title, the short title in the contents, and what draws it. */
const SECTIONS = [
  ["verdict", "Verdict", "Verdict", drawVerdict],
  ["scores", "Scores", "Scores", drawScores],
  ["readings", "Readings, length and truncation", "Readings", drawReadings],
  ["changed", "Gained and lost questions", "Gained and lost", drawChanged],
  ["funnel", "From questions to examples", "Funnel", drawFunnel],
  ["guidelines", "Guidelines", "Guidelines", drawGuidelines],
  ["coverage", "Coverage and diversity", "Coverage", drawCoverage],
  ["rounds", "Rounds", "Rounds", drawRounds],
  ["training", "Training", "Training", drawTraining],
  ["execution", "Tokens, time and cost", "Cost", drawExecution],
  ["provenance", "How it was made", "How it was made", drawProvenance],
];

/** The sections that an evaluation does not have. */
const OF_RUNS = new Set(["changed", "funnel", "guidelines", "coverage", "rounds", "training"]);

function drawReport() {
  const main = document.getElementById("report");
  const report = readData("report");
  if (report !== null) drawSections(main, report);
  drawPaths(main);
  const sheet = readData("sheet");
  if (sheet !== null) drawJudgeSheet(main, sheet);
}

function drawSections(main, report) {
  const contents = document.getElementById("contents");
  document.title = `${label(report.title, 100)} \u2013 ReGenesis report`;
  document.getElementById("top").append(
    element("h1", {}, label(report.title, 200)),
    element("p", { class: "note" }, `ReGenesis report, made ${report.made_at}`),
  );
  const hasRuns = report.runs.some((run) => run.strategy !== null);
  for (const [id, title, short, draw] of SECTIONS) {
    if (OF_RUNS.has(id) && !hasRuns) continue;
    const section = element("section", { id, "aria-labelledby": `${id}-title` });
    section.append(element("h2", { id: `${id}-title` }, title));
    draw(section, report);
    const [, ...drawn] = section.children;
    section.classList.toggle("bare", drawn.every((each) => each.className === "nothing"));
    main.append(section);
    contents.append(element("a", { href: `#${id}` }, short));
  }
}

/** The paths, or in the index of the parts which part has which. */
function drawPaths(main) {
  const [index, parts] = [readData("paths"), readData("parts")];
  if (index === null && parts === null) return;
  const section = element("section", { id: "paths" });
  main.append(section);
  document.getElementById("contents").append(element("a", { href: "#paths" }, "Paths"));
  if (index !== null) startPathBrowser(section, index, (number) => openChunk("paths", number));
  if (parts !== null) drawPathParts(section, parts);
}

drawReport();
