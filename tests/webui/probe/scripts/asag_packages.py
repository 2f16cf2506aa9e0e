"""Lets Forge Neo attend by its own code for SageAttention or FlashAttention, on a CPU. No extension for users.

POST /asag-probe/package?name=sage|flash: from now on all models call the host's function for that package; without a
name the one that it chose.
GET /asag-probe/package: how often the package's kernel has run since.

What surrounds the kernel is the host's own code. The kernel is torch's attention, in the packages' layouts.
"""

import sys

import torch.nn.functional as F
from modules import script_callbacks

try:
    from backend import attention
except ImportError:
    attention = None  # A1111 and reForge


class Packages:
    def __init__(self):
        self.chosen = self.current = attention.attention_function
        self.calls = 0
        attention.IS_SAGE_1 = attention.IS_SAGE_3 = False
        attention.sageattn, attention.flash_attn_wrapper = self.sage, self.flash

    def sage(self, query, key, value, attn_mask=None, is_causal=False, tensor_layout="HND"):
        """(batch, heads, tokens, channels), or with "NHD" as `flash`."""
        self.calls += 1
        parts = (query, key, value)
        if tensor_layout == "HND":
            return F.scaled_dot_product_attention(*parts, attn_mask)
        return F.scaled_dot_product_attention(*(each.transpose(1, 2) for each in parts), attn_mask).transpose(1, 2)

    def flash(self, query, key, value, dropout_p=0.0, causal=False):
        """(batch, tokens, heads, channels)."""
        return self.sage(query, key, value, tensor_layout="NHD")

    def put(self, name: str = ""):
        wanted = getattr(attention, f"attention_{name}") if name else self.chosen
        for module in list(sys.modules.values()):
            if module.__dict__.get("attention_function") is self.current:
                module.attention_function = wanted
        self.current, self.calls = wanted, 0
        return {}

    def told(self):
        return {"calls": self.calls}


def add_routes(_, app):
    packages = Packages()
    app.post("/asag-probe/package")(packages.put)
    app.get("/asag-probe/package")(packages.told)


if hasattr(attention, "attention_sage"):
    script_callbacks.on_app_started(add_routes)
