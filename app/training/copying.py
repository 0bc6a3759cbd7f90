"""A version that another copy of this project has made, under a name and number of ours."""

import hashlib
from pathlib import Path

from pydantic import ValidationError

from app.errors import PublishRefused
from app.manifest import MANIFEST_FILE, SIGNATURES_FILE, Manifest, parse_manifest
from app.registry.sources import DirectorySource
from app.training.options import Options
from app.training.placing import check_names, place
from app.training.staging import staged


def publish_copy(folder: Path, name: str, *, version: int | None, options: Options) -> Manifest:
    """Copy manifest and artefact; where they come from stays in the manifest. Raises PublishRefused.

    A manifest that keeps its name and number is copied byte by byte, with its signatures.
    """
    document = _read(folder / MANIFEST_FILE)
    try:
        manifest = parse_manifest(document)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place_of_it = ".".join(map(str, first["loc"])) or "the document"
        raise PublishRefused(f"{folder / MANIFEST_FILE}: {place_of_it}: {first['msg']}") from None
    options.say("comparing the artefact with its digest")
    raw = _read(folder / manifest.artefact.file)
    if hashlib.sha256(raw).hexdigest() != manifest.artefact.sha256:
        raise PublishRefused(f"{folder}: the artefact is not the one that its manifest describes")
    source = DirectorySource(options.models_dir)
    check_names(source, name, options)
    with staged(source, name, version) as stage:
        copied = manifest.model_copy(update={"name": name, "version": stage.version})
        stage.write(manifest.artefact.file, raw)
        stage.write(MANIFEST_FILE, document if copied == manifest else copied.to_json())
        if copied == manifest and (folder / SIGNATURES_FILE).is_file():
            stage.write(SIGNATURES_FILE, _read(folder / SIGNATURES_FILE))
        options.say("proving it as a server will load it")
        place(stage, options)
    return copied


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PublishRefused(f"{path} cannot be read: {error.strerror}") from None
