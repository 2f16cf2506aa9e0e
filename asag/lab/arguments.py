"""The options of the commands of `python -m asag`. Loads nothing heavy: --help and a mistake answer at once.

Each function reads a command's arguments, ends the process with --help or a mistake, and returns a namespace, whose
`error` ends the process in the same manner for what only the command itself can find out. The names below are those of
tables that need torch; tests/lab/test_commands.py holds both together.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from asag.lab import argument_types as take
from asag.lab import papers

Arguments = Sequence[str] | None

BENCHES = ("operator", "step", "hosts")
FAKE_BENCH = "cuda"
COMPILE_BENCH = "compile"
DEVICE_BENCH = "device"
TRITON = ("both", "without", "with")
CLOCKS = ("wall", "cpu")
DTYPES = ("float32", "float16", "bfloat16")
LEAST_PICTURES = 8
METRICS = ("fid", "kid", "is", "clip", "pickscore", "hps", "imagereward")
MODEL = Path(__file__).parent / "embedded" / "model"
RENDERINGS = Path(__file__).parent / "renderings" / "model"
MODELS = ("unet", "mmdit")
ADAPTERS = ("controlnet", "ip-adapter")
ROWS = (
    "scale",
    "blocks",
    "heads",
    "method",
    "amount",
    "iterations",
    "strength",
    "window",
    "noise",
    "schedule",
    "rescale",
    "contrast",
    "push",
    "cfg",
)
PAPER_METHODS = ",".join(["cfg", *(f"{name}:{papers.SCALES[name]:g}" for name in ("pag", "seg", "asag"))])


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        no_default = action.default is None or action.default is False or action.default in ("", [])
        if no_default or not action.help or "default:" in action.help:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Names the command, shows defaults, and gives `error` to what it reads."""

    def __init__(self, command: str, description: str, epilog: str | None = None) -> None:
        program = f"python -m {command}"
        super().__init__(program, description=description, epilog=epilog, formatter_class=Formatter)
        self.set_defaults(error=self.error)

    def add_threads(self) -> None:
        self.add_argument("--threads", type=take.whole(1), default=1, help="of the CPU")

    def add_seed(self, default: int) -> None:
        self.add_argument("--seed", type=take.whole(0), default=default, help="of the random numbers")

    def add_steps(self, default: int = 25) -> None:
        self.add_argument("--steps", type=take.whole(1), default=default, help="of sampling")


def demo(argv: Arguments) -> argparse.Namespace:
    parser = Parser("asag demo", "Draws the same captions and seeds without guidance and with each method.")
    parser.add_argument(
        "--out", type=take.out_folder, default=Path("demo"), help="folder for compare.png and metrics.json"
    )
    samples = f"pictures per method, at least {LEAST_PICTURES}; default: 24, with --shapes 64"
    parser.add_argument("--samples", type=take.whole(LEAST_PICTURES), help=samples)
    parser.add_argument("--steps", type=take.whole(1), help="of sampling; default: 14, with --shapes 10")
    model = "folder of a trained UNet of renderings; default: the one that comes with ASAG"
    parser.add_argument("--model", type=take.unet_of_renderings, help=model)
    parser.add_argument("--shapes", action="store_true", help="draw with the MMDiT of drawn shapes, without CFG")
    scale = "with --shapes: of classifier-free guidance"
    parser.add_argument("--guidance-scale", type=take.number(0), default=1.0, help=scale)
    parser.add_seed(7)
    # One thread: on so small a model a second gains little, and costs much where something else is running.
    parser.add_threads()
    args = parser.parse_args(argv)
    if args.shapes and args.model is not None:
        parser.error(f"--model: {args.model}; allowed: only without --shapes")
    args.model = args.model or RENDERINGS
    args.steps = args.steps or (10 if args.shapes else 14)
    args.samples = (64 if args.shapes else 24) if args.samples is None else args.samples
    return args


def playground(argv: Arguments) -> argparse.Namespace:
    parser = Parser("asag playground", "Opens the WebUI's accordion and block map in a page of their own.")
    parser.add_argument("--port", type=take.whole(1, 65535), default=7870, help="of the page, on this computer alone")
    parser.add_argument("--presets", type=take.out_folder, default=Path("demo"), help="folder for your own presets")
    parser.add_argument("--steps", type=take.whole(1), default=10, help="of sampling, to begin with")
    parser.add_threads()
    return parser.parse_args(argv)


def rows(argv: Arguments) -> argparse.Namespace:
    parser = Parser("asag rows", "Draws a picture of what each option does, for docs/options.md.")
    parser.add_argument(
        "--out", type=take.out_folder, default=Path("docs/images/options"), help="folder for a picture per option"
    )
    parser.add_argument("--only", choices=ROWS, help="draw this one alone")
    parser.add_threads()
    return parser.parse_args(argv)


def train(argv: Arguments) -> argparse.Namespace:
    parser = Parser("asag train", "Trains the classifier and a model from a seed, and exports their folder.")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--images", type=take.whole(1), help="budget in drawn pictures: the same weights on every run")
    budget.add_argument("--minutes", type=take.above_zero, default=92.0, help="budget in time; not with --images")
    parser.add_seed(0)
    parser.add_argument(
        "--out", type=take.out_folder, default=Path("train"), help="folder for checkpoint, log and model/"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parts = ("classifier", *MODELS, *ADAPTERS)
    parser.add_argument("--parts", nargs="+", choices=parts, default=["classifier", "unet"], help="what to train")
    parser.add_threads()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train")
    folder = "folder of renderings, in which both npm packages are installed; default: drawn shapes"
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=folder)
    base = "folder of a UNet of renderings with its classifier, which controlnet and ip-adapter are trained for"
    parser.add_argument("--base", type=Path, metavar="FOLDER", help=base)
    small = "learn 32x32 pictures of them, at a quarter of the cost; --resume without it goes on with 64x64"
    parser.add_argument("--half-size", action="store_true", help=small)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the forward pass")
    parser.add_argument("--compile", action="store_true", help="compile the model, for long runs on a GPU")
    parser.add_argument("--optimiser", choices=("adamw", "muon"), default="adamw", help="of the model's matrices")
    parser.add_argument("--batch", type=take.whole(1), default=32, help="pictures in a step")
    parser.add_argument("--rate", type=take.above_zero, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--classifier-steps", type=take.whole(1), default=3000, help="training steps of the classifier")
    args = parser.parse_args(argv)
    adapter = bool(set(ADAPTERS) & set(args.parts))
    if len({*MODELS, *ADAPTERS} & set(args.parts)) > 1:
        parser.error(f"--parts: {' '.join(args.parts)}; allowed: one model, as each needs a folder of its own")
    if args.half_size and (args.data is None or "mmdit" in args.parts or adapter):
        parser.error("--half-size: allowed: only with --data, and not for mmdit, controlnet and ip-adapter")
    if adapter and (args.data is None or args.base is None):
        parser.error(f"--parts: {' '.join(args.parts)}; allowed: controlnet and ip-adapter with --data and --base")
    if args.base is not None and not adapter:
        parser.error(f"--base: {args.base}; allowed: only with --parts controlnet or ip-adapter")
    return args


def quality(argv: Arguments) -> argparse.Namespace:
    parser = Parser("asag quality", "Measures an embedded model: objects right, contrast, and a sheet for the eye.")
    parser.add_argument("--model", type=take.pipeline, default=MODEL, help="the UNet's folder, or the MMDiT's")
    parser.add_argument("--samples", type=take.whole(1), default=512, help="how many pictures")
    parser.add_argument("--guidance", type=take.number(0), nargs="+", default=[1.0, 2.0], help="CFG scales")
    parser.add_steps()
    parser.add_seed(1000)
    parser.add_threads()
    parser.add_argument(
        "--judge", type=take.judge, metavar="FOLDER", help="of renderings' classifier; default: --model"
    )
    parser.add_argument("--half-size", action="store_true", help="make 32x32 pictures, of a UNet that knows no others")
    parser.add_argument("--held-out", action="store_true", help="ask for the names that training left out")
    parser.add_argument("--sheet", type=take.out_file, help="write the first 48 samples of the last guidance here")
    args = parser.parse_args(argv)
    for name in ("judge", "half_size", "held_out"):
        if getattr(args, name) and not (args.model / take.WORDS).exists():
            parser.error(f"--{name.replace('_', '-')}: allowed: only with a model of renderings")
    return args


def evaluate(argv: Arguments) -> argparse.Namespace:
    text = """Makes images of a local diffusers pipeline by each method, and their metrics. Each image depends on its
    prompt, its seed and the settings alone. Those that are in --out already aren't made again, so the same command goes
    on where it was broken off. Nothing is downloaded."""
    parser = Parser("asag evaluate", text)
    parser.add_argument("--pipeline", type=Path, required=True, help="folder of a pipeline (model_index.json)")
    prompts = "a file: one prompt a line, or .jsonl or .csv with caption or prompt"
    parser.add_argument("--prompts", type=Path, required=True, help=prompts)
    parser.add_argument("--limit", type=take.whole(1), help="take only so many prompts")
    parser.add_argument("--methods", default=PAPER_METHODS, help="METHOD:SCALE,… or JSON: name to settings")
    parser.add_argument("--guidance-scale", type=take.number(0), help="of CFG; default: the pipeline's own")
    parser.add_steps()
    parser.add_argument("--seeds", default="0", help="for each prompt, such as 0,1,2 or 0-9")
    parser.add_argument("--batch", type=take.whole(1), default=4, help="images in one call of the pipeline")
    parser.add_argument("--size", help="WIDTHxHEIGHT in pixels, or one number for both; default: the pipeline's own")
    parser.add_argument("--device", help="with --ray: of the workers; default: cuda where there is one, else cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float16 on cuda, else float32")
    parser.add_argument("--out", type=take.out_folder, required=True, help="folder of the images and results.jsonl")
    metrics = f"of {','.join(METRICS)}, and reward:FOLDER for another reward model; default: none, only make the images"
    parser.add_argument("--metrics", default="", help=metrics)
    parser.add_argument("--reference", type=Path, help="folder of real images, for fid and kid")
    parser.add_argument("--weights", type=Path, help="folder of the metrics' weights")
    parser.add_argument("--ray", metavar="ADDRESS", help="share the work out on this Ray; local: start one here")
    parser.add_argument("--shard", type=take.whole(1), default=64, help="with --ray: prompts (times seeds) in one task")
    return parser.parse_args(argv)


def bench(argv: Arguments) -> argparse.Namespace:
    parser = Parser("asag bench", "Measures what ASAG costs: its operator to SDPA, a step to CFG, a WebUI's pictures.")
    kinds = """one of them; default: operator, step and hosts. cuda counts on a made-up device and measures nothing;
    compile compiles the Triton kernels for cards that aren't there; device checks and measures on an NVIDIA GPU and
    writes a page into bench/results/"""
    benches = (*BENCHES, FAKE_BENCH, COMPILE_BENCH, DEVICE_BENCH)
    parser.add_argument("bench", nargs="?", choices=benches, help=kinds)
    parser.add_argument("--triton", choices=TRITON, default="both", help="cuda: count with Triton's kernels or without")
    parser.add_argument(
        "--json", type=take.out_file, help="write a line a measurement here, and the table beside it (.md)"
    )
    parser.add_argument("--pairs", type=take.whole(2), default=7, help="rounds of each case, at least 2")
    parser.add_argument(
        "--seconds", type=take.number(0), default=180.0, help="after so many, three rounds of a case are enough"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only the cases whose name has this in it")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and two rounds: a test, not a measurement")
    threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    parser.add_argument("--threads", type=take.whole(1), default=threads, help="default: OMP_NUM_THREADS, else 2")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: for a busy machine and one thread")
    parser.add_argument("--device", help="cuda: real sizes, half precision; default: cpu, of the bench device cuda")
    parser.add_argument(
        "--minutes", type=take.number(1), default=25.0, help="device: no part begins after so many minutes"
    )
    parser.add_argument(
        "--dense-gib", type=take.number(0), default=3.0, help="dense forms that need more memory are skipped"
    )
    parser.add_argument("--chart", nargs=2, type=Path, metavar=("JSON", "PNG"), help="draw what was written; no bench")
    args = parser.parse_args(argv)
    args.device = args.device or ("cuda" if args.bench == DEVICE_BENCH else "cpu")
    if args.clock == "cpu" and args.device != "cpu":
        parser.error(f"--clock: cpu with --device {args.device}; allowed: wall")
    return args
