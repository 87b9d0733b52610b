"""The chart, rendered with many values."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/ken-serve"
sys.path.insert(0, str(ROOT / "deploy"))

from render import helm  # noqa: E402

Object = dict[str, Any]

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

needs_helm = pytest.mark.skipif(
    helm() is None,
    reason="helm is neither beside Python nor on the PATH; `python tests/deploy/install_helm.py` gets it",
)


def kubectl() -> str | None:
    return shutil.which("kubectl", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


needs_kubectl = pytest.mark.skipif(
    kubectl() is None, reason="kubectl is neither beside Python nor on the PATH; see tests/deploy/install_helm.py"
)

DIGEST = f"sha256:{'0a' * 32}"
ADDRESSES = [{"ipBlock": {"cidr": "10.0.0.0/24"}}]
TOLERATION = {"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}
NODES = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
WHERE: Object = {
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [TOLERATION],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": NODES}}},
    "priorityClassName": "serving",
    "podAnnotations": {"example.org/owner": "team"},
}
SPREAD = [
    {
        "maxSkew": 1,
        "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "k-ken-serve-ray"}},
    }
]
DOWNLOAD = {"enabled": True, "repository": "answerdotai/ModernBERT-base", "revision": "8949b909"}

MATRIX: dict[str, Object] = {
    "defaults": {},
    "cuda": {"device": "cuda", "workers": {"runtimeClassName": "nvidia", "nodeSelector": {"gpu": "h100"}}},
    "a share of a GPU": {
        "device": "cuda",
        "gpu": {"resource": "nvidia.com/mig-1g.10gb", "toleration": False},
        "settings": {"host_bytes": 1 << 30, "packed_bytes": 8 << 30},
    },
    "a fixed number of replicas": {"autoscaling": {"enabled": False}, "replicas": 3},
    "a fixed number and spare workers": {"autoscaling": {"enabled": False}, "replicas": 3, "spareWorkers": 2},
    "one replica": {
        "autoscaling": {"min": 1, "max": 1},
        "podDisruptionBudget": {"workers": {"enabled": False}, "head": {"enabled": True}},
    },
    "the server's own budgets": {"settings": dict.fromkeys(["disk_bytes", "host_bytes", "packed_bytes"])},
    "a claim of one node": {"base": {"claim": {"accessModes": ["ReadWriteOnce"]}, "download": DOWNLOAD}},
    "clients from outside": {
        "serveService": {"type": "LoadBalancer"},
        "networkPolicy": {"clients": {"from": [{"podSelector": {}}, *ADDRESSES]}},
    },
    "many replicas": {
        "autoscaling": {"min": 3, "max": 7, "targetOngoingRequests": 2.5, "upscaleDelaySeconds": 0},
        "rollingUpdate": {"maxSurgePercent": 30},
        "workers": {"maxWorkers": 40},
    },
    "an update in steps": {
        "upgrade": {"type": "NewClusterWithIncrementalUpgrade", "gatewayClassName": "envoy", "stepSizePercent": 10}
    },
    "no update of the cluster": {"upgrade": {"type": "None"}},
    "stores elsewhere": {
        "store": {"bundled": False},
        "gcsRedis": {"mode": "external", "address": "redis.example.org:6380"},
        "networkPolicy": {"externalRedis": {"to": ADDRESSES, "ports": [6379, 6380]}},
    },
    "no state of the head": {"gcsRedis": {"mode": "off"}},
    "a base from a hub": {"base": {"download": {**DOWNLOAD, "token": True, "endpoint": "https://hub.example.org"}}},
    "a base in the image": {"base": {"source": "image", "path": "/opt/base"}},
    "a claim that exists": {"base": {"claim": {"create": False, "name": "checkpoints"}}},
    "a claim of a class": {
        "base": {"claim": {"storageClass": "nfs", "accessModes": ["ReadOnlyMany"], "size": "50Gi", "keep": False}},
        "store": {
            "storage": {"storageClass": "fast", "size": "100Gi"},
            "maxMemory": "6gb",
            "resources": {"limits": {"memory": "8Gi"}},
        },
    },
    "an ingress": {
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "annotations": {"cert-manager.io/issuer": "ca"},
            "hosts": ["ken.example.org", "*.ken.example.org"],
            "tls": [{"secretName": "ken-tls", "hosts": ["ken.example.org"]}],
        }
    },
    "a route of a gateway": {
        "gateway": {
            "enabled": True,
            "parentRefs": [{"name": "public", "namespace": "gateways", "sectionName": "https"}],
            "hostnames": ["ken.example.org"],
        }
    },
    "a gateway of its own": {
        "gateway": {
            "enabled": True,
            "timeouts": False,
            "listener": {"enabled": True, "className": "envoy", "certificateRefs": [{"name": "ken-tls"}]},
        }
    },
    "monitoring": {
        "monitoring": {
            "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
            "grafanaDashboard": {"enabled": True},
        }
    },
    "traces": {
        "workers": {"env": [{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector.observability:4318"}]},
        "networkPolicy": {"otlp": {"to": [{"namespaceSelector": {"matchLabels": {"name": "observability"}}}]}},
    },
    "places for pods": {
        "head": {**WHERE, "topologySpreadConstraints": SPREAD, "podLabels": {"team": "a"}},
        "workers": {**WHERE, "topologySpreadConstraints": SPREAD, "podLabels": {"team": "a"}},
        "store": WHERE,
        "gcsRedis": WHERE,
        "base": {
            "download": {**DOWNLOAD, **{name: WHERE[name] for name in ("nodeSelector", "tolerations", "affinity")}}
        },
        "commonLabels": {"cost": "42"},
        "commonAnnotations": {"example.org/chart": "ken"},
    },
    "no spread": {"workers": {"topologySpreadConstraints": []}, "monitoring": {"scrapeAnnotations": False}},
    "keys from a file": {
        "settings": {"keys_file": "/etc/ken/keys.json", "disk_bytes": 1 << 30},
        "workers": {
            "extraVolumes": [{"name": "keys", "secret": {"secretName": "ken-keys"}}],
            "extraVolumeMounts": [{"name": "keys", "mountPath": "/etc/ken", "readOnly": True}],
            "env": [
                {"name": "PYTHONFAULTHANDLER", "value": "1"},
                {"name": "KEN_SECRETS_DIR", "value": "/etc/ken"},
                {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            ],
            "dataVolume": "2Gi",
        },
        "head": {"env": [{"name": "PYTHONFAULTHANDLER", "value": "1"}]},
    },
    "images by digest": {
        "image": {
            "repository": "registry.example.org/ken",
            "digest": DIGEST,
            "pullSecrets": ["pull"],
            "pullPolicy": "Always",
        },
        "store": {"image": {"digest": DIGEST}},
        "base": {"download": DOWNLOAD},
    },
    "an open network": {"networkPolicy": {"enabled": False}, "serveService": {"type": "LoadBalancer"}},
    "settings that HAProxy reads": {
        "settings": {"namespace": "blue", "placement": "off", "max_connections": 9000, "max_connections_per_source": 0}
    },
    "long requests": {
        "requestTimeoutSeconds": 300,
        "serveService": {"annotations": {"example.org/internal": "true"}},
    },
    "the kustomization's values": yaml.safe_load((ROOT / "deploy/kubernetes/values.yaml").read_text()),
}


def run(command: str, values: Object, release: str = "k", *arguments: str) -> subprocess.CompletedProcess[str]:
    program = helm()
    assert program
    name = [] if command == "lint" else [release]
    given = [program, command, *name, str(CHART), "--values", "-", *arguments]
    return subprocess.run(given, input=json.dumps(values), capture_output=True, text=True, check=False)


def rendered(values: Object, release: str = "k") -> list[Object]:
    """The objects that helm makes of these values."""
    manifest, _ = _installed(json.dumps(values), release)
    return [json.loads(text) for text in manifest]


def notes(values: Object) -> str:
    """What helm says after an installation with these values."""
    return _installed(json.dumps(values), "k")[1]


@cache
def _installed(values: str, release: str) -> tuple[tuple[str, ...], str]:
    done = run("install", json.loads(values), release, "--dry-run=client")
    assert done.returncode == 0, done.stderr
    manifest, _, said = done.stdout.partition("\nMANIFEST:\n")[2].partition("\nNOTES:\n")
    return tuple(json.dumps(found) for found in yaml.load_all(manifest, LOADER) if found), said


def refusal(values: Object) -> str:
    """The words with which helm refuses these values."""
    done = run("template", values)
    assert done.returncode != 0, "these values are taken"
    return done.stderr


def one(objects: list[Object], kind: str, ending: str = "") -> Object:
    """The only object of this kind whose name ends so."""
    (found,) = (o for o in objects if o["kind"] == kind and o["metadata"]["name"].endswith(ending))
    return found


def all_of(objects: list[Object], kind: str) -> list[Object]:
    return [o for o in objects if o["kind"] == kind]


def serve_config(objects: list[Object]) -> Object:
    found: Object = yaml.load(one(objects, "RayService")["spec"]["serveConfigV2"], LOADER)
    return found
