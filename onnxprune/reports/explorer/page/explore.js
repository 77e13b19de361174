// The page of `onnxprune explore`. All numbers come from the command; here they are only asked for and shown.
// Names of a model may be anything, so text goes in by textContent alone.

const SVG = "http://www.w3.org/2000/svg";
const LANES = 6; // colours
const NARROW = matchMedia("(max-width: 900px)");
const LABELS = { macs: "MACs", params: "params", bytes: "bytes", memory: "memory", channels: "channels",
  latency: "latency", ratio: "the same ratio everywhere" };
const SCOPES = { global: "one ranking of all channels", uniform: "the same share of every group",
  saving: "least score per unit saved", sensitivity: "all curves down to one value", latency: "least loss per second saved" };

const $ = (id) => document.getElementById(id);
let model = null; // what the command says once
let kept = []; // by group: channels that stay
let figures = null; // of `kept`
let savedState = "", history = [], rows = [], chosen = -1, ended = false;
const held = new Set();
let off = new Set(); // blocks that are removed
let fixedOff = new Set(); // those of them that were switched off by hand: an aim removes them whatever the goal

// ------------------------------------------------------------------------------------------------ small helpers

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "circle", "rect", "g", "text", "title"].includes(tag);
  const node = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function short(value) {
  for (const [unit, size] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (Math.abs(value) >= size) return `${Number((value / size).toPrecision(3))} ${unit}`;
  }
  return `${value}`;
}

function seconds(value) {
  if (value < 1e-3) return `${Number((value * 1e6).toPrecision(3))} µs`;
  return value < 1 ? `${Number((value * 1e3).toPrecision(3))} ms` : `${Number(value.toPrecision(3))} s`;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const isShare = () => ["top1", "top5"].includes(model.metric.name);
const metric = (value) => (isShare() ? percent(value) : `${Number(value.toPrecision(4))}`);

function change(value) {
  const by = value - model.metric.whole;
  const sign = by < 0 ? "−" : by > 0 ? "+" : "±";
  return sign + (isShare() ? `${Math.abs(100 * by).toFixed(1)}` : `${Number(Math.abs(by).toPrecision(3))}`);
}

function say(text, problem = false) {
  $("status").textContent = text;
  $("status").classList.toggle("problem", problem);
}

// ------------------------------------------------------------------------------------------------ the command

async function ask(action, body) {
  const response = await fetch(action, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// One question at a time. What comes meanwhile is put together: the last aim, and the costs of what is kept by then.
const wanted = { aim: null, figures: false, start: null };
const edits = new Map(); // group -> count set by hand since the last aim was asked for: its answer must not undo that
const switched = new Map(); // block -> whether it was switched off since then
let busy = false, era = 0; // what an undo has left behind

async function run(start) {
  wanted.start ??= start;
  if (busy) return;
  busy = true;
  try {
    while (wanted.aim || wanted.figures) {
      const [since, now, aim] = [wanted.start, era, wanted.aim];
      wanted.start = null;
      if (aim) wanted.aim = null;
      else wanted.figures = false;
      const answer = await (aim ? ask("aim", aim) : ask("figures", state()));
      if (now !== era) continue;
      take(answer);
      performance.measure("interaction", { start: since ?? start });
    }
  } catch (error) {
    lost(error);
  }
  busy = false;
}

function askFigures(start) {
  wanted.figures = true;
  run(start);
}

function lost(error) {
  say(error instanceof TypeError ? "The command has ended. Nothing can be saved any more." : String(error.message), true);
}

function refuse({ what, fix }) {
  say(`Cannot do that: ${what}.${fix ? ` Try: ${fix}.` : ""}`, true);
}

function take(answer) {
  if (answer.problem) {
    refuse(answer.problem);
    return;
  }
  say("");
  figures = answer.figures;
  if (answer.aimed) {
    kept = answer.kept;
    edits.forEach((count, group) => (kept[group] = count));
    off = new Set(answer.blocks);
    switched.forEach((gone, block) => (gone ? off.add(block) : off.delete(block)));
    wanted.figures ||= edits.size + switched.size > 0;
    showRows();
  }
  showTiles();
  showDetails();
  showButtons();
}

// ------------------------------------------------------------------------------------------------ tiles

function tile(label) {
  const parts = { now: make("dd", { class: "now" }), of: make("dd", { class: "of" }), fill: make("i") };
  const meter = make("dd", { class: "meter", "aria-hidden": "true" }, parts.fill);
  $("tiles").append(make("div", {}, make("dt", {}, label), parts.now, parts.of, meter));
  return (now, of, share) => {
    parts.now.textContent = now;
    parts.of.textContent = of;
    meter.hidden = share === null;
    parts.fill.style.width = `${100 * Math.max(0, Math.min(1, share ?? 0))}%`;
  };
}

let tiles = {};

function makeTiles() {
  for (const name of ["macs", "params", "bytes", "memory", "channels"]) tiles[name] = tile(LABELS[name]);
  if (model.latency) tiles.latency = tile("latency, predicted");
  if (model.metric) tiles.metric = tile(`${model.metric.name}, predicted`);
  else tiles.score = tile("score kept");
}

function showTiles() {
  for (const [name, now] of Object.entries(figures.cost)) {
    const whole = model.whole.cost[name];
    const unit = ["bytes", "memory"].includes(name) ? "B" : "";
    const share = whole ? now / whole : 1;
    tiles[name]((name === "channels" ? now : short(now)) + (unit && " ".slice(/[TGMk]$/.test(short(now))) + unit),
      `${percent(share)} of ${name === "channels" ? whole : short(whole)}${unit}`, share);
  }
  if (tiles.latency) {
    const share = figures.latency / model.whole.latency;
    tiles.latency(seconds(figures.latency), `${percent(share)} of ${seconds(model.whole.latency)}`, share);
  }
  if (tiles.score) tiles.score(percent(figures.score), `by ${model.criterion}`, figures.score);
  if (tiles.metric) showMetric();
}

function showMetric() {
  const { metric: alone, added } = figures;
  if (alone === null) {
    tiles.metric("unknown", off.size ? "curves know no blocks" : "curves end before", null);
    return;
  }
  const same = metric(alone) === metric(added);
  const [low, high] = alone < added ? [alone, added] : [added, alone];
  const unit = isShare() ? " points" : "";
  tiles.metric(same ? metric(alone) : `${metric(low).replace(" %", "")} – ${metric(high)}`,
    same ? `${change(alone)}${unit}` : `${change(low)} to ${change(high)}${unit}`, isShare() ? added : null);
}

// ------------------------------------------------------------------------------------------------ rows

class Row {
  constructor(place) {
    this.place = place;
    this.row = model.rows[place];
    this.group = this.row.group === null ? null : model.groups[this.row.group];
    this.open = this.group !== null && this.group.open;
    this.build();
  }

  build() {
    const id = `slider-${this.place}`;
    const name = this.row.name;
    this.line = make("div", { class: "row" });
    const tags = [this.row.op, this.group?.residual ? "residual" : null].filter(Boolean).join(", ");
    this.line.append(make("span", { class: "title" },
      make(this.open ? "label" : "span", this.open ? { for: id } : {}, name), " ", make("span", { class: "tag" }, tags)));
    if (this.open) this.addSlider(id);
    else this.line.append(make("span", { class: "why" }, this.why()));
    this.more = make("button", { type: "button", class: "more", "aria-label": `Details of ${name}`, "aria-pressed": "false" }, "i");
    this.more.addEventListener("click", () => choose(NARROW.matches && chosen === this.place ? -1 : this.place));
    this.line.append(this.more);
    this.item = make("li", { class: this.open ? null : "locked" }, this.line);
  }

  why() {
    if (this.group !== null) return `${this.row.channels} channels, left whole as asked`;
    return `${this.row.channels} channels stay${this.row.reason ? `: ${this.row.reason}` : ""}`;
  }

  addSlider(id) {
    this.slider = make("input", { id, type: "range", min: 0, step: 1, class: "slider" });
    this.numbers = make("span", { class: "numbers" });
    this.hold = make("input", { type: "checkbox", "aria-label": `hold ${this.row.name}` });
    this.line.append(this.slider, this.numbers, make("label", { class: "hold" }, this.hold, "hold"));
    this.slider.addEventListener("input", () => this.dragged());
    this.slider.addEventListener("focus", () => NARROW.matches || choose(this.place));
    this.hold.addEventListener("change", () => (this.hold.checked ? held.add(this.row.group) : held.delete(this.row.group)));
  }

  dragged() {
    const start = performance.now();
    remember(`group ${this.place}`);
    kept[this.row.group] = this.stops[Number(this.slider.value)];
    edits.set(this.row.group, kept[this.row.group]);
    this.show();
    drawDot(this.place);
    askFigures(start);
  }

  // A goal may be met with counts between two blocks: then the slider has a stop there, too.
  show() {
    const block = this.group === null ? null : removedWith(this.row.group);
    this.item.classList.toggle("gone", block !== null);
    if (!this.open) return;
    const count = kept[this.row.group];
    const { stops, channels } = this.group;
    this.stops = stops.includes(count) ? stops : [...stops, count].sort((a, b) => b - a);
    this.slider.max = this.stops.length - 1;
    this.slider.value = this.stops.indexOf(count);
    this.slider.disabled = this.hold.disabled = ended || block !== null;
    if (block !== null) {
      this.slider.setAttribute("aria-valuetext", `removed with the block ${block.name}`);
      this.numbers.replaceChildren(make("b", {}, "0"), ` / ${channels} · block`);
      return;
    }
    const gone = 1 - count / channels;
    this.slider.setAttribute("aria-valuetext", `${count} of ${channels} channels kept, ${percent(gone)} removed`);
    this.numbers.replaceChildren(make("b", {}, `${count}`), ` / ${channels}`, ` · ${gone ? "−" : ""}${(100 * gone).toFixed(0)} %`);
  }
}

class Switch {
  constructor(place) {
    this.place = place;
    this.block = model.blocks[place];
    const id = `block-${place}`;
    this.input = make("input", { id, type: "checkbox", role: "switch", "aria-label": `keep block ${this.block.name}` });
    this.text = make("span", { class: "saves" });
    const title = make("label", { for: id }, this.block.name);
    const line = make("div", { class: "row" },
      make("span", { class: "title" }, title, " ", make("span", { class: "tag" }, `block, ${this.block.kind}`)),
      this.text, make("label", { class: "hold" }, this.input, "keep"));
    this.item = make("li", { class: "block" }, line);
    this.input.addEventListener("change", () => this.toggled());
  }

  toggled() {
    const start = performance.now();
    const gone = !this.input.checked;
    remember(`block ${this.place}`);
    for (const set of [off, fixedOff]) gone ? set.add(this.place) : set.delete(this.place);
    switched.set(this.place, gone);
    showRows();
    askFigures(start);
  }

  show() {
    const outer = this.block.within.find((i) => off.has(i));
    const gone = off.has(this.place);
    this.input.checked = !gone && outer === undefined;
    this.input.disabled = ended || outer !== undefined || (!gone && outermost().length >= model.most_blocks);
    this.item.classList.toggle("gone", !this.input.checked);
    const { macs, params, latency } = this.block.saved;
    const parts = [`${percent(macs)} of MACs`, `${percent(params)} of params`, latency === null ? null : `${percent(latency)} of latency`];
    const saved = parts.filter(Boolean).join(", ");
    this.text.textContent = outer === undefined ? `${gone ? "removed" : "without it"}: −${saved}` : `removed with ${model.blocks[outer].name}`;
  }
}

let switches = [];

const outermost = () => [...off].filter((i) => !model.blocks[i].within.some((j) => off.has(j)));
const state = () => ({ kept, blocks: [...off].sort((a, b) => a - b) });

// The removed block that holds a group, if any.
function removedWith(group) {
  const place = [...off].find((i) => model.blocks[i].groups.includes(group));
  return place === undefined ? null : model.blocks[place];
}

function makeRows() {
  rows = model.rows.map((_, place) => new Row(place));
  switches = model.blocks.map((_, place) => new Switch(place));
  const items = rows.flatMap((row, place) =>
    [...switches.filter(({ block }) => block.row === place).map(({ item }) => item), row.item]);
  $("rows").append(...items);
}

let drawnOff = "";

// Lines change with the blocks only.
function showRows() {
  rows.forEach((row) => row.show());
  switches.forEach((one) => one.show());
  if (drawnOff === String([...off])) drawDots();
  else drawFlow();
  drawnOff = String([...off]);
}

// ------------------------------------------------------------------------------------------------ the picture of the flow

const dots = [];

function drawFlow() {
  const lanes = Math.max(...model.rows.map((row) => row.lane)) + 1;
  const room = NARROW.matches ? 70 : 190;
  const step = Math.min(18, (room - 24) / Math.max(lanes - 1, 1));
  const width = 24 + step * (lanes - 1);
  document.documentElement.style.setProperty("--gutter", `${width}px`);
  const svg = $("flow");
  const x = (row) => 12 + step * model.rows[row].lane;
  const y = rows.map((row) => row.item.offsetTop + row.line.offsetHeight / 2);
  svg.setAttribute("width", width);
  svg.setAttribute("height", $("rows").offsetHeight);
  const colour = (row) => `var(--lane${model.rows[row].lane % LANES})`;
  const turn = 20; // height of a branch
  const ends = [...y];
  const lines = [];
  for (const [from, to] of model.edges) {
    const back = to < from; // an addition into a stream above
    const stream = back ? to : from;
    const at = back ? y[from] + turn : y[to] - turn;
    const side = back ? from : to;
    const straight = !back && x(from) === x(to);
    ends[stream] = Math.max(ends[stream], straight ? y[to] : at);
    if (!straight) {
      const middle = (at + y[side]) / 2;
      lines.push([`M${x(stream)},${at}C${x(stream)},${middle} ${x(side)},${middle} ${x(side)},${y[side]}`, colour(back ? from : stream), from, to]);
    }
  }
  model.rows.forEach((_, row) => {
    if (ends[row] > y[row]) lines.push([`M${x(row)},${y[row]}V${ends[row]}`, colour(row), row, row]);
  });
  const isGone = (row) => model.rows[row].group !== null && removedWith(model.rows[row].group) !== null;
  svg.replaceChildren(...lines.map(([d, stroke, from, to]) => {
    const on = chosen >= 0 && (from === chosen || to === chosen) ? "on" : "";
    const gone = isGone(from) || isGone(to) ? " gone" : "";
    return make("path", { d, stroke, class: `${on}${gone}`.trim() || null });
  }));
  rows.forEach((row, place) => {
    if (row.group === null) {
      svg.append(make("rect", { x: x(place) - 5, y: y[place] - 5, width: 10, height: 10 }));
      return;
    }
    const [cx, cy] = [x(place), y[place]];
    dots[place] = make("circle", { cx, cy, r: 0, fill: colour(place) });
    svg.append(make("circle", { class: "hole", cx, cy, r: 7, stroke: colour(place) }), dots[place]);
  });
  drawDots();
}

// The filled part of a dot's area is the share that stays.
function drawDot(place) {
  const { group } = model.rows[place];
  if (group === null) return;
  const share = removedWith(group) === null ? kept[group] / model.groups[group].channels : 0;
  dots[place]?.setAttribute("r", 7 * Math.sqrt(share));
}

const drawDots = () => model.rows.forEach((_, place) => drawDot(place));

// ------------------------------------------------------------------------------------------------ details of a group

function choose(place) {
  if (chosen === place) return;
  chosen = place;
  placeDetails();
}

function placeDetails() {
  rows.forEach((row, i) => {
    row.item.classList.toggle("chosen", i === chosen);
    row.more.setAttribute("aria-pressed", String(i === chosen));
  });
  const aside = $("details");
  aside.hidden = chosen < 0;
  document.querySelector(".columns").classList.toggle("single", chosen < 0);
  if (NARROW.matches && chosen >= 0) rows[chosen].item.append(aside);
  else document.querySelector(".columns").append(aside);
  showDetails();
  drawFlow();
}

function names(places) {
  const found = places.map((i) => model.rows[i].name);
  return found.length > 6 ? `${found.slice(0, 6).join(", ")} and ${found.length - 6} more` : found.join(", ") || "nothing";
}

function showDetails() {
  if (chosen < 0) return;
  const { row, group, open } = rows[chosen];
  const list = make("dl");
  const add = (term, text) => list.append(make("dt", {}, term), make("dd", {}, text));
  if (group !== null && group.width > 1) add("channel", `${group.width} values of the weight that makes it`);
  if (group === null && row.reason) add("locked", row.reason);
  const around = model.blocks.filter(({ groups }) => row.group !== null && groups.includes(row.group));
  if (around.length) add("block", around.map(({ name }) => name).join(", "));
  add("made from", names(model.edges.filter(([, to]) => to === chosen).map(([from]) => from)));
  add("read by", names(model.edges.filter(([from]) => from === chosen).map(([, to]) => to)));
  if (group !== null) {
    const weights = group.weights;
    add("weights", weights.slice(0, 6).join(", ") + (weights.length > 6 ? ` and ${weights.length - 6} more` : ""));
  }
  $("details").replaceChildren(make("h3", {}, row.name), ...(open ? charts(group, kept[row.group]) : []), list);
}

function charts(group, count) {
  const gone = group.channels - count;
  const found = [];
  if (group.curve) {
    const known = gone <= group.curve.at(-1)[0];
    const text = known ? `${model.metric.name} ${metric(between(group.curve, gone))} if only this group is cut`
      : `${model.metric.name} was not measured that far`;
    found.push(chart(group.curve, group.channels, gone, text, metric));
  } else if (group.worth) {
    found.push(chart(group.worth, group.channels, gone, `${percent(between(group.worth, gone))} of this group's score kept`, percent));
  }
  return found;
}

function between(points, at) {
  const after = points.findIndex(([x]) => x >= at);
  if (after <= 0) return points[Math.max(after, 0)][1];
  const [[x0, y0], [x1, y1]] = [points[after - 1], points[after]];
  return y0 + ((y1 - y0) * (at - x0)) / (x1 - x0);
}

function chart(points, channels, gone, text, format) {
  const [width, height, left, bottom] = [300, 150, 8, 20];
  const values = points.map(([, value]) => value);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const x = (n) => left + ((width - left - 8) * n) / channels;
  const y = (v) => 18 + ((height - bottom - 24) * (high - v)) / (high - low || 1);
  const svg = make("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": text });
  svg.append(make("path", { class: "axis", d: `M${left},${height - bottom}H${width - 8}` }));
  svg.append(make("path", { class: "line", d: `M${points.map(([n, v]) => `${x(n)},${y(v)}`).join("L")}` }));
  svg.append(make("path", { class: "guide", d: `M${x(gone)},14V${height - bottom}` }));
  if (gone <= points.at(-1)[0]) svg.append(make("circle", { class: "here", cx: x(gone), cy: y(between(points, gone)), r: 5 }));
  const label = (px, py, anchor, words) => svg.append(make("text", { x: px, y: py, "text-anchor": anchor }, words));
  label(left, height - 5, "start", "0 removed");
  label(width - 8, height - 5, "end", `all ${channels}`);
  label(left, 11, "start", format(high));
  label(left + 2, height - bottom - 4, "start", format(low));
  return make("figure", { class: "figure" }, svg, make("figcaption", { class: "hint" }, text));
}

// ------------------------------------------------------------------------------------------------ aim

const aimed = () => model.aims[$("what").selectedIndex];

function goalOf(aim) {
  const steps = Number($("goal").max);
  const value = aim.from + ((aim.to - aim.from) * Number($("goal").value)) / (steps || 1);
  return aim.what === "metric" ? value : Math.round(value * 1e6) / 1e6;
}

function goalText(aim, value) {
  if (aim.what === "metric") return metric(value);
  return aim.what === "ratio" ? `${(100 * value).toFixed(0)} % removed` : `${(100 * value).toFixed(0)} % kept`;
}

function showGoal() {
  const aim = aimed();
  const text = goalText(aim, goalOf(aim));
  $("goal-value").textContent = text;
  $("goal").setAttribute("aria-valuetext", text);
}

function makeAim() {
  for (const { what } of model.aims) {
    const label = what === "metric" ? `${model.metric.name} of every group alone` : LABELS[what];
    $("what").append(make("option", { value: what }, label));
  }
  for (const scope of model.scopes) $("scope").append(make("option", { value: scope }, SCOPES[scope] ?? scope));
  $("what").selectedIndex = model.aims.findIndex(({ what }) => what === "macs");
  $("what").addEventListener("change", changeAim);
  $("scope").addEventListener("change", () => Number($("goal").value) && runAim());
  $("goal").addEventListener("input", runAim);
  changeAim();
}

function changeAim() {
  const aim = aimed();
  $("goal").max = Math.max(1, Math.round(Math.abs(aim.to - aim.from) / aim.step));
  $("goal").value = 0;
  $("goal-label").textContent = aim.what === "ratio" ? "share removed" : aim.what === "metric" ? "at least" : "share kept";
  if (aim.what === "metric" && !model.metric.higher_is_better) $("goal-label").textContent = "at most";
  $("scope").disabled = ["ratio", "metric"].includes(aim.what);
  showGoal();
}

function runAim() {
  const start = performance.now();
  const aim = aimed();
  remember("aim");
  showGoal();
  const fixed = Object.fromEntries([...held].map((group) => [group, kept[group]]));
  const scope = $("scope").disabled ? null : $("scope").value;
  edits.clear();
  switched.clear();
  wanted.aim = { what: aim.what, value: goalOf(aim), scope, held: fixed, blocks: [...fixedOff] };
  run(start);
}

// ------------------------------------------------------------------------------------------------ undo, save, done

let lastCause = null;

// One step back for each drag, not for each of its events.
function remember(cause) {
  if (cause !== lastCause) history.push({ kept: [...kept], off: [...off], fixedOff: [...fixedOff] });
  lastCause = cause;
  history.splice(0, history.length - 100);
  showButtons();
}

function restore(before) {
  kept = [...before.kept];
  off = new Set(before.off);
  fixedOff = new Set(before.fixedOff);
  lastCause = null;
  wanted.aim = null;
  era += 1;
  showRows();
  showButtons();
  askFigures(performance.now());
}

const begun = () => ({ kept: model.start, off: [], fixedOff: [] });
const isSaved = () => JSON.stringify(state()) === savedState;

function showButtons() {
  $("undo").disabled = ended || history.length === 0;
  $("reset").disabled = $("save").disabled = $("done").disabled = ended;
}

async function save() {
  const now = JSON.stringify(state());
  try {
    const answer = await ask("save", state());
    if (answer.problem) {
      refuse(answer.problem);
      return false;
    }
    savedState = now;
    const blocks = answer.removed_blocks.length;
    say(`Saved: ${answer.removed_channels} channels ${blocks ? `and ${blocks} block${blocks > 1 ? "s" : ""} ` : ""}go. ${answer.saved}`);
    return true;
  } catch (error) {
    lost(error);
    return false;
  }
}

async function end() {
  $("unsaved").close();
  try {
    const { saved } = await ask("done", {});
    ended = true;
    for (const node of document.querySelectorAll("input, select, button")) node.disabled = true;
    say(`The command has ended. ${saved ? `The plan is in ${saved}.` : "Nothing was saved."} You can close this page.`);
  } catch (error) {
    lost(error);
  }
}

function makeButtons() {
  $("undo").addEventListener("click", () => restore(history.pop()));
  $("reset").addEventListener("click", () => {
    lastCause = null;
    remember("reset");
    $("goal").value = 0;
    showGoal();
    restore(begun());
  });
  $("save").addEventListener("click", save);
  $("done").addEventListener("click", () => {
    const untouched = off.size === 0 && JSON.stringify(kept) === JSON.stringify(model.start);
    if (isSaved() || (untouched && !savedState)) end();
    else $("unsaved").showModal();
  });
  $("save-done").addEventListener("click", async () => ((await save()) ? end() : $("unsaved").close()));
  $("drop-done").addEventListener("click", end);
  $("go-on").addEventListener("click", () => $("unsaved").close());
  for (const type of ["change", "focusin"]) document.addEventListener(type, () => (lastCause = null));
}

// ------------------------------------------------------------------------------------------------ start

function makeNotes() {
  const lines = [];
  if (model.metric) {
    lines.push(`${model.metric.name} is estimated from the curves: between what the worst group does alone and the sum of what all `
      + "groups lose alone. Measure the pruned model before you use it.");
  } else {
    lines.push("Accuracy is not estimated: that needs --curves, from onnxprune sensitivity. The score kept says how much of all "
      + "channels' scores stays; it is no accuracy.");
  }
  if (model.latency) {
    const { batch, threads, provider } = model.latency;
    lines.push(`Latency is predicted for batch ${batch}, ${threads || "all"} thread${threads === 1 ? "" : "s"}, ${provider}, by a model of this machine.`);
  }
  $("notes").append(...lines.map((line) => make("p", {}, line)),
    make("p", {}, "Save writes ", make("code", {}, model.output), " and nothing else."));
}

async function begin() {
  const response = await fetch("model");
  model = await response.json();
  document.title = `${model.name} · onnxprune explore`;
  $("name").textContent = model.name;
  kept = [...model.start];
  makeTiles();
  makeRows();
  makeAim();
  makeButtons();
  makeNotes();
  showRows();
  // Beside the rows the details have their place from the start: nothing may move under a finger that drags.
  if (!NARROW.matches) chosen = Math.max(0, model.rows.findIndex((row) => row.group !== null));
  placeDetails();
  new ResizeObserver(drawFlow).observe($("rows"));
  NARROW.addEventListener("change", placeDetails);
  askFigures(performance.now());
}

begin().catch(lost);
