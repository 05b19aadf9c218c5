"use strict";
// Tables that sort, filter and choose columns; scatter plots that answer mouse, finger and keys.

// ---- tables -------------------------------------------------------------------------------------

function cellValue(row, column) {
  const cell = row.cells[column];
  return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
}

function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === ""); // empty cells last
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), "en", { numeric: true });
}

function sortBy(head) {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  const byValue = (a, b) => compare(cellValue(a, column), cellValue(b, column), sign);
  body.append(...[...body.rows].sort(byValue));
}

function filterRows(board, text) {
  const rows = [...board.querySelector("tbody").rows];
  for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(text.toLowerCase());
  const shown = rows.filter(row => !row.hidden).length;
  board.querySelector("output").textContent =
    shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
}

function showColumns(board, style) {
  const off = [...board.querySelectorAll("[data-column]")].filter(box => !box.checked);
  const table = `#${CSS.escape(board.dataset.table)}`;
  style.textContent = off
    .map(box => `${table} tr > :nth-child(${Number(box.dataset.column) + 1}) { display: none; }`)
    .join("\n");
}

for (const board of document.querySelectorAll(".board")) {
  const style = document.head.appendChild(document.createElement("style"));
  const search = board.querySelector("[type=search]");
  for (const button of board.querySelectorAll("thead button"))
    button.onclick = () => sortBy(button.parentElement);
  search.oninput = () => filterRows(board, search.value);
  board.querySelector(".columns").onchange = () => showColumns(board, style);
  showColumns(board, style);
}

function goToRow(id) {
  const row = document.getElementById(id);
  if (!row) return;
  const board = row.closest(".board");
  if (row.hidden) filterRows(board, (board.querySelector("[type=search]").value = ""));
  document.querySelector("tr.at")?.classList.remove("at");
  row.classList.add("at");
  row.scrollIntoView({ block: "center" });
  (row.querySelector("a") ?? row.closest(".scroll")).focus({ preventScroll: true });
}

// ---- pictures -----------------------------------------------------------------------------------

const { colours, ...pictures } = JSON.parse(document.getElementById("pictures").textContent);
const REACH = 28; // pixels between a point and the finger or mouse that asks for it
const MOST_NAMED = 10;
const KINDS = ["group", "family"]; // what colours tell apart

/** A new last child, in the namespace (HTML or SVG) of its parent. */
function make(parent, name, attributes = {}, text = "") {
  const element = document.createElementNS(parent.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return parent.appendChild(element);
}

function ticks(low, high, isLog) {
  const found = [];
  if (isLog) {
    for (let power = Math.floor(low); power <= high; power++)
      for (const digit of [1, 2, 5]) found.push(Math.log10(digit) + power);
    return found.filter(value => value >= low && value <= high);
  }
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(digit => digit * power >= rough);
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) found.push(value);
  return found;
}

/** Pixel of a value of an axis whose values lie between two pixels. */
function makeScale(axis, values, from, to) {
  const of = value => (axis.log ? Math.log10(value) : value);
  const known = values.map(of).filter(Number.isFinite);
  const low = Math.min(...known), high = Math.max(...known);
  const margin = 0.06 * (high - low) || 0.5;
  const pixel = value =>
    from + ((to - from) * (value - low + margin)) / (high - low + 2 * margin);
  const places = ticks(low - margin, high + margin, axis.log).map(value => ({
    pixel: pixel(value),
    text: String(Number((axis.log ? 10 ** value : value).toPrecision(4))),
  }));
  const ends = [Math.min(from, to), Math.max(from, to)]; // of bars beyond the picture
  const clipped = value => Math.min(ends[1], Math.max(ends[0], pixel(of(value)) || ends[0]));
  return { of: clipped, ticks: places };
}

class Picture {
  constructor(figure) {
    Object.assign(this, { figure, list: pictures[figure.dataset.pictures], off: new Set() });
    const choice = make(figure, "div", { class: "choice" });
    this.which = this.select(choice, "Picture", this.list.map(one => one.name));
    this.by = this.select(choice, "Colours", KINDS);
    this.which.parentElement.hidden = this.list.length < 2;
    figure.insertAdjacentHTML("beforeend", '<svg tabindex="0" role="application"></svg>');
    this.svg = figure.querySelector("svg");
    this.card = make(figure, "div", { class: "card", role: "status" });
    this.legend = make(figure, "div", { class: "legend", role: "group", "aria-label": "Shown" });
    this.note = make(figure, "figcaption");
    this.svg.onpointermove = event => event.pointerType !== "touch" && this.show(this.near(event));
    this.svg.onpointerleave = event => event.pointerType !== "touch" && this.show();
    this.svg.onclick = event => this.click(event);
    this.svg.onkeydown = event => this.key(event);
    this.choose(true);
    new ResizeObserver(() => this.draw()).observe(figure);
  }

  select(parent, name, options) {
    const label = make(parent, "label", {}, name);
    const select = make(label, "select");
    for (const [i, text] of options.entries()) make(select, "option", { value: i }, text);
    select.onchange = () => this.choose(select === this.which);
    return select;
  }

  /** Take the picture and colours that are chosen, and begin with all groups of its points. */
  choose(isNew) {
    this.picture = this.list[this.which.value];
    const { points } = this.picture;
    const telling = KINDS.filter(kind => new Set(points.map(point => point[kind])).size > 1);
    const others = kind => points.filter(point => point[kind] === "Other").length;
    if (isNew) this.by.value = others("group") <= others("family") ? 0 : 1;
    this.kind = telling.length > 1 ? KINDS[this.by.value] : telling[0] ?? "group";
    this.by.parentElement.hidden = telling.length < 2;
    this.off.clear();
    this.note.textContent = this.picture.note;
    this.svg.setAttribute(
      "aria-label",
      `${this.picture.name}. Arrow keys go from model to model, Enter to its row in the table.`,
    );
    this.legend.replaceChildren();
    const all = Object.entries(colours[this.kind]);
    for (const [name, colour] of all) this.addSwitch(name, colour);
    this.draw();
  }

  addSwitch(name, colour) {
    const count = this.picture.points.filter(point => point[this.kind] === name).length;
    if (!count) return;
    const style = `--colour: ${colour}`;
    const button = make(
      this.legend, "button", { type: "button", "aria-pressed": true, style }, `${name} (${count})`,
    );
    button.onclick = () => {
      if (!this.off.delete(name)) this.off.add(name);
      button.setAttribute("aria-pressed", !this.off.has(name));
      this.draw();
    };
  }

  draw() {
    const width = this.figure.clientWidth, large = window.innerWidth >= 1600;
    if (!width) return;
    const height = Math.round(Math.max(330, Math.min(0.56 * width, 0.62 * window.innerHeight)));
    const top = large ? 38 : 30, left = large ? 58 : 44, bottom = height - (large ? 58 : 46);
    const { points, x, y } = this.picture;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren();
    const isFew = points.length <= MOST_NAMED; // few have their bars drawn at once
    const valuesOf = name => [
      ...points.map(point => point[name]),
      ...(isFew ? points.flatMap(point => point[`${name}_bar`] ?? []) : []),
    ];
    this.x = makeScale(x, valuesOf("x"), left, width - 12);
    this.y = makeScale(y, valuesOf("y"), bottom, top);
    this.drawAxes(left, width - 12, top, bottom);
    this.drawFront();
    this.shown = points.filter(point => !this.off.has(point[this.kind]));
    if (isFew) for (const point of this.shown) this.drawBars(this.svg, point);
    const isOwn = point => Number(point.own);
    for (const point of [...this.shown].sort((a, b) => isOwn(a) - isOwn(b))) this.drawPoint(point);
    this.drawNames(width);
    this.bars = make(this.svg, "g");
    this.show();
  }

  drawAxes(left, right, top, bottom) {
    for (const { pixel, text } of this.x.ticks) {
      make(this.svg, "line", { class: "grid", x1: pixel, x2: pixel, y1: top, y2: bottom });
      make(this.svg, "text", { x: pixel, y: bottom + 18, "text-anchor": "middle" }, text);
    }
    for (const { pixel, text } of this.y.ticks) {
      make(this.svg, "line", { class: "grid", x1: left, x2: right, y1: pixel, y2: pixel });
      make(this.svg, "text", { x: left - 6, y: pixel + 4, "text-anchor": "end" }, text);
    }
    const end = { x: right, y: bottom + 38, "text-anchor": "end", class: "label" };
    make(this.svg, "text", end, this.picture.x.label);
    make(this.svg, "text", { x: 0, y: 14, class: "label" }, this.picture.y.label);
  }

  /** The staircase that bounds what the models of the front dominate. */
  drawFront() {
    const place = name => this.picture.points.find(point => point.model === name);
    const [first, ...others] = this.picture.front.map(place);
    if (!others.length) return;
    const steps = others.map(({ x, y }) => `V${this.y.of(y)}H${this.x.of(x)}`).join("");
    const d = `M${this.x.of(first.x)},${this.y.of(first.y)}${steps}`;
    make(this.svg, "path", { class: "front", d });
  }

  drawPoint(point) {
    const radius = (this.picture.points.length > 60 ? 4 : 6) + (point.own ? 2 : 0);
    const place = { cx: this.x.of(point.x), cy: this.y.of(point.y), r: radius };
    const look = { fill: colours[this.kind][point[this.kind]], class: point.own ? "own" : "" };
    point.circle = make(this.svg, "circle", { ...place, ...look });
  }

  /** Names of our own models, or of all if they are few; one that would cover another is left. */
  drawNames(width) {
    const own = this.shown.filter(point => point.own);
    const named = own.length ? own : this.shown;
    const taken = [];
    for (const point of named.length > MOST_NAMED ? [] : named) {
      const x = this.x.of(point.x), y = this.y.of(point.y), isRight = x > 0.6 * width;
      if (taken.some(other => Math.abs(other.y - y) < 14 && Math.abs(other.x - x) < 220)) continue;
      taken.push({ x, y });
      const anchor = isRight ? "end" : "start";
      const place = { x: x + (isRight ? -9 : 9), y: y - 6, "text-anchor": anchor };
      make(this.svg, "text", { ...place, class: "mine" }, point.model);
    }
  }

  near(event) {
    const box = this.svg.getBoundingClientRect();
    const away = point =>
      Math.hypot(
        this.x.of(point.x) - (event.clientX - box.left),
        this.y.of(point.y) - (event.clientY - box.top),
      );
    const [nearest] = [...this.shown].sort((a, b) => away(a) - away(b));
    return nearest && away(nearest) <= REACH ? nearest : undefined;
  }

  show(point, isPinned = false) {
    if (this.card.classList.contains("pinned") && !isPinned && point === this.at) return;
    this.at?.circle?.classList.remove("at");
    this.bars.replaceChildren();
    this.card.replaceChildren();
    this.card.classList.toggle("pinned", isPinned);
    this.svg.style.cursor = point ? "pointer" : "";
    this.at = point;
    if (!point) return;
    point.circle.classList.add("at");
    this.drawBars(this.bars, point);
    this.fillCard(point, isPinned);
    const above = this.svg.getBoundingClientRect().top - this.figure.getBoundingClientRect().top;
    const x = this.x.of(point.x), y = above + this.y.of(point.y);
    const right = this.figure.clientWidth - this.card.offsetWidth;
    this.card.style.left = `${Math.max(0, Math.min(x + 12, right))}px`;
    this.card.style.top = `${y + 12}px`;
  }

  drawBars(parent, { x, y, x_bar, y_bar }) {
    const at = { x1: this.x.of(x), x2: this.x.of(x), y1: this.y.of(y), y2: this.y.of(y) };
    const [left, right] = (x_bar ?? [x, x]).map(this.x.of);
    const [low, high] = (y_bar ?? [y, y]).map(this.y.of);
    make(parent, "line", { ...at, x1: left, x2: right, class: "bar" });
    make(parent, "line", { ...at, y1: low, y2: high, class: "bar" });
  }

  fillCard(point, isPinned) {
    const kinds = [...new Set([point.group, point.family])].join(", ");
    make(this.card, "strong", {}, point.model);
    make(this.card, "span", {}, kinds);
    for (const name of ["x", "y"]) {
      const { label, digits } = this.picture[name], bar = point[`${name}_bar`];
      const interval = bar ? ` [${bar.map(value => value.toFixed(digits)).join(", ")}]` : "";
      const value = point[name].toFixed(digits);
      make(this.card, "span", {}, `${label.split(":")[0]}: ${value}${interval}`);
    }
    const row = document.getElementById(point.row);
    if (!isPinned || !row) return;
    const link = make(this.card, "a", { href: `#${point.row}` }, "row");
    link.onclick = event => (event.preventDefault(), goToRow(point.row));
    const record = row.querySelector("a");
    if (record) make(this.card, "a", { href: record.getAttribute("href") }, "record");
  }

  /** A mouse goes to the row; a finger, which cannot hover, first gets name, values and links. */
  click(event) {
    const point = this.near(event);
    if (point && event.pointerType === "mouse") goToRow(point.row);
    else this.show(point, Boolean(point));
  }

  key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (event.key === "Enter" && this.at) goToRow(this.at.row);
    if (event.key === "Escape") this.show();
    if (!step) return;
    event.preventDefault();
    const along = event.key === "ArrowUp" || event.key === "ArrowDown" ? "y" : "x";
    const order = [...this.shown].sort((a, b) => a[along] - b[along]);
    const start = step > 0 ? -1 : order.length;
    const next = (this.at ? order.indexOf(this.at) : start) + step;
    this.show(order[Math.min(order.length - 1, Math.max(0, next))]);
  }
}

for (const figure of document.querySelectorAll(".picture")) new Picture(figure);
