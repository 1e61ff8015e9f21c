"use strict";
// The list of records. Only the lines that can be seen are in the page.

const PATH_LINE_PX = 52;
const PATH_LINES_BEYOND = 4;

class PathList {
  /** `onOpen` gets the number of the record whose line was chosen; after a click `onLook` brings
   * its lineage into view. */
  constructor(index, onOpen, onLook) {
    this.index = index;
    this.onOpen = onOpen;
    this.onLook = onLook;
    this.numbers = [];
    this.active = -1;
    this.space = element("div", { class: "space" });
    this.root = element(
      "div",
      { class: "lines", role: "listbox", tabindex: "0", "aria-label": "Paths and answers" },
      this.space,
    );
    this.root.addEventListener("scroll", () => this.redrawSoon(), { passive: true });
    this.root.addEventListener("click", (event) => {
      const line = event.target.closest("[data-place]");
      if (line === null) return;
      this.choose(Number(line.dataset.place));
      this.onLook();
    });
    new ResizeObserver(() => this.redrawSoon()).observe(this.root);
  }

  /** Show these records; the line of `number` stays active if it is among them. */
  show(numbers, number) {
    this.numbers = numbers;
    this.active = numbers.indexOf(number);
    this.space.style.height = `${numbers.length * PATH_LINE_PX}px`;
    const middle = this.active * PATH_LINE_PX - (this.root.clientHeight - PATH_LINE_PX) / 2;
    this.root.scrollTop = this.active < 0 ? 0 : middle;
    this.redraw();
  }

  /** Make a line the active one and open its record. */
  choose(place) {
    if (!this.numbers.length) return;
    this.active = Math.min(Math.max(place, 0), this.numbers.length - 1);
    this.reveal();
    this.redraw();
    this.onOpen(this.numbers[this.active]);
  }

  move(by) {
    this.choose(this.active < 0 ? 0 : this.active + by);
  }

  get linesInView() {
    return Math.max(1, Math.floor(this.root.clientHeight / PATH_LINE_PX) - 1);
  }

  reveal() {
    const top = this.active * PATH_LINE_PX;
    const height = this.root.clientHeight;
    if (top < this.root.scrollTop) this.root.scrollTop = top;
    else if (top + PATH_LINE_PX > this.root.scrollTop + height)
      this.root.scrollTop = top + PATH_LINE_PX - height;
  }

  redrawSoon() {
    if (this.isWaiting) return;
    this.isWaiting = true;
    requestAnimationFrame(() => {
      this.isWaiting = false;
      this.redraw();
    });
  }

  redraw() {
    const first = Math.floor(this.root.scrollTop / PATH_LINE_PX) - PATH_LINES_BEYOND;
    const shown = Math.ceil(this.root.clientHeight / PATH_LINE_PX) + 2 * PATH_LINES_BEYOND;
    const from = Math.max(0, first);
    const to = Math.min(this.numbers.length, from + shown);
    const lines = [];
    for (let place = from; place < to; place += 1) lines.push(this.line(place));
    this.space.replaceChildren(...lines);
    const isDrawn = this.active >= from && this.active < to;
    if (isDrawn) this.root.setAttribute("aria-activedescendant", `path-line-${this.active}`);
    else this.root.removeAttribute("aria-activedescendant");
  }

  line(place) {
    const number = this.numbers[place];
    const value = (name) => this.index.value(name, number);
    const isHeldOut = value("round") === "held-out";
    const facts = [
      this.index.raw.predicted[number] ? `answer ${label(this.index.raw.predicted[number])}` : "",
      lineOutcome(value("outcome"), isHeldOut),
      ["finished", value("outcome"), value("verdict")].includes(value("ended"))
        ? ""
        : value("ended"),
      plural(this.index.raw.tokens[number], "token"),
    ];
    const made = value("guideline") || value("round");
    const line = element(
      "div",
      {
        class: place === this.active ? "line active" : "line",
        role: "option",
        id: `path-line-${place}`,
        "data-place": place,
        "aria-selected": place === this.active ? "true" : "false",
        "aria-setsize": this.numbers.length,
        "aria-posinset": place + 1,
      },
      element(
        "div",
        { class: "first" },
        verdictBadge(value("verdict")),
        element("span", { class: "name" }, label(this.index.questionOf(number), 60)),
        element("span", { class: "made" }, label(made, 40)),
      ),
      element("div", { class: "second" }, facts.filter(Boolean).join(" \u00b7 ")),
    );
    line.style.top = `${place * PATH_LINE_PX}px`;
    return line;
  }
}

function lineOutcome(outcome, isHeldOut) {
  if (isHeldOut || PATH_OUTCOMES.has(outcome)) return label(outcome, 40);
  return `dropped: ${label(outcome.replaceAll("_", " "), 40)}`;
}
