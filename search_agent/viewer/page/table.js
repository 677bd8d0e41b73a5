// The table of episodes: filtered, sorted, and drawn only where it is looked at.

const ROW = 44, AHEAD = 12;
const COLUMNS = [
  ["question", "Question", "text"], ["answer", "Answer", "text"], ["stage", "Stage", "name"], ["step", "Step", "num"],
  ["reward", "Reward", "num"], ["credit", "Credit", "num"], ["f1", "F1", "num"], ["searches", "Searches", "num"],
  ["evidence", "Evidence", "num"], ["tokens", "Tokens", "num"],
];
const TITLES = {
  credit: "Reward above the mean of the question's group in that step",
  evidence: "Share of the evidence that searches showed",
};
const PRESETS = [
  ["all", ""], ["right", "right=1"], ["wrong", "right=0"], ["evidence found, still wrong", 'verdict="wrong with evidence"'],
  ["right without evidence", 'verdict="right without evidence"'], ["no answer", 'answer="" outcome!=aborted'],
  ["cut off", "outcome=truncated"], ["aborted", "outcome=aborted"],
];

// What the table shows; it stays while episodes are looked at.
const listing = { rows: [], filter: "", sort: null, down: false, at: 0, scroll: 0 };

function refreshListing() {
  const parsed = parseFilter(listing.filter);
  if (parsed.error) return parsed.error;
  const rows = [];
  for (let number = 0; number < data.count; number++) if (parsed.test(number)) rows.push(number);
  if (listing.sort) {
    const keys = sortKeys(listing.sort);
    const way = listing.down ? -1 : 1;
    rows.sort((a, b) => {
      const x = keys(a), y = keys(b);
      if (x === y) return a - b;
      if (x === null || y === null) return x === null ? 1 : -1; // what is not known comes last either way
      return (x < y ? -1 : 1) * way;
    });
  }
  listing.rows = rows;
  return "";
}

function sortKeys(name) {
  if (name === "question") return number => data.question(number).text;
  return number => data.value(name, number);
}

function showTable(view) {
  const several = data.runs.length > 1;
  const columns = several ? [["run", "Run", "name"], ...COLUMNS] : COLUMNS;
  const kept = columns.filter(([name]) => name === "run" || name in data.columns || name in data.parts);
  const box = el("input", { type: "search", id: "filter", value: listing.filter, autocomplete: "off", spellcheck: "false",
    placeholder: "words, or em=0 searches>1 stage:train", "aria-label": "Filter" });
  const counter = el("span.count", { role: "status" });
  const presets = el("div.chips", {}, PRESETS.filter(([, filter]) => usable(filter)).map(([title, filter]) =>
    el("button.chip", { type: "button", "data-filter": filter, onclick: () => { box.value = filter; apply(); } }, title)));
  const head = el("div.row.head", { role: "row" }, el("span.mark"), kept.map(([name, title, kind]) => {
    const button = el(`button.${kind}.c-${name}`, { type: "button", title: TITLES[name] ?? "Sort", role: "columnheader", onclick: () => sortBy(name) }, title);
    button.dataset.name = name;
    return button;
  }));
  const body = el("div.rows", { role: "rowgroup" });
  const frame = el("div.table", { role: "table", tabindex: "0", "aria-label": "Episodes", "aria-rowcount": data.count }, head, body);
  frame.classList.toggle("several", several);
  view.replaceChildren(el("div.tools", {}, box, counter), presets, frame);

  const drawn = new Map();
  let queued = false;
  const draw = () => {
    queued = false;
    const first = Math.max(0, Math.floor(frame.scrollTop / ROW) - AHEAD);
    const last = Math.min(listing.rows.length, Math.ceil((frame.scrollTop + frame.clientHeight) / ROW) + AHEAD);
    for (const [place, node] of drawn) if (place < first || place >= last) { node.remove(); drawn.delete(place); }
    for (let place = first; place < last; place++) if (!drawn.has(place)) {
      const node = tableRow(place, kept);
      drawn.set(place, node);
      body.append(node);
    }
    for (const [place, node] of drawn) node.classList.toggle("at", place === listing.at);
    listing.scroll = frame.scrollTop;
  };
  const redraw = () => { for (const node of drawn.values()) node.remove(); drawn.clear(); body.style.height = `${listing.rows.length * ROW}px`; draw(); };
  const apply = () => {
    listing.filter = box.value;
    const fault = refreshListing();
    box.classList.toggle("wrong", Boolean(fault));
    counter.textContent = fault || `${listing.rows.length.toLocaleString("en")} of ${data.count.toLocaleString("en")}`;
    for (const chip of presets.children) chip.classList.toggle("on", chip.dataset.filter === listing.filter.trim());
    for (const button of head.querySelectorAll("button")) button.setAttribute("aria-sort", button.dataset.name === listing.sort ? (listing.down ? "descending" : "ascending") : "none");
    listing.at = Math.min(listing.at, Math.max(0, listing.rows.length - 1));
    redraw();
  };
  const sortBy = name => {
    if (listing.sort === name && listing.down) listing.sort = null;
    else { listing.down = listing.sort === name; listing.sort = name; }
    apply();
  };
  let pause;
  box.addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(() => { listing.at = 0; frame.scrollTop = 0; apply(); }, 120); });
  frame.addEventListener("scroll", () => { if (!queued) { queued = true; requestAnimationFrame(draw); } }, { passive: true });
  new ResizeObserver(draw).observe(frame);
  const move = by => {
    listing.at = Math.max(0, Math.min(listing.rows.length - 1, listing.at + by));
    const top = listing.at * ROW, seen = frame.clientHeight - head.offsetHeight;
    if (top < frame.scrollTop) frame.scrollTop = top;
    if (top + ROW > frame.scrollTop + seen) frame.scrollTop = top + ROW - seen;
    draw();
  };
  apply();
  frame.scrollTop = listing.scroll;
  draw();
  frame.focus({ preventScroll: true });
  return { ArrowDown: () => move(1), j: () => move(1), ArrowUp: () => move(-1), k: () => move(-1), PageDown: () => move(10), PageUp: () => move(-10),
    Home: () => move(-data.count), End: () => move(data.count), Enter: () => { if (listing.rows.length) go(`#/episode/${listing.rows[listing.at]}`); },
    "/": () => box.focus() };
}

const usable = filter => { const parsed = parseFilter(filter); if (parsed.error) return false; for (let n = 0; n < data.count; n++) if (parsed.test(n)) return true; return false; };

function tableRow(place, columns) {
  const number = listing.rows[place];
  const row = el("a.row", { href: `#/episode/${number}`, role: "row", tabindex: "-1", onclick: () => { listing.at = place; } },
    el("span.mark", { title: data.value("verdict", number) }, verdictMark(number)), columns.map(([name, , kind]) => cell(name, kind, number)));
  row.style.transform = `translateY(${place * ROW}px)`;
  return row;
}

function verdictMark(number) {
  const outcome = data.value("outcome", number);
  const tone = outcome === "aborted" ? "gone" : data.right(number) ? "good" : "bad";
  return el(`i.dotmark.${tone}`, { "aria-label": outcome === "aborted" ? "aborted" : data.right(number) ? "right" : "wrong" });
}

function cell(name, kind, number) {
  const node = el(`span.${kind}.c-${name}`, { role: "cell" });
  if (name === "question") node.textContent = data.question(number).text;
  else if (name === "run") node.textContent = data.run(number);
  else if (name === "stage") node.textContent = stageTitle(data.value(name, number));
  else if (name === "answer") node.textContent = data.value(name, number) ?? "no answer";
  else {
    const value = data.value(name, number);
    node.textContent = name === "credit" && value > 0 ? `+${value.toFixed(2)}` : number_(name, value);
    if (name === "credit" && value) node.classList.add(value > 0 ? "up" : "down");
  }
  if (name === "answer" && data.value(name, number) === null) node.classList.add("muted");
  return node;
}

const number_ = (name, value) => name === "evidence" ? percent(value) : number(value, 2);
