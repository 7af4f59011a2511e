"""A comparison as HTML, in the colours of the page's theme."""

import base64
from collections.abc import Sequence
from html import escape

from pumer.app.comparing import ORIGINAL, REDUCED, ROUNDS, Comparison
from pumer.app.strength import as_python
from pumer.utils.provenance import device_name
from pumer.visualization.drawing import Key, Legend, Panel
from pumer.visualization.panels import SCORES
from pumer.visualization.tracing import ForwardTrace

STYLE = """
.pumer {color: var(--body-text-color); font-size: 15px; line-height: 1.5}
.pumer h3 {font-size: 13px; font-weight: 600; margin: 24px 0 8px; line-height: 1.5;
  color: var(--body-text-color-subdued)}
.pumer p {margin: 8px 0}
.pumer .answers {display: grid; grid-template-columns: 1fr 1fr; gap: 12px}
.pumer .card {border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 12px 16px;
  background: var(--background-fill-primary); min-width: 0}
.pumer .card.reduced {border-color: var(--color-accent)}
.pumer .card h3 {margin: 0}
.pumer .answer {font-size: 24px; font-weight: 600; line-height: 1.25; margin: 4px 0 8px; overflow-wrap: anywhere}
.pumer .answer.long {font-size: 16px; font-weight: 500; max-height: 12em; overflow: auto}
.pumer .faint, .pumer figcaption {color: var(--body-text-color-subdued); font-size: 13px}
.pumer .panels {display: grid; grid-template-columns: repeat(3, 1fr); gap: 16px}
.pumer .panels.maps {grid-template-columns: repeat(4, 1fr)}
.pumer .sticky {position: sticky; top: 16px; align-self: start}
.pumer .beside {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 24px}
.pumer figure {margin: 0; min-width: 0}
.pumer figure img {width: 100%; height: auto; border-radius: 6px; display: block; margin: 0 0 6px}
.pumer figcaption b {color: var(--body-text-color); font-weight: 600; display: block}
.pumer .swatch {display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 4px;
  border: 1px solid var(--border-color-primary)}
.pumer .hatched {background-image: repeating-linear-gradient(135deg, rgba(0, 0, 0, 0.4) 0 1px, transparent 1px 4px)}
.pumer .legend {display: inline-block; white-space: pre-wrap; margin-right: 10px}
.pumer table {border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; margin: 0}
.pumer th, .pumer td {text-align: right; padding: 5px 8px; font-weight: 400;
  border-bottom: 1px solid var(--border-color-primary)}
.pumer th {color: var(--body-text-color-subdued); font-size: 13px; vertical-align: bottom}
.pumer td {white-space: nowrap}
.pumer th:first-child, .pumer td:first-child {text-align: left; padding-left: 0}
.pumer table.points td:first-child {white-space: normal}
.pumer tr.front td:first-child {font-weight: 600}
.pumer small {color: var(--body-text-color-subdued); font-size: 12px}
.pumer td.bar {width: 40%; padding-right: 0}
.pumer .bar i {display: block; height: 10px; border-radius: 3px; background: var(--color-accent)}
.pumer code {display: block; overflow-x: auto; padding: 10px 12px; border-radius: 6px; font-size: 13px;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); color: inherit}
.pumer .note {font-size: 13px; margin: 0; border-left: 3px solid #d97706; padding: 6px 12px; border-radius: 4px;
  background: color-mix(in srgb, #d97706 12%, transparent)}
.pumer .note.refused {font-size: 15px; border-color: #dc2626; background: color-mix(in srgb, #dc2626 12%, transparent)}
.pumer svg {display: block; width: 100%; max-width: 620px; height: auto; color: var(--body-text-color)}
.pumer svg text {fill: currentColor}
@media (max-width: 640px) {
  .pumer .panels {grid-template-columns: repeat(2, 1fr)}
  .pumer .panels.maps {grid-template-columns: repeat(auto-fill, minmax(100px, 1fr))}
  .pumer .panels:not(.maps) figure:first-child:not(:only-child) {display: none}
  .pumer .sticky {position: static}
  .pumer small {display: block}
}
"""
LONG = 40
"""Characters of an answer from which on it is set in small letters."""


def page(*parts: str) -> str:
    """Parts of a result as one element."""
    return f'<div class="pumer" aria-live="polite">{"".join(parts)}</div>'


def paragraph(text: str, kind: str = "faint", role: str = "") -> str:
    """A text of a kind that `STYLE` knows."""
    return f'<p class="{kind}"{f" role={role}" if role else ""}>{escape(text)}</p>'


def refusal(line: str) -> str:
    """Why there is no answer."""
    return page(paragraph(line[:1].upper() + line[1:], "note refused", "alert"))


def comparison(found: Comparison, model: str) -> str:
    """All of it: answers, latency, images, tokens, and the call that does the same."""
    notes = [paragraph(foreign(model), "note", "alert")] if found.foreign else []
    return page(
        f'<div class="answers">{_card(found, model, ORIGINAL)}{_card(found, model, REDUCED)}</div>',
        paragraph(_measured(found)),
        *notes,
        _figures("What became of the image", [panel for panel in found.panels if panel.legend is not SCORES]),
        _figures("By what each layer chooses", [panel for panel in found.panels if panel.legend is SCORES], "maps"),
        f"<h3>Tokens that are left</h3>{_tokens(found.forward)}",
        f"<h3>The same in Python</h3><code>{escape(as_python(found.config))}</code>",
    )


def foreign(model: str) -> str:
    """What a small model does not know."""
    return (
        f"{model} knows the built-in world alone: coloured shapes. What it answers about other images, or asked in "
        "other words, means nothing."
    )


def _card(found: Comparison, model: str, name: str) -> str:
    answer, seconds = found.answers[name], found.seconds[name]["median"]
    size = " long" if len(answer) > LONG else ""
    shown = f'<p class="answer{size}">{escape(answer) or "(no answer)"}</p>'
    ratio = f", {_faster(found):.2f}x as fast" if name == REDUCED else ""
    time, what = paragraph(milliseconds(seconds) + ratio), name if name == ORIGINAL else found.config.method
    return f'<div class="card {name}"><h3>{escape(model)}, {what}</h3>{shown}{time}</div>'


def _faster(found: Comparison) -> float:
    """The ratio of the two times that are shown."""
    return found.seconds[ORIGINAL]["median"] / found.seconds[REDUCED]["median"]


def _measured(found: Comparison) -> str:
    low, high = (found.speedup[end] for end in ("low", "high"))
    said = f"Latency of this one question, image already read: median of {ROUNDS} rounds in turn on {device_name()}; "
    said += f"quartiles of the ratio {low:.2f} to {high:.2f}."
    if found.fewer_macs is not None:
        said += f" {found.fewer_macs:.2f}x fewer multiply-accumulates"
        gains = _faster(found) >= found.fewer_macs - 0.1
        said += "." if gains else ", of which one question alone gains less: deciding what goes takes time as well."
    return said


def milliseconds(seconds: float) -> str:
    """A time in words."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1e3 * seconds:.{0 if seconds >= 0.1 else 1}f} ms"


def _figures(title: str, panels: Sequence[Panel], kind: str = "") -> str:
    """Panels under a title; maps share the legend that is above them."""
    if not panels:
        return ""
    legend = f"<p class=faint>{_legend(panels[0].legend)}</p>" if kind else ""
    figures = "".join(_figure(panel, _legend(() if kind else panel.legend)) for panel in panels)
    return f'<h3>{title}</h3>{legend}<div class="panels {kind}">{figures}</div>'


def _legend(legend: Legend) -> str:
    return "".join(f'<span class="legend">{_swatch(key)}{escape(key.text)}</span> ' for key in legend)


def _figure(panel: Panel, legend: str) -> str:
    source = base64.b64encode(panel.content.svg().encode("utf-8")).decode("ascii")
    title = escape(panel.title[:1].upper() + panel.title[1:])
    image = f'<img alt="{title}" src="data:image/svg+xml;base64,{source}">'
    return f"<figure>{image}<figcaption><b>{title}</b>{legend}</figcaption></figure>"


def _swatch(key: Key) -> str:
    kind = "swatch hatched" if key.hatched else "swatch"
    return "" if key.colour is None else f'<span class="{kind}" style="background-color: rgb{key.colour}"></span>'


def _tokens(forward: ForwardTrace) -> str:
    """Tokens of image and text that enter, and that each place leaves."""
    rows, left = [], forward.rows(0)
    most = max(sum(left[0].images), 1)
    for row in left:
        images = sum(row.images)
        numbers = "".join(f"<td>{cell}</td>" for cell in (images, row.text, *(row.gone or ("", ""))))
        bar = f'<td class="bar"><i style="width: {100 * images / most:.1f}%"></i></td>'
        rows.append(f"<tr><td>{row.name}</td>{numbers}{bar}</tr>")
    heads = "".join(f"<th>{head}</th>" for head in ("after", "image", "text", "pruned", "merged, words too", ""))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
