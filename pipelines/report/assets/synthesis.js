"use strict";
// From questions to examples: the funnel, the guidelines, and what more paths would solve.

function drawFunnel(root, report) {
  const [funnel, left] = [records(report.tables.funnel), records(report.tables.filters)];
  if (left.length === 0) {
    root.append(nothing("There is no reasoning path so far."));
    return;
  }
  const rows = funnelRows(funnel, left);
  const stages = stagesInOrder(rows.map((row) => [...row.stages.keys()]));
  root.append(funnelFigure(report, rows, stages));
  const isMany = distinct(rows, "round").length > 1;
  const columns = [
    { label: "dataset", key: "dataset", kind: "text" },
    ...columnsOf("run:run"),
    ...(isMany ? columnsOf("round:round:count") : []),
    ...columnsOf("questions:questions:count", "solved, %:solved_share:share"),
    ...stages.map((stage) => ({ label: stage, key: `of ${stage}`, kind: "count", cell: (row) => bar(row.stages, stage) })),
    ...columnsOf("examples:examples:count"),
  ];
  root.append(
    dataTable("filters", "How many are left after each filter, by dataset", columns, rows, { csv: left }),
  );
  const begun = rows.filter((row) => row.is_so_far);
  if (begun.length > 0) root.append(soFarNote(report, begun));
  const dropped = funnel.filter((row) => row.stage === "dropped" && row.number > 0);
  if (dropped.length > 0) root.append(droppedFigure(report, dropped));
  root.append(
    dataTable(
      "funnel", "Questions, paths and examples, and why paths were dropped",
      columnsOf("dataset:dataset", "run:run", "round:round:count", "stage:stage", "reason:reason", "number:number:count"),
      funnel, { folded: true },
    ),
  );
  const examples = records(report.tables.examples);
  if (examples.length > 0)
    root.append(
      dataTable(
        "examples",
        "The examples: how many were right by luck, and overlaps with the evaluation",
        columnsOf(
          "dataset:dataset", "run:run", "step:step", "kept paths:num_kept_paths:count",
          "examples:num_examples:count", "expected lucky, %:expected_lucky_share:share",
          "overlaps with:overlaps",
        ),
        examples,
        { folded: true },
      ),
    );
}

/** A row for each run, round and dataset; `stages` has what is left after each, in their order. */
function funnelRows(funnel, left) {
  const found = new Map();
  const rowOf = ({ run, round, dataset }) => {
    const key = JSON.stringify([run, round, dataset]);
    if (!found.has(key)) found.set(key, { dataset, run, round, stages: new Map() });
    return found.get(key);
  };
  for (const row of left) {
    const own = rowOf(row);
    own.is_so_far = row.is_so_far;
    own.stages.set(row.stage, row);
    own[`of ${row.stage}`] = row.number;
  }
  for (const row of funnel) if (row.stage !== "dropped") rowOf(row)[row.stage] = row.number;
  return [...found.values()].map((row) => ({
    ...row,
    solved_share: row["with paths"] ? row.solved / row["with paths"] : null,
  }));
}

/** The stages of several lists, each in its own order: a new one is put behind the one before it. */
function stagesInOrder(lists) {
  const found = [];
  for (const list of lists)
    list.forEach((stage, place) => {
      if (!found.includes(stage)) found.splice(place === 0 ? 0 : found.indexOf(list[place - 1]) + 1, 0, stage);
    });
  return found;
}

/** How many are left after a stage, their share of the stage before, and a bar of that of all. */
function bar(stages, stage) {
  const row = stages.get(stage);
  if (row === undefined) return "";
  const all = stages.get("paths").number;
  const drawn = element("span", { class: "bar", "aria-hidden": "true" });
  drawn.style.setProperty("width", `${all ? (100 * row.number) / all : 0}%`);
  const share = stage === "paths" || row.share === null ? "" : ` ${percent(row.share, 0)} %`;
  return element("span", { class: "barred" }, drawn, element("span", {}, `${count(row.number)}${share}`));
}

function soFarNote(report, rows) {
  const names = new Set(rows.map((row) => roundName(report, row)));
  const note = `No examples have been selected so far (${[...names].join(", ")}), so the stages after "right" are not known.`;
  return element("p", { class: "note" }, note);
}

function roundName(report, row) {
  return isOnly(report) ? `round ${row.round}` : `${label(row.run, 40)}: round ${row.round}`;
}

/** The funnel of each run and round over all datasets, as a chart. */
function funnelFigure(report, rows, stages) {
  const points = [];
  const series = new Set();
  for (const [run, round] of distinctPairs(rows)) {
    const own = rows.filter((row) => row.run === run && row.round === round);
    const isSoFar = own.some((row) => row.is_so_far);
    const name = `${roundName(report, own[0])}${isSoFar ? ", so far" : ""}`;
    series.add(name);
    let before = null;
    for (const stage of stages.filter((each) => own.some((row) => row.stages.has(each)))) {
      const number = leftAfter(own, stages, stage);
      const all = points.find((point) => point.series === name)?.number ?? number;
      points.push({
        series: name, stage, number, share: all ? number / all : 0,
        text: before ? `${count(number)} (${percent(number / before, 0)} %)` : count(number),
      });
      before = number;
    }
  }
  const colors = colorsOf(series);
  return figure(
    "From paths to examples",
    "What is left after each filter, in their order; all datasets together. Bars are shares of all paths; the numbers in brackets, of the stage before.",
    (width) => {
      const isWide = width >= 680;
      return plot(width, {
        height: 30 + stages.length * (18 * series.size + (isWide ? 16 : 26)),
        marginLeft: isWide ? 150 : 10,
        marginRight: 110,
        marginTop: isWide ? 6 : 16,
        marginBottom: 10,
        x: { axis: null, domain: [0, 1] },
        fy: { domain: stages, axis: null, padding: isWide ? 0.25 : 0.4 },
        y: { axis: null, domain: [...series], padding: 0.12 },
        marks: [
          Plot.barX(points, { fy: "stage", y: "series", x: "share", fill: (row) => colors.get(row.series) }),
          Plot.text(points, {
            fy: "stage", y: "series", x: "share", dx: 6, textAnchor: "start", fill: "currentColor",
            text: "text",
          }),
          Plot.text(stages, {
            fy: (stage) => stage, text: (stage) => stage, textAnchor: "start",
            frameAnchor: isWide ? "left" : "top-left", dx: isWide ? -150 : 0, dy: isWide ? 0 : -14,
            fill: "currentColor",
          }),
        ],
      });
    },
    series.size > 1 ? colors : null,
  );
}

/** The sum over the datasets; one that does not have the stage has what the stage before left. */
function leftAfter(rows, stages, stage) {
  const upTo = stages.slice(0, stages.indexOf(stage) + 1).reverse();
  return rows.reduce((sum, row) => sum + row.stages.get(upTo.find((each) => row.stages.has(each))).number, 0);
}

function droppedFigure(report, dropped) {
  const sums = new Map();
  for (const row of dropped) {
    const key = row.reason;
    const own = sums.get(key) ?? new Map();
    own.set(row.run, (own.get(row.run) ?? 0) + row.number);
    sums.set(key, own);
  }
  const rows = [...sums]
    .flatMap(([reason, runs]) => [...runs].map(([run, number]) => ({ reason, run, number })))
    .sort((a, b) => b.number - a.number);
  const names = distinct(rows, "reason");
  const runs = report.runs.map((run) => run.name);
  const colors = colorsOf(runs);
  return figure(
    "Why paths were dropped",
    "The first filter that refused a path counts.",
    (width) =>
      plot(width, {
        height: 16 + names.length * (20 * runs.length + 22),
        marginLeft: 10,
        marginRight: 60,
        marginTop: 12,
        marginBottom: 4,
        x: { axis: null },
        fy: { domain: names, axis: null, padding: 0.5 },
        y: { domain: runs, axis: null, padding: 0.1 },
        marks: [
          Plot.barX(rows, { fy: "reason", y: "run", x: "number", fill: (row) => colors.get(row.run) }),
          Plot.text(rows, {
            fy: "reason", y: "run", x: "number", text: (row) => count(row.number), dx: 6,
            textAnchor: "start", fill: "currentColor",
          }),
          Plot.text(names, {
            fy: (name) => name, text: (name) => label(name, 40), frameAnchor: "top-left", dy: -14,
            textAnchor: "start", fill: "currentColor",
          }),
        ],
      }),
    runs.length > 1 ? colors : null,
  );
}

// --- guidelines -------------------------------------------------------------------------------

function drawGuidelines(root, report) {
  const yields = records(report.tables.guideline_yield);
  if (yields.length === 0) {
    root.append(nothing("There is no reasoning path so far."));
    return;
  }
  const keys = distinctPairs(yields);
  const tabs = keys.map(([run, round]) => [
    roundName(report, { run, round }),
    () => heatMap(report, yields, run, round),
  ]);
  root.append(switcher("Run and round", tabs));
}

function distinctPairs(rows) {
  return [...new Set(rows.map((row) => JSON.stringify([row.run, row.round])))].map((key) => JSON.parse(key));
}

const MEASURES = [
  {
    title: "yield", key: "shrunk_share", shown: (value) => percent(value, 0),
    note:
      "Cells are shares of right paths in percent, shrunk towards that of all guidelines by how little " +
      "they differ beyond chance.",
    text: (row) =>
      `${count(row.num_right)} of ${count(row.num_paths)} right, ` +
      `${percent(row.share)} % [${percent(row.low)}, ${percent(row.high)}]`,
  },
  {
    title: "length", key: "right_tokens", shown: (value) => count(Math.round(value)),
    note: "Cells are the mean length of the right paths, in tokens of their solutions.",
    text: (row) => `${count(Math.round(row.right_tokens))} tokens, mean of ${plural(row.num_right, "right path")}`,
  },
  {
    title: "cut off", key: "cut_off_share", shown: (value) => percent(value, 0),
    note: "Cells are the share of paths, in percent, that a limit of tokens cut off; failed ones are left out.",
    text: (row) => `${percent(row.cut_off_share)} % of ${plural(row.num_paths, "path")} cut off`,
  },
];

function heatMap(report, yields, run, round) {
  const own = (rows) => rows.filter((row) => row.run === run && row.round === round);
  const found = own(yields);
  const measures = MEASURES.filter(({ key }) => found.some((row) => hasValue(row[key])));
  const credit = own(records(report.tables.guideline_credit));
  const tabs = measures.map((measure) => [
    measure.title,
    () => [
      element(
        "p", { class: "note" },
        `${measure.note} Alone: questions that no other guideline solved. Credit: each solved question, ` +
          "shared among the guidelines that solved it (Shapley). A click shows the paths.",
      ),
      heatTable(found, credit, measure, yields),
    ],
  ]);
  return [
    switcher("What the cells show", tabs),
    reliabilityNote(own(records(report.tables.guideline_reliability))),
  ];
}

function hasValue(value) {
  return value !== null && value !== undefined;
}

function heatTable(found, credit, measure, yields) {
  const kinds = [...new Set(found.map(kindOf))].sort();
  const cells = new Map(found.map((row) => [`${row.guideline_id}\n${kindOf(row)}`, row]));
  const values = found.map((row) => row[measure.key]).filter(hasValue);
  const ends = [Math.min(...values), Math.max(...values)];
  const rows = distinct(found, "guideline_id").map((id) => {
    const of_one = found.filter((row) => row.guideline_id === id);
    const credits = credit.filter((row) => row.guideline_id === id);
    const total = (list, key) => list.reduce((sum, row) => sum + row[key], 0);
    const row = {
      guideline_id: id,
      num_paths: total(of_one, "num_paths"),
      yield: total(of_one, "num_right") / total(of_one, "num_paths"),
      num_solved: total(credits, "num_solved"),
      num_solved_alone: total(credits, "num_solved_alone"),
      credit: total(credits, "credit"),
    };
    for (const kind of kinds) row[`of ${kind}`] = cells.get(`${id}\n${kind}`)?.[measure.key] ?? null;
    return row;
  });
  const columns = [
    { label: "guideline", key: "guideline_id", kind: "id", cell: (row) => guidelineLink(row) },
    ...kinds.map((kind) => ({
      label: label(kind, 30), key: `of ${kind}`, kind: "share",
      cell: (row) => heatCell(cells.get(`${row.guideline_id}\n${kind}`), measure, ends),
    })),
    ...columnsOf(
      "right, %:yield:share", "paths:num_paths:count", "solved:num_solved:count",
      "alone:num_solved_alone:count", "credit:credit:number",
    ),
  ];
  return dataTable("guideline_yield", `Guidelines by kind of question: ${measure.title}`, columns, rows, {
    sort: ["credit", true],
    limit: 30,
    csv: yields,
  });
}

function kindOf(row) {
  return row.kind ? `${row.dataset}: ${row.kind}` : row.dataset;
}

function guidelineLink(row) {
  const href = `#filter=guideline:${encodeURIComponent(row.guideline_id)}`;
  return element("a", { href }, label(row.guideline_id, 40));
}

function heatCell(row, measure, [low, high]) {
  if (!row || !hasValue(row[measure.key])) return "";
  const value = row[measure.key];
  const text = `${label(row.guideline_id, 40)}, ${label(kindOf(row), 40)}: ${measure.text(row)}`;
  const href =
    `#filter=guideline:${encodeURIComponent(row.guideline_id)}&dataset:${encodeURIComponent(row.dataset)}`;
  const cell = element("a", { href, class: "heat", title: text, "aria-label": text }, measure.shown(value));
  const height = high > low ? (value - low) / (high - low) : 0;
  cell.style.setProperty("--heat", `${Math.round(10 + 90 * height)}%`);
  return cell;
}

function reliabilityNote(rows) {
  const parts = rows.map((row) =>
    row.reliability === null
      ? `${label(row.dataset, 40)}: not known`
      : `${label(row.dataset, 40)}: ${row.reliability.toFixed(2)}`,
  );
  return element(
    "p",
    { class: "note" },
    "Split-half reliability of these yields (1: other questions would rank the guidelines alike; 0: " +
      `the ranks are chance): ${parts.join(", ")}.`,
  );
}

// --- diversity --------------------------------------------------------------------------------

/** How many different answers k paths give: paths that all say the same add nothing to one. */
function figuresOfAnswers(coverage, colors, log) {
  const points = coverage.map((row) => ({
    ...row,
    y: row.num_answers,
    text: `k ${row.k}, ${count(Math.round(row.tokens))} tokens: ${row.num_answers.toFixed(2)} answers`,
  }));
  const y = { label: "different answers", domain: [0, Math.max(1, ...points.map((row) => row.y))] };
  const at = (key) => points.map((row) => ({ ...row, x: Math.max(1, row[key]) }));
  return [
    figure("Different answers of k paths", "To one question, among the answers that were read.", (width) =>
      lines(width, at("k"), colors, { x: { ...log, base: 2, label: "paths a question (k)" }, y }),
    ),
    figure("Different answers at equal numbers of tokens", "", (width) =>
      lines(width, at("tokens"), colors, { x: { ...log, label: "generated tokens a question" }, y }),
    ),
  ];
}

function diversityTable(report) {
  return dataTable(
    "diversity", "How unlike the paths of a question are: two of its paths, and its commonest answer",
    columnsOf(
      "dataset:dataset", "run:run", "round:round:count", "questions:num_questions:count",
      "answers differ, %:answers_differ:share", "words differ, %:texts_differ:share",
      "commonest answer, %:vote_share:share",
    ),
    records(report.tables.diversity),
  );
}

// --- coverage ---------------------------------------------------------------------------------

function drawCoverage(root, report) {
  const coverage = records(report.tables.coverage);
  if (coverage.length === 0) {
    root.append(nothing("There is no reasoning path so far."));
    return;
  }
  const isMany = distinct(coverage, "round").length > 1;
  const points = coverage.map((row) => ({
    ...row,
    series: [isOnly(report) ? null : row.run, isMany ? `round ${row.round}` : null, row.dataset]
      .filter((each) => each !== null)
      .join(", "),
    y: 100 * row.coverage,
    text: `k ${row.k}, ${count(Math.round(row.tokens))} tokens: ${percent(row.coverage)} % of ${plural(row.num_questions, "question")}`,
  }));
  const colors = colorsOf(distinct(points, "series"));
  const y = { label: "percent solved", domain: [0, 100] };
  const log = { type: "log", ticks: 6, tickFormat: (number) => count(number) };
  root.append(
    figure(
      "Questions that k paths solve",
      "Paths of the first pass, drawn without replacement.",
      (width) =>
        lines(width, points.map((row) => ({ ...row, x: row.k })), colors, {
          x: { ...log, base: 2, label: "paths a question (k)" }, y, height: 280,
        }),
      colors,
    ),
    figure(
      "The same at equal numbers of tokens",
      "Tokens of all stages of k paths, so that strategies with longer and shorter chains compare fairly.",
      (width) =>
        lines(width, points.map((row) => ({ ...row, x: Math.max(1, row.tokens) })), colors, {
          x: { ...log, label: "generated tokens a question" }, y, height: 280,
        }),
    ),
    ...figuresOfAnswers(points, colors, log),
    diversityTable(report),
    dataTable(
      "coverage", "Coverage in numbers",
      columnsOf("dataset:dataset", "run:run", "round:round:count", "k:k:count", "questions:num_questions:count", "solved, %:coverage:share", "different answers:num_answers:number", "tokens:tokens:number"),
      coverage, { folded: true },
    ),
    dataTable(
      "lengths", "Tokens of the solutions, and how many were cut off",
      columnsOf("dataset:dataset", "run:run", "round:round:count", "verdict:verdict", "paths:num_paths:count", "cut off:num_truncated:count", "mean tokens:mean_tokens:number", "10 %:tokens_10:number", "median:tokens_50:number", "90 %:tokens_90:number"),
      records(report.tables.lengths), { folded: true },
    ),
    dataTable(
      "unsolved_questions", "Questions that no path answered rightly",
      [
        {
          label: "question", key: "question_id", kind: "id",
          cell: (row) => element("a", { href: `#question=${encodeURIComponent(row.question_id)}` }, label(row.question_id, 60)),
        },
        ...columnsOf("run:run", "round:round:count", "dataset:dataset", "kind:kind", "paths:num_paths:count", "read:num_read:count"),
      ],
      records(report.tables.unsolved_questions), { folded: true },
    ),
  );
}
