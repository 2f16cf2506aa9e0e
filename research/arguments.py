"""The options of the commands of `python -m research`, read before anything heavy is loaded; see asag.lab.arguments."""

from __future__ import annotations

import argparse
from pathlib import Path

from asag.lab import argument_types as take
from asag.lab.arguments import MODELS, Arguments, Parser

ROOM = Path(__file__).parent
RESULTS = ROOM / "asag" / "results"
LEAST_CAPTIONS = 40
DATA = ("ring", "grid", "digits")
TABLES = ("search", "low-cfg", "held-out")  # of `choose`
TEMPERATURES = (0.004, 0.016, 0.063, 0.25, 1.0)
# What `evaluate` measures, and what it looks for first.
PLANS = (
    *("main", "search", "blocks", "window", "rescale", "contrast", "strength", "iterations", "rivals", "confirm"),
    *("plain-search", "plain", "strong-search", "strong", "fresh", "adaptive", "steps", "every", "presets"),
)
CALIBRATIONS = ("calibrate", "calibrate-chosen", "calibrate-rivals", "calibrate-high")


def evaluate(argv: Arguments) -> argparse.Namespace:
    text = """Measures the papers' experiments on the embedded models. Sampled pictures are kept as descriptions, in
    parts, in a folder outside version control: a run that was stopped goes on, several processes share one
    (--share 0/2, --share 1/2), and what a plan has in common with another is sampled once. A cell whose parts are all
    there becomes a JSON line in --out; a cell with a line of as many samples isn't measured again."""
    also = "For the pictures of a local diffusers pipeline see `python -m asag evaluate --pipeline FOLDER --help`."
    parser = Parser("research evaluate", text, also)
    plans = (*PLANS, *CALIBRATIONS)
    parser.add_argument("plans", nargs="+", choices=plans, help="what to measure", metavar=f"{{{','.join(plans)}}}")
    parser.add_argument("--model", choices=MODELS, default="unet", help="which of the embedded models")
    parser.add_argument(
        "--captions", type=take.whole(LEAST_CAPTIONS), help=f"instead of the plan's; at least {LEAST_CAPTIONS}"
    )
    parser.add_argument("--seeds", type=take.whole(0), nargs="+", help="instead of the plan's")
    parser.add_argument("--only", nargs="+", default=[], help="methods or protocols; the others wait")
    parser.add_argument("--condition", choices=("unconditional", "conditional"), help="only this one; the other waits")
    parser.add_argument("--share", type=_share, default="0/1", help="I/N: this process takes every N-th part")
    parser.add_argument("--report", action="store_true", help="sample nothing; write the lines of complete cells")
    parser.add_argument("--prune", action="store_true", help="drop lines that the plan doesn't have any more")
    parser.add_argument("--store", type=take.out_folder, default=Path("evidence"), help="where descriptions are kept")
    parser.add_argument("--out", type=take.out_folder, default=RESULTS, help="folder of the JSON lines")
    parser.add_threads()
    return parser.parse_args(argv)


def _share(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit() and int(number) < int(of)):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: I/N with I from 0 to N - 1, such as 0/2")
    return int(number), int(of)


def report(argv: Arguments) -> argparse.Namespace:
    parser = Parser(
        "research report",
        "Writes the pages and figures of research/asag and research/README.md, from the measured lines.",
    )
    parser.add_argument("--folder", type=take.existing, default=ROOM / "asag", help="of results/, texts/ and the pages")
    return parser.parse_args(argv)


def along(argv: Arguments) -> argparse.Namespace:
    text = "Measures the plans along sampling: how spread out, how far from doubly stochastic, how soon converged."
    return _of_a_model("along", text, argv)


def directions(argv: Arguments) -> argparse.Namespace:
    text = "Measures where each method pushes: how alike their δ are, and how much of each is contrast alone."
    return _of_a_model("directions", text, argv)


def units(argv: Arguments) -> argparse.Namespace:
    text = "Measures how large the push is beside CFG's own: every method and block, at several CFG scales."
    return _of_a_model("units", text, argv)


def single(argv: Arguments) -> argparse.Namespace:
    text = """Samples every method in every block at several CFG scales, at one scale of each unit, beside CFG alone. A
    run that was stopped goes on."""
    parser = Parser("research single", text)
    parser.add_argument("--model", choices=MODELS, default="unet", help="which of the embedded models")
    parser.add_argument(
        "--pushes", type=take.above_zero, nargs="+", default=[0.5], help="the scales, as pushes beside CFG's own"
    )
    parser.add_argument("--store", type=take.out_folder, default=Path("evidence"), help="where descriptions are kept")
    parser.add_argument("--out", type=take.out_folder, default=RESULTS, help="folder of the JSON lines")
    parser.add_threads()
    return parser.parse_args(argv)


def best(argv: Arguments) -> argparse.Namespace:
    text = "Says which scale suits in each unit and what one scale costs, from the lines of `evaluate unit-scales`."
    parser = Parser("research best", text)
    parser.add_argument("--out", type=take.out_folder, default=RESULTS, help="folder of the JSON lines")
    return parser.parse_args(argv)


def choose(argv: Arguments) -> argparse.Namespace:
    parser = Parser("research choose", "Searches the demo's settings of each method; see research/renderings.")
    _of_renderings(parser, required=True)
    tables = "the search; what is no part of the choice: lower CFG; names that training left out, at what was chosen"
    parser.add_argument("--table", nargs="+", choices=TABLES, default=["search"], help=tables)
    parser.add_argument("--samples", type=take.whole(1), default=256, help="pictures of each setting")
    parser.add_argument("--half-size", action="store_true", help="make 32x32 pictures, of a UNet that knows no others")
    parser.add_argument(
        "--out", type=take.out_folder, default=ROOM / "renderings" / "results", help="folder of lines and tables"
    )
    _add_device(parser)
    return parser.parse_args(argv)


def pairs(argv: Arguments) -> argparse.Namespace:
    parser = Parser("research pairs", "Draws pairs of pictures for a blind judgement, and counts what the judges said.")
    _of_renderings(parser, required=False)
    parser.add_argument("--count", type=take.whole(1), default=40, help="pairs")
    answers = "files of the judges, JSON: the number of each pair to A, B or =; nothing is drawn then"
    parser.add_argument("--answers", type=take.existing, nargs="+", default=[], help=answers)
    parser.add_argument("--out", type=take.out_folder, default=Path("pairs"), help="folder of the sheets and the key")
    parser.add_threads()
    args = parser.parse_args(argv)
    if not args.answers and args.model is None:
        parser.error("--model: nothing; allowed: a model's folder, or --answers")
    return args


def control(argv: Arguments) -> argparse.Namespace:
    text = "Measures what guidance does beside a ControlNet or an IP-Adapter of a UNet of renderings."
    parser = Parser("research control", text, "The protocol is in research/renderings/protocol-control.md.")
    parser.add_argument(
        "--model", type=take.unet_of_renderings, required=True, help="folder of a UNet of renderings, with its judge"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the renderings")
    adapter = parser.add_mutually_exclusive_group(required=True)
    adapter.add_argument("--controlnet", type=take.existing, metavar="FOLDER", help="measure beside this ControlNet")
    adapter.add_argument("--ip-adapter", type=take.existing, metavar="FILE", help="measure beside this IP-Adapter")
    parser.add_argument("--samples", type=take.whole(2), default=256, help="pictures of each way, at least 2")
    parser.add_steps(14)
    parser.add_argument(
        "--out", type=take.out_folder, default=ROOM / "renderings" / "results", help="of lines, table and figures"
    )
    _add_device(parser)
    return parser.parse_args(argv)


def _of_renderings(parser: Parser, required: bool) -> None:
    parser.add_argument(
        "--model", type=take.of_renderings, required=required, help="folder of a UNet or MMDiT of renderings"
    )
    parser.add_argument("--judge", type=take.judge, metavar="FOLDER", help="of the classifier; default: --model")


def precision(argv: Arguments) -> argparse.Namespace:
    text = "Measures what half precision and sharing work do to δ and to pictures; writes the page."
    parser = Parser("research precision", text)
    parser.add_argument("--out", type=take.out_folder, default=ROOM / "precision", help="of the page and results/")
    parser.add_argument("--measure", action="store_true", help="anew; without it the page is written from the lines")
    parser.add_threads()
    return parser.parse_args(argv)


def _of_a_model(command: str, text: str, argv: Arguments) -> argparse.Namespace:
    parser = Parser(f"research {command}", text)
    parser.add_argument("--model", choices=MODELS, default="unet", help="which of the embedded models")
    parser.add_argument("--out", type=take.out_folder, default=RESULTS, help="folder of the JSON lines")
    parser.add_threads()
    return parser.parse_args(argv)


def fingerprint(argv: Arguments) -> argparse.Namespace:
    text = """Looks for the fingerprint of the paper's regime on a model of renderings: for each layer and head how far
    queries and keys agree, how soon the plans converge, and how far ASAG's push is the uniform map's."""
    parser = Parser("research fingerprint", text)
    _add_renderings(parser)
    parser.add_argument("--pictures", type=take.whole(1), default=4, help="how many captions, from one noise each")
    parser.add_argument("--levels", type=take.whole(1), default=4, help="of noise, evenly over the steps")
    _add_device(parser)
    return parser.parse_args(argv)


def cell(argv: Arguments) -> argparse.Namespace:
    text = """Measures the decisive cell on a model of renderings: CFG alone, and ASAG, the uniform map, SEG and PAG at
    equal push where the fingerprint says. A run that was stopped goes on; several processes share one (--share 0/2,
    --share 1/2)."""
    parser = Parser("research cell", text, "The protocol is in research/asag/protocol-cell.md.")
    _add_renderings(parser)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of the renderings, which pictures are compared to"
    )
    network = "folder of a network of nsfwjs (dist/models/inception_v3), for distances by another network, too"
    parser.add_argument("--network", type=take.existing, help=network)
    fingerprint = "lines of `research fingerprint` for this model; default: those in --out"
    parser.add_argument("--fingerprint", type=Path, help=fingerprint)
    parser.add_argument("--push", type=take.above_zero, default=0.5, help="of each method, beside CFG's own (unit cfg)")
    parser.add_argument("--captions", type=take.whole(LEAST_CAPTIONS), default=2000, help=f"at least {LEAST_CAPTIONS}")
    parser.add_argument(
        "--seeds", type=take.whole(0), nargs="+", default=[11, 12, 13], help="of the noise, for each caption"
    )
    parser.add_argument("--reference", type=take.whole(LEAST_CAPTIONS), default=10_000, help="how many real renderings")
    parser.add_argument("--share", type=_share, default="0/1", help="I/N: this process takes every N-th part")
    parser.add_argument("--report", action="store_true", help="sample nothing; write the lines of complete methods")
    parser.add_argument("--store", type=take.out_folder, default=Path("evidence"), help="where descriptions are kept")
    _add_device(parser)
    return parser.parse_args(argv)


def _add_renderings(parser: Parser) -> None:
    parser.add_argument(
        "--model", type=take.of_renderings, required=True, help="folder of a model of renderings, with its judge"
    )
    parser.add_argument("--half-size", action="store_true", help="make 32x32 pictures, of a UNet that knows no others")
    parser.add_steps(14)
    parser.add_argument("--out", type=take.out_folder, default=RESULTS, help="folder of the JSON lines")


def _add_device(parser: Parser) -> None:
    where = "where to sample and judge; in float32, on a GPU with products in TF32. The noise is the same on both"
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=where)
    parser.add_threads()


def drifting(argv: Arguments) -> argparse.Namespace:
    text = "Trains one-step generators by drift fields, one-sided and two-sided, over temperatures; writes the page."
    parser = Parser("research drifting", text)
    parser.add_argument("--out", type=take.out_folder, default=ROOM / "drifting", help="folder to write to")
    parser.add_argument("--redraw", action="store_true", help="only write text and figures again, from drifting.jsonl")
    parser.add_argument("--data", choices=DATA, nargs="+", default=[*DATA], help="what to learn")
    parser.add_argument("--temperatures", type=take.above_zero, nargs="+", default=TEMPERATURES, help="of the fields")
    parser.add_argument(
        "--steps", type=take.whole(1), default=1000, help="of training; the digits have their own number"
    )
    parser.add_argument("--digits-steps", type=take.whole(1), default=1500, help="of training, for the digits")
    parser.add_argument("--seeds", type=take.whole(2), default=5, help="how many, from 0; at least 2")
    parser.add_threads()
    return parser.parse_args(argv)


def guidance_breaks(argv: Arguments) -> argparse.Namespace:
    text = """Runs both experiments on the adaptive scale, and writes them up. The page is made of the experiments' JSON
    lines alone; without --run it is written anew from those that are there."""
    parser = Parser("research guidance_breaks", text)
    parser.add_argument(
        "--out", type=take.out_folder, default=ROOM / "guidance_breaks", help="of the page, results/ and images/"
    )
    parser.add_argument("--run", nargs="+", choices=("toy", "pictures"), default=[], help="what to measure anew")
    parser.add_argument("--seeds", type=take.whole(2), default=5, help="how many, from 0")
    parser.add_argument("--samples", type=take.whole(2), default=400, help="toy: per seed")
    parser.add_argument("--small-samples", type=take.whole(2), default=200, help="toy: per seed, for the many readings")
    parser.add_argument("--captions", type=take.whole(2), default=12, help="pictures: per seed, 4 samples of each")
    parser.add_argument("--guide-steps", type=take.whole(1), default=600, help="pictures: training steps of the guide")
    return parser.parse_args(argv)
