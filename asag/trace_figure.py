"""A trace drawn: the scale, and the push beside CFG's own, over the steps; where in the picture ASAG acted; and what it
did to attention.

Needs matplotlib and Pillow, imported where something is drawn. No pyplot, which keeps figures in a global list and
isn't for threads; and no style of the user's: every colour is given.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from asag.blocks import block_name
from asag.trace import Trace

if TYPE_CHECKING:
    from PIL.Image import Image

INK, FAINT, PAPER = "#1f1f1f", "#dcdcdc", "white"
# Three colours of viridis and magma, distinct to colour-blind eyes and in grey; marks and dashes differ as well.
SCALE = {"color": "#440154", "linestyle": "-", "marker": "o"}
PUSH = {"color": "#1f8a86", "linestyle": "--", "marker": "s"}
CFG = {"color": "#b5367a", "linestyle": ":", "marker": "^"}
ORDINARY = {"color": "#1f8a86", "marker": "o", "markerfacecolor": "white", "markeredgewidth": 1.8}
WEAKENED = {"color": "#b5367a", "marker": "D"}
HEAT = "magma"
HEIGHT, DOTS_PER_INCH = 5.0, 100
MOST_LABELS = 18
# Of so many layers the heads fit in a line of the title.
MOST_HEADS = 2


def draw(trace: Trace, image: int, picture: Image | None, title: str) -> Image:
    """One figure of three panels, RGB, 500 pixels high.

    Args:
        trace: of a generation in which something was guided.
        image: which of the images that were guided together, from 0.
        picture: what came out, put under the map in grey; None: the map alone.
        title: such as the seed.

    Without latents that are an image there are two panels. Raises ValueError when the trace has no such image, and
    ImportError without matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image as Images

    if not 0 <= image < trace.images:
        raise ValueError(f"image: {image}; allowed: one of the {trace.images} that were guided, from 0")
    heat = trace.heat(image)
    widths = [4.8, 4.4]
    if heat is not None:
        width, height = picture.size if picture else reversed(heat.shape)
        widths.insert(1, 0.95 + 4.0 * min(max(width / height, 0.5), 2.2))
    figure: Any = Figure(figsize=(sum(widths), HEIGHT), dpi=DOTS_PER_INCH, layout="constrained", facecolor=PAPER)
    canvas: Any = FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    figure.suptitle(f"ASAG · {title}", color=INK, fontsize=14, fontweight="bold")
    cells = figure.add_gridspec(2, len(widths), width_ratios=widths)
    above = figure.add_subplot(cells[0, 0])
    _draw_steps(above, figure.add_subplot(cells[1, 0], sharex=above), trace, image)
    if heat is not None:
        _draw_heat(figure, figure.add_subplot(cells[:, 1]), heat, picture)
    _draw_entropies(figure.add_subplot(cells[:, -1]), trace)
    canvas.draw()
    return Images.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")


def _draw_steps(above: Any, below: Any, trace: Trace, image: int) -> None:
    """The scale, and below it the sizes of the push and of CFG's own, by model call. Each pass is a line of its own."""
    named = {"pushes": "ASAG", "cfg_sizes": "CFG"}
    for axes, lines in ((above, [("scales", SCALE)]), (below, [("pushes", PUSH), ("cfg_sizes", CFG)])):
        for traced in trace.passes:
            for name, style in lines:
                steps = [step for step in traced.steps if getattr(step, name)]
                if steps:
                    numbers = [step.number + 1 for step in steps]
                    values = [getattr(step, name)[image] for step in steps]
                    # A mark for each δ that was computed; where the last one was used again the line goes on alone.
                    marked = [place for place, step in enumerate(steps) if not step.reused or name == "cfg_sizes"]
                    # The first line of a kind alone is in the legend.
                    label = named.pop(name, "_")
                    axes.plot(numbers, values, **style, markersize=4, linewidth=1.6, markevery=marked, label=label)
            if traced.begins:
                axes.axvline(traced.begins + 0.5, color=INK, linestyle=":", linewidth=1)
        _plain(axes)
        axes.set_ylim(0, 1.12 * axes.dataLim.ymax if 0 < axes.dataLim.ymax < math.inf else 1)
    last = trace.passes[-1]
    end = max(last.begins + last.calls, *(step.number + 1 for step in trace.steps))
    above.set_xlim(0.4, end + 0.6)
    above.xaxis.get_major_locator().set_params(integer=True)
    above.tick_params(labelbottom=False)
    _name(above, "Scale s and size of the push s·δ over the steps", "", "scale s")
    several = ", passes divided by dots" if len(trace.passes) > 1 else ""
    again = ", unmarked: last δ" if any(step.reused for step in trace.steps) else ""
    _name(below, "", "model call" + several + again, "RMS of the push")
    if "cfg_sizes" not in named:
        below.legend(loc="best", facecolor=PAPER, edgecolor=FAINT, labelcolor=INK, fontsize=9)


def _draw_heat(figure: Any, axes: Any, heat: torch.Tensor, picture: Image | None) -> None:
    """The map over the picture in grey: dark where little was pushed, bright where much was."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    heat = torch.nan_to_num(heat)
    width, height = picture.size if picture else (heat.shape[1], heat.shape[0])
    extent = (0, width, height, 0)
    low, high = float(heat.min()), float(heat.max())
    shades = colormaps[HEAT](torch.linspace(0, 1, 256).numpy())
    if picture:
        # Dimmed, so that bright means hot and nothing else.
        axes.imshow(picture.convert("L"), cmap="gray", vmin=0, vmax=430, extent=extent)
        shades[:, 3] = torch.linspace(0.15, 0.85, 256).numpy()
    norm = Normalize(low, high if high > low else low + 1e-6)
    interpolation = "bicubic" if picture else "nearest"
    axes.imshow(heat.numpy(), cmap=ListedColormap(shades), norm=norm, extent=extent, interpolation=interpolation)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_color(FAINT)
    _name(axes, "Where the guidance acted", "", "")
    bar = figure.colorbar(ScalarMappable(norm, HEAT), ax=axes, fraction=0.05, pad=0.02)
    bar.outline.set_edgecolor(FAINT)
    bar.ax.tick_params(colors=INK, labelsize=9)
    bar.set_label("push √Σ(s·δ)² over the steps", color=INK, fontsize=10)


def _draw_entropies(axes: Any, trace: Trace) -> None:
    """Per block a mark for the ordinary map, one for the weakened map, and a line between them."""
    blocks: dict[str, list[tuple[float, float]]] = {}
    for address, pair in trace.entropies().items():
        blocks.setdefault(block_name(address), []).append(pair)
    means = [[sum(column) / len(pairs) for column in zip(*pairs, strict=True)] for pairs in blocks.values()]
    places, lowest = range(len(means)), min([1.0, *(min(pair) for pair in means)])
    for place, (ordinary, weakened) in enumerate(means):
        axes.plot([place, place], [ordinary, weakened], color=INK, linewidth=1.2)
    size = 7 if len(means) <= 2 * MOST_LABELS else 4
    for label, column, style in (("ordinary", 0, ORDINARY), ("weakened", 1, WEAKENED)):
        axes.plot(places, [pair[column] for pair in means], label=label, linestyle="", markersize=size, **style)
    _plain(axes)
    every = max(-(-len(means) // MOST_LABELS), 1)
    axes.set_xticks(places[::every], list(blocks)[::every], rotation=0 if len(means) <= 6 else 60)
    axes.set_xlim(-0.8, max(len(means) - 0.2, 0.8))
    span = 1 - max(lowest - 0.06, 0)
    axes.set_ylim(1 - 1.04 * span, 1 + 0.06 * span)
    several = ", mean of the batch" if trace.images > 1 else ""
    _name(axes, "Entropy of attention" + _heads(trace), "block" + several, "entropy / log(tokens); 1: all tokens alike")
    axes.legend(loc="best", facecolor=PAPER, edgecolor=FAINT, labelcolor=INK, fontsize=10)


def _heads(trace: Trace) -> str:
    """A line for the title: which heads were weakened, where not all of a layer's were."""
    if not trace.heads:
        return ""
    items = [
        f"{address}: {' or '.join(', '.join(map(str, heads)) for heads in chosen)}"
        for address, chosen in trace.heads.items()
    ]
    rest = len(items) - MOST_HEADS
    line = "; ".join(items[:MOST_HEADS]) + (f"; {rest} more layers" if rest > 0 else "")
    return f"\nof the heads {line}"


def _name(axes: Any, title: str, below: str, left: str) -> None:
    axes.set_title(title, color=INK, fontsize=12)
    axes.set_xlabel(below, color=INK, fontsize=10)
    axes.set_ylabel(left, color=INK, fontsize=10)


def _plain(axes: Any) -> None:
    axes.set_facecolor(PAPER)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
