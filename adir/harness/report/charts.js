// Charts of one task at a time, drawn as SVG at the width of their boxes.

const HEIGHT = 300;
const PRINT_WIDTH = 400; // half a page; text then has the size of the page's text
let printing = false;
const chartTask = document.getElementById("chart-task");
const hiddenRows = new Set();

function niceTicks(low, high, count) {
  const raw = (high - low) / count;
  const magnitude = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * magnitude).find((each) => each >= raw * 0.999);
  const ticks = [];
  // Multiples of the step, because a sum of steps gives 2e-18 instead of 0.
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1)
    ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const digit of high / low > 1000 ? [1] : high / low > 20 ? [1, 3] : [1, 2, 3, 5])
      ticks.push(Number((digit * 10 ** power).toPrecision(12)));
  }
  return ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
}

const tickText = (value) =>
  Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3)
    ? value.toExponential(0)
    : String(Number(value.toPrecision(4)));

function scaleOf(values, from, to, log, ticksWanted) {
  let low = Math.min(...values),
    high = Math.max(...values);
  if (log) {
    const pad = (high / low) ** 0.06 || 1.2;
    [low, high] = low === high ? [low / 2, high * 2] : [low / pad, high * pad];
    const place = (value) =>
      from + ((Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low))) * (to - from);
    return { place, ticks: logTicks(low, high) };
  }
  const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  low -= pad;
  high += pad;
  return {
    place: (value) => from + ((value - low) / (high - low)) * (to - from),
    ticks: niceTicks(low, high, ticksWanted),
  };
}

// Draw a chart. Each of `series` has:
//   name, colour
//   cloud: [[x, y, note]], small points
//   points: [[x, y, standard error, row of the mark]], large points
//   line: the dashes of the line through the points; no line without it
//   beside: pixels that the series is shifted to the right
//   band: [[x, low, high]], a shaded area
//   level: y of a horizontal line
function draw(figure, { series, x, y, xLog = false, xTicks = null }) {
  const box = find(".plot", figure);
  const width = printing ? PRINT_WIDTH : Math.max(240, Math.round(box.clientWidth || 480));
  const margin = { left: 60, right: 12, top: 10, bottom: 42 };
  const pairs = series.flatMap((each) => [
    ...(each.cloud ?? []),
    ...(each.points ?? []).flatMap(([px, py, se]) => [
      [px, py - (se ?? 0)],
      [px, py + (se ?? 0)],
    ]),
    ...(each.band ?? []).flatMap(([px, low, high]) => [
      [px, low],
      [px, high],
    ]),
  ]);
  const ys = [
    ...pairs.map((pair) => pair[1]),
    ...series.filter((each) => each.level !== undefined).map((each) => each.level),
  ];
  const across = scaleOf(
    pairs.map((pair) => pair[0]),
    margin.left,
    width - margin.right,
    xLog,
    width / 90,
  );
  const up = scaleOf(ys, HEIGHT - margin.bottom, margin.top, false, 5);
  if (xTicks) across.ticks = xTicks;
  const root = svg("svg", {
    viewBox: `0 0 ${width} ${HEIGHT}`,
    width,
    height: HEIGHT,
    role: "img",
    "aria-label": `${y} against ${x}`,
  });
  for (const tick of up.ticks) {
    root.append(
      svg("line", {
        x1: margin.left,
        x2: width - margin.right,
        y1: up.place(tick),
        y2: up.place(tick),
        class: "grid",
      }),
      svg(
        "text",
        { x: margin.left - 7, y: up.place(tick) + 4, "text-anchor": "end" },
        tickText(tick),
      ),
    );
  }
  const floor = HEIGHT - margin.bottom;
  root.append(
    svg("line", { x1: margin.left, x2: width - margin.right, y1: floor, y2: floor, class: "axis" }),
  );
  for (const tick of across.ticks) {
    root.append(
      svg("line", {
        x1: across.place(tick),
        x2: across.place(tick),
        y1: floor,
        y2: floor + 4,
        class: "axis",
      }),
      svg(
        "text",
        { x: across.place(tick), y: floor + 17, "text-anchor": "middle" },
        tickText(tick),
      ),
    );
  }
  root.append(
    svg(
      "text",
      {
        x: (margin.left + width - margin.right) / 2,
        y: HEIGHT - 5,
        "text-anchor": "middle",
        class: "label",
      },
      x,
    ),
    svg(
      "text",
      {
        x: 0,
        y: 0,
        transform: `translate(12 ${(margin.top + floor) / 2}) rotate(-90)`,
        "text-anchor": "middle",
        class: "label",
      },
      y,
    ),
  );
  const targets = [];
  for (const each of series) {
    const group = svg("g", { class: each.colour });
    const beside = each.beside ?? 0; // pixels, so that error bars at one x do not overlap
    const at = ([px, py]) => `${(across.place(px) + beside).toFixed(1)} ${up.place(py).toFixed(1)}`;
    if (each.band?.length)
      group.append(
        svg("path", {
          class: "band",
          d: `M${each.band.map(([px, , high]) => at([px, high])).join("L")}L${[...each.band]
            .reverse()
            .map(([px, low]) => at([px, low]))
            .join("L")}Z`,
        }),
      );
    if (each.level !== undefined)
      group.append(
        svg("line", {
          class: "series",
          x1: margin.left,
          x2: width - margin.right,
          y1: up.place(each.level),
          y2: up.place(each.level),
          "stroke-dasharray": "5 4",
          "stroke-width": 1.5,
        }),
      );
    // One path for all points: ten thousand elements would make the page slow.
    if (each.cloud?.length)
      group.append(
        svg("path", { class: "cloud", d: each.cloud.map((point) => `M${at(point)}h0`).join("") }),
      );
    if (each.line && each.points?.length)
      group.append(
        svg("path", {
          class: "series",
          "stroke-width": 1.8,
          "stroke-dasharray": each.line,
          d: `M${each.points.map(at).join("L")}`,
        }),
      );
    for (const [px, py, se, row] of each.points ?? []) {
      if (se)
        group.append(
          svg("path", { class: "error", d: `M${at([px, py - se])}L${at([px, py + se])}` }),
        );
      if (row !== undefined) group.append(mark(row, across.place(px) + beside, up.place(py), 5));
      targets.push([
        across.place(px) + beside,
        up.place(py),
        `${each.name}: ${tickText(px)}, ${tickText(py)}`,
      ]);
    }
    for (const [px, py, note] of each.cloud ?? [])
      targets.push([
        across.place(px),
        up.place(py),
        `${each.name}, ${note}: ${tickText(px)}, ${tickText(py)}`,
      ]);
    root.append(group);
  }
  const tip = element("div", { className: "tip", hidden: true });
  root.addEventListener("pointermove", (event) => {
    const area = root.getBoundingClientRect();
    const [mx, my] = [
      ((event.clientX - area.left) * width) / area.width,
      ((event.clientY - area.top) * HEIGHT) / area.height,
    ];
    let nearest = null,
      distance = 18 ** 2;
    for (const target of targets) {
      const d = (target[0] - mx) ** 2 + (target[1] - my) ** 2;
      if (d < distance) [nearest, distance] = [target, d];
    }
    tip.hidden = !nearest;
    if (!nearest) return;
    tip.textContent = nearest[2];
    tip.style.setProperty(
      "left",
      `${Math.min((nearest[0] * area.width) / width + 10, area.width - 150)}px`,
    );
    tip.style.setProperty("top", `${(nearest[1] * area.height) / HEIGHT + 12}px`);
  });
  root.addEventListener("pointerleave", () => {
    tip.hidden = true;
  });
  box.replaceChildren(root, tip);
}

// A chart without data is hidden, and one line says why.
function drawOrSay(figure, what, lack) {
  const empty = !what.series.length;
  figure.hidden = empty;
  if (empty)
    document
      .getElementById("chart-lacks")
      .append(element("li", { textContent: `${find("h3", figure).textContent}: ${lack}` }));
  else draw(figure, what);
}

const allInTask = () =>
  data.rows
    .map((row, number) => ({ ...row, number }))
    .filter((row) => row.axes.task === chartTask.value);
const inTask = () => allInTask().filter((row) => !hiddenRows.has(row.number));
const metricTitle = (name) => {
  const direction = data.metrics.find((metric) => metric.name === name)?.direction;
  return name + ({ higher: " (higher is better)", lower: " (lower is better)" }[direction] ?? "");
};

// Return {image: mean over its seeds} of a row.
function perImage(number, metric) {
  const column = data.metrics.findIndex((each) => each.name === metric);
  const values = new Map();
  for (const each of data.scenes) {
    const scores = Object.values(each.cells[number] ?? {})
      .map((cell) => cell.scores?.[column])
      .filter((value) => value != null)
      .map(Number);
    if (scores.length) values.set(each.id, scores.reduce((a, b) => a + b, 0) / scores.length);
  }
  return values;
}

function drawScatter() {
  const figure = document.getElementById("scatter");
  const [x, y] = [find(".x", figure).value, find(".y", figure).value];
  const series = inTask()
    .map((row) => {
      const [xs, ys] = [perImage(row.number, x), perImage(row.number, y)];
      const cloud = [...xs]
        .filter(([id]) => ys.has(id))
        .map(([id, value]) => [value, ys.get(id), id]);
      const mean =
        row.means[x]?.[0] != null && row.means[y]?.[0] != null
          ? [[row.means[x][0], row.means[y][0], row.means[y][1], row.number]]
          : [];
      return { name: row.label, colour: colourOf(row.number), cloud, points: mean };
    })
    .filter((each) => each.cloud.length);
  find("p.small", figure).textContent =
    "Small points: one test image each, averaged over seeds. " +
    "Large points: the row's mean, with its vertical standard error.";
  drawOrSay(figure, { series, x: metricTitle(x), y: metricTitle(y) }, "no image has both scores.");
}

function drawSweep() {
  const figure = document.getElementById("sweep");
  const y = find(".y", figure).value;
  const families = new Map();
  for (const row of inTask()) {
    if (row.axes.k === null || row.means[y]?.[0] == null) continue;
    const key = JSON.stringify({ ...row.axes, k: 0 });
    if (!families.has(key)) families.set(key, []);
    families.get(key).push(row);
  }
  const swept = [...families.values()].filter(
    (rows) => unique(rows.map((row) => row.axes.k)).length > 1,
  );
  const series = swept.map((rows, place) => ({
    name: rows[0].label.replace(/ k=\d+/, ""),
    colour: colourOf(rows[0].number),
    line: dashes(rows[0]),
    beside: 6 * (place - (swept.length - 1) / 2),
    points: rows
      .sort((a, b) => a.axes.k - b.axes.k)
      .map((row) => [row.axes.k, row.means[y][0], row.means[y][1], row.number]),
  }));
  const none = inTask().find((row) => row.axes.adaptation === "none" && row.means[y]?.[0] != null);
  if (series.length && none)
    series.push({ name: none.label, colour: colourOf(none.number), level: none.means[y][0] });
  const ks = unique(series.flatMap((each) => (each.points ?? []).map((point) => point[0])));
  find("p.small", figure).textContent = series.length
    ? "Mean and standard error by K. " +
      (none ? "Horizontal line: none. " : "") +
      (swept.some((rows) => rows[0].style.open) ? "Dotted, open marks: lora." : "")
    : "";
  drawOrSay(
    figure,
    { series, x: "K", y: metricTitle(y), xLog: true, xTicks: ks },
    "no row of this task has a counterpart that differs in K alone.",
  );
}

function lossLack() {
  const adapted = inTask().filter((row) => row.axes.adaptation !== "none");
  if (!adapted.length) return "no row of this task was adapted.";
  const there = adapted.some((row) => data.adapterFiles.includes(row.number));
  return there
    ? "adapters of this task are among the results, and none of them holds its losses."
    : "no adapter of this task is among the results (results/adapters).";
}

const CHANGE = "change by tuning, % (lower is better)";

// Draw one line per row with its quantiles. `level` adds a horizontal line, the untuned denoiser's
// value. The points of a line then have the row's mark.
function drawCurves(id, all, { x, y, level, text, lack }) {
  const figure = document.getElementById(id);
  const shown = new Set(inTask().map((row) => row.number));
  const curves = all.filter((curve) => shown.has(curve.row));
  const series = curves.map((curve) => ({
    name: data.rows[curve.row].label,
    colour: colourOf(curve.row),
    line: dashes(data.rows[curve.row]),
    points: curve.x.map((place, i) => [
      place,
      curve.mean[i],
      null,
      level === undefined ? undefined : curve.row,
    ]),
    band: curves.length > 6 ? [] : curve.x.map((place, i) => [place, curve.low[i], curve.high[i]]),
  }));
  if (curves.length && level !== undefined) series.push({ name: "untuned", colour: "", level });
  const counts = unique(curves.map((curve) => curve.n)).sort((a, b) => a - b);
  const n = counts.length > 1 ? `${counts[0]} to ${counts.at(-1)}` : counts[0];
  find("p.small", figure).textContent = curves.length
    ? `Mean of ${n} ${text}${curves.length > 6 ? "" : "; shaded: 10 to 90 % of them"}.`
    : "";
  find("ul", figure)?.replaceChildren(
    ...curves.map((curve) =>
      element("li", {}, icon(curve.row), `${data.rows[curve.row].label}: ${curve.said}`),
    ),
  );
  drawOrSay(figure, { series, x, y }, lack);
}

function drawTuning() {
  drawCurves("loss", data.losses, {
    x: "iteration",
    y: "loss",
    text: "trainings per row, averaged over windows of iterations",
    lack: lossLack(),
  });
  drawCurves("held-out", data.heldOut, {
    x: "iteration",
    y: CHANGE,
    level: 0,
    text: "trainings per row; dashed: the untuned denoiser",
    lack: "no record of this task holds one; adaptation/fine_tuning=safe records it.",
  });
  drawCurves("oracle", data.oracle, {
    x: "timestep t",
    y: CHANGE,
    level: 0,
    text: "restorations per row; dashed: the untuned denoiser",
    lack: "no adapted record of this task holds it; oracle=true records it.",
  });
}

const dashes = (row) => (row.style.open ? "2 3" : "none");

const COSTS = { evaluations: "network evaluations per image", seconds: "seconds per image" };
function drawCost() {
  const figure = document.getElementById("cost");
  const [x, y] = [find(".x", figure).value, find(".y", figure).value];
  const series = inTask()
    .filter((row) => row[x] > 0 && row.means[y]?.[0] != null)
    .map((row) => ({
      name: row.label,
      colour: colourOf(row.number),
      points: [[row[x], row.means[y][0], row.means[y][1], row.number]],
    }));
  find("p.small", figure).textContent =
    x === "seconds"
      ? "Seconds: retrieval, training of the adapter and sampling, on the machine that ran it."
      : "Evaluations of the network while sampling, without those of training.";
  drawOrSay(
    figure,
    { series, x: COSTS[x], y: metricTitle(y), xLog: true },
    "no record of this task holds both.",
  );
}

function drawLegend() {
  const buttons = allInTask().map((row) => {
    const button = element(
      "button",
      { type: "button", ariaPressed: String(!hiddenRows.has(row.number)), title: "Show or hide" },
      icon(row.number),
      row.label,
    );
    button.addEventListener("click", () => {
      if (!hiddenRows.delete(row.number)) hiddenRows.add(row.number);
      button.ariaPressed = String(!hiddenRows.has(row.number));
      drawCharts();
    });
    return button;
  });
  document.getElementById("chart-legend").replaceChildren(...buttons);
}

function drawCharts() {
  document.getElementById("chart-lacks").replaceChildren();
  drawScatter();
  drawSweep();
  drawTuning();
  drawCost();
}

function startCharts() {
  const scored = data.scenes
    .flatMap((each) => Object.values(each.cells))
    .flatMap((seeds) => Object.values(seeds))
    .map((cell) => cell.scores ?? []);
  const withValues = data.metrics
    .map((metric) => metric.name)
    .filter((_, column) => scored.some((scores) => scores[column] != null));
  const tasks = unique(data.rows.map((row) => row.axes.task));
  fillSelect(
    chartTask,
    tasks.map((task) => [task, task]),
    tasks.find((task) => data.scenes.some((each) => each.task === task && hasRecord(each))),
  );
  chartTask.parentElement.hidden = tasks.length < 2;
  if (!withValues.length) {
    document.getElementById("charts").hidden = true;
    return;
  }
  const options = withValues.map((name) => [name, name]);
  const fidelity = data.fidelity ?? withValues[0],
    perceived = data.perceived ?? withValues.at(-1);
  fillSelect(find("#scatter .x"), options, fidelity);
  fillSelect(find("#scatter .y"), options, perceived);
  fillSelect(find("#sweep .y"), options, fidelity);
  fillSelect(find("#cost .y"), options, fidelity);
  fillSelect(
    find("#cost .x"),
    Object.entries(COSTS).filter(([name]) => data.rows.some((row) => row[name] > 0)),
  );
  for (const select of document.querySelectorAll("#charts .chart select"))
    select.addEventListener("change", drawCharts);
  chartTask.addEventListener("change", () => {
    drawLegend();
    drawCharts();
  });
  let width = 0;
  new ResizeObserver(([entry]) => {
    if (Math.round(entry.contentRect.width) === width) return;
    width = Math.round(entry.contentRect.width);
    drawCharts();
  }).observe(document.getElementById("charts"));
  for (const [event, starts] of [
    ["beforeprint", true],
    ["afterprint", false],
  ]) {
    addEventListener(event, () => {
      printing = starts;
      drawCharts();
    });
  }
  drawLegend();
  drawCharts();
}
startCharts();
