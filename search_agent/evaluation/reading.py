"""The protocol that a folder of saved episodes was played with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from search_agent.protocols import autorefine
from search_agent.protocols.base import SearchProtocol
from verl.config.build import Plugin, build
from verl.config.compose import from_yaml
from verl.errors import UserError


@dataclass(frozen=True)
class _Played:
    protocol: Plugin


def protocol_of(run: Path) -> SearchProtocol:
    """The protocol of a folder's ``config.yaml``; one that reads the usual tags where episodes are all there is.

    Only that part of the file is read, so that runs of other versions can be looked at too. Raises UserError, naming
    file and key, if that part is not as this version has it.
    """
    file = run / "config.yaml"
    if not file.is_file():
        return autorefine.build(autorefine.Config())
    content = from_yaml(file)
    try:
        protocol = build(_Played, {"protocol": content["protocol"]}).protocol.build()
    except (UserError, KeyError) as error:
        raise UserError(f"{file}: {error}") from error
    return protocol  # type: ignore[no-any-return]
