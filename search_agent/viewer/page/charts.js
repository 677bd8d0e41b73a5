// Line charts and bars, drawn once at a fixed width and scaled by the browser.

const WIDE = 420, TALL = 200, LEFT = 42, BOTTOM = 22, TOP = 8, RIGHT = 10;

// Round values from low to high, about as many as wanted, at least so far apart.
function ticks(low, high, wanted = 4, least = 0) {
  const raw = (high - low) / wanted || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = Math.max(least, [1, 2, 5, 10].find(factor => factor * power >= raw) * power);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
  return found;
}

const short = value => Math.abs(value) >= 1e4 ? value.toExponential(0) : String(+value.toPrecision(3));

// series: [{ name, xs, ys, tone, dash, sizes }]: tone and dash are indices into colours and strokes, sizes radii of dots. floor and ceiling bound the axis.
function lineChart(title, series, { floor = null, ceiling = null, xTitle = "step" } = {}) {
  const shown = series.filter(line => line.xs.length);
  const all = (pick, fallback) => {
    const values = shown.flatMap(pick);
    return values.length ? extremes(values) : fallback;
  };
  let [x0, x1] = all(line => [line.xs[0], line.xs.at(-1)], [0, 1]);
  let [y0, y1] = all(line => extremes(line.ys), [0, 1]);
  if (floor !== null) y0 = Math.min(floor, y0);
  if (ceiling !== null) y1 = Math.max(ceiling, y1);
  if (y0 === y1) [y0, y1] = [y0 - 0.5, y1 + 0.5];
  if (x0 === x1) [x0, x1] = [x0 - 1, x1 + 1];
  const x = value => LEFT + (value - x0) / (x1 - x0) * (WIDE - LEFT - RIGHT);
  const y = value => TALL - BOTTOM - (value - y0) / (y1 - y0) * (TALL - BOTTOM - TOP);
  const picture = svg("svg.chart", { viewBox: `0 0 ${WIDE} ${TALL}`, role: "img", "aria-label": `${title} over ${xTitle}` });
  for (const tick of ticks(y0, y1)) picture.append(
    svg("line.rule", { x1: LEFT, x2: WIDE - RIGHT, y1: y(tick), y2: y(tick) }),
    svg("text.tick", { x: LEFT - 6, y: y(tick) + 3.5, "text-anchor": "end" }, short(tick)));
  for (const tick of ticks(x0, x1, 5, 1)) picture.append(
    svg("text.tick", { x: x(tick), y: TALL - 6, "text-anchor": "middle" }, short(tick)));
  for (const line of shown) {
    picture.append(svg(`polyline.line.tone${line.tone}.dash${line.dash ?? 0}`, { points: line.xs.map((v, i) => `${x(v)},${y(line.ys[i])}`).join(" ") }));
    if (line.xs.length < 30) picture.append(...line.xs.map((v, i) =>
      svg(`circle.dot.tone${line.tone}`, { cx: x(v), cy: y(line.ys[i]), r: line.sizes?.[i] ?? 2.6 })));
  }
  const cursor = svg("line.cursor", { y1: TOP, y2: TALL - BOTTOM, x1: -9, x2: -9 });
  picture.append(cursor);
  const legend = el("figcaption", {}, el("b", {}, title), ...shown.map(line => el(`span.key.tone${line.tone}.dash${line.dash ?? 0}`, {}, line.name, el("output"))));
  const told = [...legend.querySelectorAll("output")];
  const tell = event => {
    const box = picture.getBoundingClientRect();
    const wanted = x0 + ((event.clientX - box.left) / box.width * WIDE - LEFT) / (WIDE - LEFT - RIGHT) * (x1 - x0);
    const at = nearest(shown.flatMap(line => line.xs), wanted);
    cursor.setAttribute("x1", x(at)); cursor.setAttribute("x2", x(at));
    shown.forEach((line, i) => { const place = line.xs.indexOf(at); told[i].textContent = place < 0 ? "" : number(line.ys[place]); });
    hint(`${xTitle} ${short(at)}`);
  };
  const leave = () => { cursor.setAttribute("x1", -9); cursor.setAttribute("x2", -9); told.forEach(node => { node.textContent = ""; }); hint(""); };
  picture.addEventListener("pointermove", tell);
  picture.addEventListener("pointerleave", leave);
  return el("figure.card", {}, legend, shown.length ? picture : el("p.muted", {}, "nothing was recorded"));
}

function extremes(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
  return values.length ? [low, high] : [];
}

const nearest = (values, wanted) => values.reduce((best, value) => Math.abs(value - wanted) < Math.abs(best - wanted) ? value : best);
