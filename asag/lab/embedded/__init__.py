"""The small models that come with ASAG: their drawings, architecture, training, classifier and weights."""
