"""Training: the schedule, exact resumption, and an export that a pipeline can load."""

import json

import pytest
import torch

from asag.lab.embedded import drawings, shipped, train
from asag.lab.embedded.architecture import NULL, START, new_scheduler, token_rows
from asag.lab.embedded.architecture_mmdit import new_flow_scheduler
from asag.lab.embedded.source import Drawn
from asag.lab.embedded.subjects import SUBJECTS, UNetSubject
from asag.lab.embedded.train import forget_after, main
from asag.lab.embedded.training import Training, Way, learning_rate


def test_rate_warms_up_stays_and_falls_to_nothing():
    assert learning_rate(1.0, 0, 0.0) < 0.01
    assert learning_rate(1.0, 5000, 0.3) == 1.0
    assert learning_rate(1.0, 5000, 0.775) == pytest.approx(0.5)
    assert learning_rate(1.0, 5000, 1.0) == 0.0
    assert learning_rate(1.0, 5000, 1.2) == 0.0


@pytest.mark.parametrize(("name", "way"), [("unet", Way()), ("mmdit", Way()), ("mmdit", Way(muon=True))])
def test_a_resumed_run_equals_one_that_was_never_stopped(tmp_path, name, way):
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    straight, stopped, resumed = (Training(seed, cpu, SUBJECTS[name](), Drawn(), way) for seed in (0, 0, 9))
    losses = [straight.update(2, 1e-3) for _ in range(4)]
    assert [stopped.update(2, 1e-3) for _ in range(2)] == losses[:2]
    stopped.save(tmp_path / "checkpoint.pt")
    resumed.load(tmp_path / "checkpoint.pt")
    assert [resumed.update(2, 1e-3) for _ in range(2)] == losses[2:]
    assert (resumed.step, resumed.images) == (4, 8)
    assert all(torch.equal(a, b) for a, b in zip(straight.average, resumed.average, strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_schedule_ends_in_pure_noise_and_only_loses_signal():
    alpha_bar = new_scheduler().alphas_cumprod
    assert alpha_bar[-1] == 0
    assert alpha_bar[0] > 0.9999
    assert (alpha_bar.diff() < 0).all()


def test_the_flow_task_mixes_along_straight_paths_from_picture_to_noise():
    clean, noise = torch.randn(2, 3, 12, 16, 16, generator=torch.Generator().manual_seed(0))
    task = SUBJECTS["mmdit"]().task(clean, noise, torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(task.noisy[0], clean[0])
    assert torch.allclose(task.noisy[2], noise[2])
    sigma = (task.time / 1000)[:, None, None, None]
    assert torch.allclose(task.noisy - sigma * task.target, clean, atol=1e-6)
    # The scheduler's own shift, at the middle of its 1000 steps.
    assert task.time[1] == pytest.approx(float(new_flow_scheduler().timesteps[500]), rel=2e-3)


@pytest.mark.parametrize("limit", [None, 5.0])
def test_min_snr_weights_the_error_of_the_picture_by_the_limit_at_most(limit):
    # A model that says 0 is wrong by v; its picture is wrong by sigma v, and min-SNR weights that by min(SNR, limit).
    clean, noise = torch.randn(2, 4, 12, 16, 16, generator=torch.Generator().manual_seed(0))
    subject = UNetSubject(snr_limit=limit)
    task = subject.task(clean, noise, torch.tensor([0.1, 0.4, 0.7, 0.999]))
    alpha_bar = subject.alpha_bar[task.time].double()
    snr = alpha_bar / (1 - alpha_bar)
    wanted = torch.ones(4).double() if limit is None else snr.clamp(max=limit) * (1 - alpha_bar)
    assert torch.allclose(task.weight.double(), wanted, atol=1e-6)


def test_lines_of_the_log_after_the_checkpoint_are_forgotten(tmp_path):
    log = tmp_path / "loss.jsonl"
    forget_after(3, log)
    log.write_text('{"step": 2}\n{"step": 4}\n')
    forget_after(3, log)
    assert log.read_text() == '{"step": 2}\n'


def test_one_folder_holds_one_model(capsys):
    with pytest.raises(SystemExit):
        main(["--parts", "unet", "mmdit"])
    assert "--parts: unet mmdit; allowed: one model" in capsys.readouterr().err


def test_dropped_captions_become_null_and_only_those():
    labels = torch.stack([drawings.parse_caption("red disc, blue square"), drawings.parse_caption("white cross")])
    kept, dropped = token_rows(labels), token_rows(labels, torch.tensor([True, False]))
    assert kept.tolist() == [[START, 0, 9], [START, 23, drawings.PAIRS]]
    assert dropped.tolist() == [[START, NULL, NULL], [START, 23, drawings.PAIRS]]


def test_the_command_trains_logs_and_exports_a_loadable_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "_LOG_STEPS", 2)
    budget = ["--images", "8", "--batch", "2", "--classifier-steps", "2"]
    assert main([*budget, "--out", str(tmp_path)]) == 0
    assert "8 pictures" in capsys.readouterr().out
    row = json.loads((tmp_path / "loss.jsonl").read_text().splitlines()[-1])
    assert (row["step"], row["images"]) == (4, 8)
    pipeline = shipped.load_pipeline(folder=tmp_path / "model")
    labels = drawings.draw(2, torch.Generator().manual_seed(0)).labels
    images = shipped.sample(pipeline, labels, steps=2, folder=tmp_path / "model")
    assert images.shape == (2, 3, drawings.SIZE, drawings.SIZE)
    assert torch.isfinite(images).all()
    assert main([*budget, "--out", str(tmp_path), "--resume"]) == 0
    assert "8 pictures" in capsys.readouterr().out
