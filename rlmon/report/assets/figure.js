"use strict";
// Figures of a page: the names inside areas, the axis of steps, and each as a picture or as numbers. Nothing is fetched
// and nothing leaves the browser: a file is made here and saved.
Object.assign(page, (() => {
  const { data, el, svg, css, count, scaleX, ticks, LEFT, RIGHT, view } = page;
  const STEP_ROOM = 44, TITLE = 30, MARGIN = 14, NAMED = 15;

  // Marks of the steps below a figure whose floor is there, and the word that says what they are.
  function stepAxis(wide, floor) {
    const x = scaleX(wide), text = (at, anchor, words) => svg("text", { x: at, y: floor + 15, "text-anchor": anchor }, words);
    return [...ticks(wide).filter((step) => x(step) < wide - RIGHT - STEP_ROOM).map((step) => text(x(step), "middle", count(step))), text(wide - RIGHT, "end", "step")];
  }
  const dark = (colour) => {
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16) / 255);
    return 0.2126 * r ** 2.2 + 0.7152 * g ** 2.2 + 0.0722 * b ** 2.2 < 0.25;
  };
  // The name of each layer where it is widest, if it fits there: colours need no legend then.
  function named(rows, places, x, y) {
    const floor = places.map(() => 0), found = [];
    for (const { mode, colour, values } of rows) {
      const middle = places.map(([step, i], k) => [x(step), y(floor[k] + values[i] / 2), Math.abs(y(values[i]) - y(0))]);
      places.forEach(([, i], k) => { floor[k] += values[i]; });
      const width = 7 * Math.min(24, mode.length) + 10;
      let best = null;
      middle.forEach(([left, at], k) => {
        let end = k;
        while (end < middle.length && middle[end][2] >= NAMED && Math.abs(middle[end][1] - at) < 14) end++;
        const room = end > k ? middle[end - 1][0] - left : 0;
        if (room >= width && (!best || room > best.room)) best = { room, x: left + room / 2, y: (middle[k][1] + middle[end - 1][1]) / 2 };
      });
      if (best) found.push(svg("text", { class: `name ${dark(colour) ? "on-dark" : "on-light"}`, x: best.x, y: best.y + 4, "text-anchor": "middle" }, page.line(mode, 24)));
    }
    return found;
  }

  // ---- a figure as a file
  function shape(node) {
    const at = (name) => Number(node.getAttribute(name) || 0), path = new Path2D();
    if (node.tagName === "path") return new Path2D(node.getAttribute("d"));
    if (node.tagName === "line") { path.moveTo(at("x1"), at("y1")); path.lineTo(at("x2"), at("y2")); }
    if (node.tagName === "rect") path.rect(at("x"), at("y"), at("width"), at("height"));
    if (node.tagName === "circle") path.arc(at("cx"), at("cy"), at("r"), 0, 2 * Math.PI);
    if (node.tagName === "polygon") {
      node.getAttribute("points").split(" ").forEach((pair, i) => { const [px, py] = pair.split(",").map(Number); if (i) path.lineTo(px, py); else path.moveTo(px, py); });
      path.closePath();
    }
    return path;
  }
  // A drawing again, on a canvas: its shapes one by one, as they look now.
  function paint(c, drawing) {
    for (const node of drawing.querySelectorAll("line,rect,path,polygon,circle,text")) {
      const style = getComputedStyle(node);
      if (style.visibility === "hidden" || node.classList.contains("cursor")) continue;
      c.globalAlpha = Number(style.opacity);
      if (node.tagName === "text") {
        c.font = `${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
        c.textAlign = { middle: "center", end: "right" }[style.textAnchor] || "left";
        c.fillStyle = style.fill;
        c.fillText(node.textContent, Number(node.getAttribute("x")), Number(node.getAttribute("y")));
        continue;
      }
      const path = shape(node);
      if (style.fill !== "none" && node.tagName !== "line") { c.fillStyle = style.fill; c.fill(path); }
      if (style.stroke !== "none") {
        c.strokeStyle = style.stroke; c.lineWidth = parseFloat(style.strokeWidth);
        c.setLineDash(style.strokeDasharray === "none" ? [] : style.strokeDasharray.split(",").map(parseFloat));
        c.stroke(path);
      }
    }
    c.globalAlpha = 1;
  }
  function picture(title, source) {
    const box = source.getBoundingClientRect(), scale = 2, canvas = el("canvas");
    canvas.width = (box.width + 2 * MARGIN) * scale; canvas.height = (box.height + TITLE + 2 * MARGIN) * scale;
    const c = canvas.getContext("2d");
    c.scale(scale, scale);
    c.fillStyle = css("--paper"); c.fillRect(0, 0, canvas.width, canvas.height);
    c.fillStyle = css("--ink"); c.font = "650 14px system-ui,sans-serif"; c.fillText(title, MARGIN, MARGIN + 14);
    c.translate(MARGIN, MARGIN + TITLE);
    if (source.tagName.toLowerCase() === "canvas") c.drawImage(source, 0, 0, box.width, box.height); else paint(c, source);
    return canvas;
  }
  // Cells of a table as text. A name that a spreadsheet would take for a formula is marked as text.
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const csv = (rows) => rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
  function save(name, blob) {
    const link = el("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }
  const plain = (text) => String(text).toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 40) || "figure";
  // Two buttons. source() is the canvas or the drawing now, rows() what a table of the figure holds, heads first.
  function savers(title, source, rows) {
    const name = `rlmon-${plain((data.run || {}).id || "compare")}-${plain(title)}`;
    const button = (kind, said, act) => el("button", { type: "button", class: "save", "aria-label": `${kind}: ${said} of ${title}`, onclick: act }, kind);
    return el("span", { class: "savers" },
      button("PNG", "save the picture", () => picture(title, source()).toBlob((blob) => save(`${name}.png`, blob))),
      button("CSV", "save the numbers", () => save(`${name}.csv`, new Blob([csv(rows())], { type: "text/csv" }))));
  }
  // Lines of steps and values as one table.
  const linesTable = (heads, lines) => {
    const values = lines.map((one) => new Map(one.steps.map((step, i) => [step, one.values[i]])));
    const steps = [...new Set(lines.flatMap((one) => one.steps))].sort((a, b) => a - b);
    const rows = steps.map((step) => [step, ...values.map((known) => known.get(step) ?? null)]);
    return [["step", ...heads], ...rows.filter((row) => row.slice(1).some((value) => value !== null))];
  };

  // ---- addresses inside the page: a check, an event, a step
  function permalinks(first) {
    const go = () => {
      const id = location.hash.slice(1), step = /^step-(\d+)$/.exec(id);
      if (step) {
        view.pinned = Math.min(view.to, Math.max(view.from, Number(step[1])));
        page.point(view.pinned);
        (first() || document.body).scrollIntoView({ block: "center" });
        return;
      }
      const target = id && document.getElementById(id);
      if (!target) return;
      for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
      target.scrollIntoView();
    };
    addEventListener("hashchange", go);
    // Once the figures have their heights.
    if (location.hash) requestAnimationFrame(() => requestAnimationFrame(go));
  }
  return { stepAxis, named, savers, linesTable, permalinks };
})());
