"use strict";
// Draws the sections of the report, in the order in which a reader needs them.

const SECTIONS = [
  ["verdict", "Verdict", (root, report) => drawVerdict(root, report)],
];

function drawReport() {
  const main = document.getElementById("report");
  const report = readData("report");
  if (report !== null) drawSections(main, report);
  drawPaths(main);
  const sheet = readData("sheet");
  if (sheet !== null) drawJudgeSheet(main, sheet);
}

function drawSections(main, report) {
  document.title = label(report.title);
  for (const [id, title, draw] of SECTIONS) {
    const section = element("section", { id }, element("h2", {}, title));
    draw(section, report);
    main.append(section);
  }
}

/** The paths, or in the index of the parts which part has which. */
function drawPaths(main) {
  const [index, parts] = [readData("paths"), readData("parts")];
  const section = element("section", { id: "paths" });
  if (index !== null || parts !== null) main.append(section);
  if (index !== null) startPathBrowser(section, index, (number) => openChunk("paths", number));
  if (parts !== null) drawPathParts(section, parts);
}

drawReport();
