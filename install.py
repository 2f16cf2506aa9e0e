"""WebUI's hook at start. ASAG needs only what WebUIs ship, so nothing is installed; what is missing is told."""

from importlib.util import find_spec

NEEDED = {"torch": "guidance", "gradio": "the accordion", "matplotlib": "drawing figures"}

for name, purpose in NEEDED.items():
    if find_spec(name) is None:
        print(f"ASAG: {purpose} needs {name}, which isn't there; pip install {name} would bring it")
