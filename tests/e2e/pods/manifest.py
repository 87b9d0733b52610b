"""What KubeRay's operator makes of a RayService: commands, environments and probes of its pods. Pure.

After `BuildPod` in KubeRay's ray-operator/controllers/ray/common/pod.go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

CLUSTER = "ken-abcde"
NAMESPACE = "ken-serve"
HEAD_SERVICE = f"{CLUSTER}-head-svc.{NAMESPACE}.svc.cluster.local"
_RESOLVER = {"GRPC_DNS_RESOLVER": "native"}
"""There is no DNS server here, and gRPC's own resolver asks one whatever /etc/hosts says."""
_UNITS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


@dataclass(frozen=True)
class Probe:
    path: str
    port: int
    period: float
    timeout: float
    failures: int


@dataclass(frozen=True)
class Cluster:
    """The cluster that a RayService asks for.

    Attributes:
        spec: its ``rayClusterConfig``.
        secrets: the values of Secrets, by name and key.
        token: what KubeRay makes for ``authOptions``.
    """

    spec: Object
    secrets: Mapping[tuple[str, str], str]
    token: str
    uid: str = "5f7c8d1e-0000-4000-8000-000000000001"

    @property
    def autoscaled(self) -> bool:
        return bool(self.spec.get("enableInTreeAutoscaling"))

    def head(self, pod: str) -> tuple[list[str], dict[str, str]]:
        """The command and the environment of the head's Ray container."""
        group = self.spec["headGroupSpec"]
        parameters = {
            "dashboard-host": "0.0.0.0",
            **({"no-monitor": "true"} if self.autoscaled else {}),
            **({"redis-password": "$REDIS_PASSWORD"} if self._gcs else {}),
            **group["rayStartParams"],
        }
        return _command("ray start --head", parameters, _ray_container(group)), self._environment(group, pod, "head")

    def worker(self, pod: str) -> tuple[list[str], dict[str, str]]:
        """The command and the environment of a worker's Ray container."""
        (group,) = self.spec["workerGroupSpecs"]
        parameters = {"address": f"{HEAD_SERVICE}:6379", **group["rayStartParams"]}
        return _command("ray start", parameters, _ray_container(group)), self._environment(group, pod, "worker")

    def autoscaler(self, pod: str) -> tuple[list[str], dict[str, str]]:
        """The command and the environment of the autoscaler's container in the head's pod."""
        start = f"ray kuberay-autoscaler --cluster-name {CLUSTER} --cluster-namespace {NAMESPACE}"
        own = {
            "RAY_CLUSTER_NAME": CLUSTER,
            "RAY_CLUSTER_NAMESPACE": NAMESPACE,
            "RAY_HEAD_POD_NAME": pod,
            "KUBERAY_CRD_VER": "v1",
            "KUBERNETES_SERVICE_HOST": "kubernetes.default",
            "KUBERNETES_SERVICE_PORT_HTTPS": "443",
            **self._authentication(),
        }
        options = self.spec.get("autoscalerOptions", {})
        return ["/bin/bash", "-c", "--", start], own | dict(self._values(options.get("env", []), own))

    def ends_with(self) -> list[str]:
        """The command of the workers' preStop hook."""
        (group,) = self.spec["workerGroupSpecs"]
        found: list[str] = _ray_container(group)["lifecycle"]["preStop"]["exec"]["command"]
        return found

    def readiness(self) -> Probe:
        (group,) = self.spec["workerGroupSpecs"]
        return _probe(_ray_container(group), "readinessProbe")

    @property
    def grace(self) -> float:
        (group,) = self.spec["workerGroupSpecs"]
        return float(group["template"]["spec"]["terminationGracePeriodSeconds"])

    @property
    def _gcs(self) -> Object:
        found: Object = self.spec.get("gcsFaultToleranceOptions", {})
        return found

    def _authentication(self) -> dict[str, str]:
        if self.spec.get("authOptions", {}).get("mode") != "token":
            return {}
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def _environment(self, group: Object, pod: str, kind: str) -> dict[str, str]:
        head = kind == "head"
        address = "127.0.0.1" if head else HEAD_SERVICE
        found = {
            "RAY_CLUSTER_NAME": CLUSTER,
            "RAY_CLOUD_INSTANCE_ID": pod,
            "RAY_NODE_TYPE_NAME": "headgroup" if head else group["groupName"],
            "RAY_PORT": "6379",
            "RAY_ADDRESS": f"{address}:6379",
            "RAY_timeout_ms_task_wait_for_death_info": "0",
            "RAY_gcs_server_request_timeout_seconds": "5",
            "RAY_SERVE_KV_TIMEOUT_S": "5",
            "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
            "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE": "1",
            **self._authentication(),
        }
        if not head:
            found |= {"FQ_RAY_IP": address, "RAY_IP": address.partition(".")[0]}
        if head and self.autoscaled and self.spec["autoscalerOptions"].get("version") == "v2":
            found["RAY_enable_autoscaler_v2"] = "true"
        if self._gcs:
            found |= self._fault_tolerance(head)
        return found | _RESOLVER | dict(self._values(_ray_container(group)["env"], found))

    def _fault_tolerance(self, head: bool) -> dict[str, str]:
        if not head:
            return {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
        (password,) = self._values([{"name": "REDIS_PASSWORD", **self._gcs["redisPassword"]}], {})
        return {
            "RAY_external_storage_namespace": self.uid,
            "RAY_REDIS_ADDRESS": self._gcs["redisAddress"],
            password[0]: password[1],
        }

    def _values(self, entries: list[Object], known: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """The variables of a container, with secrets and with references to earlier ones put in."""
        so_far = dict(known)
        for entry in entries:
            reference = entry.get("valueFrom", {}).get("secretKeyRef")
            if reference is None:
                value = re.sub(r"\$\((\w+)\)", lambda name: so_far.get(name[1], name[0]), entry.get("value", ""))
            elif (reference["name"], reference["key"]) in self.secrets:
                value = self.secrets[reference["name"], reference["key"]]
            elif reference.get("optional"):
                continue
            else:
                raise KeyError(f"{entry['name']} is to come from {reference}, which the Secret does not have")
            so_far[entry["name"]] = value
            yield entry["name"], value


def _ray_container(group: Object) -> Object:
    found: Object = group["template"]["spec"]["containers"][0]
    return found


def _command(start: str, parameters: Mapping[str, str], container: Object) -> list[str]:
    limits = container["resources"]["limits"]
    filled = {
        "num-cpus": limits["cpu"],
        "memory": str(_bytes(limits["memory"])),
        "metrics-export-port": "8080",
        "dashboard-agent-listen-port": "52365",
        **parameters,
        "block": "true",
    }
    flags = [f"--{name}" if value == "true" else f"--{name}={value}" for name, value in sorted(filled.items())]
    return ["/bin/bash", "-c", "--", f"ulimit -n 65536; {start} {' '.join(flags)}"]


def _bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\D*)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * _UNITS[unit]


def _probe(container: Object, name: str) -> Probe:
    probe = container[name]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    asked = probe["httpGet"]
    port = asked["port"]
    return Probe(
        asked["path"], ports.get(port, port), probe["periodSeconds"], probe["timeoutSeconds"], probe["failureThreshold"]
    )


def redis_arguments(template: Object, password: str) -> list[str]:
    """The arguments of a bundled Redis."""
    (container,) = template["spec"]["containers"]
    return [argument.replace("$(REDISCLI_AUTH)", password) for argument in container["args"]]
