"use strict";
// Over rounds, over training steps, over time.

/** A figure for each metric, with a line for each series. Points are `{metric, series, x, y}`. */
function smallMultiples(points, colors, xOptions) {
  const figures = distinct(points, "metric").map((metric) =>
    figure(label(metric, 60), "", (width) =>
      lines(width, points.filter((point) => point.metric === metric), colors, {
        x: xOptions, y: { label: null, ticks: 5 }, height: 180,
        dots: points.length < 400,
      }),
    ),
  );
  return element("div", { class: "multiples" }, figures);
}

function drawRounds(root, report) {
  for (const decision of report.decisions) {
    const of = isOnly(report) ? "" : `${label(decision.run)}, `;
    for (const alarm of decision.alarms)
      root.append(
        element(
          "p",
          { class: "alarm" },
          element("span", { class: "mark" }, "alarm"),
          ` ${of}round ${decision.round}: ${alarm}.`,
        ),
      );
    for (const line of decision.lines) root.append(element("p", { class: "note" }, `${of}${line}.`));
  }
  const rows = records(report.tables.rounds);
  const rounds = new Set(rows.map((row) => row.round).filter((round) => round >= 0));
  if (rounds.size < 2) {
    root.append(nothing("With one round there is no course over rounds."));
    return;
  }
  if (report.decisions.length === 0)
    root.append(nothing("This run decides nothing after a round and has no alarms (after_round)."));
  const points = rows.map((row) => ({
    metric: row.metric,
    series: row.run,
    x: row.round,
    y: isShare(row) ? 100 * row.value : row.value,
    text: `${row.round < 0 ? "base" : `round ${row.round}`}: ${isShare(row) ? `${percent(row.value)} %` : count(Math.round(row.value))}`,
  }));
  const colors = colorsOf(distinct(points, "series"));
  if (!isOnly(report)) root.append(legendOf(colors));
  const ticks = [...new Set(points.map((point) => point.x))].sort((a, b) => a - b);
  root.append(
    smallMultiples(points, colors, {
      label: null, ticks, domain: [ticks[0], ticks[ticks.length - 1]], tickFormat: (round) => (round < 0 ? "base" : `round ${round}`), inset: 10,
    }),
    dataTable(
      "rounds", "The course over rounds in numbers",
      columnsOf("metric:metric", "run:run", "round:round:number", "value:value:number"),
      rows, { folded: true },
    ),
  );
}

function isShare(row) {
  return !["examples", "mean tokens of a path"].includes(row.metric);
}

function drawTraining(root, report) {
  const rows = records(report.tables.training);
  if (rows.length === 0) {
    root.append(nothing("No training has recorded a step so far."));
    return;
  }
  const points = rows.map((row) => ({
    metric: row.metric.replaceAll("_", " "),
    series: modelName(report, row),
    x: row.step,
    y: row.value,
    text: `step ${row.step}: ${row.value.toPrecision(4)}`,
  }));
  const colors = colorsOf(distinct(points, "series"));
  root.append(
    legendOf(colors),
    smallMultiples(points, colors, { label: "step", tickFormat: (step) => count(step) }),
    dataTable(
      "training", "The curves in numbers",
      columnsOf("model:model", "run:run", "step:step:count", "metric:metric", "value:value:number"),
      rows, { folded: true },
    ),
  );
}

function drawExecution(root, report) {
  const rates = records(report.tables.rates);
  if (rates.length > 0) {
    const points = rates.map((row) => ({
      series: row.run,
      x: new Date(row.at),
      y: row.tokens_per_s,
      text: `${row.at.slice(0, 16).replace("T", " ")}: ${count(Math.round(row.tokens_per_s))} tokens/s, ${plural(row.engines, "engine")}`,
    }));
    const colors = colorsOf(distinct(points, "series"));
    root.append(
      figure("Tokens a second", "As a pool recorded them, once a minute.", (width) =>
        lines(width, points, colors, { x: { label: "time (UTC)", type: "utc" }, y: { label: null, zero: true }, dots: false }),
        isOnly(report) ? null : colors,
      ),
    );
  }
  root.append(
    dataTable(
      "steps", "The steps",
      columnsOf(
        "step:step", "run:run", "state:state", "done:num_done:count", "questions:num_questions:count",
        "tokens:num_tokens:count", "tokens/s:tokens_per_s:number", "failed:num_failed:count",
        "time:seconds:seconds", "finished at:finished_at",
      ),
      records(report.tables.steps), { limit: 30 },
    ),
  );
  const costs = records(report.tables.costs);
  if (costs.length > 0)
    root.append(
      dataTable(
        "costs", "What was generated and trained, and what it cost",
        columnsOf(
          "what:what", "run:run", "of:of", "at:at", "tokens:num_tokens:count", "time:seconds:seconds",
          "GPU-hours:gpu_hours:number", "money:money:number", "currency:currency",
        ),
        costs, { folded: true },
      ),
    );
}
