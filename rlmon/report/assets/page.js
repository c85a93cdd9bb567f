"use strict";
// What every page here uses. Every string of a run reaches the page through textContent (el, svg); nothing writes markup.
const page = (() => {
  const $ = (id) => document.getElementById(id);
  const make = (node, props, children) => {
    for (const [key, value] of Object.entries(props)) {
      if (value === null || value === undefined || value === false) continue;
      if (key === "class") node.setAttribute("class", value);
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else node.setAttribute(key, value === true ? "" : value);
    }
    for (const child of children.flat(Infinity)) {
      if (child === null || child === undefined || child === false) continue;
      node.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
    return node;
  };
  // Property names and tags are written here in the scripts, never taken from data.
  const el = (tag, props = {}, ...children) => make(document.createElement(tag), props, children);
  // A name, not an address; in two parts, so that a search for addresses in a page finds none.
  const SVG = "http:/" + "/www.w3.org/2000/svg";
  const svg = (tag, props = {}, ...children) => make(document.createElementNS(SVG, tag), props, children);
  function table(target, head, rows, numeric = new Set()) {
    // Where the window is narrow the head of a column stands beside each of its cells.
    const said = head.map((h) => (h instanceof Node ? h.textContent : String(h)));
    const side = (i) => ({ class: numeric.has(i) ? "n" : null, "data-head": said[i] || null });
    target.append(el("thead", {}, el("tr", {}, ...head.map((h, i) => el("th", { scope: "col", ...side(i) }, h)))));
    const body = el("tbody");
    for (const row of rows) {
      const cells = row.cells.map((cell, i) => (i === 0 ? el("th", { scope: "row" }, cell) : el("td", side(i), cell)));
      body.append(el("tr", { class: row.class, id: row.id }, ...cells));
    }
    target.append(body);
    return target;
  }
  const fixed = (value, digits = 3) => (value === null || value === undefined ? "–" : Number(value).toFixed(digits));
  // A canvas knows no variables: what a colour is in the scheme now shown.
  const probe = el("i", { hidden: true });
  document.body.append(probe);
  const css = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  // What the axes of all charts look like.
  const axisStyle = () => ({ stroke: css("--dim"), grid: { stroke: css("--line"), width: 1 }, font: "11px system-ui,sans-serif" });
  const swatch = (colour) => {
    const box = el("i");
    box.style.background = colour;
    return box;
  };
  const show = (id) => { $(id).hidden = false; return $(id); };
  const scroll = (title, content) => el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, content);
  const lazyTable = (details, fill) => details.addEventListener("toggle", () => { if (details.open && !details.querySelector("tbody")) fill(); });

  // ---- numbers
  // Three significant digits; thousands set apart; a string (NaN, inf) as it is.
  const number = (value) => {
    if (value === null || value === undefined) return "–";
    if (typeof value !== "number") return String(value);
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en-US");
    if (size !== 0 && size < 0.001) return value.toExponential(1);
    return String(Number(value.toPrecision(3)));
  };
  const count = (value) => Number(value || 0).toLocaleString("en-US");
  const plural = (n, one, many) => `${count(n)} ${n === 1 ? one : many}`;
  const share = (value) => (value === null || value === undefined ? "–" : `${number(100 * value)} %`);
  function shareBar(value, props = {}) {
    const fill = el("i");
    fill.style.width = `${100 * Math.min(1, Math.max(0, value))}%`;
    return el("span", props, el("span", { class: "share-bar", "aria-hidden": "true" }, fill), share(value));
  }

  // ---- texts of a run
  // Characters that cannot be seen (escapes, direction overrides, lone surrogates) are shown by their numbers.
  const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu, HARMLESS = new Set(["\n", "\t", "\u200c", "\u200d"]);
  const escaped = (c) => {
    const code = c.codePointAt(0);
    return code < 256 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
  };
  const readable = (text) => text.replace(/\r\n/g, "\n").replace(UNSEEN, (c) => (HARMLESS.has(c) ? c : escaped(c)));
  // The harmless ones too, where two texts are compared.
  const exact = (text) => text.replace(UNSEEN, escaped);
  const line = (text, limit = 400, clean = readable) => {
    const shown = clean(String(text).slice(0, limit)).replace(/\s+/g, " ");
    return String(text).length > limit ? `${shown}…` : shown;
  };

  // ---- one axis of steps for all figures
  const LEFT = 46, RIGHT = 14, TABLE_ROWS = 60;
  const data = JSON.parse($("data").textContent);
  const [FIRST, LAST] = data.steps || [0, 1];
  // The steps that are drawn, and the one that is pointed at.
  const view = { from: FIRST, to: Math.max(LAST, FIRST + 1), step: null, pinned: null };
  // Cursors are called with each step that is pointed at, null for none; drawings when the view or the colours change.
  const cursors = [], drawings = [];
  const redraw = () => drawings.forEach((again) => again());
  function point(to) {
    const step = to === null ? view.pinned : to;
    view.step = step === null ? null : Math.round(Math.min(view.to, Math.max(view.from, step)));
    cursors.forEach((cursor) => cursor(view.step));
  }
  function steerable(node, stops, title, words) {
    // Arrow keys visit the steps that this figure has values for.
    node.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { view.pinned = null; point(null); return; }
      const here = stops.filter((step) => step >= view.from && step <= view.to), tenth = Math.ceil(here.length / 10);
      const stride = { ArrowLeft: -1, ArrowRight: 1, PageUp: -tenth, PageDown: tenth, Home: -Infinity, End: Infinity }[event.key];
      if (!stride || !here.length) return;
      event.preventDefault();
      let at;
      if (view.step === null) at = stride > 0 ? -1 : here.length;
      else at = stride > 0 ? here.findLastIndex((step) => step <= view.step) : here.findIndex((step) => step >= view.step);
      if (at < 0 && stride < 0) at = here.length;
      point(here[Math.min(here.length - 1, Math.max(0, at + stride))]);
      $("readout").textContent = `${title}, step ${view.step}: ${words()}`;
    });
  }
  function hoverable(node, width) {
    node.addEventListener("pointermove", (event) => {
      const at = event.clientX - node.getBoundingClientRect().left;
      point(view.from + ((view.to - view.from) * (at - LEFT)) / (width() - LEFT - RIGHT));
    });
    node.addEventListener("pointerleave", () => point(null));
    keepable(node);
  }
  // A click keeps the step that is pointed at, in the address too; another on the same one lets it go.
  function keepable(node) {
    node.addEventListener("click", () => {
      if (view.step === null) return;
      view.pinned = view.pinned === view.step ? null : view.step;
      try { history.replaceState(null, "", view.pinned === null ? " " : `#step-${view.pinned}`); } catch { /* an address that cannot change */ }
    });
  }
  const ticks = (room) => {
    const widths = [1, 10, 100, 1000, 10000, 100000, 1000000].flatMap((p) => [p, 2 * p, 5 * p]);
    const span = view.to - view.from, width = widths.find((w) => span / w <= Math.max(2, room / 90)) || span;
    const result = [];
    for (let step = Math.ceil(view.from / width) * width; step <= view.to; step += width) result.push(step);
    return result;
  };
  const scaleX = (width) => (step) => LEFT + ((width - LEFT - RIGHT) * (step - view.from)) / (view.to - view.from);
  // Puts the upright line of a drawing at a step.
  function place(rule, step, width) {
    if (!rule) return;
    rule.style.visibility = step === null ? "hidden" : "visible";
    if (step !== null) for (const side of ["x1", "x2"]) rule.setAttribute(side, scaleX(width)(step));
  }
  // A drawing made again whenever its width, the view or the colours change.
  function drawing(holder, draw) {
    const again = () => { if (holder.clientWidth) draw(holder.clientWidth); };
    drawings.push(again);
    new ResizeObserver(again).observe(holder);
  }
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
  // Layers of [name, colour, values] one upon the other; places are [step, index of the values there].
  function stacked(layers, places, x, y) {
    const floor = places.map(() => 0), edge = () => floor.map((v, k) => `${x(places[k][0]).toFixed(1)},${y(v).toFixed(1)}`);
    return layers.map(([name, colour, values]) => {
      const lower = edge().reverse();
      places.forEach(([, i], k) => { floor[k] += values[i]; });
      return svg("polygon", { class: "area", points: edge().concat(lower).join(" "), fill: colour }, svg("title", {}, name));
    });
  }

  // ---- curves: lines of steps and values
  const undelta = (steps) => { let at = 0; return steps.map((difference) => (at += difference)); };
  const valueAt = ({ steps, values }, step) => {
    if (!steps.length) return null;
    const i = nearest(steps, step);
    return Math.abs(steps[i] - step) <= Math.max(1, (view.to - view.from) / 60) ? values[i] : null;
  };
  function numbersTable(title, heads, lines) {
    const steps = [...new Set(lines.flatMap((one) => evenly(one.steps.length).map((i) => one.steps[i])))].sort((a, b) => a - b);
    const cell = (one, step) => { const k = one.steps.indexOf(step); return k < 0 ? "–" : number(one.values[k]); };
    return scroll(title, table(el("table"), ["step", ...heads],
      evenly(steps.length).map((i) => ({ cells: [count(steps[i]), ...lines.map((one) => cell(one, steps[i]))] })), new Set([0, ...lines.map((_, i) => i + 1)])));
  }
  // Draws the joined lines into plot, again and again, once the function that comes back is called. series() says how a
  // line looks, mark(u) draws over the lines, now(step) is told where the cursor is.
  function curve(plot, chart, joined, series, mark, now) {
    let u = null;
    const draw = (wide) => {
      if (u) u.destroy();
      const axis = { ...axisStyle(), ticks: { show: false } };
      u = new uPlot({
        width: wide, height: 196, padding: [8, 20, 0, 0],
        cursor: { drag: { x: false, y: false }, y: false, points: { size: 6 } }, legend: { show: false },
        scales: {
          x: { time: false, range: () => [view.from, view.to] },
          y: { range: (_, min, max) => {
            if (chart.low !== null && chart.high !== null && chart.high <= 1) return [chart.low, chart.high];
            const low = min ?? 0, high = max ?? 1, room = high - low || Math.abs(high) || 1;
            // A scale that starts at a fixed end does not make noise look like a trend.
            const bottom = chart.low !== null ? Math.min(chart.low, low) : low - 0.06 * room;
            return [bottom, high + 0.08 * (high - bottom || 1)];
          } },
        },
        axes: [{ ...axis, size: 24, label: "step", labelSize: 16, labelGap: 0, labelFont: axis.font, values: (_, marks) => marks.map((v) => (Number.isInteger(v) ? count(v) : "")) }, { ...axis, size: LEFT, values: (_, marks) => marks.map(number) }],
        series: [{}, ...series()],
        hooks: {
          draw: [mark],
          setCursor: [(self) => { if (plot.matches(":hover") && self.cursor.left >= 0) point(self.posToVal(self.cursor.left, "x")); }],
        },
      }, joined, plot);
      if (view.step !== null) follow(view.step);
    };
    function follow(step) {
      now(step);
      if (!u) return;
      if (step === null) u.setCursor({ left: -10, top: -10 }, false);
      else if (!plot.matches(":hover")) u.setCursor({ left: u.valToPos(step, "x"), top: 10 }, false);
    }
    cursors.push(follow);
    plot.addEventListener("pointerleave", () => point(null));
    keepable(plot);
    return () => drawing(plot, draw);
  }
  // All curves of the page; those further down only when they are opened. card(chart) is an element and what starts it.
  function mountCurves(card) {
    const mount = (target, charts) => {
      const cards = charts.filter((chart) => chart.lines.some((one) => one.values.length)).map((chart) => card(chart));
      target.append(...cards.map(([element]) => element));
      // Only now: a card has its final width when all cards are there.
      cards.forEach(([, start]) => start());
    };
    mount($("charts"), data.charts);
    if (!data.further.length) return;
    show("further");
    const hidden = data.further_total - data.further.length;
    $("further-summary").textContent = plural(data.further_total, "further curve", "further curves") + (hidden ? `, ${data.further.length} of them drawn` : "");
    $("further").addEventListener("toggle", () => { if ($("further").open && !$("further-charts").childElementCount) mount($("further-charts"), data.further); });
  }

  // ---- sections and colours
  function navigate(sections) {
    for (const [id, title] of sections) if (!$(id).hidden) $("nav").append(el("a", { href: `#${id}` }, title));
  }
  function themes() {
    const THEMES = [["", "◐ auto"], ["light", "☀ light"], ["dark", "☾ dark"]], KEY = "rlmon-theme";
    // A browser may forbid a file to remember anything.
    const remembered = () => { try { return localStorage.getItem(KEY); } catch { return null; } };
    const remember = (name) => { try { localStorage.setItem(KEY, name); } catch { /* then not */ } };
    let theme = Math.max(0, THEMES.findIndex(([name]) => name === remembered()));
    const apply = () => {
      const [name, sign] = THEMES[theme];
      if (name) document.documentElement.dataset.theme = name; else delete document.documentElement.dataset.theme;
      $("theme").textContent = sign;
      $("theme").setAttribute("aria-label", `${sign}: colour scheme`);
      redraw();
    };
    if (theme) apply();
    $("theme").addEventListener("click", () => {
      theme = (theme + 1) % THEMES.length;
      remember(THEMES[theme][0]);
      apply();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  }
  return {
    data, $, el, svg, table, fixed, css, axisStyle, swatch, show, scroll, lazyTable,
    number, count, plural, share, shareBar, UNSEEN, HARMLESS, escaped, exact, line,
    LEFT, RIGHT, view, cursors, drawings, redraw, point, steerable, hoverable, ticks, scaleX, place, drawing,
    nearest, evenly, stacked, undelta, valueAt, numbersTable, curve, mountCurves, navigate, themes,
  };
})();
