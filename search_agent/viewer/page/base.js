"use strict";
// Elements, numbers and the data of the page. Texts of runs are only ever set as textContent.

const $ = (selector, root = document) => root.querySelector(selector);

// el("p.muted", { title: "x" }, "text", child): tag and classes, attributes and listeners, children (strings are text).
function el(spec, attributes = {}, ...children) {
  const [tag, ...classes] = spec.split(".");
  return fill(document.createElement(tag), classes, attributes, children);
}

function svg(spec, attributes = {}, ...children) {
  const [tag, ...classes] = spec.split(".");
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), classes, attributes, children);
}

function fill(node, classes, attributes, children) {
  if (classes.length) node.classList.add(...classes);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter(child => child !== null && child !== undefined));
  return node;
}

const number = (value, digits = 3) =>
  value === null || value === undefined ? "–"
    : Number.isInteger(value) ? value.toLocaleString("en")
      : Math.abs(value) >= 1000 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toPrecision(3)
        : value.toFixed(digits);
const percent = value => value === null || value === undefined ? "–" : `${(100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0)} %`;
const milliseconds = ms => ms < 1 ? `${ms.toFixed(2)} ms` : ms < 100 ? `${ms.toFixed(1)} ms` : ms < 1e4 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
const stageTitle = name => name.replaceAll("-", " ");

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const decode = text => Uint8Array.from(atob(text.trim()), character => character.charCodeAt(0));

// The index of all episodes, and the blocks that hold their texts.
const data = {
  async open() {
    Object.assign(this, await inflate(decode($("#index").textContent)));
    $("#index").remove();
    this.count = this.columns.run.length;
    this.cache = new Map();
  },
  async episode(number) {
    const block = Math.floor(number / this.block);
    if (!this.cache.has(block)) {
      if (this.cache.size > 8) this.cache.delete(this.cache.keys().next().value);
      this.cache.set(block, this.load(block));
    }
    return (await this.cache.get(block))[number % this.block];
  },
  async load(block) {
    // The file may still be coming in: the first page is drawn from the index, which stands before the blocks.
    if (document.readyState === "loading") await new Promise(done => document.addEventListener("DOMContentLoaded", done, { once: true }));
    const stored = document.getElementById(`b${block}`);
    if (stored) return inflate(decode(stored.textContent));
    const reply = await fetch(`block/${block}`);
    if (!reply.ok) throw new Error(`block ${block}: the server answered ${reply.status}`);
    return inflate(await reply.arrayBuffer());
  },
  // A value as the table shows and filters it.
  value(name, number) {
    const column = this.columns[name] ?? this.parts[name];
    const value = column?.[number] ?? null;
    return value !== null && name in this.names ? this.names[name][value] : value;
  },
  question(number) {
    const [id, text, golds, supporting] = this.questions[this.columns.question[number]];
    return { id, text: text || id, golds, supporting }; // files of earlier versions hold no question
  },
  run(number) { return this.runs[this.columns.run[number]].name; },
  right(number) { return this.columns.right[number] === 1; },
};

function hint(text) {
  const box = $("#hint");
  box.textContent = text;
  box.classList.toggle("shown", Boolean(text));
}
