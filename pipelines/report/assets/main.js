"use strict";
// Draws the sections of the report, in the order in which a reader needs them.

const SECTIONS = [
  ["verdict", "Verdict", (root, report) => drawVerdict(root, report)],
];

function drawReport() {
  const report = readData("report");
  document.title = label(report.title);
  const main = document.getElementById("report");
  for (const [id, title, draw] of SECTIONS) {
    const section = element("section", { id }, element("h2", {}, title));
    draw(section, report);
    main.append(section);
  }
  const index = readData("paths");
  const paths = element("section", { id: "paths" });
  main.append(paths);
  if (index !== null) startPathBrowser(paths, index, (number) => openChunk("paths", number));
}

drawReport();
