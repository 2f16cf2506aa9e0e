"""The decisive cell: look for the fingerprint of the paper's regime on the models of renderings, then compare there."""
