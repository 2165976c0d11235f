"""Renders kustomizations to objects, and validates objects against schemas."""

import os
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

SCHEMAS = Path(__file__).parent / "schemas"
# requirements.txt pins kubectl to the same version.
KUBERNETES = kubernetes_validate.latest_version()


def render(kubectl, directory):
    """The objects that `kubectl apply -k` would send."""
    result = subprocess.run([kubectl, "kustomize", str(directory)], capture_output=True, text=True)
    if result.returncode != 0 or "warning" in result.stderr.lower():
        raise SystemExit(f"manifests: {directory} cannot be rendered:\n{result.stderr}")
    return [item for item in yaml.safe_load_all(result.stdout) if item]


def compose(overlay, components, to):
    """Writes an overlay with additional components into a folder. Returns the folder."""
    text = yaml.safe_load((overlay / "kustomization.yaml").read_text())
    more = [f"../../components/{name}" for name in components]
    return write({**text, "components": text.get("components", []) + more}, overlay, to)


def write(kustomization, place, to):
    """Writes a kustomization of the folder `place` into the folder `to`, with adapted paths."""

    def moved(path):
        return os.path.relpath((place / path).resolve(), to.resolve())

    lists = {name: kustomization.get(name, []) for name in ("resources", "components", "transformers")}
    to.mkdir(parents=True, exist_ok=True)
    moved_lists = {name: [moved(path) for path in paths] for name, paths in lists.items()}
    (to / "kustomization.yaml").write_text(yaml.safe_dump({**kustomization, **moved_lists}))
    return to


def components_of(overlay):
    """The names of the components of an overlay."""
    return {Path(path).name for path in yaml.safe_load((overlay / "kustomization.yaml").read_text()).get("components", [])}


class Schemas:
    """Kubernetes' schemas for its own kinds, and ours for custom resources. Both refuse unknown fields."""

    def __init__(self):
        definitions = yaml.safe_load((SCHEMAS / "definitions.yaml").read_text())
        self.custom = {}
        for file in SCHEMAS.glob("*.*.yaml"):
            for kind, schema in yaml.safe_load(file.read_text()).items():
                whole = strict({**schema, "$defs": definitions})
                jsonschema.Draft202012Validator.check_schema(whole)
                self.custom[file.stem, kind] = jsonschema.Draft202012Validator(whole)

    def complaints(self, item):
        """Every problem that the API server would refuse, and every field that it would drop silently."""
        group = item["apiVersion"].rpartition("/")[0]
        if validator := self.custom.get((group, item["kind"])):
            unknown = item.keys() - {"apiVersion", "kind", "metadata", "spec"}
            yield from (f"has a field {name!r} beside its spec" for name in sorted(unknown))
            for error in validator.iter_errors(item.get("spec")):
                yield f"spec.{'.'.join(map(str, error.path))}: {error.message}"
            return
        try:
            kubernetes_validate.validate(item, KUBERNETES, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            yield f"has a kind without a schema in {SCHEMAS}"
        except kubernetes_validate.ValidationError as error:
            yield f"{'.'.join(map(str, error.path))}: {error.message}"


def strict(schema):
    """The schema, where each object with `properties` accepts no others."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: strict(value) for key, value in schema.items()}
    # No property of our schemas has the name `properties`, which this would mistake for the keyword.
    if isinstance(schema.get("properties"), dict):
        schema = {"type": "object", "additionalProperties": False, **schema}
    return schema
