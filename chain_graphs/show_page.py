"""The page that `show.py --html` writes: one file with its style and script inside, no address to load anything from."""

from html import escape

from ..code_graph.schema import RELATIONS
from .show import Fact, FileView, Window, lines_of, summary_of, text_of

_HUES = {relation.name: round(360 * index / len(RELATIONS)) for index, relation in enumerate(RELATIONS)}

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem; }
h1 { font-size: 1.1rem; } h2 { font-size: .95rem; margin: 0 0 .5rem; font-weight: 600; }
header { position: sticky; top: 0; background: Canvas; padding: .5rem 0; border-bottom: 1px solid #8886; z-index: 1; }
.legend label { margin-right: .8rem; white-space: nowrap; cursor: help; }
section { border: 1px solid #8886; border-radius: 6px; padding: .8rem; margin: 1rem 0; overflow-x: auto; }
.line { display: grid; grid-template-columns: 3.5rem 1fr; }
.no { color: #888; text-align: right; padding-right: .8rem; font: 13px/1.7 monospace; user-select: none; }
code { font: 13px/1.7 ui-monospace, monospace; white-space: pre; }
code span { border-bottom: 1px solid transparent; } code.edges span:nth-child(even) { background: #8882; }
code span.has { border-bottom-color: #888; cursor: pointer; }
.facts { grid-column: 2; display: flex; flex-wrap: wrap; gap: .25rem .35rem; padding: .1rem 0 .45rem 1.5rem; }
.fact { font: 12px/1.5 ui-monospace, monospace; border-radius: 4px; padding: 0 .4rem; white-space: pre;
  background: hsl(var(--hue) 70% 50% / .16); border-left: 3px solid hsl(var(--hue) 60% 50%); cursor: pointer; }
.fact i { color: hsl(var(--hue) 60% 42%); font-style: normal; font-weight: 600; }
@media (prefers-color-scheme: dark) { .fact i { color: hsl(var(--hue) 65% 68%); } }
.fact u { text-decoration: none; } .fact u + u { border-left: 1px dotted #888; }
.fact b { font-weight: 400; color: #888; }
.unseen u { font-weight: 700; }
.lit, code span.lit { background: #fc06 !important; }
"""

_SCRIPT = """
document.querySelectorAll('.legend input').forEach(box => box.addEventListener('change', () => {
  document.querySelectorAll('.fact[data-r="' + box.value + '"]').forEach(f => { f.hidden = !box.checked;
    f.style.display = box.checked ? '' : 'none'; });
}));
document.getElementById('edges').addEventListener('change', e =>
  document.querySelectorAll('code').forEach(c => c.classList.toggle('edges', e.target.checked)));
function light(section, test) {
  section.querySelectorAll('.lit').forEach(x => x.classList.remove('lit'));
  section.querySelectorAll('.fact').forEach(f => {
    const a = +f.dataset.a, b = +f.dataset.b;
    if (!test(f, a, b)) return;
    f.classList.add('lit');
    for (let i = a; i < b; i++) section.querySelector('[data-t="' + i + '"]').classList.add('lit');
  });
}
document.querySelectorAll('section').forEach(section => section.addEventListener('mouseover', event => {
  const fact = event.target.closest('.fact'), token = event.target.closest('[data-t]');
  if (fact) light(section, f => f === fact);
  else if (token) light(section, (f, a, b) => a <= +token.dataset.t && +token.dataset.t < b);
}));
"""


def render_html(view: FileView) -> str:
    """The view as a page: each line of code with its tokens, below it the facts that hang on them.

    Args:
        view: what to show.

    Returns:
        The text of the page.
    """
    legend = "".join(
        f'<label style="--hue:{_HUES[r.name]}" title="{escape(r.definition)}"><input type="checkbox" checked '
        f'value="{r.name}"> <span class="fact"><i>{r.name}</i></span></label>'
        for r in RELATIONS
    )
    windows = "".join(_window(view, number, window) for number, window in enumerate(view.windows, 1))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(view.title)}</title><style>{_STYLE}</style></head><body>\n"
        f'<header><h1>{escape(summary_of(view))}</h1><div class="legend">{legend}'
        '<label><input type="checkbox" id="edges"> edges of tokens</label></div></header>\n'
        "<p>Below each line stand the facts that hang on its tokens: <i>name relation&gt; leaf</i> is read from the name "
        "to the leaf, <i>name &lt;relation leaf</i> from the leaf to the name. Bold leaves are not shown by the window. "
        f"Point at a fact or a token to see what belongs together.</p>\n{windows}"
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _window(view: FileView, number: int, window: Window) -> str:
    heads = {token for fact in window.facts for token in range(fact.first, fact.last)}
    lines = []
    for line, first, last, facts in lines_of(view.code, window):
        tokens = []
        for index in range(first, last):
            start, end = window.tokens[index]
            mark = ' class="has"' if index in heads else ""
            tokens.append(f'<span data-t="{index}"{mark}>{_code(view.code[start:end])}</span>')
        chips = "".join(_fact(view, window, fact) for fact in sorted(facts, key=lambda fact: (fact.first, fact.last)))
        below = f'<div class="facts">{chips}</div>' if chips else ""
        lines.append(f'<div class="line"><div class="no">{line}</div><code>{"".join(tokens)}</code>{below}</div>\n')
    used = sum(len(fact.leaf) for fact in window.facts)
    title = f"window {number}: {len(window.tokens)} tokens, {len(window.facts)} facts in {used} leaf slots"
    return f"<section><h2>{title}</h2>\n{''.join(lines)}</section>\n"


def _code(text: str) -> str:
    # A line is an element of its own: the line end inside a token shows nothing.
    return escape(text.replace("\n", ""))


def _fact(view: FileView, window: Window, fact: Fact) -> str:
    unseen = "" if fact.is_visible else " unseen"
    leaf = "".join(f"<u>{escape(piece)}</u>" for piece in fact.leaf)
    return (
        f'<span class="fact{unseen}" style="--hue:{_HUES[fact.relation]}" data-r="{fact.relation}" data-a="{fact.first}" '
        f'data-b="{fact.last}"><b>{escape(text_of(view.code, window, fact.first, fact.last))}</b> '
        f"<i>{escape(fact.label)}</i> {leaf}</span>"
    )
