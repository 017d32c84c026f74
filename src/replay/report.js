// Draws the plots of a replay report. One shared view (time range and cursor); every plot follows it.
'use strict';
(() => {
const data = JSON.parse(document.getElementById('data').textContent);
const END = data.end > 0 ? data.end : 1;
const STAGES = ['encode', 'vision', 'prefix', 'denoise', 'decode'];
const PREDICTED = data.predictions.map((p) => p.arrived);
const FONT = '11px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
const LEFT = 58, RIGHT = 12; // room for the labels of y and half a label of t
const view = { from: 0, to: END, cursor: null, select: null };
const layers = {};
const plots = [];
let colors = {};

// ---- numbers ------------------------------------------------------------------------------------------------
const MINUS = '\u2212';
const decimals = (step) => Math.max(0, Math.min(6, -Math.floor(Math.log10(step) + 1e-9)));
const fixed = (v, n) => (v === null || v === undefined ? '–' : v.toFixed(n).replace(/^-(?=0*\.?0*$)/, '').replace('-', MINUS));
const clamp = (v, lo, hi) => Math.min(hi, Math.max(lo, v));

/** Round values from lo to hi, at most n of them. */
function ticks(lo, hi, n) {
  const rough = (hi - lo) / Math.max(1, n);
  if (!(rough > 0) || !isFinite(rough)) return { step: 1, at: [] };
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const at = [];
  for (let i = Math.ceil(lo / step - 1e-9); i * step <= hi + step * 1e-9 && at.length < 100; i++) at.push(i * step);
  return { step, at };
}

/** Index of the last element that is not after t; -1 before the first. */
function lastBefore(times, t) {
  let lo = 0, hi = times.length;
  while (lo < hi) {
    const mid = (lo + hi) >> 1;
    if (times[mid] <= t) lo = mid + 1; else hi = mid;
  }
  return lo - 1;
}

/** First and last index of what to draw between two times: one more on either side. */
const visible = (times, from = view.from, to = view.to) => [Math.max(0, lastBefore(times, from)), Math.min(times.length - 1, lastBefore(times, to) + 1)];

/** A series' value at a time: its last sample, unless that is too long ago. */
function valueAt(series, joint, t) {
  const i = lastBefore(series.t, t);
  if (i < 0 || t - series.t[i] > series.gap) return null;
  const lo = series.lo[joint][i];
  const hi = series.hi ? series.hi[joint][i] : lo;
  return lo === null || lo === undefined ? null : { lo, hi };
}

// ---- a plot: two layers, the upper one for the cursor ---------------------------------------------------------
/**
 * `draw(c, plot)` paints the lower layer, `over(c, plot)` what follows the cursor. `plot.x(t)` and `plot.y(v)` map
 * to pixels; the drawing area is plot.left..plot.right, plot.top..plot.bottom.
 */
function addPlot(host, { height, label, draw, over, whole = false, top = 8, bottom = 18 }) {
  const box = document.createElement('div');
  box.className = 'plot';
  box.style.height = height + 'px';
  box.tabIndex = 0;
  box.setAttribute('role', 'img');
  box.setAttribute('aria-label', label);
  const [base, upper] = [0, 1].map(() => box.appendChild(document.createElement('canvas')));
  host.append(box);
  const plot = { box, draw, over, whole, height, left: LEFT, top, bottom: height - bottom, lo: 0, hi: 1 };
  plot.from = () => (whole ? 0 : view.from);
  plot.to = () => (whole ? END : view.to);
  plot.x = (t) => plot.left + (t - plot.from()) / (plot.to() - plot.from()) * (plot.right - plot.left);
  plot.y = (v) => plot.bottom - (v - plot.lo) / (plot.hi - plot.lo) * (plot.bottom - plot.top);
  plot.time = (x) => clamp(plot.from() + (x - plot.left) / (plot.right - plot.left) * (plot.to() - plot.from()), 0, END);
  const clear = (canvas) => {
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(plot.width * scale);
    canvas.height = Math.round(height * scale);
    const c = canvas.getContext('2d');
    c.scale(scale, scale);
    c.font = FONT;
    return c;
  };
  plot.paint = () => {
    plot.width = box.clientWidth;
    plot.right = plot.width - RIGHT;
    if (plot.right <= plot.left) return;
    plot.draw(clear(base), plot);
    plot.paintOver();
  };
  plot.paintOver = () => {
    if (!(plot.right > plot.left)) return;
    const c = clear(upper);
    if (view.select) {
      const [a, b] = view.select.map((t) => clamp(plot.x(t), plot.left, plot.right));
      c.fillStyle = colors.select;
      c.fillRect(a, plot.top, b - a, plot.bottom - plot.top);
    }
    if (view.cursor !== null && view.cursor >= plot.from() && view.cursor <= plot.to()) {
      c.strokeStyle = colors.cursor;
      c.globalAlpha = 0.55;
      line(c, plot.x(view.cursor), plot.top, plot.x(view.cursor), plot.bottom);
      c.globalAlpha = 1;
    }
    if (plot.over) plot.over(c, plot);
  };
  listen(plot);
  plots.push(plot);
  return plot;
}

function listen(plot) {
  const at = (event) => plot.time(event.clientX - plot.box.getBoundingClientRect().left);
  let start = null;
  plot.box.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return;
    start = { t: at(event), x: event.clientX };
    if (event.pointerType === 'mouse') plot.box.setPointerCapture(event.pointerId);
    setCursor(start.t);
  });
  plot.box.addEventListener('pointermove', (event) => {
    const t = at(event);
    view.select = start && Math.abs(event.clientX - start.x) > 5 ? [Math.min(start.t, t), Math.max(start.t, t)] : null;
    setCursor(t);
  });
  plot.box.addEventListener('pointerup', () => {
    const select = view.select;
    start = view.select = null;
    if (select) zoom(select[0], select[1]); else paintOver();
  });
  plot.box.addEventListener('pointercancel', () => { start = view.select = null; paintOver(); });
  plot.box.addEventListener('pointerleave', (event) => { if (!start && event.pointerType === 'mouse') setCursor(null); });
  plot.box.addEventListener('dblclick', () => zoom(0, END));
  plot.box.addEventListener('keydown', (event) => {
    const span = view.to - view.from;
    const middle = view.cursor ?? (view.from + view.to) / 2;
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (way && event.shiftKey) pan(way * span / 10);
    else if (way) setCursor(clamp(middle + way * span / 200, view.from, view.to));
    else if (event.key === '+' || event.key === '=') zoom(middle - (middle - view.from) / 2, middle + (view.to - middle) / 2);
    else if (event.key === '-') zoom(middle - (middle - view.from) * 2, middle + (view.to - middle) * 2);
    else if (event.key === 'Escape') zoom(0, END);
    else return;
    event.preventDefault();
  });
}

// ---- the shared view -------------------------------------------------------------------------------------------
function zoom(from, to) {
  const least = Math.min(END, 0.02);
  if (to - from < least) [from, to] = [(from + to - least) / 2, (from + to + least) / 2];
  view.from = clamp(from, 0, END - least);
  view.to = clamp(to, view.from + least, END);
  document.getElementById('reset').disabled = view.from === 0 && view.to === END;
  paint();
}

function pan(by) {
  const shift = clamp(by, -view.from, END - view.to);
  zoom(view.from + shift, view.to + shift);
}

function setCursor(t) {
  view.cursor = t;
  paintOver();
}

const pending = {};
function soon(name, work) {
  if (pending[name]) return;
  pending[name] = requestAnimationFrame(() => { pending[name] = 0; work(); });
}
const paint = () => soon('all', () => { plots.forEach((p) => p.paint()); tell(); });
const paintOver = () => soon('over', () => { plots.forEach((p) => p.paintOver()); tell(); });

/** The chunk in force at a time: the last that had arrived. */
const chunkAt = (t) => lastBefore(data.chunks.arrived, t);

function tell() {
  const t = view.cursor;
  const out = document.getElementById('moment');
  if (t === null) {
    out.textContent = `${fixed(view.from, 2)} – ${fixed(view.to, 2)} s`;
  } else {
    const k = chunkAt(t);
    const parts = [`t = ${fixed(t, 3)} s`];
    if (k >= 0) parts.push(`chunk ${data.chunks.id[k]}, observed ${fixed(data.chunks.observed[k], 2)} s, ${data.chunks.dropped[k]} steps dropped`);
    if (data.resting.some(([a, b]) => t >= a && t <= b)) parts.push('resting');
    out.textContent = parts.join(' · ');
  }
  const seen = [...document.querySelectorAll('.seen')];
  const now = t === null ? -1 : lastBefore(seen.map((s) => Number(s.dataset.t)), t);
  seen.forEach((s, i) => s.classList.toggle('now', i === now));
}

// ---- painting ----------------------------------------------------------------------------------------------------
function line(c, x0, y0, x1, y1) {
  c.beginPath();
  c.moveTo(x0, y0);
  c.lineTo(x1, y1);
  c.stroke();
}

function clip(c, plot) {
  c.save();
  c.beginPath();
  c.rect(plot.left, plot.top - 1, plot.right - plot.left, plot.bottom - plot.top + 2);
  c.clip();
}

function axes(c, plot, unit) {
  c.lineWidth = 1;
  c.fillStyle = colors.text;
  c.strokeStyle = colors.grid;
  c.textBaseline = 'middle';
  c.textAlign = 'right';
  const y = ticks(plot.lo, plot.hi, Math.max(2, (plot.bottom - plot.top) / 30));
  for (const v of y.at) {
    const py = Math.round(plot.y(v)) + 0.5;
    line(c, plot.left, py, plot.right, py);
    c.fillText(fixed(v, decimals(y.step)), plot.left - 6, py);
  }
  c.save();
  c.translate(8, (plot.top + plot.bottom) / 2);
  c.rotate(-Math.PI / 2);
  c.textAlign = 'center';
  c.fillText(unit, 0, 0);
  c.restore();
  timeAxis(c, plot);
}

function timeAxis(c, plot) {
  const t = ticks(plot.from(), plot.to(), (plot.right - plot.left) / 75);
  c.textBaseline = 'alphabetic';
  c.textAlign = 'center';
  c.strokeStyle = colors.grid;
  for (const v of t.at) {
    const px = Math.round(plot.x(v)) + 0.5;
    line(c, px, plot.top, px, plot.bottom);
    c.fillText(fixed(v, decimals(t.step)) + ' s', Math.min(px, plot.width - 16), plot.bottom + 14);
  }
}

/** A curve: a line through all samples, or the area between smallest and greatest where samples were joined. */
function curve(c, plot, series, joint, dash = []) {
  const lo = series.lo[joint], hi = series.hi ? series.hi[joint] : null;
  if (!lo || !lo.length) return;
  const [a, b] = visible(series.t);
  c.setLineDash(dash);
  c.beginPath();
  let joined = false;
  for (let i = a; i <= b; i++) {
    if (lo[i] === null || lo[i] === undefined) { joined = false; continue; }
    if (joined && series.t[i] - series.t[i - 1] > series.gap) joined = false;
    const x = plot.x(series.t[i]);
    if (joined) c.lineTo(x, plot.y(lo[i])); else c.moveTo(x, plot.y(lo[i]));
    if (hi) c.lineTo(x, plot.y(hi[i]));
    joined = true;
  }
  c.stroke();
  c.setLineDash([]);
}

function resting(c, plot) {
  c.fillStyle = colors.resting;
  for (const [a, b] of data.resting) {
    if (b < plot.from() || a > plot.to()) continue;
    const x = clamp(plot.x(a), plot.left, plot.right);
    c.fillRect(x, plot.top, Math.max(1, clamp(plot.x(b), plot.left, plot.right) - x), plot.bottom - plot.top);
  }
}

function arrivals(c, plot) {
  const times = data.chunks.arrived;
  const [a, b] = visible(times, plot.from(), plot.to());
  const room = (plot.right - plot.left) / Math.max(1, b - a);
  if (room < 3 && !plot.whole) return; // they would be a bar
  const tall = plot.whole || room > 36 ? plot.bottom - plot.top : 6;
  c.strokeStyle = colors.arrivals;
  c.lineWidth = 1;
  c.globalAlpha = room > 36 ? 0.6 : clamp(room / 4, 0.3, 0.9);
  let before = -1;
  for (let i = a; i <= b; i++) {
    const x = Math.round(plot.x(times[i])) + 0.5;
    if (x < plot.left || x > plot.right || x === before) continue;
    line(c, x, plot.bottom - tall, x, plot.bottom);
    before = x;
  }
  c.globalAlpha = 1;
}

function prediction(c, plot, p, joint) {
  const v = p.v[joint];
  c.beginPath();
  let joined = false;
  for (let k = 0; k < v.length; k++) {
    if (v[k] === null) { joined = false; continue; }
    const x = plot.x(p.t + k * data.step), y = plot.y(v[k]);
    if (joined) c.lineTo(x, y); else c.moveTo(x, y);
    joined = true;
  }
  c.stroke();
}

function mark(c, x, y, shape) {
  c.beginPath();
  if (shape === 'triangle') {
    c.moveTo(x, y - 3.5);
    c.lineTo(x + 3.5, y + 3);
    c.lineTo(x - 3.5, y + 3);
    c.closePath();
    c.fill();
  } else {
    c.moveTo(x - 4, y - 4); c.lineTo(x + 4, y + 4);
    c.moveTo(x + 4, y - 4); c.lineTo(x - 4, y + 4);
    c.stroke();
  }
}

// ---- joints --------------------------------------------------------------------------------------------------------
/** The range of y: what is drawn in the current view, or the limits. */
function scaleJoint(plot, joint, info) {
  let lo = Infinity, hi = -Infinity;
  const take = (v) => { if (v !== null && v !== undefined) { lo = Math.min(lo, v); hi = Math.max(hi, v); } };
  for (const [name, series] of [['commanded', data.commanded], ['measured', data.measured]]) {
    if (!layers[name] || !series.lo[joint].length) continue;
    const [a, b] = visible(series.t);
    for (let i = a; i <= b; i++) {
      take(series.lo[joint][i]);
      if (series.hi) take(series.hi[joint][i]);
    }
  }
  if (layers.scale) { take(info.min); take(info.max); }
  if (lo > hi) [lo, hi] = [info.min ?? -1, info.max ?? 1];
  const least = 0.02; // do not make a mountain of a sensor's noise
  const pad = Math.max((hi - lo) * 0.12, (least - (hi - lo)) / 2, 1e-6);
  [plot.lo, plot.hi] = [lo - pad, hi + pad];
}

function drawJoint(c, plot, joint, info) {
  scaleJoint(plot, joint, info);
  if (layers.resting) { clip(c, plot); resting(c, plot); c.restore(); }
  if (layers.limits) {
    clip(c, plot);
    c.fillStyle = colors.limits;
    c.strokeStyle = colors.limit;
    c.lineWidth = 1;
    for (const [limit, edge] of [[info.max, plot.top - 1], [info.min, plot.bottom + 1]]) {
      if (limit === null || limit < plot.lo || limit > plot.hi) continue;
      const y = plot.y(limit);
      c.fillRect(plot.left, Math.min(y, edge), plot.right - plot.left, Math.abs(edge - y));
      line(c, plot.left, y, plot.right, y);
    }
    c.restore();
  }
  axes(c, plot, 'rad or m');
  clip(c, plot);
  if (layers.arrivals) arrivals(c, plot);
  if (layers.predictions) {
    c.strokeStyle = colors.predictions;
    c.lineWidth = 1;
    const many = data.predictions.length * (view.to - view.from) / END;
    c.globalAlpha = clamp(24 / Math.max(1, many), 0.22, 0.6);
    for (const p of data.predictions) {
      const last = p.t + (p.v[joint].length - 1) * data.step;
      if (last >= view.from && p.t <= view.to) prediction(c, plot, p, joint);
    }
    c.globalAlpha = 1;
  }
  c.lineJoin = 'round';
  if (layers.commanded) { c.strokeStyle = colors.commanded; c.lineWidth = 2; curve(c, plot, data.commanded, joint); }
  if (layers.measured) {
    c.strokeStyle = colors.measured;
    c.lineWidth = 1.25;
    if (data.measured.hi) c.globalAlpha = 0.5; // an envelope: let the commands show through
    curve(c, plot, data.measured, joint, data.measured.hi ? [] : [5, 3]);
    c.globalAlpha = 1;
  }
  if (layers.limited) marks(c, plot, joint, info.limited, 'triangle');
  marks(c, plot, joint, info.violated, 'cross');
  c.restore();
}

/** Marks commands; those that would cover each other are left out. */
function marks(c, plot, joint, indices, shape) {
  c.fillStyle = c.strokeStyle = colors.limit;
  c.lineWidth = 2;
  let before = -Infinity;
  for (const i of indices) {
    const x = plot.x(data.commanded.t[i]);
    if (x < plot.left || x > plot.right || x - before < 8) continue;
    const v = data.commanded.lo[joint][i] ?? plot.hi; // what is not a number stands at the top
    mark(c, x, clamp(plot.y(v), plot.top + 4, plot.bottom - 4), shape);
    before = x;
  }
}

function overJoint(c, plot, joint, readout) {
  const t = view.cursor;
  if (t === null) { readout.replaceChildren(readout.rest); return; }
  const shown = [];
  clip(c, plot);
  const p = data.predictions[lastBefore(PREDICTED, t)];
  if (p && t <= p.t + p.v[joint].length * data.step) { c.strokeStyle = colors.predictions; c.lineWidth = 2; prediction(c, plot, p, joint); }
  for (const [name, series, short] of [['commanded', data.commanded, 'cmd'], ['measured', data.measured, 'meas']]) {
    if (!layers[name] || !series.lo[joint].length) continue;
    const value = valueAt(series, joint, t);
    const span = document.createElement('span');
    span.className = 'now-' + name;
    const text = value ? (value.hi !== value.lo ? `${fixed(value.lo, 3)} … ${fixed(value.hi, 3)}` : fixed(value.lo, 4)) : '–';
    span.textContent = `${short} ${text}`;
    shown.push(span);
    if (!value || t < view.from || t > view.to) continue;
    c.fillStyle = colors[name];
    for (const v of [value.lo, value.hi]) {
      c.beginPath();
      c.arc(plot.x(t), plot.y(v), 3, 0, 2 * Math.PI);
      c.fill();
    }
  }
  c.restore();
  readout.replaceChildren(...shown);
}

/** left_… and right_… side by side, all others in one group. */
function groups() {
  const side = (name) => (/^(left|right)(?=[^a-z]|$)/i.exec(name) || [''])[0].toLowerCase();
  const found = new Map();
  data.joints.forEach((info, j) => {
    const key = side(info.name);
    if (!found.has(key)) found.set(key, []);
    found.get(key).push(j);
  });
  return [...found];
}

function buildJoints() {
  const host = document.getElementById('joints');
  const all = groups();
  if (!all.length) host.textContent = 'No joints were recorded.';
  for (const [name, members] of all) {
    const group = host.appendChild(document.createElement('div'));
    group.className = 'group' + (all.length === 1 || name === '' ? ' alone' : '');
    if (all.length > 1) group.appendChild(document.createElement('h3')).textContent = name || 'other';
    for (const j of members) buildJoint(group, j, data.joints[j]);
  }
}

function buildJoint(group, j, info) {
  const card = group.appendChild(document.createElement('div'));
  card.className = 'card';
  const head = card.appendChild(document.createElement('header'));
  const title = head.appendChild(document.createElement('b'));
  title.textContent = info.name;
  title.title = info.name;
  const limits = info.min === null && info.max === null ? 'no limits' : `limits ${fixed(info.min, 2)} … ${fixed(info.max, 2)}`;
  title.appendChild(document.createElement('small')).textContent = limits;
  const readout = head.appendChild(document.createElement('span'));
  const said = [];
  if (info.violations) said.push(`${info.violations} outside limits`);
  if (info.held) said.push(`${info.held} held by a limit`);
  if (!data.measured.lo[j].length) said.push('not measured');
  readout.rest = said.join(', ');
  readout.textContent = readout.rest;
  const low = data.commanded.lo[j].filter((v) => v !== null), high = (data.commanded.hi || data.commanded.lo)[j].filter((v) => v !== null);
  const range = low.length ? `commanded from ${fixed(low.reduce((a, b) => Math.min(a, b)), 3)} to ${fixed(high.reduce((a, b) => Math.max(a, b)), 3)}` : 'nothing commanded';
  addPlot(card, {
    height: 150,
    label: `${info.name}: ${range}, ${limits}. ${readout.rest}`,
    draw: (c, plot) => drawJoint(c, plot, j, info),
    over: (c, plot) => overJoint(c, plot, j, readout),
  });
}

// ---- latency -----------------------------------------------------------------------------------------------------
function drawLatency(c, plot, given) {
  const { observed, stages } = data.chunks;
  const [a, b] = visible(observed);
  const total = (i) => stages.reduce((sum, s) => sum + (s[i] || 0), 0);
  let most = 0;
  for (let i = a; i <= b; i++) most = Math.max(most, total(i));
  [plot.lo, plot.hi] = [0, most > 0 ? most * 1.12 : 1];
  axes(c, plot, 'wall time, ms');
  clip(c, plot);
  const gaps = observed.slice(a + 1, b + 1).map((t, i) => t - observed[a + i]).sort((x, y) => x - y);
  const usual = gaps.length ? gaps[gaps.length >> 1] : END / 20;
  const wide = Math.max(1, (plot.x(usual) - plot.x(0)) * 0.72);
  for (let i = a; i <= b; i++) {
    let below = 0;
    STAGES.forEach((name, s) => {
      const ms = stages[s][i] || 0;
      c.fillStyle = colors[name];
      c.fillRect(plot.x(observed[i]) - wide / 2, plot.y(below + ms), wide, plot.y(below) - plot.y(below + ms));
      below += ms;
    });
  }
  c.restore();
  if (!(given > 0 && given <= plot.hi)) return;
  c.strokeStyle = colors.cursor;
  c.lineWidth = 1.25;
  c.setLineDash([6, 4]);
  line(c, plot.left, plot.y(given), plot.right, plot.y(given));
  c.setLineDash([]);
}

/** Median bag time from an observation to the arrival of its chunk, ms: bars above it would not have kept up. */
function delayGiven() {
  const delays = data.chunks.arrived.map((t, i) => (t - data.chunks.observed[i]) * 1e3).sort((x, y) => x - y);
  return delays.length ? delays[delays.length >> 1] : 0;
}

function overLatency(readout, given) {
  const t = view.cursor;
  const i = t === null ? -1 : lastBefore(data.chunks.observed, t);
  readout.textContent = i >= 0
    ? `chunk ${data.chunks.id[i]}: ` + STAGES.map((name, s) => `${name} ${fixed(data.chunks.stages[s][i], 1)}`).join(', ') + ' ms'
    : !data.chunks.id.length ? 'No inference was recorded.'
    : given > 0 ? `dashed: the ${fixed(given, 0)} ms of bag time that an inference was given` : '';
}

// ---- the whole ------------------------------------------------------------------------------------------------------
function drawOverview(c, plot) {
  c.fillStyle = colors.grid;
  c.fillRect(plot.left, plot.top, plot.right - plot.left, plot.bottom - plot.top);
  resting(c, plot);
  arrivals(c, plot);
  c.fillStyle = colors.text;
  timeAxis(c, plot);
  const [a, b] = [plot.x(view.from), plot.x(view.to)];
  c.fillStyle = colors.page;
  c.globalAlpha = 0.7;
  c.fillRect(plot.left, plot.top, a - plot.left, plot.bottom - plot.top);
  c.fillRect(b, plot.top, plot.right - b, plot.bottom - plot.top);
  c.globalAlpha = 1;
  c.strokeStyle = colors.commanded;
  c.lineWidth = 1.5;
  c.strokeRect(a, plot.top, b - a, plot.bottom - plot.top);
}

function readColors() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  colors = { page: of('--page') };
  for (const name of ['text', 'grid', 'commanded', 'measured', 'predictions', 'arrivals', 'resting', 'limit', 'limits', 'cursor', 'select', ...STAGES]) {
    colors[name] = of('--c-' + name);
  }
}

function main() {
  document.getElementById('toolbar').hidden = false;
  // Predictions far beyond what the arm may do (a model that was never trained) would cover everything else: they are
  // then shown one at a time, under the pointer.
  const held = Math.max(0, ...data.joints.map((joint) => joint.limited.length));
  const wild = held > data.commanded.t.length / 2;
  for (const input of document.querySelectorAll('[data-layer]')) {
    if (wild && input.dataset.layer === 'predictions') input.checked = false;
    layers[input.dataset.layer] = input.checked;
    input.addEventListener('change', () => { layers[input.dataset.layer] = input.checked; paint(); });
  }
  addPlot(document.getElementById('overview'), { height: 40, label: 'The whole replay: chunk arrivals, resting times and the zoomed part', draw: drawOverview, whole: true, top: 4 });
  buildJoints();
  const latency = document.getElementById('latency');
  latency.className = 'card';
  const head = latency.appendChild(document.createElement('header'));
  const readout = head.appendChild(document.createElement('span'));
  const given = delayGiven();
  addPlot(latency, { height: 220, label: 'Wall time of every inference by stage; the table has the percentiles', draw: (c, plot) => drawLatency(c, plot, given), over: () => overLatency(readout, given) });

  document.getElementById('reset').addEventListener('click', () => zoom(0, END));
  for (const column of document.querySelectorAll('.seen')) column.querySelector('button').addEventListener('click', () => setCursor(Number(column.dataset.t)));
  const repaint = () => { readColors(); plots.forEach((p) => p.paint()); tell(); };
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', repaint);
  addEventListener('beforeprint', () => { document.documentElement.classList.add('printing'); view.cursor = null; repaint(); });
  addEventListener('afterprint', () => { document.documentElement.classList.remove('printing'); repaint(); });
  new ResizeObserver(paint).observe(document.body);
  repaint();
}
main();
})();
