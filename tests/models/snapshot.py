"""What a model's modules carry besides their weights: to show that nothing was left behind."""

from typing import Any

from torch import nn


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Per module: its instance attributes, hooks and forward, by identity."""
    return {
        name: (
            sorted((key, id(value)) for key, value in module.__dict__.items()),
            {key: dict(value) for key, value in module.__dict__.items() if key.endswith("_hooks")},
            getattr(module.forward, "__func__", module.forward),
        )
        for name, module in model.named_modules()
    }
