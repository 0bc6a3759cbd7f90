"""Trust: what an artefact must be, and may contain, to be unpickled; from the settings, never from the artefact."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trust:
    """`modules` are importable packages that an artefact may name beside scikit-learn's own."""

    modules: tuple[str, ...] = ()
