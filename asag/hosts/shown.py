"""Whose blocks the map shows: those of the model that the next generation runs, loaded or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asag.blocks import Address
from asag.hosts.checked import family_for
from asag.hosts.checkpoints import Unreadable, contents
from asag.hosts.host import Host
from asag.hosts.refused import Refused
from asag.models.base import Family, head_count
from asag.models.tensor_names import KIND_NAMES, recognize
from asag.preset_uses import Model


@dataclass(frozen=True)
class Shown:
    """A model's self-attention layers, in the order in which it runs them, and whose they are.

    `kind` is the kind of model as tensor_names.py calls it ("" : unknown), `checkpoint` the name of its file, `heads`
    how many heads a layer has, where that is known. When it isn't loaded the file said all this. `chosen` is another
    checkpoint that the next generation loads and whose blocks aren't known, for the reason `problem`; or both are None.
    """

    family: Family
    addresses: Sequence[Address]
    kind: str
    checkpoint: str
    heads: Mapping[Address, int]
    loaded: bool = True
    chosen: str | None = None
    problem: str | None = None


def shown(host: Host) -> Shown:
    """What the map shows; raises Refused when there is no model to tell of."""
    _, chosen = host.checkpoints()
    if chosen is None:
        return _of_the_loaded(host)
    try:
        found = contents(Path(chosen.filename))
        family = family_for(found, host.families)
        if family is None:
            raise Unreadable(f"it is {found.kind}, which ASAG doesn't guide in this WebUI")
    except Unreadable as error:
        return _of_the_loaded(host, chosen.name, str(error))
    return Shown(family, found.addresses, found.kind, chosen.name, found.heads, loaded=False)


def model_to_run(host: Host) -> Model:
    """The model that the next generation runs, as far as that is known."""
    _, chosen = host.checkpoints()
    try:
        found = shown(host)
    except Refused:
        return Model("", getattr(chosen, "name", ""))
    if found.chosen is not None:
        return Model("", found.chosen)
    return Model(found.kind if found.kind in KIND_NAMES else "", found.checkpoint)


def _of_the_loaded(host: Host, chosen: str | None = None, problem: str | None = None) -> Shown:
    loaded, _ = host.checkpoints()
    try:
        model, family = host.model()
    except Refused as error:
        if chosen is None:
            raise
        raise Refused(f"{error.detail}; {chosen} is chosen: {problem}", error.status_code) from None
    found = recognize({name: tensor.shape for name, tensor in model.named_parameters()})
    counts = {layer.address: head_count(layer.module) for layer in family.layers(model)}
    heads = {address: count for address, count in counts.items() if count}
    kind, name = found.kind if found else "", getattr(loaded, "name", "")
    return Shown(family, list(counts), kind, name, heads, chosen=chosen, problem=problem)
