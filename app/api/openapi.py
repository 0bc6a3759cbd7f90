"""The OpenAPI document of what is loaded: each model's own fields, ranges, categories and labels.

FastAPI describes the routes; this fills in what no decorator can know. A templated path such as `/v2/predict/{model}`
becomes one path for each model that is served, with the schema of its own body, so that the docs page shows forms and
a generated client has types.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from app.api import v1, v2
from app.api.access import security_schemes
from app.api.problems import Problem, problems
from app.config import InferenceSettings, Settings
from app.errors import DeadlineExceeded
from app.manifest import Manifest
from app.pipelines.base import Wrap, schema_name
from app.registry.aliases import CHALLENGER, CHAMPION
from app.registry.entries import ModelEntry

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel

Document = dict[str, Any]
_EXAMPLE_ID = "01a206f1-193a-7896-8e7a-4878df603498"
_REFERENCE = "#/components/schemas/{model}"


def complete(document: Document, models: Mapping[str, ModelEntry], settings: Settings) -> Document:
    """A copy of FastAPI's document with the models in it."""
    default, max_rows = settings.models.default_model, settings.bounds.max_batch_rows
    document = deepcopy(document)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(_schemas_of(TypeAdapter(Problem), "Problem"))
    paths = document["paths"]
    paths.update(_expand(paths.pop("/v2/predict/{model}"), "/v2/predict/", models))
    paths.update(_expand(paths.pop("/v2/batch/{model}"), "/v2/batch/", models))
    batch = v2.BATCH_BODY.wrap(max_rows)
    for name, entry in models.items():
        versions = _served(entry)
        if versions:
            _fill(paths[f"/v2/predict/{name}"]["post"], entry, versions, v2.predict_body, schemas)
            _fill(paths[f"/v2/batch/{name}"]["post"], entry, versions, batch, schemas)
    if default in models and (versions := _served(models[default])):
        _fill(paths["/v2/predict"]["post"], models[default], versions, v2.predict_body, schemas)
        _fill(paths["/v2/batch"]["post"], models[default], versions, batch, schemas)
    for path in ("/v2/predict", "/v2/batch"):
        _name_model(paths[path]["post"], default)
    document["components"]["securitySchemes"] = security_schemes(f"{settings.server.root_path}/auth/token", models)
    _fill_v1(paths, models, max_rows, schemas)
    _document_times(paths, settings.inference)
    document["paths"] = dict(sorted(paths.items(), key=lambda item: ("batch" in item[0], item[0])))
    return document


def _expand(template: Document, prefix: str, models: Mapping[str, ModelEntry]) -> dict[str, Document]:
    """One copy of a templated path for each model that is served."""
    expanded = {}
    for name, entry in models.items():
        if _served(entry):
            operation = deepcopy(template["post"])
            operation["operationId"] = f"{operation['operationId']}_{name.replace('-', '_')}"
            _name_model(operation, name)
            expanded[prefix + name] = {"post": operation}
    return expanded


def _name_model(operation: Document, name: str) -> None:
    """In the scopes that the operation needs."""
    for way in operation["security"]:
        for scheme, scopes in way.items():
            way[scheme] = [f"{scope.partition(':')[0]}:{name}" for scope in scopes]


def _served(entry: ModelEntry) -> "list[LoadedModel]":
    """The versions that answer, the champion first."""
    champion = entry.aliases.get(CHAMPION)
    loaded = [v.model for v in entry.versions.values() if v.model is not None]
    return sorted(loaded, key=lambda model: (model.version != champion, -model.version))


def _fill(operation: Document, entry: ModelEntry, versions: "list[LoadedModel]", wrap: Wrap, schemas: Document) -> None:
    """Body, answer and query of one operation, for all versions that may answer it."""
    manifest = versions[0].manifest
    operation["summary"] = f"{operation['summary']} ({entry.name})"
    operation["description"] = f"{manifest.card.description}\n\n{operation.get('description', '')}".strip()
    operation["parameters"] = [_version_parameter(entry)]
    _set_body(operation, versions, wrap, schemas, example=_example(manifest, wrap))
    answer = operation["responses"]["200"]["content"]["application/json"]
    answer["example"] = _answer_example(manifest, wrap)
    answer["schema"] = _specialise(answer["schema"]["$ref"].rpartition("/")[2], [m.manifest for m in versions], schemas)


def _set_body(operation: Document, versions: "list[LoadedModel]", wrap: Wrap, schemas: Document, example: Any) -> None:
    bodies = []
    for model in versions:
        name = schema_name(model.manifest, operation["operationId"].title().replace("_", "") + "Body")
        schemas.update(_schemas_of(model.pipeline.validator(wrap), name))
        if (body := {"$ref": _REFERENCE.format(model=name)}) not in bodies:
            bodies.append(body)
    schema = bodies[0] if _all_alike(bodies, schemas) else {"anyOf": bodies}
    operation["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": schema, "example": example}},
    }


def _all_alike(bodies: list[Document], schemas: Document) -> bool:
    """Whether versions take the same: then one schema speaks for all."""
    return len({repr(_resolved(body, schemas)) for body in bodies}) == 1


def _resolved(schema: Any, schemas: Document) -> Any:
    """A schema with its references replaced and without titles, so that two can be compared."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _resolved(schemas[schema["$ref"].rpartition("/")[2]], schemas)
        return {key: _resolved(value, schemas) for key, value in schema.items() if key != "title"}
    if isinstance(schema, list):
        return [_resolved(value, schemas) for value in schema]
    return schema


def _schemas_of(adapter: TypeAdapter[Any], name: str) -> Document:
    """A type's schema under `name`, and those that it refers to under their own."""
    schema = adapter.json_schema(ref_template=_REFERENCE)
    definitions: Document = schema.pop("$defs", {})
    return {**definitions, name: schema}


def _version_parameter(entry: ModelEntry) -> Document:
    served = [str(v) for v, state in entry.versions.items() if state.model is not None]
    names = [*sorted(entry.aliases), *served]
    schema: Document = {"type": "string", "default": CHAMPION, "enum": names}
    description = f"A version or an alias. Served now: {', '.join(names)}."
    if entry.traffic.challenger_weight and CHALLENGER in entry.aliases:
        del schema["default"]
        description += " Without it the champion answers, or for a share of callers the challenger."
    return {"name": "version", "in": "query", "required": False, "description": description, "schema": schema}


def _example(manifest: Manifest, wrap: Wrap) -> Any:
    row = manifest.golden.rows[0].inputs
    return {"inputs": row if wrap is v2.predict_body else [golden.inputs for golden in manifest.golden.rows[:2]]}


def _answer_example(manifest: Manifest, wrap: Wrap) -> Document:
    """What the example was answered at publication."""
    rows = []
    for golden in manifest.golden.rows[:2]:
        shares = {} if golden.probabilities is None else {"probabilities": golden.probabilities}
        rows.append({"id": _EXAMPLE_ID, "prediction": golden.prediction, **shares})
    whole = {"model": manifest.name, "version": manifest.version}
    timing = {"timing": {"model_ms": 0.61, "total_ms": 0.74}}
    if wrap is v2.predict_body:
        return {**whole, **rows[0], **timing}
    return {**whole, "results": rows, "counts": {"succeeded": len(rows), "failed": 0}, **timing}


def _specialise(answer: str, manifests: Iterable[Manifest], schemas: Document) -> Document:
    """The answer's schema, with the labels of these versions in it."""
    members = []
    for manifest in manifests:
        schema = deepcopy(schemas[answer])
        if answer == "BatchOut":
            row = deepcopy(schemas["RowOut"])
            _set_outputs(row, manifest)
            schemas[schema_name(manifest, "RowOut")] = row
            reference = {"$ref": _REFERENCE.format(model=schema_name(manifest, "RowOut"))}
            schema["properties"]["results"]["items"]["anyOf"][0] = reference
        else:
            _set_outputs(schema, manifest)
        name = schema_name(manifest, answer)
        schemas[name] = schema
        members.append({"$ref": _REFERENCE.format(model=name)})
    return members[0] if _all_alike(members, schemas) else {"anyOf": members}


def _set_outputs(schema: Document, manifest: Manifest) -> None:
    properties, outputs = schema["properties"], manifest.outputs
    if outputs.labels:
        properties["prediction"] = {"title": outputs.target, "enum": list(outputs.labels)}
    else:
        description = f"in {outputs.unit}" if outputs.unit else ""
        properties["prediction"] = {"title": outputs.target, "type": "number", "description": description}
    if outputs.probabilities:
        shares = {str(label): {"type": "number", "minimum": 0, "maximum": 1} for label in outputs.labels}
        properties["probabilities"] = {"type": "object", "properties": shares, "required": list(shares)}
        schema["required"] = [*schema["required"], "probabilities"]
    else:
        del properties["probabilities"]


def _fill_v1(paths: Document, models: Mapping[str, ModelEntry], max_rows: int, schemas: Document) -> None:
    entry = models.get(v1.MODEL)
    version = entry.versions.get(entry.aliases.get(v1.ALIAS, 0)) if entry else None
    if version is None or version.model is None or version.model.pipeline.names != (v1.FIELD,):
        return
    text = "I love this product"
    batch = v1.BATCH_BODY.wrap(max_rows)
    for path in ("/predict", "/v1/predict"):
        _set_body(paths[path]["post"], [version.model], v1.predict_body, schemas, example={"text": text})
        _document_headers(paths[path]["post"])
    for path in ("/batch-predict", "/v1/batch"):
        _set_body(paths[path]["post"], [version.model], batch, schemas, example={"texts": [text, "It broke at once"]})
        _document_headers(paths[path]["post"])


def _document_times(paths: Document, settings: InferenceSettings) -> None:
    """What a caller may say of the time for an answer, and hears when it is over."""
    (late,) = problems(DeadlineExceeded).items()
    for path, operations in paths.items():
        operation = operations.get("post", {})
        if {*v1.router.tags, *v2.router.tags}.intersection(operation.get("tags", ())):
            most = settings.batch_timeout_ms if "batch" in path else settings.request_timeout_ms
            operation.setdefault("parameters", []).append(_timeout_parameter(most))
            operation["responses"][str(late[0])] = late[1]


def _timeout_parameter(most: int) -> Document:
    return {
        "name": "X-Request-Timeout-Ms",
        "in": "header",
        "required": False,
        "description": f"Within how many milliseconds an answer is wanted; more than {most} is {most}.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999, "default": most},
    }


def _document_headers(operation: Document) -> None:
    operation["responses"]["200"]["headers"] = {
        "X-Prediction-Id": {"schema": {"type": "string", "format": "uuid"}, "description": "Of the (first) row."},
        "X-Model-Version": {"schema": {"type": "integer"}},
    }
