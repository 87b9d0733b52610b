"""What an API server and a careful reader say about objects of Kubernetes."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parents[2]
CRD = ROOT.parent / "shared/crds/ray.io_rayservices.yaml"
FIELDS_USED = Path(__file__).with_name("fields_used.yaml")
KUBERNETES = kubernetes_validate.latest_version()
TOKENS = "/var/run/secrets/kubernetes.io/serviceaccount"

Object = dict[str, Any]


def problems(found: Object) -> list[str]:
    """What is wrong with the form of an object. A RayService without the CRD at hand is judged by its pods only."""
    return list(_problems(json.dumps(found, sort_keys=True)))


@functools.cache
def _problems(text: str) -> list[str]:
    found = json.loads(text)
    kind = found["kind"]
    if kind == "RayService":
        return schema_problems(ray_service_definition(), found) if CRD.is_file() else []
    if kind in fields_used():
        return schema_problems(fields_used()[kind], found)
    try:
        kubernetes_validate.validate(found, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [str(error)]
    return []


def schema_problems(validator: jsonschema.Draft202012Validator, found: Object) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(found)]


@functools.cache
def ray_service_definition() -> jsonschema.Draft202012Validator:
    crd = yaml.load(CRD.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == "v1")
    return jsonschema.Draft202012Validator(closed(schema))


@functools.cache
def fields_used() -> dict[str, jsonschema.Draft202012Validator]:
    """By kind, for kinds whose own definitions are in no package: a schema of the fields that the chart uses."""
    schemas = yaml.safe_load(FIELDS_USED.read_text())
    return {kind: jsonschema.Draft202012Validator(schema) for kind, schema in schemas.items() if kind != "anchors"}


def closed(schema: Any) -> Any:
    """An OpenAPI v3 schema as JSON schema that refuses fields it does not name, where Kubernetes would drop them."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {key: closed(value) for key, value in schema.items()}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not open_ended:
        result["additionalProperties"] = False
    return result


def as_pod(template: Object) -> Object:
    metadata = {"name": "p", **template.get("metadata", {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def templates(found: Object) -> dict[str, Object]:
    """The pod templates of an object, by a name that says which: as KubeRay completes them, for a RayService."""
    if found["kind"] == "RayService":
        cluster = found["spec"]["rayClusterConfig"]
        (group,) = cluster["workerGroupSpecs"]
        return {"head": completed_head(cluster), "worker": labelled(group["template"], "worker")}
    template = found.get("spec", {}).get("template") if found["kind"] in ("StatefulSet", "Job") else None
    return {found["metadata"]["name"]: template} if template else {}


def completed_head(cluster: Object) -> Object:
    """The head's pod template with the container that KubeRay adds for autoscaling and fills by the options."""
    template = labelled(cluster["headGroupSpec"]["template"], "head")
    if not cluster.get("enableInTreeAutoscaling"):
        return template
    (head,) = template["spec"]["containers"]
    options = cluster["autoscalerOptions"]
    taken = ("env", "imagePullPolicy", "resources", "securityContext", "volumeMounts")
    added = {"name": "autoscaler", "image": head["image"], **{name: options[name] for name in taken}}
    return {**template, "spec": {**template["spec"], "containers": [head, added]}}


def labelled(template: Object, node: str) -> Object:
    labels = {**template["metadata"]["labels"], "ray.io/node-type": node}
    return {**template, "metadata": {**template["metadata"], "labels": labels}}


def weaknesses(spec: Object) -> list[str]:
    """The violations of the restricted pod security standard, and of a few further rules, in a pod."""
    pod, found = spec["securityContext"], []
    if not pod.get("runAsNonRoot") or not pod.get("runAsUser"):
        found.append("may run as root")
    if pod.get("seccompProfile") != {"type": "RuntimeDefault"}:
        found.append("no seccomp profile")
    if spec.get("automountServiceAccountToken") is not False or token_holders(spec) - {"autoscaler"}:
        found.append("holds a token for the cluster's API")
    if any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        found.append("shares the host's namespaces")
    if spec.get("enableServiceLinks") is not False:
        found.append("has variables of other services")
    if any("hostPath" in volume for volume in spec.get("volumes", [])):
        found.append("reaches the host's files")
    for container in containers(spec):
        own = container["securityContext"]
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            found.append("may gain privileges")
        if own.get("capabilities", {}).get("drop") != ["ALL"]:
            found.append("keeps capabilities")
        if not own.get("readOnlyRootFilesystem"):
            found.append("can change its image")
        if "memory" not in container.get("resources", {}).get("limits", {}):
            found.append("may take all memory")
    return found


def containers(spec: Object) -> Iterator[Object]:
    yield from spec.get("initContainers", [])
    yield from spec["containers"]


def token_holders(spec: Object) -> set[str]:
    """The containers that mount a token for the cluster's API."""
    volumes = {
        volume["name"]
        for volume in spec.get("volumes", [])
        if any("serviceAccountToken" in source for source in volume.get("projected", {}).get("sources", []))
    }
    return {c["name"] for c in containers(spec) if volumes & {m["name"] for m in c.get("volumeMounts", [])}}
