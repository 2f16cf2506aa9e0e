"""`python -m asag evaluate --pipeline FOLDER`: images of a local diffusers pipeline by each method, and their metrics.

Each image depends on its prompt, its seed and the settings alone. Those that are in --out already aren't made again, so
the same command goes on where it was broken off. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm

from asag.blocks import BlocksError
from asag.lab import arguments
from asag.lab.evaluation import distribute, metrics
from asag.lab.evaluation.generate import Job
from asag.lab.evaluation.plan import (
    EvaluationError,
    Item,
    Sampling,
    items,
    parts,
    read_methods,
    read_prompts,
    read_seeds,
)
from asag.lab.evaluation.store import Store
from asag.models.base import UnsupportedModel
from asag.settings import SettingsError

RESULTS = "results.jsonl"


def read_size(text: str) -> tuple[int, int]:
    """(width, height) in pixels from "1024" or "1024x768"; raises EvaluationError for anything else."""
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not match:
        raise EvaluationError(f"size: {text!r}; allowed: WIDTHxHEIGHT in pixels, or one number")
    return int(match[1]), int(match[2] or match[1])


def read_job(args: argparse.Namespace) -> Job:
    chosen = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    device = chosen.partition(":")[0]
    sampling = Sampling(
        args.steps,
        args.guidance_scale,
        read_size(args.size) if args.size else None,
        args.dtype or ("float16" if device == "cuda" else "float32"),
    )
    pipeline, out = args.pipeline.resolve(), args.out.resolve()
    return Job(pipeline, out, sampling, tuple(read_methods(args.methods)), args.batch, chosen)


def generate(args: argparse.Namespace, job: Job, of: Sequence[Item]) -> None:
    """Make the images that aren't there; raises EvaluationError if any is missing at the end."""
    store = Store(job.out)

    def left() -> int:
        return sum(len(store.missing(method, of)) for method in job.methods)

    # Whole batches in each shard, so that they are the same batches with Ray and without.
    shards = list(parts(of, -(-args.shard // job.batch) * job.batch if args.ray else job.batch))
    done: Iterator[int] = map(job, shards)
    if args.ray:
        unfinished = [shard for shard in shards if any(store.missing(method, shard) for method in job.methods)]
        done = distribute.run(job, unfinished, args.ray, job.device.startswith("cuda"))
    with tqdm(total=left(), unit="image") as bar:
        for made in done:
            bar.update(made)
    if left():
        raise EvaluationError(f"out: {job.out} lacks {left()} images; allowed: a folder that all workers share")
    store.tidy()


def write_results(store: Store, found: Sequence[dict[str, Any]]) -> None:
    """Put these records into the results, in place of those of the same method and metric."""
    path, new = store.folder / RESULTS, {(each["method"], each["metric"]) for each in found}
    old = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    kept = [each for each in old if (each["method"], each["metric"]) not in new]
    store.write_text(RESULTS, "".join(json.dumps(each) + "\n" for each in [*kept, *found]))


def run(args: argparse.Namespace) -> None:
    job = read_job(args)
    prompts = read_prompts(args.prompts, args.limit)
    of = items(prompts, read_seeds(args.seeds))
    names = [name.strip() for name in args.metrics.split(",") if name.strip()]
    metrics.check(names, args.weights, args.reference, len(of))
    models = metrics.models(names, args.weights) if names else None
    store = Store(job.out)
    store.claim(job.pipeline, job.sampling, job.methods, prompts)
    generate(args, job, of)
    print(f"Images: {len(of)} of each method, in {job.out / 'images'}")
    if models is None:
        return
    device = job.device if not args.ray or torch.cuda.is_available() else "cpu"
    found = []
    for each in metrics.measure(names, models, store, job.methods, of, args.reference, device):
        found.append(each)
        spread = f" ± {each['spread']:.4g}" if "spread" in each else ""
        if "to_first" in each:
            spread += f" ({each['to_first']:+.4g} ± {each['to_first_error']:.2g} to {job.methods[0].name})"
        print(f"{each['method']:16} {each['metric']:5} {each['value']:.4f}{spread}", flush=True)
    write_results(store, found)
    print(f"Written: {job.out / RESULTS}")


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments.evaluate(argv)
    try:
        run(args)
    except (EvaluationError, SettingsError, BlocksError, UnsupportedModel) as error:
        print(error, file=sys.stderr)
        return 2
    return 0
