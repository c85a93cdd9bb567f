"use strict";
// Every string of a run reaches the page through textContent (el and svg in page.js); nothing here writes markup.
(() => {
  const { data, $, el, svg, table, css, swatch, show, scroll, lazyTable, number, count, plural, share, shareBar } = page;
  const { LEFT, RIGHT, view, cursors, steerable, hoverable, scaleX, place, drawing, nearest, evenly, stacked } = page;
  const { undelta, valueAt, numbersTable, curve, mountCurves, stepAxis, named, savers, linesTable } = page;
  const SIDES = ["a", "b"];

  const line = (text, limit) => page.line(text, limit, page.exact);
  const STATUSES = new Set(["fail", "warn", "error", "unsure", "note", "pass", "skip"]);
  const statuses = (parts) => el("span", { class: "statuses" }, ...parts.map(([status, words]) => el("span", { class: `badge ${STATUSES.has(status) ? status : ""}` }, line(words, 80))));
  const sideName = (side) => {
    const { letter, name } = data.sides[side];
    return el("span", { class: `of-${SIDES[side]}` }, el("span", { class: "letter" }, letter), name === letter ? "" : ` ${line(name, 40)}`);
  };
  const spoken = (side) => (data.sides[side].name === data.sides[side].letter ? data.sides[side].letter : `${data.sides[side].letter} (${line(data.sides[side].name, 40)})`);

  // ---- result and sides
  $("run-id").textContent = `${spoken(0)} and ${spoken(1)}`;
  const TONES = { DIFFERENT: "different", EQUAL: "pass" };
  if (Object.hasOwn(TONES, data.word)) $("verdict").classList.add(TONES[data.word]);
  $("verdict-word").textContent = line(data.word, 40);
  $("headline").textContent = line(data.headline, 1200);
  if (data.headline.length > 260) {
    $("headline").classList.add("long");
    $("headline").tabIndex = 0;  // It scrolls in a narrow window, for the keyboard too.
  }
  data.sides.forEach((side, i) => {
    const fact = (name, value, big) => el("div", { class: big ? "big" : null }, el("dt", {}, name), el("dd", {}, value));
    $("sides").append(el("div", { class: `side-card of-${SIDES[i]}` },
      el("h2", {}, el("span", { class: "letter" }, side.letter), side.name === side.letter ? plural(side.runs.length, "run", "runs") : line(side.name, 40)),
      el("p", { class: "badges" }, statuses(side.verdicts)),
      el("dl", { class: "facts" },
        fact("Formats kept", side.kept === null ? "–" : `${Math.round(100 * side.kept)} %`, true),
        fact("Distance from base", number(side.distance), true),
        fact("Steps", line(side.steps, 120)), fact("Completions", line(side.completions, 120)), fact("Read as", line(side.readers.join(", "), 80))),
      el("ul", { class: "paths" }, ...side.runs.map((run) => el("li", {}, line(run, 200))))));
  });
  $("notes").append(...data.notes.map((note) => el("li", {}, line(note, 600))));
  $("correction").textContent = `Distances are measured from ${line(data.base, 300)}. ${line(data.correction, 1200)}`;

  // ---- shares of the formats, one figure a run
  function shareFigure(run, modes) {
    const { steps, values } = run, HEIGHT = 168, TOP = 8, BOTTOM = 20;
    const title = line(run.label, 60), holder = el("div", { class: "drawing", role: "img", tabindex: "0" });
    const said = el("span", { class: "tag" }), details = el("details", {}, el("summary", {}, "Shares as a table"));
    holder.setAttribute("aria-label", `Share of each answer format over the steps of ${title}. ${modes.map(([mode], k) => `${line(mode, 40)} from ${share(values[k][0])} to ${share(values[k].at(-1))}`).join("; ").slice(0, 1500)}.`);
    let rule = null, width = 0;
    drawing(holder, (wide) => {
      width = wide;
      const x = scaleX(wide), y = (v) => HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * Math.min(1, Math.max(0, v));
      // One step alone is drawn as a bar of the whole width.
      const places = steps.length === 1 ? [[view.from, 0], [view.to, 0]] : steps.map((step, i) => [step, i]);
      const parts = stacked(modes.map(([mode, colour], k) => [line(mode, 60), colour, values[k]]), places, x, y);
      for (const v of [0, 0.5, 1]) parts.push(svg("line", { class: "grid", x1: LEFT, x2: wide - RIGHT, y1: y(v), y2: y(v) }), svg("text", { x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" }, `${100 * v} %`));
      parts.push(...named(modes.map(([mode, colour], k) => ({ mode, colour, values: values[k] })), places, x, y), ...stepAxis(wide, HEIGHT - BOTTOM));
      rule = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM });
      holder.replaceChildren(svg("svg", { width: wide, height: HEIGHT }, ...parts, rule));
    });
    const words = (i) => modes.map(([mode], k) => [line(mode, 24), values[k][i]]).filter(([, v]) => v >= 0.005).sort((a, b) => b[1] - a[1]).slice(0, 4).map(([mode, v]) => `${mode} ${Math.round(100 * v)} %`).join(", ");
    cursors.push((step) => {
      const i = step === null || !steps.length ? null : nearest(steps, step);
      said.textContent = i === null ? "" : `step ${count(steps[i])}: ${words(i)}`;
      place(rule, step, width);
    });
    hoverable(holder, () => width);
    steerable(holder, steps, title, () => words(nearest(steps, view.step)));
    lazyTable(details, () => details.append(scroll(title, table(el("table"), ["step", ...modes.map(([mode]) => line(mode, 40))],
      evenly(steps.length).map((i) => ({ cells: [count(steps[i]), ...modes.map((_, k) => share(values[k][i]))] })), new Set([0, ...modes.map((_, k) => k + 1)])))));
    return el("figure", { class: `run-figure of-${SIDES[run.side]}` }, el("figcaption", {}, el("h3", {}, el("span", { class: "letter" }, data.sides[run.side].letter), title), said), holder, el("div", { class: "below" }, details, savers(`Format shares of ${title}`, () => holder.firstChild, () => linesTable(modes.map(([mode]) => mode), modes.map((_, k) => ({ steps, values: values[k] }))))));
  }
  if (data.shares) {
    show("formats");
    const { modes, runs } = data.shares;
    for (const [mode, colour] of modes) $("formats-legend").append(el("li", {}, swatch(colour), line(mode, 40)));
    for (const side of [0, 1]) $("formats-runs").append(el("div", {}, ...runs.filter((run) => run.side === side && run.steps.length).map((run) => shareFigure(run, modes))));
  }
  if (data.modes.length) {
    show("formats");
    const bar = (value, side) => shareBar(value, { class: `of-${SIDES[side]}` });
    const points = (value) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${number(Math.abs(100 * value))}`;
    table($("formats-table"), ["format", "base", el("span", {}, sideName(0), " at the end"), el("span", {}, sideName(1), " at the end"), "B − A, points"],
      data.modes.map(([mode, base, a, b]) => ({ cells: [line(mode, 60), share(base), bar(a, 0), bar(b, 1), points(b - a)] })), new Set([1, 4]));
  }

  // ---- curves
  const faded = (colour) => colour.replace(/^rgb\((.*)\)$/, "rgba($1, 0.38)");
  function chartCard(chart) {
    const all = chart.lines.map((one) => ({ ...one, steps: undelta(one.steps) })), lines = all.filter((one) => one.steps.length);
    const means = [0, 1].map((side) => all.find((one) => one.mean && one.side === side));
    // A side of one run is its own mean: one line.
    const drawn = lines.filter((one) => one.mean || data.sides[one.side].runs.length > 1);
    const title = line(chart.title, 80), unit = line(chart.unit, 60);
    const shown = el("p", { class: "now" }), plot = el("div", { class: "plot", role: "img", tabindex: "0" });
    const course = (one) => { const known = one.values.filter((v) => v !== null); return known.length ? `from ${number(known[0])} to ${number(known.at(-1))}` : "not measured at common steps"; };
    plot.setAttribute("aria-label", `${title}${unit ? ` (${unit})` : ""} over steps. ${means.map((one, side) => `${spoken(side)} ${course(one)}`).join("; ")}.${chart.departure === null ? "" : ` They part at step ${chart.departure}.`}`);
    const heads = () => {
      const runs = [0, 0];
      return lines.map((one) => `${data.sides[one.side].letter}${one.mean ? " mean" : ` ${++runs[one.side]}`}`);
    };
    const details = el("details", {}, el("summary", {}, "Numbers"));
    const card = el("figure", { class: "chart" },
      el("figcaption", {}, el("h3", {}, title, chart.distinct ? el("span", { class: "star", title: "distinct after correction" }, " *") : "", chart.departure === null ? "" : el("span", { class: "part" }, `they part at ${count(chart.departure)}`)), shown),
      el("ul", { class: "legend" }, unit ? el("li", { class: "unit" }, unit) : ""), plot, el("div", { class: "below" }, details, savers(title, () => plot.querySelector("canvas"), () => linesTable(heads(), lines))));
    lazyTable(details, () => details.append(numbersTable(title, heads(), lines)));
    const tell = (values) => values.flatMap((v, side) => [side ? " · " : "", el("b", { class: SIDES[side] }, number(v))]);
    const rest = () => shown.replaceChildren("end ", ...tell(chart.last));
    rest();
    const at = (step) => means.map((one) => valueAt(one, step));
    const now = (step) => { if (step === null) rest(); else shown.replaceChildren(`step ${count(step)} `, ...tell(at(step))); };
    const series = () => {
      const paint = SIDES.map((side) => css(`--${side}`));
      return drawn.map((one) => ({ stroke: one.mean ? paint[one.side] : faded(paint[one.side]), width: one.mean ? 2.2 : 1, spanGaps: false, points: { show: one.mean && one.values.filter((v) => v !== null).length < 40, size: 5, fill: paint[one.side] } }));
    };
    const mark = (u) => {
      if (chart.departure === null) return;
      const c = u.ctx, px = devicePixelRatio || 1, { top, height } = u.bbox, x = u.valToPos(chart.departure, "x", true);
      c.save();
      c.strokeStyle = css("--ink"); c.lineWidth = 1.5 * px; c.setLineDash([4 * px, 3 * px]); c.globalAlpha = 0.75;
      c.beginPath(); c.moveTo(x, top); c.lineTo(x, top + height); c.stroke();
      c.restore();
    };
    const joined = drawn.length ? uPlot.join(drawn.map((one) => [one.steps, one.values]), drawn.map(() => [2])) : [[]];
    const start = curve(plot, chart, joined, series, mark, now);
    steerable(plot, joined[0], title, () => at(view.step).map((v, side) => `${spoken(side)} ${number(v)}`).join(", "));
    return [card, start];
  }
  if (data.charts.length || data.further.length) {
    show("curves");
    const several = data.sides.some((side) => side.runs.length > 1);
    for (const side of [0, 1]) {
      const many = data.sides[side].runs.length > 1;
      $("curves-legend").append(el("li", { class: `of-${SIDES[side]}` }, el("span", { class: "line-key" }), sideName(side), many ? ", mean" : ""));
      if (many) $("curves-legend").append(el("li", { class: `of-${SIDES[side]}` }, el("span", { class: "line-key thin" }), `its ${count(data.sides[side].runs.length)} runs`));
    }
    $("curves-legend").append(el("li", {}, el("span", { class: "line-key dashed" }), "they part"), el("li", {}, el("span", { class: "star" }, "* "), "distinct after correction"));
    mountCurves(chartCard);
    if (several && data.runs_left_out) $("curves-note").textContent = `${plural(data.runs_left_out, "run is", "runs are")} not drawn; the means are over all of them.`;
  }

  // ---- metrics at the end
  function forest(row, widest) {
    // The inverse hyperbolic sine: like a logarithm far from zero, and yet with room for zero and both signs.
    const half = Math.asinh(widest), x = (v) => 95 + (88 * Math.asinh(Math.max(-widest, Math.min(widest, v)))) / half;
    const [effect, low, high] = row.scaled;
    return svg("svg", { class: `forest ${row.distinct ? "sure" : ""} of-${effect > 0 ? "b" : "a"}`, viewBox: "0 0 190 20", role: "img", "aria-label": `effect ${number(effect)}, from ${number(low)} to ${number(high)}` },
      svg("line", { class: "zero", x1: 95, x2: 95, y1: 1, y2: 19 }), svg("line", { class: "reach", x1: x(low), x2: x(high), y1: 10, y2: 10 }), svg("circle", { cx: x(effect), cy: 10, r: 3.4 }));
  }
  if (data.metrics.length) {
    show("metrics");
    const widest = Math.max(1, ...data.metrics.filter((row) => row.scaled).map((row) => Math.abs(row.scaled[0])));
    const head = ["metric", el("span", {}, sideName(0)), el("span", {}, sideName(1)), "B − A, 95 %", "A higher · B higher", "effect", "p", "they part at"];
    const rows = (items) => items.map((row) => ({ class: row.distinct ? null : "unclear", cells: [
      el("span", {}, row.distinct ? el("span", { class: "star" }, "* ") : "", line(row.title, 80), el("small", {}, `${line(row.name, 100)}${row.unit ? ` · ${line(row.unit, 40)}` : ""}`)), number(row.last[0]), number(row.last[1]),
      line(row.difference, 40), row.scaled ? forest(row, widest) : "", row.effect === null ? "–" : number(Number(row.effect.toFixed(1))), row.p === null ? "–" : row.p < 0.0001 ? "< .0001" : row.p.toFixed(4).replace(/^0/, ""), row.departure === null ? "–" : count(row.departure)] }));
    const numeric = new Set([1, 2, 3, 5, 6, 7]);
    const early = data.metrics.slice(0, data.metrics_first), late = data.metrics.filter((row) => !early.includes(row));
    $("metrics-note").textContent = "Effect: the difference in units of one step's noise at the base, drawn with its interval on a scale that is tighter further out. p is before, * after the correction.";
    table($("metrics-table"), head, rows(early), numeric);
    if (late.length) {
      show("metrics-rest");
      const hidden = data.metrics_total - data.metrics.length;
      $("metrics-summary").textContent = plural(late.length + hidden, "further metric", "further metrics") + (hidden ? `, ${late.length} of them shown` : "");
      lazyTable($("metrics-rest"), () => table($("metrics-more"), ["metric", el("span", {}, sideName(0)), el("span", {}, sideName(1)), ...head.slice(3)], rows(late), numeric));
    }
  }

  // ---- checks and settings
  const differ = data.checks.filter((check) => check.differs), alike = data.checks.filter((check) => !check.differs);
  const checkRows = (checks) => checks.map((check) => ({ cells: [el("span", {}, line(check.title, 200), el("small", {}, line(check.id, 80))), statuses(check.sides[0]), statuses(check.sides[1])] }));
  if (data.checks.length) show("checks");
  if (differ.length) { show("checks-differ"); table($("checks-table"), ["check", sideName(0), sideName(1)], checkRows(differ)); }
  if (alike.length) {
    show("checks-alike");
    $("checks-summary").textContent = plural(alike.length, "check says the same of both", "checks say the same of both");
    lazyTable($("checks-alike"), () => table($("checks-rest"), ["check", sideName(0), sideName(1)], checkRows(alike)));
  }
  const values = (list) => (list.length ? el("code", {}, list.map((one) => line(one, 200)).join(" | ")) : el("span", { class: "dim" }, "not set"));
  const settingRows = (rows) => rows.map(([key, a, b]) => ({ cells: [el("code", {}, line(key, 120)), values(a), values(b)] }));
  $("settings-note").textContent = line(data.settings_note, 600);
  if (data.settings.length) { show("settings-differ"); table($("settings-table"), ["setting", sideName(0), sideName(1)], settingRows(data.settings)); }
  if (data.other_settings.length) {
    show("settings-other");
    $("settings-summary").textContent = plural(data.other_settings.length, "further setting differs, no reason for a difference", "further settings differ, no reasons for a difference");
    lazyTable($("settings-other"), () => table($("settings-rest"), ["setting", sideName(0), sideName(1)], settingRows(data.other_settings)));
  }

  // ---- sections and colours
  page.navigate([["formats", "Formats"], ["curves", "Curves"], ["metrics", "Metrics"], ["checks", "Checks"], ["settings", "Settings"], ["details", "How it was judged"]]);
  page.themes();
  page.permalinks(() => ["formats", "curves"].map($).find((one) => one.clientHeight));
})();
