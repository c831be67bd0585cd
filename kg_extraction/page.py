"""A page of the graph in one file: no address to load anything from, positions computed here, drawn on a canvas."""

import json
import math
from html import escape
from pathlib import Path

import numpy as np

from ..code_graph.schema import RELATION_NAMES
from .export import entity_kinds
from .facts import PREDICTED, Fact

DEFAULT_MAX_EDGES = 2000
_MAX_PLACES = 20

_STYLE = """
:root { color-scheme: light dark; }
* { box-sizing: border-box; }
body { margin: 0; font: 14px/1.45 system-ui, sans-serif; display: grid; grid-template-columns: 1fr 22rem; height: 100vh; }
#stage { position: relative; overflow: hidden; background: Canvas; }
canvas { position: absolute; inset: 0; cursor: grab; }
aside { border-left: 1px solid #8886; padding: .8rem 1rem; overflow: hidden auto; }
h1 { font-size: 1rem; margin: 0 0 .3rem; } p { margin: .3rem 0; }
input[type=search] { width: 100%; padding: .35rem .5rem; font: inherit; margin: .4rem 0; }
fieldset { min-width: 0; border: 1px solid #8886; border-radius: 6px; margin: .5rem 0; padding: .3rem .6rem; }
legend { font-size: .8rem; color: #888; }
fieldset label { display: inline-block; margin-right: .7rem; white-space: nowrap; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .3em; }
#shown { color: #888; }
.kind { display: inline-block; margin-right: .8rem; }
.kind::before { content: ""; display: inline-block; width: .7em; height: .7em; border-radius: 50%; background: var(--c);
  margin-right: .35em; }
fieldset label { padding: .05rem 0; } button { font: inherit; margin-top: .3rem; }
.fact { border-left: 3px solid var(--c); padding: .15rem .5rem; margin: .4rem 0; overflow-wrap: anywhere; }
.fact small { color: #888; display: block; }
#hits div { cursor: pointer; padding: .05rem .3rem; overflow-wrap: anywhere; } #hits div:hover { background: #8883; }
"""

_SCRIPT = """
'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const nodes = data.nodes, edges = data.edges;
const canvas = document.querySelector('canvas'), pen = canvas.getContext('2d'), stage = document.getElementById('stage');
const shade = i => `hsl(${Math.round(360 * i / data.relations.length)} 65% 50%)`;
const kinds = [...new Set(nodes.map(n => n.k))].sort();
const tints = { function: 210, class: 28, field: 175, module: 275, type: 140, import: 300 };
const tint = kind => kind in tints ? `hsl(${tints[kind]} 60% 48%)` : 'hsl(215 12% 58%)';
let scale = 1, whole = 1, dx = 0, dy = 0, chosen = -1, visible = [], wanted = new Set();
const around = nodes.map(() => []);
edges.forEach((e, i) => { around[e.h].push(i); if (e.t !== e.h) around[e.t].push(i); });
const box = document.getElementById('relations');
data.relations.forEach((name, i) => {
  const count = edges.filter(e => e.r === i).length;
  if (!count) return;
  const label = document.createElement('label');
  const swatch = `<span class="swatch" style="background:${shade(i)}"></span>`;
  label.innerHTML = `<input type="checkbox" checked value="${i}">${swatch}`;
  label.append(`${name} (${count})`);
  box.append(label);
});
kinds.forEach(kind => {
  const entry = document.createElement('span');
  entry.className = 'kind'; entry.style.setProperty('--c', tint(kind)); entry.textContent = kind;
  document.getElementById('kinds').append(entry);
});
function filter() {
  const on = new Set([...box.querySelectorAll('input:checked')].map(b => +b.value));
  const least = +document.getElementById('least').value / 100;
  document.getElementById('leastText').textContent = least.toFixed(2);
  const seen = document.getElementById('extracted').checked, filled = document.getElementById('predicted').checked;
  visible = edges.filter(e => on.has(e.r) && e.p >= least && (e.x ? seen : filled));
  document.getElementById('shown').textContent = `${visible.length} of ${edges.length} facts shown`;
  draw();
}
const seenNodes = () => new Set(visible.flatMap(e => [e.h, e.t]));
function fit() {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = stage.clientWidth * ratio; canvas.height = stage.clientHeight * ratio;
  canvas.style.width = stage.clientWidth + 'px'; canvas.style.height = stage.clientHeight + 'px';
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
}
function home() {
  const xs = nodes.map(n => n.x), ys = nodes.map(n => n.y);
  const ends = v => v.reduce(([a, b], c) => [Math.min(a, c), Math.max(b, c)], [Infinity, -Infinity]);
  const [x0, x1] = ends(xs), [y0, y1] = ends(ys), w = stage.clientWidth, h = stage.clientHeight;
  // Names stand to the right of their nodes.
  scale = whole = Math.min((w - 170) / (x1 - x0 || 1), (h - 60) / (y1 - y0 || 1));
  dx = (w - 110 - scale * (x0 + x1)) / 2; dy = (h - scale * (y0 + y1)) / 2;
}
function go(i) {
  scale = Math.max(scale, whole * 2.5);
  dx = stage.clientWidth / 2 - nodes[i].x * scale; dy = stage.clientHeight / 2 - nodes[i].y * scale; tell(i);
}
function draw() {
  pen.clearRect(0, 0, stage.clientWidth, stage.clientHeight);
  const text = getComputedStyle(document.body).color;
  const lit = new Set();
  // One path for each colour and style: 2,000 edges are a dozen strokes.
  const paths = new Map();
  for (const e of visible) {
    const near = chosen >= 0 && (e.h === chosen || e.t === chosen);
    if (near) { lit.add(e.h); lit.add(e.t); }
    const key = e.r + (e.x ? 'x' : 'p') + (near ? 'n' : chosen >= 0 ? 'f' : '');
    if (!paths.has(key)) paths.set(key, { e, near, path: new Path2D() });
    const a = nodes[e.h], b = nodes[e.t], path = paths.get(key).path;
    path.moveTo(a.x * scale + dx, a.y * scale + dy); path.lineTo(b.x * scale + dx, b.y * scale + dy);
  }
  for (const { e, near, path } of paths.values()) {
    pen.strokeStyle = shade(e.r); pen.lineWidth = near ? 2 : e.x ? 1 : 1.6; pen.setLineDash(e.x ? [] : [5, 4]);
    pen.globalAlpha = near ? 1 : chosen >= 0 ? .08 : e.x ? .28 : .9; pen.stroke(path);
  }
  pen.setLineDash([]);
  const used = seenNodes();
  const zoom = Math.sqrt(Math.max(.5, scale / whole));
  const size = i => Math.min(9, (1.6 + Math.sqrt(around[i].length) * .6)) * Math.min(2, zoom);
  const spots = new Map(), marks = new Path2D(), cells = new Set();
  for (const i of used) {
    const n = nodes[i], x = n.x * scale + dx, y = n.y * scale + dy, r = size(i);
    const marked = wanted.has(i) || i === chosen;
    const key = tint(n.k) + (chosen >= 0 && !lit.has(i) ? '.' : '');
    if (!marked && !spots.has(key)) spots.set(key, { colour: tint(n.k), faint: key.endsWith('.'), path: new Path2D() });
    const path = marked ? marks : spots.get(key).path;
    path.moveTo(x + r, y); path.arc(x, y, marked ? r + 2 : r, 0, 7);
  }
  for (const { colour, faint, path } of spots.values()) {
    pen.globalAlpha = faint ? .15 : .95; pen.fillStyle = colour; pen.fill(path);
  }
  pen.globalAlpha = 1; pen.fillStyle = '#e33'; pen.fill(marks); pen.fillStyle = text;
  // Labels where there is room, the best connected names first; the closer one looks, the more.
  let room = 45 * (scale / whole) ** 2;
  pen.lineWidth = 3; pen.strokeStyle = getComputedStyle(stage).backgroundColor; pen.lineJoin = 'round';
  for (const i of data.order) {
    if (!used.has(i)) continue;
    const n = nodes[i], x = n.x * scale + dx, y = n.y * scale + dy;
    if (x < 0 || y < 0 || x > stage.clientWidth || y > stage.clientHeight) continue;
    const important = i === chosen || wanted.has(i) || lit.has(i);
    if (!important && (chosen >= 0 || room <= 0)) continue;
    const last = n.n.includes('[') || n.n.includes(' ') ? n.n : n.n.split('.').slice(-2).join('.');
    const short = last.length > 32 ? '…' + last.slice(-31) : last, points = Math.min(14, 10.5 + around[i].length / 12);
    const columns = [], left = x + size(i) + 3, end = Math.floor((left + short.length * points * .58) / 20);
    for (let row = Math.round(y / 9) - 1; row <= Math.round(y / 9) + 1; row++) {
      for (let c = Math.floor(x / 20); c <= end; c++) columns.push(c + ':' + row);
    }
    if (i !== chosen && columns.some(c => cells.has(c))) continue;
    columns.forEach(c => cells.add(c));
    room -= 1;
    pen.font = `${i === chosen ? 'bold ' : ''}${points}px system-ui, sans-serif`;
    pen.globalAlpha = .85; pen.strokeText(short, left, y + points / 3);
    pen.globalAlpha = 1; pen.fillText(short, left, y + points / 3);
  }
  pen.globalAlpha = 1;
}
function tell(i) {
  chosen = i;
  const out = document.getElementById('facts');
  out.textContent = '';
  if (i < 0) { draw(); return; }
  const title = document.createElement('h1');
  title.textContent = nodes[i].n + '  [' + nodes[i].k + ']';
  out.append(title);
  for (const k of around[i]) {
    const e = edges[k], div = document.createElement('div');
    const what = document.createElement('span'), small = document.createElement('small');
    div.className = 'fact'; div.style.setProperty('--c', shade(e.r));
    what.textContent = `${nodes[e.h].n} ${data.relations[e.r]} ${nodes[e.t].n}`;
    const seen = 'extracted' + (e.m === null ? '' : `, the model gives it ${e.m.toFixed(2)}`);
    const filled = `predicted (${e.d}), probability ${e.p.toFixed(2)}`;
    small.textContent = (e.x ? seen : filled) + ' · ' + e.l.join(', ');
    div.append(what, small); out.append(div);
  }
  draw();
}
function at(event) {
  const r = canvas.getBoundingClientRect(), x = event.clientX - r.left, y = event.clientY - r.top;
  let best = -1, least = 144;
  const used = seenNodes();
  for (const i of used) {
    const d = (nodes[i].x * scale + dx - x) ** 2 + (nodes[i].y * scale + dy - y) ** 2;
    if (d < least) { least = d; best = i; }
  }
  return best;
}
let from = null, moved = 0;
canvas.addEventListener('pointerdown', e => {
  from = [e.clientX - dx, e.clientY - dy]; moved = 0; canvas.setPointerCapture(e.pointerId);
});
canvas.addEventListener('pointermove', e => {
  if (!from) return;
  moved_by_hand = true;
  moved += Math.abs(e.movementX) + Math.abs(e.movementY);
  dx = e.clientX - from[0]; dy = e.clientY - from[1]; requestAnimationFrame(draw);
});
canvas.addEventListener('pointerup', e => { from = null; if (moved < 4) tell(at(e)); });
canvas.addEventListener('wheel', e => {
  e.preventDefault(); moved_by_hand = true;
  const r = canvas.getBoundingClientRect(), x = e.clientX - r.left, y = e.clientY - r.top, f = Math.exp(-e.deltaY / 400);
  dx = x - (x - dx) * f; dy = y - (y - dy) * f; scale *= f; requestAnimationFrame(draw);
}, { passive: false });
document.getElementById('search').addEventListener('input', e => {
  const asked = e.target.value.trim().toLowerCase(), hits = document.getElementById('hits');
  wanted = new Set(); hits.textContent = '';
  if (asked) nodes.forEach((n, i) => { if (n.n.toLowerCase().includes(asked)) wanted.add(i); });
  [...wanted].slice(0, 12).forEach(i => {
    const div = document.createElement('div'); div.textContent = nodes[i].n;
    div.addEventListener('click', () => go(i));
    hits.append(div);
  });
  draw();
});
document.querySelectorAll('aside input:not([type=search])').forEach(i => i.addEventListener('input', filter));
document.getElementById('whole').addEventListener('click', () => { moved_by_hand = false; home(); tell(-1); });
let moved_by_hand = false;
window.addEventListener('resize', () => { fit(); if (!moved_by_hand) home(); draw(); if (!moved_by_hand) linked(); });
// graph.html#module.Class opens at that name.
function linked() {
  const name = decodeURIComponent(location.hash.slice(1)), i = name ? nodes.findIndex(n => n.n === name) : -1;
  if (i >= 0) go(i);
}
window.addEventListener('hashchange', linked);
fit(); home(); filter(); linked();
"""


def choose_edges(facts: list[Fact], max_edges: int) -> list[Fact]:
    """What a page shows when there is too much: predictions first, by probability, then extracted facts.

    Of those the ones whose ends have the most facts come first, because they hold the picture together.
    """
    if len(facts) <= max_edges:
        return facts
    degree: dict[str, int] = {}
    for fact in facts:
        for name in (fact.head, fact.tail):
            degree[name] = degree.get(name, 0) + 1
    ranked = sorted(
        facts,
        key=lambda fact: (
            fact.status != PREDICTED,
            -fact.probability,
            -min(degree[fact.head], degree[fact.tail]),
            fact.key,
        ),
    )
    return ranked[:max_edges]


def layout(facts: list[Fact]) -> dict[str, tuple[float, float]]:
    """A place in the plane for every entity: components side by side on a spiral, each by a force layout, spread out."""
    import networkx as nx

    graph = nx.Graph()
    graph.add_edges_from((fact.head, fact.tail) for fact in facts)
    parts = sorted(nx.connected_components(graph), key=lambda part: (-len(part), min(part)))
    places: dict[str, tuple[float, float]] = {}
    # Each part gets a disc whose area goes with its size, set on a spiral from the centre.
    total = sum(len(part) for part in parts) or 1
    used = 0.0
    for number, part in enumerate(parts):
        share = len(part) / total
        radius = 0.9 * math.sqrt(share)
        distance = 0.0 if number == 0 else math.sqrt(used + share / 2)
        angle = number * 2.399963
        used += share
        names = sorted(part)
        inner = nx.spring_layout(graph.subgraph(names), seed=0, iterations=50, method="force")
        spread = _spread(np.array([inner[name] for name in names], dtype=np.float64)) * radius
        for name, (x, y) in zip(names, spread.tolist(), strict=True):
            places[name] = (distance * math.cos(angle) + x, distance * math.sin(angle) + y)
    return places


def _spread(points: np.ndarray) -> np.ndarray:
    """Points of a force layout, spread evenly over the unit disc: a force layout crowds them in its middle.

    Distances from the centre become those of an even density, the order of points by distance and their directions stay;
    then points closer than half of what an even grid leaves between them are pushed apart.

    Args:
        points: float `(n, 2)`.

    Returns:
        float of the same shape.
    """
    from scipy.spatial import cKDTree

    number = len(points)
    if number == 1:
        return np.zeros((1, 2))
    centred = points - np.median(points, axis=0)
    distance = np.hypot(*centred.T)
    rank = np.empty(number)
    rank[np.argsort(distance, kind="stable")] = np.arange(number)
    even = np.sqrt((rank + 0.5) / number)
    aim = 0.75 * even + 0.25 * distance / max(float(distance.max()), 1e-9)
    centred *= (aim / np.maximum(distance, 1e-9))[:, None]
    gap = 0.9 * math.sqrt(math.pi / number)
    for _ in range(60):
        pairs = cKDTree(centred).query_pairs(gap, output_type="ndarray")
        if not len(pairs):
            break
        step = centred[pairs[:, 0]] - centred[pairs[:, 1]]
        length = np.maximum(np.hypot(*step.T), 1e-6)
        push = step * (0.3 * (gap - length) / length)[:, None]
        np.add.at(centred, pairs[:, 0], push)
        np.add.at(centred, pairs[:, 1], -push)
    return centred


def render_page(facts: list[Fact], max_edges: int, title: str = "Knowledge graph") -> str:
    """The page as text.

    Args:
        facts: what to show.
        max_edges: at most so many; the page says how many are left out.
        title: its heading.
    """
    shown = choose_edges(facts, max_edges)
    places, kinds = layout(shown), entity_kinds(shown)
    names = sorted(places)
    number = {name: index for index, name in enumerate(names)}
    degree = [0] * len(names)
    edges = []
    for fact in shown:
        head, tail = number[fact.head], number[fact.tail]
        degree[head] += 1
        degree[tail] += 1
        where = [f"{place.path}:{place.line}" for place in fact.places]
        where = list(dict.fromkeys(where))
        edges.append(
            {
                "h": head,
                "t": tail,
                "r": RELATION_NAMES.index(fact.relation),
                "p": round(fact.probability, 4),
                "x": fact.status != PREDICTED,
                "d": fact.mode,
                "m": None if fact.model_probability is None else round(fact.model_probability, 4),
                "l": where[:_MAX_PLACES] + ([f"{len(where) - _MAX_PLACES} more"] if len(where) > _MAX_PLACES else []),
            }
        )
    data = {
        "relations": list(RELATION_NAMES),
        "nodes": [
            {"n": name, "k": kinds[name], "x": round(places[name][0], 4), "y": round(places[name][1], 4)}
            for name in names
        ],
        "edges": edges,
        "order": sorted(range(len(names)), key=lambda index: -degree[index]),
    }
    # "<" is escaped, so that no name can end the element that holds the data.
    content = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    left_out = len(facts) - len(shown)
    note = f"<p>{left_out:,} more facts are in the other formats (--max-page-edges).</p>" if left_out else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style></head>
<body><div id="stage"><canvas></canvas></div>
<aside><h1>{escape(title)}</h1>
<p>{len(names):,} names, <span id="shown"></span>. Dashed: filled in by the model. Drag, zoom, click a name.</p>{note}
<input type="search" id="search" placeholder="Search names" aria-label="Search names"><div id="hits"></div>
<fieldset id="kinds"><legend>Names</legend></fieldset>
<fieldset id="relations"><legend>Relations</legend></fieldset>
<fieldset><legend>Facts</legend><label><input type="checkbox" id="extracted" checked>extracted</label>
<label><input type="checkbox" id="predicted" checked>predicted</label>
<label>probability from <span id="leastText"></span> <input type="range" id="least" min="0" max="100" value="0"></label>
<button id="whole">Whole graph</button></fieldset>
<div id="facts"></div></aside>
<script type="application/json" id="data">{content}</script><script>{_SCRIPT}</script></body></html>
"""


def write_page(facts: list[Fact], path: Path, max_edges: int = DEFAULT_MAX_EDGES) -> None:
    """Write the page."""
    path.write_text(render_page(list(facts), max_edges), encoding="utf-8", errors="backslashreplace")
