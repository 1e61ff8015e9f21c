"use strict";
// The first screen: what the declared comparisons show.

function drawVerdict(root, report) {
  for (const run of report.runs) root.append(element("p", {}, label(run.run)));
}
