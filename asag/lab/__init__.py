"""The embedded model, a tiny diffusion model of the real architecture, and all that makes and tests it."""
