"use strict";
// The browser of paths: filters, search, the list and the lineage of what is chosen.
//
//   startPathBrowser(section, index, (number) => promise of a chunk)
//
// The address holds the state, so that every view has a link: `#path=ID`, `#question=ID`,
// `#filter=guideline:ID&verdict:wrong`.

const PATH_KEYS = [
  ["j, \u2193", "the next one"],
  ["k, \u2191", "the one before"],
  ["Home, End, Page \u2191, Page \u2193", "further at once"],
  ["Enter", "go to its lineage"],
  ["Esc", "back to the list; there, remove the filters"],
  ["/", "search"],
  ["?", "this help"],
];

function startPathBrowser(root, index, openChunk) {
  return new PathBrowser(root, index, openChunk);
}

class PathBrowser {
  constructor(root, raw, openChunk) {
    this.root = root;
    this.index = new PathIndex(raw);
    this.texts = new PathTexts(this.index, openChunk);
    this.filters = new Map();
    this.hits = null;
    this.number = -1;
    this.searches = 0;
    this.list = new PathList(
      this.index,
      (number) => this.open(number),
      () => this.lookAtPane(),
    );
    this.pane = element("article", {
      class: "pane",
      tabindex: "-1",
      "aria-label": "Lineage",
    });
    this.lineage = new PathPane(this.pane, this.index);
    this.build();
    document.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("hashchange", () => this.follow());
    this.follow();
  }

  // --- what is there ---

  build() {
    this.status = element("p", { class: "status", role: "status" });
    this.search = element("input", {
      type: "search",
      placeholder: "Search all texts ( / )",
      "aria-label": "Search all texts",
      spellcheck: "false",
      autocomplete: "off",
      maxlength: 200,
    });
    this.search.addEventListener("input", () => this.searchSoon());
    this.progress = element("progress", { max: 1, value: 0, hidden: true, "aria-label": "Search" });
    this.selects = new Map();
    for (const field of this.index.raw.fields)
      if (field.values.length > 1) this.selects.set(field.name, this.select(field));
    this.chips = element("div", { class: "chips" });
    this.help = this.buildHelp();
    const button = (text, run) => element("button", { type: "button", onclick: run }, text);
    this.root.classList.add("paths");
    this.root.replaceChildren(
      element("h2", {}, "Paths"),
      ...this.sampleNote(),
      element(
        "form",
        { class: "filters", onsubmit: (event) => event.preventDefault() },
        element("div", { class: "search" }, this.search, this.progress),
        ...[...this.selects.values()].map(({ row }) => row),
      ),
      element(
        "div",
        { class: "bar" },
        this.status,
        this.chips,
        element(
          "span",
          { class: "buttons" },
          button("Remove filters", () => this.set(new Map())),
          button("CSV of this list", () => this.saveList()),
          button("Keys ( ? )", () => this.help.showModal()),
        ),
      ),
      element("div", { class: "columns" }, this.list.root, this.pane),
      this.help,
    );
  }

  select(field) {
    const select = element("select", { "data-field": field.name });
    select.addEventListener("change", () => {
      const filters = new Map(this.filters);
      if (select.value === "") filters.delete(field.name);
      else filters.set(field.name, field.values[Number(select.value)]);
      this.set(filters);
    });
    return { select, row: element("label", {}, element("span", {}, field.title), select) };
  }

  sampleNote() {
    const { sample } = this.index.raw;
    if (!sample) return [];
    if (!sample.paths) return [linksOfPart(sample)];
    const of = ({ shown, total, every }, what) =>
      every === 1 ? "" : `${count(shown)} of ${count(total)} ${what} (every ${every}th block)`;
    const counts = [of(sample.paths, "paths"), of(sample.answers, "held-out answers")];
    return [
      element(
        "p",
        { class: "sample" },
        `This file has a sample: ${counts.filter(Boolean).join(" and ")}. `,
        element("a", { href: sample.parts }, "All of them are in the folder of parts."),
      ),
    ];
  }

  buildHelp() {
    const close = element("button", { type: "button" }, "Close");
    const rows = PATH_KEYS.map(([keys, what]) =>
      element("tr", {}, element("th", { scope: "row" }, keys), element("td", {}, what)),
    );
    const help = element(
      "dialog",
      { class: "help", "aria-label": "Keys" },
      element("h3", {}, "Keys"),
      element("table", {}, ...rows),
      close,
    );
    close.addEventListener("click", () => help.close());
    return help;
  }

  // --- what is shown ---

  /** Show what the address asks for. */
  follow() {
    const asked = readPathAddress(location.hash);
    if (asked === null) {
      if (!this.isShown) this.show();
      if (location.hash === "#paths") stayInView(this.root);
      return;
    }
    this.filters = asked.filters;
    this.search.value = asked.filters.get("text") ?? "";
    const number = asked.path === null ? -1 : this.index.find(asked.path, asked.run);
    stayInView(this.root);
    this.refresh(number).then(() => {
      if (number >= 0) this.lookAtPane();
      if (asked.path !== null && number < 0) this.missing("path", asked.path);
      else if (this.filters.has("question") && !this.list.numbers.length)
        this.missing("question", this.filters.get("question"));
    });
  }

  /** Where the lineage is below the list, as on a phone, scroll to it. */
  lookAtPane() {
    if (this.pane.offsetTop > this.list.root.offsetTop) stayInView(this.pane);
  }

  missing(kind, id) {
    const { sample } = this.index.raw;
    const text = `This file has no ${kind} ${label(id, 200)}. `;
    const link = sample
      ? element("a", { href: `${sample.parts}#${kind}=${encodedPart(id)}` }, "Look in the parts.")
      : "The address may be of another run.";
    this.pane.replaceChildren(element("p", {}, text, link));
  }

  /** Set the filters. */
  set(filters) {
    this.filters = filters;
    this.search.value = filters.get("text") ?? "";
    this.refresh(this.number);
  }

  searchSoon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      const filters = new Map(this.filters);
      const text = this.search.value.trim();
      if (text) filters.set("text", text);
      else filters.delete("text");
      this.filters = filters;
      this.refresh(this.number);
    }, 150);
  }

  /** Search if that is needed, then show what the filters leave, with one record open. */
  async refresh(number) {
    const text = this.filters.get("text") ?? "";
    this.words = searchWords(text);
    if (this.searchedFor !== text) {
      this.searches += 1;
      const own = this.searches;
      this.searchedFor = text;
      this.hits = this.words.length ? await this.find(own) : null;
      if (this.searches !== own) return;
    }
    this.number = number;
    this.show();
    if (number >= 0) await this.draw(number);
    this.remember();
  }

  async find(own) {
    this.progress.hidden = false;
    this.status.textContent = "Searching \u2026";
    const hits = await this.texts.search(
      this.words,
      () => this.searches === own,
      (share) => {
        this.progress.value = share;
      },
    );
    if (this.searches === own) this.progress.hidden = true;
    return hits;
  }

  show() {
    this.isShown = true;
    const filters = new Map([...this.filters].filter(([name]) => name !== "text"));
    const numbers = this.index.matching(filters, this.hits);
    const all = this.index.size;
    this.status.textContent =
      numbers.length === all ? plural(all, "record") : `${count(numbers.length)} of ${count(all)}`;
    for (const [name, { select }] of this.selects) this.fill(name, select, filters);
    this.drawChips();
    this.list.show(numbers, this.number);
    if (this.number < 0)
      this.pane.replaceChildren(element("p", { class: "fact" }, "Choose a line to see its lineage."));
  }

  fill(name, select, filters) {
    const { values } = this.index.fields.get(name);
    const counts = this.index.counts(name, filters, this.hits);
    const chosen = values.indexOf(filters.get(name));
    const options = [element("option", { value: "" }, "all")];
    values.forEach((value, code) => {
      if (counts[code] === 0 && code !== chosen) return;
      const shown = value === "" ? "(none)" : label(value.replaceAll("_", " "), 40);
      options.push(element("option", { value: code }, `${shown} (${count(counts[code])})`));
    });
    select.replaceChildren(...options);
    select.value = chosen < 0 ? "" : String(chosen);
    select.classList.toggle("set", chosen >= 0);
  }

  /** The filters that have no menu. */
  drawChips() {
    const others = [...this.filters].filter(([name]) => name !== "text" && !this.selects.has(name));
    const chips = others.map(([name, value]) =>
      element(
        "button",
        {
          type: "button",
          class: "chip",
          "aria-label": `Remove the filter ${label(name, 20)}: ${label(value)}`,
          onclick: () => {
            const filters = new Map(this.filters);
            filters.delete(name);
            this.set(filters);
          },
        },
        `${label(name, 20)}: ${label(value)} \u00d7`,
      ),
    );
    this.chips.replaceChildren(...chips);
  }

  /** Open a record. */
  async open(number) {
    this.number = number;
    await this.draw(number);
    this.remember();
  }

  async draw(number) {
    const record = await this.texts.record(number);
    if (this.number !== number) return;
    this.lineage.draw(number, record, this.words ?? []);
    this.pane.append(this.links(number));
  }

  links(number) {
    const question = this.index.questionOf(number);
    const [id, run] = [this.index.raw.ids[number], this.index.runOf(number)];
    const address = pathAddress(new Map(), id, run);
    const ofQuestion = pathAddress(new Map([["question", question]]), null);
    return element(
      "p",
      { class: "links" },
      element("a", { href: address }, "Link to this"),
      element("a", { href: ofQuestion }, "All of this question"),
      element("button", { type: "button", onclick: () => this.list.root.focus() }, "Back to the list"),
    );
  }

  /** Write the state into the address, without an entry in the history. */
  remember() {
    const isOpen = this.number >= 0;
    const id = isOpen ? this.index.raw.ids[this.number] : null;
    const address = pathAddress(this.filters, id, isOpen ? this.index.runOf(this.number) : null);
    if (address !== location.hash) history.replaceState(null, "", address || "#paths");
  }

  // --- keys ---

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || this.help.open) return;
    const focus = document.activeElement;
    const isOurs = this.root.contains(focus) || focus === document.body || focus === null;
    if (!isOurs || !(this.root.contains(focus) || this.isInView())) return;
    const isTyping = focus !== null && focus.matches("input, select, textarea");
    const done = isTyping ? this.keyInField(event, focus) : this.keyInList(event, focus);
    if (done) event.preventDefault();
  }

  isInView() {
    const { top, bottom } = this.root.getBoundingClientRect();
    return top < window.innerHeight && bottom > 0;
  }

  keyInField(event, focus) {
    if (event.key !== "Escape" && !(event.key === "Enter" && focus === this.search)) return false;
    this.list.root.focus();
    return true;
  }

  keyInList(event, focus) {
    const isInList = focus === this.list.root;
    const moves = { j: 1, k: -1 };
    if (isInList)
      Object.assign(moves, {
        ArrowDown: 1,
        ArrowUp: -1,
        PageDown: this.list.linesInView,
        PageUp: -this.list.linesInView,
        Home: -this.index.size,
        End: this.index.size,
      });
    if (event.key in moves) {
      if (!this.pane.contains(focus)) this.list.root.focus({ preventScroll: true });
      this.list.move(moves[event.key]);
    } else if (event.key === "/") this.search.focus();
    else if (event.key === "?") this.help.showModal();
    else if (event.key === "Escape" && !isInList) this.list.root.focus();
    else if (event.key === "Escape") this.set(new Map());
    else if (event.key === "Enter" && isInList) this.enter();
    else return false;
    return true;
  }

  enter() {
    if (this.list.active < 0) this.list.choose(0);
    this.pane.focus();
  }

  // --- the list as a file ---

  saveList() {
    const names = this.index.raw.fields.map((field) => field.name);
    const rows = this.list.numbers.map((number) => ({
      id: this.index.raw.ids[number],
      question: this.index.questionOf(number),
      ...Object.fromEntries(names.map((name) => [name, this.index.value(name, number)])),
      predicted: this.index.raw.predicted[number],
      tokens: this.index.raw.tokens[number],
    }));
    saveFile("paths.csv", "text/csv", csvText(rows));
  }
}

let endStay = () => {};

/** Scroll to an element, and again while what is above it is still being drawn; not once the reader
 * has begun to do something. */
function stayInView(target) {
  endStay();
  const observer = new ResizeObserver(() => target.scrollIntoView());
  const acts = ["wheel", "pointerdown", "touchstart", "keydown"];
  endStay = () => {
    observer.disconnect();
    for (const act of acts) window.removeEventListener(act, endStay);
  };
  for (const act of acts) window.addEventListener(act, endStay, { passive: true });
  setTimeout(endStay, 10000);
  target.scrollIntoView();
  observer.observe(document.body);
}

/** Offer a text as a file to save. */
function saveFile(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = element("a", { href: address, download: name, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

/** From a part to the report, to all parts, and to its neighbours. */
function linksOfPart({ report, parts, previous, next }) {
  const links = [
    [report, "Report"],
    [parts, "All parts"],
    [previous, "Part before"],
    [next, "Next part"],
  ].filter(([address]) => address !== null);
  return element(
    "nav",
    { class: "parts", "aria-label": "Parts" },
    links.map(([address, text]) => element("a", { href: address }, text)),
  );
}

// --- the index of parts --------------------------------------------------------------------------

/** The page that names all parts, and leads to the one with a path or question. */
function drawPathParts(root, { report, pages: parts }) {
  const input = element("input", { type: "search", "aria-label": "Id of a question or a path" });
  const found = element("p", { role: "status" });
  const find = (id, kind) => {
    const place = parts.findIndex((part) =>
      part.questions.some((each) => each === id || (kind !== "question" && id.includes(each))),
    );
    const wanted = kind ?? (parts[place]?.questions.includes(id) ? "question" : "path");
    if (place < 0) found.textContent = `No part has ${label(id, 200)}.`;
    else {
      const address = `${parts[place].page}#${wanted}=${encodedPart(id)}`;
      found.replaceChildren(element("a", { href: address }, `It is in ${parts[place].page}.`));
    }
  };
  input.addEventListener("input", () => input.value.trim() && find(input.value.trim(), null));
  const rows = parts.map(({ page, kind, number, questions }) =>
    element(
      "tr",
      {},
      element("td", {}, element("a", { href: page }, page)),
      element("td", {}, plural(number, kind === "paths" ? "path" : "held-out question")),
      element("td", {}, `${label(questions[0], 60)} \u2026 ${label(questions.at(-1), 60)}`),
    ),
  );
  root.classList.add("paths");
  root.replaceChildren(
    element("h2", {}, "All paths, in parts"),
    element("p", {}, element("a", { href: report }, "Back to the report")),
    element("p", {}, element("label", {}, "Question or path: ", input)),
    found,
    element("div", { class: "wide" }, element("table", {}, ...rows)),
  );
  const follow = () => {
    const asked = readPathAddress(location.hash);
    if (asked?.path) find(asked.path, "path");
    else if (asked?.filters.has("question")) find(asked.filters.get("question"), "question");
  };
  window.addEventListener("hashchange", follow);
  follow();
}
