"""What holds for every test."""

from hypothesis import settings

# A busy machine is no fault of what is tested; pytest's own time limit ends what hangs.
settings.register_profile("asag", deadline=None)
settings.load_profile("asag")
