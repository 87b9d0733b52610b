"""The manifests are valid and consistent, and restrict what pods may do."""

from __future__ import annotations

import copy
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.config import Settings, load_settings
from serving.errors import StartError
from serving.launch.ray_variables import server_timeout
from serving.security.exposure import check_exposure
from tests.deploy.charts import LOADER, kubectl, needs_kubectl
from tests.deploy.validation import CRD, as_pod, completed_head, problems, weaknesses

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "deploy/kubernetes"
UNITS = {"Gi": 1 << 30, "Mi": 1 << 20, "gb": 1 << 30, "mb": 1 << 20}
NOT_KUBERNETES = ("RayService", "Kustomization")
NOT_OBJECTS = ("values.yaml", "secrets.yaml")

Object = dict[str, Any]


def objects(kind: str | None = None) -> Iterator[Object]:
    for path in sorted(MANIFESTS.glob("*.yaml")):
        if path.name not in NOT_OBJECTS:
            found = yaml.load_all(path.read_text(), LOADER)
            yield from (o for o in found if kind in (None, o["kind"]))


def size(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def template_of(stateful_set: str) -> Object:
    (found,) = (o for o in objects("StatefulSet") if o["metadata"]["name"] == stateful_set)
    return found["spec"]["template"]


def redis_options(template: Object) -> dict[str, str]:
    (container,) = template["spec"]["containers"]
    return dict(zip(container["args"][::2], container["args"][1::2], strict=True))


each_redis = pytest.mark.parametrize("name", ["redis", "gcs-redis"])


@pytest.fixture
def templates(head: Object, worker: Object) -> list[Object]:
    return [head, worker, template_of("redis"), template_of("gcs-redis")]


class TestTheSchema:
    @pytest.mark.parametrize(
        "manifest",
        [o for o in objects() if o["kind"] not in NOT_KUBERNETES],
        ids=lambda o: f"{o['kind']}-{o['metadata']['name']}",
    )
    def test_accepts_every_manifest(self, manifest: Object) -> None:
        assert problems(manifest) == []

    def test_accepts_the_pods_of_the_ray_service(self, head: Object, worker: Object) -> None:
        assert problems(as_pod(head)) + problems(as_pod(worker)) == []

    @pytest.mark.parametrize(
        "harm",
        [
            lambda pod: pod["spec"]["containers"][0].pop("name"),
            lambda pod: pod["spec"]["containers"][0].update(readOnlyRootFilesystem=True),
            lambda pod: pod["spec"]["containers"][0]["ports"].append({"containerPort": "eighty"}),
        ],
        ids=["container without a name", "unknown field", "port of the wrong type"],
    )
    def test_refuses_a_mistake(self, worker: Object, harm: Callable[[Object], None]) -> None:
        pod = as_pod(worker)
        harm(pod)
        assert problems(pod)


@pytest.mark.skipif(not CRD.is_file(), reason="no shared/crds beside the repository")
class TestTheRayServiceDefinition:
    def test_accepts_ours(self, ray_service: Object) -> None:
        assert problems(ray_service) == []

    @pytest.mark.parametrize(
        "harm",
        [
            lambda spec: spec.pop("rayClusterConfig"),
            lambda spec: spec.update(serveConfig="x"),
            lambda spec: spec["rayClusterConfig"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
            lambda spec: spec["rayClusterConfig"]["workerGroupSpecs"][0].pop("groupName"),
            lambda spec: spec["rayClusterConfig"]["gcsFaultToleranceOptions"].update(redisPort=6379),
            lambda spec: spec["rayClusterConfig"]["autoscalerOptions"].update(version="v3"),
        ],
        ids=["no cluster", "unknown field", "a number where text belongs", "unnamed workers", "unknown option", "v3"],
    )
    def test_refuses_a_mistake(self, ray_service: Object, harm: Callable[[Object], None]) -> None:
        harm(ray_service["spec"])
        assert problems(ray_service)


class TestTheServeConfiguration:
    def test_is_one_that_ray_serve_takes(self, serve_config: Object) -> None:
        schema = pytest.importorskip("ray.serve.schema", reason="ray is not installed")
        schema.ServeDeploySchema.model_validate(serve_config)

    def test_imports_our_application(self, serve_config: Object) -> None:
        (application,) = serve_config["applications"]
        module, _, function = application["import_path"].partition(":")
        source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
        assert f"def {function}(args" in source

    def test_haproxy_waits_a_little_longer_for_a_replica_than_a_prediction_may_take(
        self, arguments: Object, head: Object, worker: Object
    ) -> None:
        waits = server_timeout(load_settings(**arguments).request_timeout_seconds)
        for template in (head, worker):
            (container,) = template["spec"]["containers"]
            assert {"name": "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S", "value": waits} in container["env"]

    def test_names_only_settings_and_no_secrets(self, arguments: Object) -> None:
        assert set(arguments) <= set(Settings.model_fields) - {"redis_url", "admin_token"}
        load_settings(**arguments)

    def test_may_start_where_it_listens_with_the_secret_and_not_without(self, arguments: Object) -> None:
        check_exposure(load_settings(**arguments, admin_token="from-the-secret"), lambda: False)
        with pytest.raises(StartError):
            check_exposure(load_settings(**arguments), lambda: False)

    def test_with_a_misspelt_setting_is_refused(self, arguments: Object) -> None:
        with pytest.raises(Exception, match="replcas"):
            load_settings(**arguments, replcas=2)

    def test_listens_where_the_pods_are_reached(self, serve_config: Object, arguments: Object) -> None:
        assert serve_config["http_options"]["host"] == "0.0.0.0"
        assert serve_config["http_options"]["host"] == arguments["host"]
        assert serve_config["http_options"]["port"] == arguments["port"] == Settings.model_fields["port"].default

    def test_shuts_changes_off_where_the_token_is_missing(self, arguments: Object) -> None:
        assert not load_settings(**arguments).on_loopback

    def test_has_a_worker_and_its_cores_for_each_replica(
        self, ray_service: Object, worker: Object, serve_config: Object, arguments: Object
    ) -> None:
        (group,) = ray_service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        scaling = serve_config["applications"][0]["deployments"][0]["autoscaling_config"]
        assert group["replicas"] == group["minReplicas"] == scaling["min_replicas"]
        assert group["maxReplicas"] > scaling["max_replicas"]  # an update starts replicas before it stops others
        assert group["rayStartParams"]["num-cpus"] == "1"
        assert worker["spec"]["containers"][0]["resources"]["limits"]["cpu"] == str(arguments["threads"])

    def test_scales_where_serve_keeps_the_replicas_that_run(
        self, ray_service: Object, serve_config: Object, arguments: Object
    ) -> None:
        """Serve replaces every replica when `args` change."""
        (deployment,) = serve_config["applications"][0]["deployments"]
        application = (ROOT / "serving/app.py").read_text()
        assert f'name="{deployment["name"]}"' in application
        assert "num_replicas" not in deployment
        assert "replicas" not in arguments
        assert ray_service["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"] is True

    def test_never_has_fewer_than_two_replicas(self, serve_config: Object) -> None:
        (deployment,) = serve_config["applications"][0]["deployments"]
        assert deployment["autoscaling_config"]["min_replicas"] >= 2

    def test_budgets_fit_into_what_the_workers_get(self, worker: Object, arguments: Object) -> None:
        settings = load_settings(**arguments)
        memory = size(worker["spec"]["containers"][0]["resources"]["limits"]["memory"])
        assert settings.host_bytes + settings.packed_bytes < memory * 0.75
        assert settings.disk_bytes < volume_bytes(worker, str(settings.data_dir))

    @pytest.fixture
    def arguments(self, serve_config: Object) -> Object:
        (application,) = serve_config["applications"]
        return application["args"]


def volume_bytes(template: Object, path: str) -> int:
    (mount,) = (m["name"] for m in template["spec"]["containers"][0]["volumeMounts"] if m["mountPath"] == path)
    (volume,) = (v for v in template["spec"]["volumes"] if v["name"] == mount)
    return size(volume["emptyDir"]["sizeLimit"])


class TestPods:
    def test_have_no_weakness(self, templates: list[Object], ray_service: Object) -> None:
        complete = [completed_head(ray_service["spec"]["rayClusterConfig"]), *templates]
        assert [weaknesses(template["spec"]) for template in complete] == [[], [], [], [], []]

    @pytest.mark.parametrize(
        ("where", "value", "weakness"),
        [
            ("securityContext.runAsNonRoot", False, "may run as root"),
            ("securityContext.seccompProfile", None, "no seccomp profile"),
            ("hostNetwork", True, "shares the host's namespaces"),
            ("containers.0.securityContext.capabilities", {}, "keeps capabilities"),
            ("containers.0.securityContext.readOnlyRootFilesystem", False, "can change its image"),
            ("initContainers.0.securityContext.readOnlyRootFilesystem", False, "can change its image"),
            ("enableServiceLinks", True, "has variables of other services"),
            ("automountServiceAccountToken", None, "holds a token for the cluster's API"),
        ],
    )
    def test_with_a_weakness_are_found(self, worker: Object, where: str, value: object, weakness: str) -> None:
        *path, last = where.split(".")
        target: Any = worker["spec"]
        for step in path:
            target = target[int(step)] if step.isdigit() else target[step]
        target[last] = value
        assert weakness in weaknesses(worker["spec"])

    def test_of_ray_with_the_autoscalers_token_are_found(self, head: Object) -> None:
        head["spec"]["containers"][0]["volumeMounts"].append({"name": "autoscaler-token", "mountPath": "/token"})
        assert weaknesses(head["spec"]) == ["holds a token for the cluster's API"]

    def test_can_write_where_ray_and_numba_do(self, head: Object, worker: Object) -> None:
        for template in (head, worker):
            (container,) = template["spec"]["containers"]
            values = {e["name"]: e.get("value") for e in container["env"]}
            mounts = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
            assert {"/tmp", values["HOME"], values["KEN_DATA_DIR"]} <= mounts
            assert Path(values["NUMBA_CACHE_DIR"]).is_relative_to(values["KEN_DATA_DIR"])

    def test_of_ray_get_their_secrets_from_the_secret(self, head: Object, worker: Object) -> None:
        (secret,) = objects("Secret")
        for template in (head, worker):
            sources = {e["name"]: e["valueFrom"] for e in template["spec"]["containers"][0]["env"] if "valueFrom" in e}
            assert set(sources) == {"KEN_REDIS_URL", "KEN_ADMIN_TOKEN"}
            for source in sources.values():
                assert source["secretKeyRef"]["name"] == secret["metadata"]["name"]
                assert source["secretKeyRef"]["key"] in secret["stringData"]

    def test_of_ray_mount_only_volumes_that_exist(self, ray_service: Object, worker: Object) -> None:
        claims = {o["metadata"]["name"] for o in objects("PersistentVolumeClaim")}
        for template in (completed_head(ray_service["spec"]["rayClusterConfig"]), worker):
            volumes = {v["name"]: v for v in template["spec"]["volumes"]}
            mounts = [m["name"] for c in template["spec"]["containers"] for m in c["volumeMounts"]]
            assert set(mounts) == set(volumes)
            wanted = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
            assert wanted <= claims

    @each_redis
    def test_of_a_redis_never_evict_and_always_log(self, name: str) -> None:
        (container,) = template_of(name)["spec"]["containers"]
        options = redis_options(template_of(name))
        assert options["--maxmemory-policy"] == "noeviction"
        assert options["--appendonly"] == "yes"
        assert options["--requirepass"] == f"$({container['env'][0]['name']})"
        assert size(options["--maxmemory"]) < size(container["resources"]["limits"]["memory"])

    def test_of_the_store_lose_no_change_in_a_crash(self) -> None:
        assert redis_options(template_of("redis"))["--appendfsync"] == "always"
        assert "--appendfsync" not in redis_options(template_of("gcs-redis"))

    @each_redis
    def test_of_a_redis_take_their_password_from_the_secret(self, name: str) -> None:
        (secret,) = objects("Secret")
        (variable,) = template_of(name)["spec"]["containers"][0]["env"]
        source = variable["valueFrom"]["secretKeyRef"]
        assert source == {"name": secret["metadata"]["name"], "key": f"{name}-password"}
        assert source["key"] in secret["stringData"]

    @each_redis
    def test_of_a_redis_keep_their_data_on_a_volume_that_survives_them(self, name: str) -> None:
        (found,) = (o for o in objects("StatefulSet") if o["metadata"]["name"] == name)
        (claim,) = found["spec"]["volumeClaimTemplates"]
        (mount,) = template_of(name)["spec"]["containers"][0]["volumeMounts"]
        assert mount == {"name": claim["metadata"]["name"], "mountPath": redis_options(template_of(name))["--dir"]}

    def test_are_matched_by_what_selects_them(self, templates: list[Object]) -> None:
        given = [t["metadata"]["labels"] for t in templates]
        given[0]["ray.io/node-type"], given[1]["ray.io/node-type"] = "head", "worker"  # KubeRay sets it
        wanted = [o["spec"]["selector"]["matchLabels"] for o in objects("PodDisruptionBudget")]
        wanted += [o["spec"]["selector"] for o in objects("Service")]
        wanted += [o["spec"]["podSelector"].get("matchLabels", {}) for o in objects("NetworkPolicy")]
        for labels in wanted:
            assert any(labels.items() <= pod.items() for pod in given), labels

    def test_outlive_what_they_have_accepted(self, worker: Object) -> None:
        spec, defaults = worker["spec"], Settings.model_fields
        (seconds,) = re.findall(r"sleep (\d+)", spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
        assert defaults["request_timeout_seconds"].default < int(seconds) < spec["terminationGracePeriodSeconds"] - 30


def open_to_others(policies: list[Object], app: str) -> set[int | None]:
    """The ports of an app's pods that pods of other apps may reach; None stands for all ports."""
    ports: set[int | None] = set()
    for policy in policies:
        if policy["spec"]["podSelector"].get("matchLabels") != {"app": app}:
            continue
        for rule in policy["spec"].get("ingress", []):
            if rule.get("from") != [{"podSelector": {"matchLabels": {"app": app}}}]:
                ports |= {p["port"] for p in rule["ports"]} if "ports" in rule else {None}
    return ports


class TestTheHeadsState:
    """What a new head goes on with, kept outside of the head."""

    @pytest.fixture
    def options(self, ray_service: Object) -> Object:
        return ray_service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]

    def test_lies_in_a_redis_that_is_not_the_store(self, options: Object) -> None:
        services = {o["metadata"]["name"]: o for o in objects("Service")}
        host, _, port = options["redisAddress"].partition(":")
        assert services[host]["spec"]["ports"][0]["port"] == int(port)
        (secret,) = objects("Secret")
        assert host not in secret["stringData"]["redis-url"]

    def test_is_protected_by_that_redis_own_password(self, options: Object) -> None:
        (variable,) = template_of("gcs-redis")["spec"]["containers"][0]["env"]
        assert options["redisPassword"] == {"valueFrom": variable["valueFrom"]}

    def test_is_each_clusters_own(self, options: Object) -> None:
        """KubeRay replaces a cluster by another beside it, whose head must not find the state of the first."""
        assert "externalStorageNamespace" not in options


class TestTheNetwork:
    @pytest.fixture
    def policies(self) -> list[Object]:
        return list(objects("NetworkPolicy"))

    def test_is_shut_by_default(self, policies: list[Object]) -> None:
        (shut,) = (p["spec"] for p in policies if p["metadata"]["name"] == "default-deny")
        assert shut == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}

    def test_shows_others_the_server_metrics_and_the_operators_port(self, policies: list[Object]) -> None:
        assert open_to_others(policies, "ray") == {8000, 8001, 8080, 8265}

    def test_hides_the_replicas_own_ports(self, policies: list[Object]) -> None:
        constants = pytest.importorskip("ray.serve._private.constants", reason="ray is not installed")
        first, last = (getattr(constants, f"RAY_SERVE_DIRECT_INGRESS_{end}_HTTP_PORT") for end in ("MIN", "MAX"))
        assert not [port for port in open_to_others(policies, "ray") if port is None or first <= port <= last]

    def test_is_not_all_that_keeps_code_out(self, ray_service: Object) -> None:
        assert ray_service["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}

    def test_lets_only_the_operator_submit_code(self, policies: list[Object]) -> None:
        def opens(policy: Object, port: int) -> bool:
            rules = policy["spec"].get("ingress", [])
            return any(p["port"] == port for rule in rules for p in rule.get("ports", []))

        assert [p["metadata"]["name"] for p in policies if opens(p, 8265)] == ["operator"]

    @each_redis
    def test_lets_ray_and_nothing_else_reach_a_redis(
        self, policies: list[Object], head: Object, worker: Object, name: str
    ) -> None:
        redis, ray = ({"podSelector": {"matchLabels": {"app": app}}} for app in (name, "ray"))
        (ingress,) = (p["spec"]["ingress"] for p in policies if p["spec"]["podSelector"] == redis["podSelector"])
        assert ingress == [{"from": [ray], "ports": [{"port": 6379}]}]
        (egress,) = (p["spec"]["egress"] for p in policies if p["metadata"]["name"] == "ray")
        assert [rule["ports"] for rule in egress if redis in rule["to"]] == [[{"port": 6379}]]
        assert {t["metadata"]["labels"]["app"] for t in (head, worker)} == {"ray"}

    @pytest.mark.parametrize("rule", [{"ports": [{"port": 8404}]}, {"from": [{"podSelector": {}}]}])
    def test_with_a_hole_is_found_out(self, policies: list[Object], rule: Object) -> None:
        holed = copy.deepcopy(policies)
        next(p for p in holed if p["metadata"]["name"] == "ray")["spec"]["ingress"].append(rule)
        assert open_to_others(holed, "ray") & {8404, None}


class TestProbes:
    def test_ask_rays_node_agent_for_its_public_health(self, head: Object, worker: Object) -> None:
        agent = pytest.importorskip("ray.dashboard.http_server_agent", reason="ray is not installed")
        asked = [p for p in (*probes(head), *probes(worker)) if p["port"] == 52365]
        assert len(asked) == 5
        assert {p["path"] for p in asked} <= set(agent.PUBLIC_EXACT_PATHS)

    def test_ask_the_workers_proxy_whether_it_is_ready(self, worker: Object) -> None:
        haproxy = pytest.importorskip("ray.serve._private.haproxy", reason="ray is not installed")
        (readiness,) = (p for p in probes(worker) if p["port"] != 52365)
        assert readiness == {"path": haproxy.HAProxyConfig().health_check_endpoint, "port": "serve"}

    def test_do_not_keep_the_application_from_being_submitted(self, head: Object) -> None:
        assert {p["port"] for p in probes(head)} == {52365}


def probes(template: Object) -> Iterator[Object]:
    (container,) = template["spec"]["containers"]
    return (container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness"))


class TestTheKustomization:
    @pytest.fixture
    def kustomization(self) -> Object:
        (found,) = objects("Kustomization")
        return found

    def test_lists_every_manifest_but_the_example_of_a_secret(self, kustomization: Object) -> None:
        there = {p.name for p in MANIFESTS.glob("*.yaml")} - set(NOT_OBJECTS)
        assert set(kustomization["resources"]) == there - {"kustomization.yaml", "secrets.example.yaml"}

    def test_deploys_where_the_secret_lies(self, kustomization: Object) -> None:
        (secret,) = objects("Secret")
        (namespace,) = objects("Namespace")
        assert kustomization["namespace"] == namespace["metadata"]["name"] == secret["metadata"]["namespace"]

    @needs_kubectl
    def test_builds(self, kustomization: Object) -> None:
        built = subprocess.run([kubectl(), "kustomize", MANIFESTS], capture_output=True, text=True, check=True).stdout
        made = list(yaml.safe_load_all(built))
        assert {o["metadata"].get("namespace", o["metadata"]["name"]) for o in made} == {kustomization["namespace"]}
        (tag,) = (image["newTag"] for image in kustomization["images"])
        assert built.count("image: ken-serve:") == built.count(f"image: ken-serve:{tag}") == 3

    def test_has_the_names_and_selectors_that_it_had_before_the_chart(self, ray_service: Object) -> None:
        """A StatefulSet's selector and claims cannot change, and other names would be another deployment."""
        assert ray_service["metadata"]["name"] == "ken"
        sets = {o["metadata"]["name"]: o["spec"] for o in objects("StatefulSet")}
        assert {name: spec["selector"]["matchLabels"] for name, spec in sets.items()} == {
            "redis": {"app": "redis"},
            "gcs-redis": {"app": "gcs-redis"},
        }
        for spec in sets.values():
            (claim,) = spec["volumeClaimTemplates"]
            assert claim["metadata"] == {"name": "data"}
            assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
        assert [o["metadata"]["name"] for o in objects("PersistentVolumeClaim")] == ["base"]

    def test_has_no_labels_of_helm(self) -> None:
        text = "".join(path.read_text() for path in MANIFESTS.glob("*.yaml") if path.name != "values.yaml")
        assert not re.findall(r"helm\.sh/.*|.*managed-by.*", text)
