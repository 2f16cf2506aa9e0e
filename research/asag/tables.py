"""The measured lines as tables, in the layout of the papers' where they have one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from research.lines import Line, markdown

SURE = 3.0  # paired standard errors; below that a difference isn't claimed
METRICS = {
    "fd": "FD ↓",
    "fd_layout": "FD layout ↓",
    "fd_spectrum": "FD spectrum ↓",
    "kid": "KID · 1000 ↓",
    "is_like": "IS-like",
    "right": "objects right ↑",
    "contrast": "contrast",
    "saturation": "saturation",
    "clipped": "clipped",
    "diversity": "diversity",
}
# 1: higher is better, -1: lower; the others have no better end.
BETTER = {"fd": -1, "fd_layout": -1, "fd_spectrum": -1, "kid": -1, "right": 1}
NAMES = {
    "vanilla": "vanilla",
    "cfg": "CFG",
    "pag": "PAG",
    "seg": "SEG",
    "uniform": "uniform map",
    "similarity": "M = 1 − QKᵀ",
    "asag": "ASAG",
    "paper plan": "ASAG with the paper's plan",
}
PROTOCOLS = {
    "none": "",
    "paper": "the papers' scales",
    "norm": "equal push",
    "best": "each at its best",
    "chosen": "the same settings, equal push",
}
# Table 1 of the ASAG paper, and Table 3's maps. Unconditional: FID, KID, IS; conditional: FID, CLIPScore, ImageReward.
PAPER_FIGURES = {
    ("unet", "unconditional", "vanilla"): "122.07 / 0.086 / 7.05",
    ("unet", "unconditional", "pag"): "108.63 / 0.067 / 10.46",
    ("unet", "unconditional", "seg"): "95.43 / 0.062 / 10.35",
    ("unet", "unconditional", "uniform"): "92.11 / 0.058 / 9.710",
    ("unet", "unconditional", "similarity"): "111.53 / 0.078 / 9.085",
    ("unet", "unconditional", "asag"): "92.01 / 0.059 / 10.54",
    ("unet", "conditional", "cfg"): "28.15 / 25.21 / 0.415",
    ("unet", "conditional", "pag"): "24.32 / 25.41 / 0.448",
    ("unet", "conditional", "seg"): "26.80 / 25.39 / 0.431",
    ("unet", "conditional", "asag"): "23.30 / 25.85 / 0.459",
    ("mmdit", "conditional", "cfg"): "24.19 / 26.03 / 0.931",
    ("mmdit", "conditional", "pag"): "23.31 / 26.14 / 0.956",
    ("mmdit", "conditional", "asag"): "22.87 / 26.33 / 0.978",
}
PAPER_MODELS = {"unet": "SDXL", "mmdit": "SD3"}


def conditions_of(lines: Sequence[Line]) -> list[str]:
    """The conditions that lines are there for, without captions first."""
    return [name for name in ("unconditional", "conditional") if any(line["condition"] == name for line in lines)]


def as_titled(value: float, name: str) -> float:
    """A metric's value in the unit that its title in `METRICS` names."""
    return 1000 * value if name == "kid" else value


def number(value: float, name: str = "") -> str:
    if name == "right":
        return f"{100 * value:.1f} %"
    value = as_titled(value, name)
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.4g}"


def figure_of(line: Line, name: str) -> str:
    """A metric with its difference to the baseline in paired standard errors where it is one to be sure of."""
    metric = line["metrics"].get(name)
    if metric is None:
        return "–"
    text = number(metric["value"], name)
    error = metric["to_baseline_error"]
    if not error:
        return text
    sigmas = metric["to_baseline"] / error
    if abs(sigmas) < SURE:
        return text
    better = BETTER.get(name, 0) * sigmas
    return f"**{text}** ({sigmas:+.0f}σ)" if better > 0 else f"{text} ({sigmas:+.0f}σ)"


def to_rival(line: Line, name: str) -> str:
    """The paired difference to the cell that this one is compared with, where it is one to be sure of."""
    metric = line["metrics"].get(name, {})
    error = metric.get("to_asag_error")
    if not error or abs(metric["to_asag"] / error) < SURE:
        return ""
    return f" [{metric['to_asag'] / error:+.0f}σ]"


def scale_of(line: Line) -> str:
    scale = line["settings"].get("scale")
    return f"{scale:g}" if scale is not None else "–"


def in_words(settings: Mapping[str, Any]) -> str:
    """Settings in words, without the method."""
    return ", ".join(f"{name} {value}" for name, value in settings.items() if name != "method")


def called_in(lines: Sequence[Line]) -> list[str]:
    """What each line's row is called: its method and, where lines have several CFG scales, its own."""
    several = len({line["guidance_scale"] for line in lines} - {1.0}) > 1

    def called(line: Line) -> str:
        name, scale = NAMES[line["method"]], line["guidance_scale"]
        if not several or scale == 1.0:
            return name
        return f"{name} {scale:g}" if line["method"] == "cfg" else f"{name}, CFG {scale:g}"

    return [called(line) for line in lines]


def differ(lines: Sequence[Line]) -> bool:
    """Whether lines have different numbers of pictures."""
    return len({line["samples"] for line in lines}) > 1


def comparison(lines: Sequence[Line], condition: str) -> str:
    """Table 1's rows of a condition: protocol by protocol, method by method, with the paper's figures where it has
    any. Where rows have different numbers of pictures, a column says how many."""
    lines = [line for line in lines if line["condition"] == condition]
    counted = differ(lines)
    names = list(METRICS)
    measured = "FID / KID / IS" if condition == "unconditional" else "FID / CLIP / IR"
    papers = [_of_the_paper(line) for line in lines]
    known = any(papers)
    head = ["", "method", "scale", *["pictures"] * counted, *(METRICS[name] for name in names)]
    head += [f"paper, {PAPER_MODELS[lines[0]['model']]}: {measured}"] * known
    rows = []
    for line, called, paper in zip(lines, called_in(lines), papers, strict=True):
        row = [PROTOCOLS[line["protocol"]], called, scale_of(line), *[str(line["samples"])] * counted]
        rows.append([*row, *(figure_of(line, name) for name in names), *[paper] * known])
    return markdown(head, rows)


def _of_the_paper(line: Line) -> str:
    """The paper's figures for a cell that is one of its own, or nothing."""
    own = line["plan"] == "main" and line["protocol"] in ("none", "paper")
    return PAPER_FIGURES.get((line["model"], line["condition"], line["method"]), "") if own else ""


def verdicts(lines: Sequence[Line]) -> list[str]:
    """A sentence for each condition, protocol and method: by which metrics ASAG is surely better or worse.

    From paired differences to ASAG, by the metrics that have a better end. Where there is no protocol the sentence
    names ASAG's scale.
    """
    scales = {line.get("run"): scale_of(line) for line in lines if line["method"] == "asag"}
    sentences = []
    for condition in ("unconditional", "conditional"):
        for protocol, title in PROTOCOLS.items():
            rivals = [
                line
                for line in lines
                if (line["condition"], line["protocol"]) == (condition, protocol) and line["method"] != "asag"
            ]
            for line, called in zip(rivals, called_in(rivals), strict=True):
                parts: dict[str, list[str]] = {"better": [], "worse": [], "no clear difference": []}
                for name, sign in BETTER.items():
                    metric = line["metrics"].get(name, {})
                    if not metric.get("to_asag_error"):
                        continue
                    # How much better ASAG is than this line.
                    sigmas = -sign * metric["to_asag"] / metric["to_asag_error"]
                    kind = "no clear difference" if abs(sigmas) < SURE else "better" if sigmas > 0 else "worse"
                    label = METRICS[name].removesuffix(" ↓").removesuffix(" ↑")
                    parts[kind].append(label if kind == "no clear difference" else f"{label} ({abs(sigmas):.0f}σ)")
                found = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in parts.items() if names)
                if found:
                    at = f", {title}" if title else ""
                    if differ(lines):
                        at += f", {line['samples']} pictures"
                    scale = scales.get(line.get("rival"))
                    own = f" at scale {scale}" if scale and not title else ""
                    sentences.append(f"- {condition}{at}, ASAG{own} against {called}: {found}.")
    return sentences


def sweep(lines: Sequence[Line], condition: str, names: Sequence[str]) -> str:
    """A row per setting of a sweep: what was set, with the method where it isn't ASAG, and the metrics `names`."""
    lines = [line for line in lines if line["condition"] == condition]
    counted = differ(lines)
    rows = []
    for line in lines:
        method = NAMES[line["method"]] if line["method"] != "asag" else ""
        pictures = f"{line['samples']} pictures" if counted else ""
        row = ", ".join(filter(None, [method, in_words(line["settings"]), pictures]))
        rows.append([row, *(figure_of(line, name) + to_rival(line, name) for name in names)])
    return markdown([condition, *(METRICS[name] for name in names)], rows)


def steps_table(lines: Sequence[Line]) -> str:
    """CFG scale and number of steps, without ASAG and with each of its settings: FD and objects right."""
    found = {(line["steps"], line["guidance_scale"], line["protocol"]): line for line in lines}
    steps, scales, protocols = (list(dict.fromkeys(key[i] for key in found)) for i in range(3))
    rows = []
    for scale in scales:
        for protocol in protocols:
            more = {"none": "", "paper": " + ASAG", "chosen": " + ASAG as chosen"}[protocol]
            cells = [found.get((each, scale, protocol)) for each in steps]
            shown = [f"{figure_of(cell, 'fd')}; {figure_of(cell, 'right')}" if cell else "–" for cell in cells]
            rows.append([f"CFG {scale:g}{more}", *shown])
    return markdown(["", *(f"{each} steps" for each in steps)], rows)


def directions(lines: Sequence[Line]) -> str:
    """Means over the steps of what pushes are like: a row per method in the default block, and per block for ASAG."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["method"], line["block"]), []).append(line)
    names = ("size", "to_asag", "contrast", "to_asag_beyond")
    head = ["method", "block", "RMS of δ", "cosine to ASAG's δ", "cosine to contrast", "to ASAG's, less contrast"]
    rows = []
    for (method, block), found in groups.items():
        means = [sum(line[name] for line in found) / len(found) for name in names]
        shown = "the default" if block == "auto" else block
        rows.append([NAMES[method], shown, f"{means[0]:.3g}", *(f"{mean:.2f}" for mean in means[1:])])
    return markdown(head, rows)
