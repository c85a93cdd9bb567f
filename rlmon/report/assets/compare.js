"use strict";
// Every string of a run reaches the page through textContent (el and svg in page.js); nothing here writes markup.
(() => {
  const { data, $, el, svg, table, css } = page;
  const LEFT = 46, RIGHT = 14, TABLE_ROWS = 60, SIDES = ["a", "b"];

  // Three significant digits; thousands set apart.
  const number = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en-US");
    if (size !== 0 && size < 0.001) return value.toExponential(1);
    return String(Number(value.toPrecision(3)));
  };
  const count = (value) => Number(value || 0).toLocaleString("en-US");
  const plural = (n, one, many) => `${count(n)} ${n === 1 ? one : many}`;
  const share = (value) => (value === null || value === undefined ? "–" : `${number(100 * value)} %`);
  // Characters that cannot be seen (escapes, direction overrides, lone surrogates) are shown by their numbers.
  const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu;
  const escaped = (c) => {
    const code = c.codePointAt(0);
    return code < 256 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
  };
  const line = (text, limit = 400) => {
    const shown = String(text).slice(0, limit).replace(UNSEEN, escaped).replace(/\s+/g, " ");
    return String(text).length > limit ? `${shown}…` : shown;
  };
  const show = (id) => { $(id).hidden = false; return $(id); };
  const STATUSES = new Set(["fail", "warn", "error", "pass", "skip"]);
  const statuses = (parts) => el("span", { class: "statuses" }, ...parts.map(([status, words]) => el("span", { class: `badge ${STATUSES.has(status) ? status : ""}` }, line(words, 80))));
  const named = (side) => {
    const { letter, name } = data.sides[side];
    return el("span", { class: `of-${SIDES[side]}` }, el("span", { class: "letter" }, letter), name === letter ? "" : line(name, 40));
  };
  const spoken = (side) => (data.sides[side].name === data.sides[side].letter ? data.sides[side].letter : `${data.sides[side].letter} (${line(data.sides[side].name, 40)})`);
  const lazyTable = (details, fill) => details.addEventListener("toggle", () => { if (details.open && !details.querySelector("tbody")) fill(); });

  // ---- result and sides
  $("run-id").textContent = `${spoken(0)} and ${spoken(1)}`;
  const TONES = { DIFFERENT: "different", EQUAL: "pass" };
  if (Object.hasOwn(TONES, data.word)) $("verdict").classList.add(TONES[data.word]);
  $("verdict-word").textContent = line(data.word, 40);
  $("headline").textContent = line(data.headline, 1200);
  if (data.headline.length > 260) $("headline").classList.add("long");
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

  // ---- one axis of steps for all figures
  const [FIRST, end] = data.steps || [0, 1], LAST = Math.max(end, FIRST + 1);
  let current = null;
  const cursors = [], drawings = [];
  function point(step) {
    current = step === null ? null : Math.round(Math.min(LAST, Math.max(FIRST, step)));
    cursors.forEach((cursor) => cursor(current));
  }
  function steerable(node, stops, title, words) {
    // Arrow keys visit the steps that this figure has values for.
    node.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { point(null); return; }
      const stride = { ArrowLeft: -1, ArrowRight: 1, PageUp: -Math.ceil(stops.length / 10), PageDown: Math.ceil(stops.length / 10), Home: -Infinity, End: Infinity }[event.key];
      if (!stride || !stops.length) return;
      event.preventDefault();
      const at = current === null ? (stride > 0 ? -1 : stops.length) : stride > 0 ? stops.findLastIndex((step) => step <= current) : stops.findIndex((step) => step >= current);
      point(stops[Math.min(stops.length - 1, Math.max(0, (at < 0 && stride < 0 ? stops.length : at) + stride))]);
      $("readout").textContent = `${title}, step ${current}: ${words()}`;
    });
  }
  const ticks = (room) => {
    const widths = [1, 10, 100, 1000, 10000, 100000, 1000000].flatMap((p) => [p, 2 * p, 5 * p]);
    const width = widths.find((w) => (LAST - FIRST) / w <= Math.max(2, room / 90)) || LAST - FIRST;
    const result = [];
    for (let step = Math.ceil(FIRST / width) * width; step <= LAST; step += width) result.push(step);
    return result;
  };
  const scaleX = (width) => (step) => LEFT + ((width - LEFT - RIGHT) * (step - FIRST)) / (LAST - FIRST);
  const nearest = (steps, step) => {
    let low = 0, high = steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] < step) low = middle + 1; else high = middle;
    }
    return low > 0 && step - steps[low - 1] <= steps[low] - step ? low - 1 : low;
  };
  const evenly = (length, most = TABLE_ROWS) => {
    const picked = new Set();
    for (let i = 0; i < Math.min(length, most); i++) picked.add(Math.round((i * (length - 1)) / Math.max(1, Math.min(length, most) - 1)));
    return [...picked];
  };
  // A drawing made again whenever its width or the colours change.
  function drawing(holder, draw) {
    const again = () => { if (holder.clientWidth) draw(holder.clientWidth); };
    drawings.push(again);
    new ResizeObserver(again).observe(holder);
  }

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
      const places = steps.length === 1 ? [[FIRST, 0], [LAST, 0]] : steps.map((step, i) => [step, i]);
      const floor = places.map(() => 0), parts = [];
      modes.forEach(([mode, colour], k) => {
        const lower = floor.map((v, i) => `${x(places[i][0]).toFixed(1)},${y(v).toFixed(1)}`).reverse();
        places.forEach(([, at], i) => { floor[i] += values[k][at]; });
        const upper = floor.map((v, i) => `${x(places[i][0]).toFixed(1)},${y(v).toFixed(1)}`);
        parts.push(svg("polygon", { class: "area", points: upper.concat(lower).join(" "), fill: colour }, svg("title", {}, line(mode, 60))));
      });
      for (const v of [0, 0.5, 1]) parts.push(svg("line", { class: "grid", x1: LEFT, x2: wide - RIGHT, y1: y(v), y2: y(v) }), svg("text", { x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" }, `${100 * v} %`));
      for (const step of ticks(wide)) parts.push(svg("text", { x: x(step), y: HEIGHT - 4, "text-anchor": "middle" }, count(step)));
      rule = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM });
      holder.replaceChildren(svg("svg", { width: wide, height: HEIGHT }, ...parts, rule));
    });
    const words = (i) => modes.map(([mode], k) => [line(mode, 24), values[k][i]]).filter(([, v]) => v >= 0.005).sort((a, b) => b[1] - a[1]).slice(0, 4).map(([mode, v]) => `${mode} ${Math.round(100 * v)} %`).join(", ");
    cursors.push((step) => {
      const i = step === null || !steps.length ? null : nearest(steps, step);
      said.textContent = i === null ? "" : `step ${count(steps[i])}: ${words(i)}`;
      if (!rule) return;
      rule.style.visibility = step === null ? "hidden" : "visible";
      if (step !== null) for (const side of ["x1", "x2"]) rule.setAttribute(side, scaleX(width)(step));
    });
    holder.addEventListener("pointermove", (event) => point(FIRST + ((LAST - FIRST) * (event.clientX - holder.getBoundingClientRect().left - LEFT)) / (width - LEFT - RIGHT)));
    holder.addEventListener("pointerleave", () => point(null));
    steerable(holder, steps, title, () => words(nearest(steps, current)));
    lazyTable(details, () => details.append(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, table(el("table"), ["step", ...modes.map(([mode]) => line(mode, 40))],
      evenly(steps.length).map((i) => ({ cells: [count(steps[i]), ...modes.map((_, k) => share(values[k][i]))] })), new Set([0, ...modes.map((_, k) => k + 1)])))));
    return el("figure", { class: `run-figure of-${SIDES[run.side]}` }, el("figcaption", {}, el("h3", {}, el("span", { class: "letter" }, data.sides[run.side].letter), title), said), holder, details);
  }
  if (data.shares) {
    show("formats");
    const { modes, runs } = data.shares;
    for (const [mode, colour] of modes) {
      const swatch = el("i");
      swatch.style.background = colour;
      $("formats-legend").append(el("li", {}, swatch, line(mode, 40)));
    }
    for (const side of [0, 1]) $("formats-runs").append(el("div", {}, ...runs.filter((run) => run.side === side && run.steps.length).map((run) => shareFigure(run, modes))));
  }
  if (data.modes.length) {
    show("formats");
    const bar = (value, side) => {
      const fill = el("i");
      fill.style.width = `${100 * Math.min(1, Math.max(0, value))}%`;
      return el("span", { class: `of-${SIDES[side]}` }, el("span", { class: "share-bar", "aria-hidden": "true" }, fill), share(value));
    };
    const points = (value) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${number(Math.abs(100 * value))}`;
    table($("formats-table"), ["format", "base", el("span", {}, named(0), " at the end"), el("span", {}, named(1), " at the end"), "B − A, points"],
      data.modes.map(([mode, base, a, b]) => ({ cells: [line(mode, 60), share(base), bar(a, 0), bar(b, 1), points(b - a)] })), new Set([1, 4]));
  }

  // ---- curves
  const undelta = (steps) => { let at = 0; return steps.map((difference) => (at += difference)); };
  const value = (one, step) => {
    if (!one.steps.length) return null;
    const i = nearest(one.steps, step);
    return Math.abs(one.steps[i] - step) <= Math.max(1, (LAST - FIRST) / 60) ? one.values[i] : null;
  };
  const faded = (colour) => colour.replace(/^rgb\((.*)\)$/, "rgba($1, 0.38)");
  function chartCard(chart) {
    const all = chart.lines.map((one) => ({ ...one, steps: undelta(one.steps) })), lines = all.filter((one) => one.steps.length);
    const means = [0, 1].map((side) => all.find((one) => one.mean && one.side === side));
    // A side of one run is its own mean: one line.
    const drawn = lines.filter((one) => one.mean || data.sides[one.side].runs.length > 1);
    const title = line(chart.title, 80), unit = line(chart.unit, 60);
    const now = el("p", { class: "now" }), plot = el("div", { class: "plot", role: "img", tabindex: "0" });
    const course = (one) => { const known = one.values.filter((v) => v !== null); return known.length ? `from ${number(known[0])} to ${number(known.at(-1))}` : "not measured at common steps"; };
    plot.setAttribute("aria-label", `${title}${unit ? ` (${unit})` : ""} over steps. ${means.map((one, side) => `${spoken(side)} ${course(one)}`).join("; ")}.${chart.departure === null ? "" : ` They part at step ${chart.departure}.`}`);
    const details = el("details", {}, el("summary", {}, "Numbers"));
    const card = el("figure", { class: "chart" },
      el("figcaption", {}, el("h3", {}, title, chart.distinct ? el("span", { class: "star", title: "distinct after correction" }, " *") : "", chart.departure === null ? "" : el("span", { class: "part" }, `they part at ${count(chart.departure)}`)), now),
      el("ul", { class: "legend" }, unit ? el("li", { class: "unit" }, unit) : ""), plot, details);
    lazyTable(details, () => {
      let runs = [0, 0];
      const heads = lines.map((one) => `${data.sides[one.side].letter}${one.mean ? " mean" : ` ${++runs[one.side]}`}`);
      const steps = [...new Set(lines.flatMap((one) => evenly(one.steps.length).map((i) => one.steps[i])))].sort((a, b) => a - b);
      details.append(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, table(el("table"), ["step", ...heads],
        evenly(steps.length).map((i) => ({ cells: [count(steps[i]), ...lines.map((one) => { const k = one.steps.indexOf(steps[i]); return k < 0 ? "–" : number(one.values[k]); })] })), new Set([0, ...lines.map((_, i) => i + 1)]))));
    });
    const tell = (values) => values.flatMap((v, side) => [side ? " · " : "", el("b", { class: SIDES[side] }, number(v))]);
    const rest = () => now.replaceChildren("end ", ...tell(chart.last));
    rest();
    let u = null;
    const joined = drawn.length ? uPlot.join(drawn.map((one) => [one.steps, one.values]), drawn.map(() => [2])) : [[]];
    const draw = (wide) => {
      if (u) u.destroy();
      const dim = css("--dim"), axis = { stroke: dim, grid: { stroke: css("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui,sans-serif" };
      const paint = SIDES.map((side) => css(`--${side}`));
      u = new uPlot({
        width: wide, height: 180, padding: [8, 20, 0, 0],
        cursor: { drag: { x: false, y: false }, y: false, points: { size: 6 } }, legend: { show: false },
        scales: {
          x: { time: false, range: () => [FIRST, LAST] },
          y: { range: (_, min, max) => {
            if (chart.low !== null && chart.high !== null && chart.high <= 1) return [chart.low, chart.high];
            const low = min ?? 0, high = max ?? 1, room = high - low || Math.abs(high) || 1;
            // A scale that starts at a fixed end does not make noise look like a trend.
            const bottom = chart.low !== null ? Math.min(chart.low, low) : low - 0.06 * room;
            return [bottom, high + 0.08 * (high - bottom || 1)];
          } },
        },
        axes: [{ ...axis, size: 26, values: (_, marks) => marks.map((v) => (Number.isInteger(v) ? count(v) : "")) }, { ...axis, size: LEFT, values: (_, marks) => marks.map(number) }],
        series: [{}, ...drawn.map((one) => ({ stroke: one.mean ? paint[one.side] : faded(paint[one.side]), width: one.mean ? 2.2 : 1, spanGaps: false, points: { show: one.mean && one.values.filter((v) => v !== null).length < 40, size: 5, fill: paint[one.side] } }))],
        hooks: {
          draw: [(self) => {
            if (chart.departure === null) return;
            const c = self.ctx, px = devicePixelRatio || 1, { top, height } = self.bbox, x = self.valToPos(chart.departure, "x", true);
            c.save();
            c.strokeStyle = css("--ink"); c.lineWidth = 1.5 * px; c.setLineDash([4 * px, 3 * px]); c.globalAlpha = 0.75;
            c.beginPath(); c.moveTo(x, top); c.lineTo(x, top + height); c.stroke();
            c.restore();
          }],
          setCursor: [(self) => { if (plot.matches(":hover") && self.cursor.left >= 0) point(self.posToVal(self.cursor.left, "x")); }],
        },
      }, joined, plot);
      if (current !== null) follow(current);
    };
    const at = (step) => means.map((one) => value(one, step));
    function follow(step) {
      if (step === null) { rest(); if (u) u.setCursor({ left: -10, top: -10 }, false); return; }
      now.replaceChildren(`step ${count(step)} `, ...tell(at(step)));
      if (u && !plot.matches(":hover")) u.setCursor({ left: u.valToPos(step, "x"), top: 10 }, false);
    }
    cursors.push(follow);
    plot.addEventListener("pointerleave", () => point(null));
    steerable(plot, joined[0], title, () => at(current).map((v, side) => `${spoken(side)} ${number(v)}`).join(", "));
    return [card, () => drawing(plot, draw)];
  }
  const mount = (target, charts) => {
    const cards = charts.filter((chart) => chart.lines.some((one) => one.values.length)).map(chartCard);
    target.append(...cards.map(([card]) => card));
    cards.forEach(([, start]) => start());
  };
  if (data.charts.length || data.further.length) {
    show("curves");
    const several = data.sides.some((side) => side.runs.length > 1);
    for (const side of [0, 1]) {
      const many = data.sides[side].runs.length > 1;
      $("curves-legend").append(el("li", { class: `of-${SIDES[side]}` }, el("span", { class: "line-key" }), named(side), many ? ", mean" : ""));
      if (many) $("curves-legend").append(el("li", { class: `of-${SIDES[side]}` }, el("span", { class: "line-key thin" }), `its ${count(data.sides[side].runs.length)} runs`));
    }
    $("curves-legend").append(el("li", {}, el("span", { class: "line-key dashed" }), "they part"), el("li", {}, el("span", { class: "star" }, "* "), "distinct after correction"));
    mount($("charts"), data.charts);
    if (data.further.length) {
      show("further");
      const hidden = data.further_total - data.further.length;
      $("further-summary").textContent = plural(data.further_total, "further curve", "further curves") + (hidden ? `, ${data.further.length} of them drawn` : "");
      $("further").addEventListener("toggle", () => { if ($("further").open && !$("further-charts").childElementCount) mount($("further-charts"), data.further); });
    }
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
    const head = ["metric", el("span", {}, named(0)), el("span", {}, named(1)), "B − A, 95 %", "A higher · B higher", "effect", "p", "they part at"];
    const rows = (items) => items.map((row) => ({ class: row.distinct ? null : "unclear", cells: [
      el("span", {}, row.distinct ? el("span", { class: "star" }, "* ") : "", line(row.title, 80), el("small", {}, `${line(row.name, 100)}${row.unit ? ` · ${line(row.unit, 40)}` : ""}`)), number(row.last[0]), number(row.last[1]),
      line(row.difference, 40), row.scaled ? forest(row, widest) : "", row.effect === null ? "–" : number(Number(row.effect.toFixed(1))), row.p === null ? "–" : row.p < 0.0001 ? "< .0001" : row.p.toFixed(4).replace(/^0/, ""), row.departure === null ? "–" : count(row.departure)] }));
    const numeric = new Set([1, 2, 3, 5, 6, 7]);
    const early = data.metrics.filter((row, i) => i < 12 || row.distinct), late = data.metrics.filter((row) => !early.includes(row));
    $("metrics-note").textContent = "Effect: the difference in units of one step's noise at the base, drawn with its interval on a scale that is tighter further out. p is before, * after the correction.";
    table($("metrics-table"), head, rows(early), numeric);
    if (late.length) {
      show("metrics-rest");
      const hidden = data.metrics_total - data.metrics.length;
      $("metrics-summary").textContent = plural(late.length + hidden, "further metric, not distinct", "further metrics, none of them distinct") + (hidden ? `, ${late.length} of them shown` : "");
      lazyTable($("metrics-rest"), () => table($("metrics-more"), ["metric", el("span", {}, named(0)), el("span", {}, named(1)), ...head.slice(3)], rows(late), numeric));
    }
  }

  // ---- checks and settings
  const differ = data.checks.filter((check) => check.differs), alike = data.checks.filter((check) => !check.differs);
  const checkRows = (checks) => checks.map((check) => ({ cells: [el("span", {}, line(check.title, 200), el("small", {}, line(check.id, 80))), statuses(check.sides[0]), statuses(check.sides[1])] }));
  if (data.checks.length) show("checks");
  if (differ.length) { show("checks-differ"); table($("checks-table"), ["check", named(0), named(1)], checkRows(differ)); }
  if (alike.length) {
    show("checks-alike");
    $("checks-summary").textContent = plural(alike.length, "check says the same of both", "checks say the same of both");
    lazyTable($("checks-alike"), () => table($("checks-rest"), ["check", named(0), named(1)], checkRows(alike)));
  }
  const values = (list) => (list.length ? el("code", {}, list.map((one) => line(one, 200)).join(" | ")) : el("span", { class: "dim" }, "not set"));
  const settingRows = (rows) => rows.map(([key, a, b]) => ({ cells: [el("code", {}, line(key, 120)), values(a), values(b)] }));
  $("settings-note").textContent = line(data.settings_note, 600);
  if (data.settings.length) { show("settings-differ"); table($("settings-table"), ["setting", named(0), named(1)], settingRows(data.settings)); }
  if (data.other_settings.length) {
    show("settings-other");
    $("settings-summary").textContent = plural(data.other_settings.length, "further setting differs, no reason for a difference", "further settings differ, no reasons for a difference");
    lazyTable($("settings-other"), () => table($("settings-rest"), ["setting", named(0), named(1)], settingRows(data.other_settings)));
  }

  // ---- sections and colours
  for (const [id, title] of [["formats", "Formats"], ["curves", "Curves"], ["metrics", "Metrics"], ["checks", "Checks"], ["settings", "Settings"], ["details", "How it was judged"]])
    if (!$(id).hidden) $("nav").append(el("a", { href: `#${id}` }, title));
  const THEMES = [["", "◐ auto", "automatic"], ["light", "☀ light", "light"], ["dark", "☾ dark", "dark"]];
  let theme = 0;
  const redraw = () => drawings.forEach((again) => again());
  $("theme").addEventListener("click", () => {
    theme = (theme + 1) % THEMES.length;
    const [name, sign, words] = THEMES[theme];
    if (name) document.documentElement.dataset.theme = name; else delete document.documentElement.dataset.theme;
    $("theme").textContent = sign;
    $("theme").setAttribute("aria-label", `Colour scheme: ${words}`);
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
})();
