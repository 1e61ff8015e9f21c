"use strict";
// Scores: the forest plot, the readings side by side, and the questions that changed.

function isOnly(report) {
  return report.runs.length === 1;
}

/** `round 0`, or with several runs `quickstart: round 0`. */
function modelName(report, row) {
  return isOnly(report) ? row.model : `${row.run}: ${row.model}`;
}

/** The name of a comparison, without the run's name where there is only one. */
function comparisonName(report, name) {
  const start = `${report.runs[0].name}: `;
  return label(isOnly(report) && name.startsWith(start) ? name.slice(start.length) : name, 100);
}

function readingName(reading) {
  return `${label(reading).replaceAll("_", " ")} reading`;
}

function ofSplit(report, rows) {
  return rows.filter((row) => row.split === report.split);
}

/** Rows of the forest plot in their order: by group, each task, the mean last. */
function byTask(rows) {
  const keys = [...new Set(rows.map((row) => JSON.stringify([row.group, row.task])))]
    .map((key) => JSON.parse(key))
    .sort((a, b) => groupOrder(a[0]) - groupOrder(b[0]) || taskOrder(a[1]) - taskOrder(b[1]));
  return keys.map(([group, task]) => [
    group,
    task,
    rows.filter((row) => row.group === group && row.task === task),
  ]);
}

function taskOrder(task) {
  return ["all", "mean"].indexOf(task);
}

function taskName(task) {
  return { all: "all questions", mean: "mean over tasks" }[task] ?? task;
}

function drawScores(root, report) {
  const measures = ofSplit(report, records(report.tables.measures));
  if (measures.length === 0) {
    root.append(nothing("No model has answered a question so far."));
    return;
  }
  const comparisons = records(report.tables.comparisons);
  const tabs = report.readings.map((reading) => [
    readingName(reading),
    () => [
      ...figuresOfArms(report, reading),
      forestOfScores(report, measures, comparisons, reading),
      scoresTable(report, measures, comparisons, reading),
    ],
  ]);
  root.append(switcher("Reading", tabs));
}

/** Buttons of which one is pressed; each shows what its function makes. */
function switcher(name, tabs) {
  const place = element("div");
  const buttons = tabs.map(([title, make]) =>
    element("button", { type: "button", onclick: (event) => choose(event.target, make) }, title),
  );
  function choose(button, make) {
    for (const each of buttons) each.setAttribute("aria-pressed", String(each === button));
    place.replaceChildren(...make());
  }
  choose(buttons[0], tabs[0][1]);
  const group = { role: "group", "aria-label": name, class: "switch" };
  return element("div", {}, tabs.length > 1 ? element("div", group, buttons) : [], place);
}

function forestOfScores(report, measures, comparisons, reading) {
  const own = measures.filter((row) => row.metric === "accuracy" && row.reading === reading);
  const names = [...new Set(own.map((row) => modelName(report, row)))];
  const colors = colorsOf(names);
  const rows = byTask(own).map(([group, task, found]) => ({
    group,
    task: taskName(task),
    n: Math.max(...found.map((row) => row.num_questions)),
    tick: measures.find(
      (row) => row.metric === "commonest" && row.group === group && row.task === task,
    )?.value,
    points: found.map((row) => ({
      series: modelName(report, row),
      value: row.value,
      low: row.low,
      high: row.high,
      text: differenceText(comparisons, row, reading),
    })),
  }));
  return figure(
    "Share of right answers",
    "Dots are models with 95 % intervals; the dashed tick is the score of always giving the " +
      "commonest answer. At the right: the difference, and the smallest one that this number of " +
      "questions would show (\u0394).",
    (width) => forest(width, rows, colors, { unit: "percent right" }),
    colors,
  );
}

function differenceText(comparisons, row, reading) {
  const found = comparisons.find(
    (each) =>
      each.kind !== "runs" && each.run === row.run && each.other === row.model &&
      each.reading === reading && each.group === row.group && each.task === row.task,
  );
  if (!found) return "";
  const interval = `[${signed(100 * found.low)}, ${signed(100 * found.high)}]`;
  return `${signed(100 * found.difference)} ${interval}  \u0394 ${percent(found.detectable)}`;
}

function scoresTable(report, measures, comparisons, reading) {
  const rows = comparisons.filter((row) => row.reading === reading);
  const columns = columnsOf(
    "task:task", "group:group:group", "comparison:comparison", "pairs:num_pairs:count",
    "first, %:first_share:share", "other, %:other_share:share", "difference:difference:points",
    "low:low:points", "high:high:points", "detectable:detectable:share", "gained:gained:count",
    "lost:lost:count", "p:p_value:p", "p (Holm):adjusted:p",
  );
  return dataTable(`comparisons-${reading}`, "The comparisons in numbers", columns, rows, {
    folded: true,
    csv: records(report.tables.comparisons),
  });
}

// --- arms over seeds --------------------------------------------------------------------------

/** What each arm of several seeds shows: a dot for each seed, and the t interval over them. */
function figuresOfArms(report, reading) {
  const rows = records(report.tables.arms).filter((row) => row.reading === reading);
  if (rows.length === 0) return [];
  const note = "Open dots are single seeds; the filled dot is their mean with its t interval of 95 %.";
  const isScore = (row) => row.quantity === "score";
  const figures = [
    ["Arms over their seeds", rows.filter(isScore), { unit: "percent right" }],
    [
      "Gains over the base and differences of arms",
      rows.filter((row) => !isScore(row)),
      { zero: true, unit: "points" },
    ],
  ].map(([title, own, options]) => {
    const colors = colorsOf(distinct(own, "name"));
    return figure(title, note, (width) => forest(width, rowsOfArms(own), colors, options), colors);
  });
  const columns = columnsOf(
    "quantity:quantity", "group:group:group", "of:name", "seeds:num_seeds:count",
    "mean:value:points", "low:low:points", "high:high:points",
  );
  const means = rows.filter((row) => row.run === "");
  const table = dataTable(`arms-${reading}`, "Arms over their seeds in numbers", columns, means, {
    folded: true,
    csv: records(report.tables.arms),
  });
  return [...figures, table];
}

function rowsOfArms(rows) {
  const means = rows.filter((row) => row.run === "");
  const groups = distinct(means, "group").sort((a, b) => groupOrder(a) - groupOrder(b));
  return groups.map((group) => {
    const own = means.filter((row) => row.group === group);
    return {
      group,
      task: "by seed",
      n: Math.max(...own.map((row) => row.num_seeds)),
      points: own.map((mean) => ({
        series: mean.name,
        value: mean.value,
        low: mean.low,
        high: mean.high,
        text: armText(mean),
        dots: rows
          .filter((row) => row.run !== "" && row.group === group && row.name === mean.name)
          .map((row) => row.value),
      })),
    };
  });
}

function armText(mean) {
  if (mean.quantity === "score")
    return `${percent(mean.value)} [${percent(mean.low)}, ${percent(mean.high)}]`;
  return interval(mean);
}

// --- readings ---------------------------------------------------------------------------------

function drawReadings(root, report) {
  const comparisons = records(report.tables.comparisons);
  if (comparisons.length > 0) {
    const tabs = distinct(comparisons, "comparison").map((name) => [
      comparisonName(report, name),
      () => [forestOfReadings(report, comparisons.filter((row) => row.comparison === name))],
    ]);
    root.append(switcher("Comparison", tabs));
  }
  const measures = ofSplit(report, records(report.tables.measures));
  const rows = byTask(measures).flatMap(([group, task, found]) =>
    distinct(found, "run").flatMap((run) =>
      distinct(found.filter((row) => row.run === run), "model").map((model) =>
        answersRow(found.filter((row) => row.run === run && row.model === model)),
      ),
    ),
  );
  if (rows.length === 0) return;
  const shares = report.readings.map((reading) => `${reading}, %:${reading}:share`);
  const sampled = [...new Set(rows.flatMap((row) => Object.keys(row)))]
    .filter((name) => name.includes("@"))
    .map((name) => ({ label: `${name}, %`, key: name, kind: "share" }));
  const columns = columnsOf(
    "task:task", "group:group:group", "run:run", "model:model", "n:num_questions:count", ...shares,
    "read, %:read:share", "cut off, %:cut_off:share", "failed, %:failed:share",
    "tokens:tokens:number", ...sampled,
  );
  root.append(
    dataTable(
      "answers",
      "How the answers were read, how many were cut off, and how long they are",
      columns,
      rows,
      { limit: 40, csv: records(report.tables.measures) },
    ),
  );
}

function answersRow(found) {
  const { run, model, group, task, num_questions } = found[0];
  const row = { task: taskName(task), group, run, model, num_questions };
  for (const each of found) {
    if (each.metric === "accuracy") row[each.reading] = each.value;
    else if (each.metric.includes("@")) row[`${each.metric} (${each.reading})`] = each.value;
    else row[each.metric] = each.value;
  }
  return row;
}

function forestOfReadings(report, comparisons) {
  const colors = colorsOf(report.readings.map((reading) => reading.replaceAll("_", " ")));
  const rows = byTask(comparisons).map(([group, task, found]) => ({
    group,
    task: taskName(task),
    n: found[0].num_pairs,
    points: found.map((row) => ({
      series: row.reading.replaceAll("_", " "),
      value: row.difference,
      low: row.low,
      high: row.high,
      text: `${signed(100 * row.difference)} [${signed(100 * row.low)}, ${signed(100 * row.high)}]`,
    })),
  }));
  return figure(
    "The difference under each reading",
    "A gain under the strict reading alone is one of form: the model states its answer more clearly.",
    (width) => forest(width, rows, colors, { zero: true, unit: "points" }),
    colors,
  );
}

// --- gained and lost --------------------------------------------------------------------------

function drawChanged(root, report) {
  const changes = ofSplit(report, records(report.tables.changes));
  if (changes.length === 0) {
    root.append(nothing("No tuned model has answered the questions of its base so far."));
    return;
  }
  const tabs = report.readings
    .filter((reading) => changes.some((row) => row.reading === reading))
    .map((reading) => [readingName(reading), () => [changesFigure(report, changes, reading)]]);
  root.append(switcher("Reading", tabs));
  const rows = ofSplit(report, records(report.tables.changed_questions));
  const columns = [
    {
      label: "question", key: "question_id", kind: "id",
      cell: (row) =>
        element("a", { href: `#question=${encodeURIComponent(row.question_id)}` }, label(row.question_id, 60)),
    },
    ...columnsOf(
      "run:run", "model:step", "strict:strict", "tolerant:tolerant",
      "base said:base_predicted", "tuned said:tuned_predicted", "right answer:answer",
    ),
  ];
  root.append(
    dataTable("changed_questions", "Questions that were gained or lost", columns, rows, { limit: 10 }),
  );
}

function changesFigure(report, changes, reading) {
  const rows = changes
    .filter((row) => row.reading === reading)
    .flatMap((row) => {
      const name = `${modelName(report, { run: row.run, model: row.step })}, ${row.dataset}`;
      return [
        { name, number: row.gained, kind: "gained" },
        { name, number: -row.lost, kind: "lost" },
      ];
    });
  const colors = new Map([
    ["gained", "var(--good)"],
    ["lost", "var(--bad)"],
  ]);
  const names = distinct(rows, "name");
  return figure(
    "Questions gained and lost",
    "Right of 0 those that only the tuned model answers rightly, left of it those that only the base does.",
    (width) => {
      const isWide = width >= 680;
      return plot(width, {
        height: 50 + names.length * (isWide ? 26 : 44),
        marginLeft: isWide ? 240 : 10,
        marginRight: 30,
        marginBottom: 38,
        x: { grid: true, label: "questions", labelAnchor: "center", labelArrow: "none", tickFormat: (n) => Math.abs(n) },
        y: { domain: names, label: null, axis: null, padding: isWide ? 0.25 : 0.55 },
        marks: [
          Plot.barX(rows, { y: "name", x: "number", fill: (row) => colors.get(row.kind) }),
          Plot.text(names, {
            y: (name) => name, text: (name) => label(name, 34), frameAnchor: "left", textAnchor: "start",
            dx: isWide ? -240 : 0, dy: isWide ? 0 : -18, fill: "currentColor",
          }),
          ...[1, -1].map((sign) =>
            Plot.text(rows.filter((row) => row.number * sign > 0), {
              y: "name", x: "number", text: (row) => count(Math.abs(row.number)),
              dx: 6 * sign, textAnchor: sign > 0 ? "start" : "end", fill: "currentColor",
            }),
          ),
          Plot.ruleX([0], { stroke: "currentColor" }),
        ],
      });
    },
    colors,
  );
}
