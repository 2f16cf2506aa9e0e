"""A WebUI that is already installed, as a server: started, asked over its HTTP API, stopped. All that tells one host
from another is in this file.

The environment says which one and with what:
    ASAG_WEBUI          the folder that holds launch.py
    ASAG_WEBUI_PYTHON   its interpreter; else venv/bin/python in that folder or beside it
    ASAG_WEBUI_SD15     checkpoint file names; else the first one called *sd15* or *v1-5*, *sdxl* or *xl_base*
    ASAG_WEBUI_SDXL
    ASAG_WEBUI_FLAGS    its command-line flags for device, precision and attention, in place of HOST_FLAGS
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
START_SECONDS = 420
REQUEST_SECONDS = 240

COMMON_FLAGS = ["--server-name", "127.0.0.1", "--api", "--skip-install", "--skip-prepare-environment"]
COMMON_FLAGS += ["--skip-python-version-check", "--skip-torch-cuda-test", "--skip-version-check"]
HOST_FLAGS = {
    "a1111": [
        *["--use-cpu", "all", "--no-half", "--no-half-vae", "--precision", "full"],
        *["--no-download-sd-model", "--do-not-download-clip", "--disable-console-progressbars"],
    ],
    "forge": ["--always-cpu", "--all-in-fp32", "--attention-pytorch"],
    "neo": ["--cpu", "--force-fp32", "--use-pytorch-cross-attention"],
    "reforge": ["--always-cpu", "--all-in-fp32", "--attention-pytorch", "--no-download-sd-model"],
}

# The server runs on a copy of the user's config.json with these on top. A key that a test overrides must be here:
# A1111 restores only overridden keys that its config.json holds, the others leak into later requests.
SETTINGS = {
    "samples_save": False,
    "grid_save": False,
    "auto_launch_browser": "Disable",
    "live_previews_enable": False,
    "temp_dir": "",  # the page's pictures go to GRADIO_TEMP_DIR; Neo's own default is a folder that it doesn't make
    "sd_vae": "Automatic",
    "CLIP_stop_at_last_layers": 1,
    "randn_source": "CPU",
    "eta_noise_seed_delta": 0,
    "batch_cond_uncond": True,
    "pad_cond_uncond": False,
    "pad_cond_uncond_v0": False,
    "s_min_uncond": 0,
    "s_min_uncond_all": False,
    "skip_early_cond": 0,
    "token_merging_ratio": 0,
    "img2img_color_correction": False,
    "inpainting_mask_weight": 1,
    # Neo shows these two, and runs them, on request only.
    "show_rescale_cfg": True,
    "show_mahiro": True,
}


@dataclass
class Answer:
    """What a generation request came back with. Without images when the status isn't 200."""

    status: int
    body: dict[str, Any]
    seconds: float

    @property
    def images(self) -> list[np.ndarray]:
        """The images, (height, width, 3) each, 0 to 255."""
        assert self.status == 200, f"HTTP {self.status}: {json.dumps(self.body)[:2000]}"
        return [decode_image(text) for text in self.body["images"]]

    @property
    def image(self) -> np.ndarray:
        """The first image: the only one, unless an extension adds its own after it."""
        return self.images[0]

    @property
    def infotexts(self) -> list[str]:
        assert self.status == 200, f"HTTP {self.status}: {json.dumps(self.body)[:2000]}"
        return json.loads(self.body["info"])["infotexts"]


def decode_image(text: str) -> np.ndarray:
    picture = Image.open(io.BytesIO(base64.b64decode(text.rpartition(",")[2])))
    return np.asarray(picture.convert("RGB")).astype(int)


def encode_image(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def detect_host(folder: Path) -> str:
    """a1111, forge, neo or reforge, by the packages that each one brought with it."""
    if (folder / "backend").is_dir() and (folder / "modules_forge").is_dir():
        return "neo" if (folder / "backend" / "nn" / "lumina.py").exists() else "forge"
    return "reforge" if (folder / "ldm_patched").is_dir() else "a1111"


def find_python(folder: Path) -> Path:
    places = [folder / "venv" / "bin" / "python", folder.parent / "venv" / "bin" / "python"]
    named = os.environ.get("ASAG_WEBUI_PYTHON")
    for place in [Path(named)] if named else places:
        if place.exists():
            return place
    raise FileNotFoundError(f"no interpreter for {folder}: set ASAG_WEBUI_PYTHON; looked at {named or places}")


def find_checkpoint(folder: Path, variable: str, *patterns: str) -> str | None:
    """The file name of a checkpoint of the host's, or None."""
    named = os.environ.get(variable)
    if named:
        return named
    models = folder / "models" / "Stable-diffusion"
    names = sorted(path.name for path in models.glob("*.safetensors"))
    return next((name for name in names for pattern in patterns if pattern in name.lower()), None)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def linked(target: Path, link: Path) -> Iterator[None]:
    """`link` leads to `target` while this is open. One that already does (the user's own) stays afterwards."""
    if link.exists() and link.resolve() == target.resolve():
        yield
        return
    link.symlink_to(target)
    try:
        yield
    finally:
        link.unlink()


def extension_link(folder: Path) -> Path:
    """Where this repository is, or will be, among the WebUI's extensions."""
    for place in sorted((folder / "extensions").iterdir()):
        if place.resolve() == REPOSITORY:
            return place
        if (place / "scripts" / "asag.py").exists():
            raise FileExistsError(f"{place} holds another copy of this extension; move it away to test this one")
    return folder / "extensions" / "asag"


class WebUI:
    """A running WebUI. `log` is everything it has written so far."""

    def __init__(
        self, folder: Path, scratch: Path, *, flags: Sequence[str] = (), auth: tuple[str, str] | None = None
    ) -> None:
        """`flags` are added to the command line; `auth` is the name and the password that its API asks for."""
        self.folder = folder
        self.flags = list(flags)
        self.kind = detect_host(folder)
        self.python = find_python(folder)
        self.sd15 = find_checkpoint(folder, "ASAG_WEBUI_SD15", "sd15", "v1-5")
        self.sdxl = find_checkpoint(folder, "ASAG_WEBUI_SDXL", "sdxl", "xl_base")
        self.scratch = scratch
        self.log_file = scratch / "server.log"
        self.url = f"http://127.0.0.1:{free_port()}"
        self._session = requests.Session()
        # Forge closes a connection on which it has answered with an error.
        self._session.headers["Connection"] = "close"
        self._session.auth = auth
        self._session.trust_env = False  # a proxy of the user's has nothing to do with 127.0.0.1
        self._process: subprocess.Popen[bytes] | None = None

    # -- the process -------------------------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[WebUI]:
        """Start with the probe among the extensions, wait for the API, and stop whatever happens."""
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [str(self.python), "launch.py", *self._flags()],
                cwd=self.folder,
                env=self._environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
            yield self
        finally:
            self._stop()

    def _flags(self) -> list[str]:
        settings = self.scratch / "config.json"
        users = self.folder / "config.json"
        known = json.loads(users.read_text()) if users.exists() else {}
        known.pop("sd_checkpoint_hash", None)
        if self.sd15:
            known["sd_model_checkpoint"] = self.sd15
        settings.write_text(json.dumps({**known, **SETTINGS}))
        flags = ["--port", self.url.rpartition(":")[2], "--ui-settings-file", str(settings)]
        ui_config = self.scratch / "ui-config.json"
        ui_config.write_text("{}")  # NegPiP reads it before the host has written it
        flags += ["--ui-config-file", str(ui_config)]
        chosen = os.environ.get("ASAG_WEBUI_FLAGS")
        return [*COMMON_FLAGS, *(HOST_FLAGS[self.kind] if chosen is None else chosen.split()), *flags, *self.flags]

    def _environment(self) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if name != "COMMANDLINE_ARGS"}
        environment |= {
            "OMP_NUM_THREADS": "1",
            # Else glibc keeps freed memory for each thread that has served a request: test_load.py asks what has grown.
            "MALLOC_ARENA_MAX": "1",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": str(self.scratch),
            "MPLCONFIGDIR": str(self.scratch),
            "PYTHONUNBUFFERED": "1",
            "SD_WEBUI_RESTARTING": "1",  # no browser
            "NO_PROXY": "127.0.0.1,localhost",
        }
        beside = self.folder.parent / "hf"
        if "HF_HOME" not in environment and beside.is_dir():
            environment["HF_HOME"] = str(beside)
        return environment

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process is not None and self._process.poll() is None:
            # A1111 dies of a request that comes while it still adds middleware, and its API answers before it can
            # generate: nothing is asked before the log says that it has started.
            if "Startup time:" in self.log and self._answers():
                return
            time.sleep(0.5)
        raise RuntimeError(f"{self.folder} didn't start:\n{self.log[-4000:]}")

    def _answers(self) -> bool:
        try:
            return self._session.get(f"{self.url}/asag-probe", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, how)
                process.wait(timeout=15)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue

    # -- what it says ------------------------------------------------------------------------------------------------

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def get(self, path: str) -> Any:
        reply = self._session.get(self.url + path, timeout=REQUEST_SECONDS)
        reply.raise_for_status()
        return reply.json()

    def post(self, path: str, payload: dict[str, Any] | None = None, **query: Any) -> Answer:
        started = time.monotonic()
        reply = self._session.post(self.url + path, json=payload or {}, params=query, timeout=REQUEST_SECONDS)
        try:
            body = reply.json()
        except ValueError:
            body = {"text": reply.text}
        return Answer(
            reply.status_code, body if isinstance(body, dict) else {"reply": body}, time.monotonic() - started
        )

    def txt2img(self, **payload: Any) -> Answer:
        return self.post("/sdapi/v1/txt2img", self._understood(payload))

    def img2img(self, **payload: Any) -> Answer:
        return self.post("/sdapi/v1/img2img", self._understood(payload))

    def _understood(self, payload: dict[str, Any]) -> dict[str, Any]:
        """The request without settings that this host doesn't know (Neo fails at them), and with an upscaler it has."""
        if "override_settings" in payload:
            known = self.options
            overrides = {name: value for name, value in payload["override_settings"].items() if name in known}
            payload = {**payload, "override_settings": overrides}
        if payload.get("hr_upscaler") not in (None, *self.upscalers):
            latent = sorted(name for name in self.upscalers if "latent" in name.lower())
            payload = {**payload, "hr_upscaler": (latent or ["None"])[0]}
        return payload

    @cached_property
    def options(self) -> set[str]:
        """The names of the host's settings."""
        return set(self.get("/sdapi/v1/options"))

    @cached_property
    def upscalers(self) -> set[str]:
        return {
            each["name"] for what in ("upscalers", "latent-upscale-modes") for each in self.get(f"/sdapi/v1/{what}")
        }

    def set_options(self, **options: Any) -> None:
        """Change settings as the user's Settings page does, callbacks included; the copy of config.json keeps them."""
        answer = self.post("/sdapi/v1/options", options)
        assert answer.status == 200, answer.body

    def fingerprint(self) -> dict[str, str]:
        """What is set on the loaded model's modules, module by module (see probe/scripts/asag_probe.py)."""
        return self.get("/asag-probe/fingerprint")

    def softmax_delta(self, **payload: Any) -> dict[str, Any]:
        """Guide a request with SoftMax as its operator: {"delta": size of δ in each step, "calls": …}."""
        assert self.post("/asag-probe/softmax").status == 200
        try:
            answer = (self.img2img if "init_images" in payload else self.txt2img)(**payload)
        finally:
            told = self.get("/asag-probe/delta")
        assert answer.status == 200, answer.body
        return told

    def last_reuse(self) -> dict[str, Any]:
        """How the last guided generation's steps got their perturbed rows: {"shared": …, "whole": …, "why": …}."""
        return self.get("/asag-probe/reuse")

    def inject_failure(self, where: str, call: int = 1, kind: str = "RuntimeError") -> None:
        answer = self.post("/asag-probe/fail", where=where, call=call, kind=kind)
        assert "armed" in answer.body, answer.body


TRACEBACK = re.compile(
    r"^(?P<indent>[ ]*)Traceback \(most recent call last\):\n"
    r"(?:(?P=indent)[ ]+.*\n)+"  # frames and their lines of code
    r"(?:(?P=indent)\S.*(?:\n|$))?",  # the exception itself
    re.MULTILINE,
)


def tracebacks_naming(word: str, log: str) -> list[str]:
    """The tracebacks in a log that mention a word, in a path or in the exception."""
    return [found[0] for found in TRACEBACK.finditer(log) if word in found[0].lower()]
