"""Values of the chart that cannot work are refused, and the message says what was found and what was expected."""

from __future__ import annotations

import re
from typing import Any

import pytest

from serving.config import Settings
from tests.deploy.charts import DOWNLOAD, MATRIX, needs_helm, refusal, run

Object = dict[str, Any]

pytestmark = needs_helm

DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}
INCREMENTAL = {"type": "NewClusterWithIncrementalUpgrade", "gatewayClassName": "envoy"}
REFUSALS: dict[str, tuple[Object, str]] = {
    "an unknown value": ({"replicass": 3}, r"additional properties 'replicass' not allowed"),
    "an unknown setting": ({"settings": {"batch_row": 3}}, r"/settings'.*\n?.*'batch_row' not allowed"),
    "a setting that is too large": ({"settings": {"batch_rows": 5000}}, r"batch_rows.*4,?096"),
    "a secret as a setting": ({"settings": {"admin_token": "x"}}, r"'admin_token' not allowed"),
    "replicas as a setting": ({"settings": {"replicas": 3}}, r"'replicas' not allowed"),
    "the time limit as a setting": (
        {"settings": {"request_timeout_seconds": 60}},
        r"'request_timeout_seconds' not allowed",
    ),
    "another device": ({"device": "tpu"}, r"/device.*'cpu', 'cuda'"),
    "a tag that moves": ({"image": {"tag": "latest"}}, r"/image/tag"),
    "half a digest": ({"image": {"digest": "sha256:12"}}, r"/image/digest"),
    "half a core": ({"workers": {"resources": {"limits": {"cpu": "1500m", "memory": "8Gi"}}}}, r"limits/cpu"),
    "no replicas": ({"autoscaling": {"min": 0}}, r"/autoscaling/min"),
    "more than the most": ({"autoscaling": {"min": 9}}, r"autoscaling.min is 9, and autoscaling.max is 8"),
    "too few workers": ({"workers": {"maxWorkers": 9}}, r"workers.maxWorkers is 9.*up to 12 workers"),
    "an update without room": (
        {"autoscaling": {"enabled": False}, "rollingUpdate": {"maxSurgePercent": 50}},
        r"new replicas would wait for a worker for ever; expected 0, or spareWorkers",
    ),
    "spare workers beside autoscaling": ({"spareWorkers": 1}, r"spareWorkers is 1 with autoscaling"),
    "a budget that blocks drains": ({"autoscaling": {"min": 1}}, r"minAvailable is 1, with as few as 1 replicas"),
    "steps without autoscaling": (
        {"upgrade": INCREMENTAL, "autoscaling": {"enabled": False}},
        r"for which KubeRay needs autoscaling",
    ),
    "steps without a gateway": ({"upgrade": {"type": INCREMENTAL["type"]}}, r"upgrade.gatewayClassName is empty"),
    "steps beside a route": (
        {"upgrade": INCREMENTAL, "gateway": MATRIX["a route of a gateway"]["gateway"]},
        r"gateway.enabled is true beside upgrade.type",
    ),
    "steps beside an ingress": (
        {"upgrade": INCREMENTAL, "ingress": MATRIX["an ingress"]["ingress"]},
        r"ingress.enabled is true beside upgrade.type",
    ),
    "steps beside a service of another type": (
        {"upgrade": INCREMENTAL, "serveService": {"type": "LoadBalancer"}},
        r"serveService is set beside upgrade.type.*KubeRay ignores it",
    ),
    "steps larger than the surge": (
        {"upgrade": {**INCREMENTAL, "stepSizePercent": 50, "maxSurgePercent": 20}},
        r"expected steps no larger than the surge",
    ),
    "a gateway class that is not used": (
        {"upgrade": {"gatewayClassName": "envoy"}},
        r"NewCluster, which uses no Gateway",
    ),
    "a full data volume": ({"workers": {"dataVolume": "10Gi"}}, r"settings.disk_bytes is 20971520000.*10Gi"),
    "budgets beyond the memory": (
        {"settings": {"packed_bytes": 4 << 30}},
        rf"limits.memory is 8Gi, .* need {(3 << 29) + DEFAULTS['host_bytes'] + 14 * (4 << 30) // 10} bytes beside",
    ),
    "budgets of a GPU beyond the memory": (
        {"device": "cuda", "settings": {"host_bytes": 7 << 30, "packed_bytes": 40 << 30}},
        rf"need {(3 << 29) + (7 << 30)} bytes",
    ),
    "the server's budgets beyond the memory": (
        {
            "settings": dict.fromkeys(["disk_bytes", "host_bytes", "packed_bytes"]),
            "workers": {"resources": {"limits": {"cpu": 4, "memory": "4Gi"}}},
        },
        rf"need {(3 << 29) + DEFAULTS['host_bytes'] + 14 * DEFAULTS['packed_bytes'] // 10} bytes",
    ),
    "the server's disk beyond the volume": (
        {"settings": {"disk_bytes": None}, "workers": {"dataVolume": "10Gi"}},
        rf"disk_bytes is {DEFAULTS['disk_bytes']}",
    ),
    "a store beyond its memory": (
        {"store": {"maxMemory": "4gb"}},
        r"store.maxMemory is 4gb, and store.resources.limits.memory is 4Gi",
    ),
    "Ray's Redis beyond its memory": ({"gcsRedis": {"maxMemory": "500mb"}}, r"gcsRedis.maxMemory is 500mb"),
    "a number beside autoscaling": ({"replicas": 3}, r"replicas is 3 with autoscaling"),
    "a keys file that nothing holds": (
        {
            "settings": {"keys_file": "/etc/kennel/keys.json"},
            "workers": {**MATRIX["keys from a file"]["workers"], "dataVolume": "24Gi"},
        },
        r"settings.keys_file is /etc/kennel/keys.json, and no mount",
    ),
    "a mount of nothing": (
        {"workers": {"extraVolumeMounts": [{"name": "keys", "mountPath": "/etc/ken"}]}},
        r"mounts the volume keys, which does not exist; expected one of home, tmp, data, base",
    ),
    "a volume of the chart's": (
        {"workers": {"extraVolumes": [{"name": "data", "emptyDir": {}}]}},
        r"extraVolumes has the name data, which is taken",
    ),
    "a claim beside a base in the image": (
        {"base": {"source": "image", "claim": {"name": "checkpoints"}}},
        r"base.claim.name is checkpoints, and base.source is image",
    ),
    "a download into what cannot be written": (
        {"base": {"claim": {"accessModes": ["ReadOnlyMany"]}, "download": DOWNLOAD}},
        r"the Job could not write; expected ReadWriteMany",
    ),
    "a balancer for nobody": (
        {"serveService": {"type": "NodePort"}, "networkPolicy": {"clients": {"from": []}}},
        r"serveService.type is NodePort, and networkPolicy.clients.from has no ipBlock",
    ),
    "a request above the limit": (
        {"workers": {"resources": {"requests": {"cpu": "2500m"}, "limits": {"cpu": 2}}}},
        r"workers.resources.requests.cpu is 2500m, and workers.resources.limits.cpu is 2; expected",
    ),
    "a request above the limit in other units": (
        {"base": {"download": {"resources": {"requests": {"memory": "3000M"}}}}},
        r"base.download.resources.requests.memory is 3000M, and base.download.resources.limits.memory is 2Gi",
    ),
    "a quantity that is none": ({"head": {"resources": {"limits": {"memory": "4GB"}}}}, r"limits/memory"),
    "alerts about a job that is not there": (
        {"monitoring": {"prometheusRule": {"enabled": True}}},
        r"KenServerDown would always be on; expected the name of the job",
    ),
    "a label of the chart's": (
        {"commonLabels": {"app.kubernetes.io/instance": "x"}},
        r"found the label app.kubernetes.io/instance among labels",
    ),
    "a label of the chart's on one object": (
        {"monitoring": {"podMonitor": {"enabled": True, "labels": {"helm.sh/chart": "x"}}}},
        r"found the label helm.sh/chart among labels",
    ),
    "a base in a volume of the pods": ({"base": {"path": "/tmp/base"}}, r"base.path is /tmp/base, .* at /tmp;"),
    "a base above a volume of the pods": (
        {"base": {"path": "/var/lib"}},
        r"base.path is /var/lib, .* at /var/lib/ken;",
    ),
    "a claim of one pod": ({"base": {"claim": {"accessModes": ["ReadWriteOncePod"]}}}, r"/base/claim/accessModes"),
    "two volumes at one path": (
        {
            "workers": {
                "extraVolumes": [{"name": "keys", "emptyDir": {}}],
                "extraVolumeMounts": [{"name": "keys", "mountPath": "/models/base/"}],
            }
        },
        r"mounts keys at /models/base/, where there is a volume already",
    ),
    "a variable of KubeRay's": (
        {"head": {"env": [{"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}]}},
        r"head.env sets RAY_REDIS_ADDRESS, which the chart or KubeRay sets",
    ),
    "a variable twice": (
        {"workers": {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}},
        r"workers.env sets A, .*stands there twice",
    ),
    "two names alike": ({"names": {"redis": "x", "gcs-redis": "x"}}, r"names.gcs-redis and names.redis are both x"),
    "a name that KubeRay would refuse": ({"names": {"ray-service": "a" * 48}}, r"/names/ray-service"),
    "a hub that is shut off": (
        {"base": {"download": {**DOWNLOAD, "endpoint": "https://hub.example.org:8443/x"}}},
        r"networkPolicy.hub.ports lacks 8443",
    ),
    "a hub without TLS that is shut off": (
        {"base": {"download": {**DOWNLOAD, "endpoint": "http://hub.example.org"}}},
        r"networkPolicy.hub.ports lacks 80:",
    ),
    "a target that is never reached": (
        {"autoscaling": {"targetOngoingRequests": 2000}},
        r"targetOngoingRequests is 2000, and a replica refuses more than 1024 requests",
    ),
    "a balancer that is shut off": (
        {"serveService": {"type": "LoadBalancer"}},
        r"serveService.type is LoadBalancer, and networkPolicy.clients.from has no ipBlock",
    ),
    "a setting in the environment": (
        {"workers": {"env": [{"name": "KEN_BATCH_ROWS", "value": "8"}]}},
        r"workers.env sets KEN_BATCH_ROWS; .*expected settings.batch_rows",
    ),
    "replicas in the environment": (
        {"head": {"env": [{"name": "ken_replicas", "value": "8"}]}},
        r"head.env sets ken_replicas; .*expected settings.replicas",
    ),
    "a download into an image": (
        {"base": {"source": "image", "download": DOWNLOAD}},
        r"base.download.enabled is true, and base.source is image",
    ),
    "a claim without a name": ({"base": {"claim": {"create": False}}}, r"base.claim.name is empty"),
    "a download of nothing": ({"base": {"download": {"enabled": True}}}, r"base.download.repository is empty"),
    "a base that may change": (
        {"base": {"download": {"enabled": True, "repository": "a/b"}}},
        r"base.download.revision is empty.*must not change",
    ),
    "an ingress of no host": ({"ingress": {"enabled": True}}, r"ingress.hosts is empty"),
    "a route to nowhere": ({"gateway": {"enabled": True}}, r"gateway.enabled is true without a Gateway"),
    "a listener without a certificate": (
        {"gateway": {"enabled": True, "listener": {"enabled": True, "className": "envoy"}}},
        r"at least one Secret with a certificate",
    ),
    "two gateways": (
        {"gateway": {"enabled": True, "parentRefs": [{"name": "a"}], "listener": {"enabled": True}}},
        r"gateway.parentRefs and gateway.listener are both set",
    ),
    "a listener without a route": ({"gateway": {"listener": {"enabled": True}}}, r"gateway.enabled is false; set both"),
    "a store that is shut off": ({"store": {"bundled": False}}, r"networkPolicy.externalRedis.to is empty"),
    "a collector that is shut off": (
        {"workers": MATRIX["traces"]["workers"]},
        r"OTEL_EXPORTER_OTLP_ENDPOINT is set, and networkPolicy.otlp.to is empty",
    ),
    "no address of Ray's Redis": ({"gcsRedis": {"mode": "external"}}, r"gcsRedis.address is empty|externalRedis.to"),
    "a URL for a store of its own": (
        {"store": {"bundled": False, "urlFromSecret": True}, "networkPolicy": {"enabled": False}},
        r"store.urlFromSecret is for the bundled store",
    ),
    "a variable of the chart's": (
        {"workers": {"env": [{"name": "RAY_SERVE_ENABLE_HA_PROXY", "value": "0"}]}},
        r"workers.env sets RAY_SERVE_ENABLE_HA_PROXY, which the chart or KubeRay sets",
    ),
    "another label by which pods are found": ({"head": {"podLabels": {"app": "x"}}}, r"found the label `app`"),
    "a name that is too long": ({"fullnameOverride": "a" * 41}, r"41 characters; expected 40 at most"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_values_that_cannot_work_are_refused(case: str) -> None:
    values, words = REFUSALS[case]
    assert re.search(words, refusal(values)), refusal(values)


def test_a_release_whose_name_kuberay_would_refuse_is_refused() -> None:
    """KubeRay's names are DNS labels that begin with a letter."""
    for name in ("1st", "a.b"):
        done = run("template", {}, name)
        assert "expected lower-case letters, digits and hyphens, a letter first" in done.stderr
