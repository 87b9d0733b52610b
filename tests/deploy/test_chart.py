"""The Helm chart: whatever the values, objects are valid and fit together."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.config import Settings, load_settings
from serving.launch.haproxy_file import CHANGE_SECONDS, CHANGES, GENERATIONS
from serving.launch.haproxy_start import generation_seconds
from serving.launch.ray_variables import for_cluster, hard_stop, server_timeout
from tests.deploy.charts import (
    CHART,
    DIGEST,
    DOWNLOAD,
    MATRIX,
    all_of,
    needs_helm,
    notes,
    one,
    rendered,
    run,
    serve_config,
)
from tests.deploy.validation import CRD, as_pod, containers, problems, templates, token_holders, weaknesses

Object = dict[str, Any]
DEPLOY = CHART.parents[1]
TIMEOUT = "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"
HARD_STOP = "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"

pytestmark = needs_helm


@pytest.fixture(params=MATRIX)
def values(request: pytest.FixtureRequest) -> Object:
    return MATRIX[request.param]


@pytest.fixture
def objects(values: Object) -> list[Object]:
    return rendered(values)


@pytest.fixture
def service(objects: list[Object]) -> Object:
    return one(objects, "RayService")


@pytest.fixture
def deployment(objects: list[Object]) -> Object:
    (application,) = serve_config(objects)["applications"]
    (found,) = application["deployments"]
    return found


@pytest.fixture
def arguments(objects: list[Object]) -> Object:
    (application,) = serve_config(objects)["applications"]
    return application["args"]


@pytest.fixture
def workers(service: Object) -> Object:
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return group


def specs(objects: list[Object]) -> dict[str, Object]:
    """The specification of each pod, as KubeRay completes it."""
    return {name: template["spec"] for o in objects for name, template in templates(o).items()}


def environment(container: Object) -> dict[str, Any]:
    return {variable["name"]: variable.get("value") for variable in container.get("env", [])}


def ray(spec: Object) -> Object:
    """Ray's container of a pod."""
    return spec["containers"][0]


class TestEveryRelease:
    def test_has_valid_objects(self, objects: list[Object]) -> None:
        assert {o["metadata"]["name"]: found for o in objects if (found := problems(o))} == {}

    def test_has_pods_of_ray_that_are_valid(self, service: Object) -> None:
        assert [found for template in templates(service).values() if (found := problems(as_pod(template)))] == []

    def test_has_no_weak_pods(self, objects: list[Object]) -> None:
        assert {name: found for name, spec in specs(objects).items() if (found := weaknesses(spec))} == {}

    def test_gives_a_token_to_the_autoscaler_alone(self, objects: list[Object], values: Object) -> None:
        holders = set().union(*(token_holders(spec) for spec in specs(objects).values()))
        assert holders == ({"autoscaler"} if values.get("autoscaling", {}).get("enabled", True) else set())

    def test_has_no_two_objects_of_one_name(self, objects: list[Object]) -> None:
        names = [(o["kind"], o["metadata"]["name"]) for o in objects]
        assert len(names) == len(set(names))

    def test_names_no_variable_twice(self, objects: list[Object]) -> None:
        for spec in specs(objects).values():
            for container in containers(spec):
                names = [variable["name"] for variable in container.get("env", [])]
                assert sorted(names) == sorted(set(names))

    def test_uses_a_password_before_the_variable_that_holds_it(self, objects: list[Object]) -> None:
        for spec in specs(objects).values():
            for container in containers(spec):
                known: set[str] = set()
                for variable in container.get("env", []):
                    assert set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) <= known
                    known.add(variable["name"])

    def test_mounts_volumes_that_it_has(self, objects: list[Object]) -> None:
        for spec in specs(objects).values():
            mounted = {mount["name"] for container in containers(spec) for mount in container.get("volumeMounts", [])}
            there = {volume["name"] for volume in spec.get("volumes", [])} or {"data"}  # of a StatefulSet's claim
            assert mounted == there

    def test_selects_pods_that_it_has(self, objects: list[Object]) -> None:
        pods = [t["metadata"]["labels"] for o in objects for t in templates(o).values()]
        for labels in selectors(objects):
            assert any(labels.items() <= pod.items() for pod in pods), labels

    def test_lets_ray_wait_a_little_longer_than_a_prediction_may_take(
        self, objects: list[Object], arguments: Object
    ) -> None:
        waits = server_timeout(arguments["request_timeout_seconds"])
        pods = specs(objects)
        assert {environment(ray(pods[name]))[TIMEOUT] for name in ("head", "worker")} == {waits}

    def test_lets_a_haproxy_that_was_replaced_answer_what_it_holds(
        self, objects: list[Object], arguments: Object
    ) -> None:
        ends = hard_stop(arguments["request_timeout_seconds"], arguments.get("generation_timeout_seconds", 600))
        pods = specs(objects)
        assert {environment(ray(pods[name]))[HARD_STOP] for name in ("head", "worker")} == {ends}

    def test_gives_ray_its_other_variables_as_they_are(self, objects: list[Object]) -> None:
        expected = {name: value for name, value in for_cluster().items() if name not in (TIMEOUT, HARD_STOP)}
        for name in ("head", "worker"):
            given = environment(ray(specs(objects)[name]))
            assert {variable: given.get(variable) for variable in expected} == expected

    def test_ends_no_replica_or_worker_before_its_requests(
        self, objects: list[Object], arguments: Object, deployment: Object
    ) -> None:
        worker = specs(objects)["worker"]
        (seconds,) = re.findall(r"sleep (\d+)", ray(worker)["lifecycle"]["preStop"]["exec"]["command"][-1])
        drain = int(for_cluster()["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"])
        assert arguments["request_timeout_seconds"] + drain <= int(seconds)
        assert int(seconds) + 30 < worker["terminationGracePeriodSeconds"]
        assert deployment["graceful_shutdown_timeout_s"] > arguments["request_timeout_seconds"] + drain

    def test_has_a_serve_configuration_that_ray_takes(self, objects: list[Object]) -> None:
        schema = pytest.importorskip("ray.serve.schema", reason="ray is not installed")
        schema.ServeDeploySchema.model_validate(serve_config(objects))

    def test_has_settings_that_the_server_takes(self, arguments: Object, objects: list[Object]) -> None:
        loaded = load_settings(**arguments)
        worker = ray(specs(objects)["worker"])
        assert loaded.threads == int(worker["resources"]["limits"]["cpu"])
        assert not loaded.on_loopback
        assert not set(arguments) & {"redis_url", "admin_token", "replicas"}

    def test_has_its_base_where_the_settings_say(self, arguments: Object, objects: list[Object]) -> None:
        worker = specs(objects)["worker"]
        mounts = {mount["name"]: mount["mountPath"] for mount in ray(worker)["volumeMounts"]}
        if "base" not in mounts:
            return
        assert Path(arguments["base"]).is_relative_to(mounts["base"])
        (waits,) = worker["initContainers"]
        assert waits["args"][-1] == arguments["base"]

    def test_states_either_bounds_or_a_number_of_replicas(self, deployment: Object, service: Object) -> None:
        cluster = service["spec"]["rayClusterConfig"]
        assert ("autoscaling_config" in deployment) is cluster.get("enableInTreeAutoscaling", False)
        assert ("num_replicas" in deployment) is not ("autoscaling_config" in deployment)

    def test_has_a_worker_for_each_replica_and_for_those_of_an_update(
        self, deployment: Object, workers: Object
    ) -> None:
        fewest, most = bounds(deployment)
        surge = math.ceil(most * deployment["max_surge_percent"] / 100)
        assert workers["minReplicas"] >= fewest
        assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
        assert workers["maxReplicas"] > most or surge == 0
        if "autoscaling_config" in deployment:
            assert workers["maxReplicas"] >= most + surge

    def test_leaves_nodes_that_can_be_drained(self, objects: list[Object], deployment: Object) -> None:
        for budget in all_of(objects, "PodDisruptionBudget"):
            if budget["spec"]["selector"]["matchLabels"]["ray.io/node-type"] == "worker":
                assert budget["spec"]["minAvailable"] < bounds(deployment)[0]

    def test_takes_secrets_from_one_secret_whose_keys_are_documented(self, objects: list[Object]) -> None:
        documented = set(re.findall(r"[a-z]+(?:-[a-z]+)+", (CHART / "values.yaml").read_text()))
        references = list(secret_references(objects))
        assert {reference["name"] for reference in references} == {"ken-serve"}
        assert {reference["key"] for reference in references} <= documented

    def test_tells_how_to_make_that_secret(self, values: Object, objects: list[Object]) -> None:
        named = set(re.findall(r"--from-literal=([\w-]+)=", notes(values)))
        assert named == {reference["key"] for reference in secret_references(objects)}


def bounds(deployment: Object) -> tuple[int, int]:
    scaling = deployment.get("autoscaling_config")
    if scaling:
        return scaling["min_replicas"], scaling["max_replicas"]
    return deployment["num_replicas"], deployment["num_replicas"]


def selectors(objects: list[Object]) -> list[Object]:
    """The labels by which objects find pods of the release."""
    found = [o["spec"]["selector"] for o in all_of(objects, "Service")]
    found += [o["spec"]["selector"]["matchLabels"] for o in all_of(objects, "PodDisruptionBudget")]
    found += [o["spec"]["selector"]["matchLabels"] for o in all_of(objects, "PodMonitor")]
    found += [o["spec"]["podSelector"].get("matchLabels", {}) for o in all_of(objects, "NetworkPolicy")]
    return found


def secret_references(found: Any) -> list[Object]:
    if isinstance(found, list):
        return [reference for item in found for reference in secret_references(item)]
    if not isinstance(found, dict):
        return []
    own = [found["secretKeyRef"]] if "secretKeyRef" in found else []
    return own + [reference for value in found.values() for reference in secret_references(value)]


@pytest.mark.parametrize("row", MATRIX)
def test_the_chart_is_free_of_what_helm_warns_of(row: str) -> None:
    linted = run("lint", MATRIX[row], "k", "--strict", "--quiet")
    assert (linted.returncode, linted.stderr) == (0, ""), linted.stdout


class TestScaling:
    def test_is_on_and_keeps_two_replicas(self) -> None:
        (application,) = serve_config(rendered({}))["applications"]
        (deployment,) = application["deployments"]
        assert bounds(deployment) == (2, 8)

    def test_waits_no_longer_to_add_than_to_remove(self) -> None:
        (application,) = serve_config(rendered({}))["applications"]
        scaling = application["deployments"][0]["autoscaling_config"]
        assert scaling["upscale_delay_s"] < scaling["look_back_period_s"] < scaling["downscale_delay_s"]

    def test_gives_the_autoscaler_what_ray_reads(self) -> None:
        provider = pytest.importorskip("ray.autoscaler._private.kuberay.node_provider", reason="ray is not installed")
        (head,) = (spec for name, spec in specs(rendered({})).items() if name == "head")
        (autoscaler,) = (c for c in head["containers"] if c["name"] == "autoscaler")
        mounts = {mount["mountPath"]: mount["name"] for mount in autoscaler["volumeMounts"]}
        (volume,) = (
            v for v in head["volumes"] if v["name"] == mounts[str(Path(provider.IN_CLUSTER_TOKEN_PATH).parent)]
        )
        paths = [
            path
            for source in volume["projected"]["sources"]
            for kind in source.values()
            for path in ([kind["path"]] if "path" in kind else [item["path"] for item in kind["items"]])
        ]
        read = (provider.IN_CLUSTER_TOKEN_PATH, provider.IN_CLUSTER_CA_CERT_PATH)
        assert {Path(path).name for path in read} <= set(paths)

    @pytest.mark.parametrize("row", ["defaults", "cuda", "a share of a GPU", "many replicas"])
    def test_is_understood_by_rays_autoscaler(self, row: str) -> None:
        reader = pytest.importorskip(
            "ray.autoscaler._private.kuberay.autoscaling_config", reason="ray is not installed"
        )
        cluster = one(rendered(MATRIX[row]), "RayService")["spec"]["rayClusterConfig"]
        read = reader._derive_autoscaling_config_from_ray_cr(
            {"metadata": {"name": "c", "namespace": "n"}, "spec": cluster}
        )
        head, workers = read["available_node_types"].values()
        (group,) = cluster["workerGroupSpecs"]
        assert (workers["min_workers"], workers["max_workers"]) == (group["minReplicas"], group["maxReplicas"])
        assert head["resources"]["CPU"] == 0
        gpus = {"GPU": 1} if MATRIX[row].get("device") == "cuda" else {}
        assert {name: workers["resources"].get(name) for name in ("CPU", *gpus)} == {"CPU": 1, **gpus}
        assert read["idle_timeout_minutes"] == 2

    def test_shares_rays_logs_with_the_autoscaler(self) -> None:
        shared = [
            {mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/tmp/ray"}
            for container in specs(rendered({}))["head"]["containers"]
        ]
        assert shared == [{"ray-logs"}, {"ray-logs"}]

    def test_lets_the_head_alone_reach_the_api(self) -> None:
        policy = one(rendered({}), "NetworkPolicy", "autoscaler")["spec"]
        assert policy["podSelector"]["matchLabels"]["ray.io/node-type"] == "head"
        assert policy["policyTypes"] == ["Egress"]
        assert not [
            o for o in rendered({"autoscaling": {"enabled": False}}) if o["metadata"]["name"].endswith("autoscaler")
        ]

    @pytest.mark.parametrize(
        ("values", "percent", "most"),
        [
            ({}, 50, 12),
            ({"autoscaling": {"min": 2, "max": 5}}, 50, 8),
            ({"autoscaling": {"enabled": False}}, 0, 2),
            ({"autoscaling": {"enabled": False}, "spareWorkers": 1}, 50, 3),
            ({"rollingUpdate": {"maxSurgePercent": 0}}, 0, 8),
        ],
    )
    def test_has_room_for_an_update(self, values: Object, percent: int, most: int) -> None:
        objects = rendered(values)
        (group,) = one(objects, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        (application,) = serve_config(objects)["applications"]
        assert (application["deployments"][0]["max_surge_percent"], group["maxReplicas"]) == (percent, most)


class TestDevices:
    @pytest.mark.parametrize("row", ["cuda", "a share of a GPU"])
    def test_of_a_gpu_are_limited_counted_and_told_to_the_server(self, row: str) -> None:
        resource = MATRIX[row].get("gpu", {}).get("resource", "nvidia.com/gpu")
        objects = rendered(MATRIX[row])
        (group,) = one(objects, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        worker = group["template"]["spec"]
        assert ray(worker)["resources"]["limits"][resource] == 1
        assert group["rayStartParams"]["num-gpus"] == "1"
        assert ray(worker)["image"] == "ken-serve:cuda"
        (application,) = serve_config(objects)["applications"]
        assert application["args"]["device"] == "cuda"

    def test_are_tolerated_where_asked(self) -> None:
        tolerated = specs(rendered(MATRIX["cuda"]))["worker"]["tolerations"]
        assert tolerated == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        assert "tolerations" not in specs(rendered(MATRIX["a share of a GPU"]))["worker"]

    def test_leave_the_head_without_a_gpu(self) -> None:
        assert "nvidia.com/gpu" not in json.dumps(specs(rendered(MATRIX["cuda"]))["head"])


class TestTheBase:
    def test_that_changes_makes_another_job_and_another_folder(self) -> None:
        names, folders = set(), set()
        for revision in ("a", "b"):
            objects = rendered({"base": {"download": {**DOWNLOAD, "revision": revision}}})
            names.add(one(objects, "Job")["metadata"]["name"])
            folders.add(serve_config(objects)["applications"][0]["args"]["base"])
        assert len(names) == len(folders) == 2

    def test_that_stays_keeps_its_folder_when_the_job_changes(self) -> None:
        jobs, folders = set(), set()
        for tag in ("1", "2"):
            objects = rendered({"base": {"download": DOWNLOAD}, "image": {"tag": tag}})
            jobs.add(one(objects, "Job")["metadata"]["name"])
            folders.add(serve_config(objects)["applications"][0]["args"]["base"])
        assert (len(jobs), len(folders)) == (2, 1)

    def test_is_downloaded_to_where_workers_wait_for_it(self) -> None:
        objects = rendered(MATRIX["a base from a hub"])
        (download,) = one(objects, "Job")["spec"]["template"]["spec"]["containers"]
        waits = specs(objects)["worker"]["initContainers"][0]
        assert download["args"][:2] == [DOWNLOAD["repository"], DOWNLOAD["revision"]]
        assert download["args"][2] == waits["args"][-1]

    def test_is_left_when_the_release_is_removed(self) -> None:
        claim = one(rendered({}), "PersistentVolumeClaim")
        assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def seconds_of(rule: Object) -> int:
    return int(rule["timeouts"]["request"].removesuffix("s"))


class TestRoutes:
    @pytest.mark.parametrize(
        ("row", "kind"),
        [("an ingress", "Ingress"), ("a route of a gateway", "HTTPRoute"), ("a gateway of its own", "HTTPRoute")],
    )
    def test_lead_to_the_service_that_kuberay_makes(self, row: str, kind: str) -> None:
        objects = rendered(MATRIX[row])
        service = f"{one(objects, 'RayService')['metadata']['name']}-serve-svc"
        text = json.dumps(one(objects, kind)["spec"])
        assert set(re.findall(r'"([\w-]+-svc)"', text)) == {service}

    @pytest.mark.parametrize("seconds", [30, 900])
    def test_of_a_gateway_wait_longer_than_haproxy(self, seconds: int) -> None:
        objects = rendered({**MATRIX["a route of a gateway"], "requestTimeoutSeconds": seconds})
        _, changes, others = one(objects, "HTTPRoute")["spec"]["rules"]
        waits = int(environment(ray(specs(objects)["worker"]))[TIMEOUT])
        assert seconds_of(others) > waits
        assert seconds_of(changes) > max(waits, CHANGE_SECONDS)

    @pytest.mark.parametrize("given", [None, 20, 900.5])
    def test_of_a_gateway_wait_longer_than_haproxy_for_a_text(self, given: float | None) -> None:
        settings = {} if given is None else {"generation_timeout_seconds": given}
        objects = rendered({**MATRIX["a route of a gateway"], "settings": settings})
        told = environment(ray(specs(objects)["worker"])).get("KEN_GENERATION_TIMEOUT_SECONDS")
        assert told == (None if given is None else f"{given:g}")
        waits = generation_seconds({} if told is None else {"KEN_GENERATION_TIMEOUT_SECONDS": told})
        texts, tasks, _ = one(objects, "HTTPRoute")["spec"]["rules"]
        assert min(seconds_of(texts), seconds_of(tasks)) > waits

    def test_of_a_gateway_know_the_paths_of_changes_as_haproxy_does(self) -> None:
        texts, changes, others = one(rendered(MATRIX["a route of a gateway"]), "HTTPRoute")["spec"]["rules"]
        (rule,) = (line for line in CHANGES if line.startswith("acl ken_changes path_beg "))
        beginnings = rule.removeprefix("acl ken_changes path_beg ").split()
        assert [match["path"] for match in changes["matches"]] == [
            {"type": "PathPrefix", "value": path.rstrip("/")} for path in beginnings
        ]
        assert "matches" not in others
        assert texts["backendRefs"] == changes["backendRefs"] == others["backendRefs"]

    def test_of_a_gateway_know_the_paths_of_texts_as_haproxy_does(self) -> None:
        texts, changes, _ = one(rendered(MATRIX["a route of a gateway"]), "HTTPRoute")["spec"]["rules"]
        values = [match["path"]["value"] for match in texts["matches"]]
        known = " ".join(rule.partition(" path")[2] for rule in GENERATIONS)
        assert all(value in known for value in values)
        assert known.count("/v1/chat/completions") + known.count("/models/") + known.count(" /v1/completions") == 3
        assert "/v1/tasks" in [match["path"]["value"] for match in changes["matches"]]

    def test_of_a_gateway_without_time_limits_are_one_rule(self) -> None:
        (rule,) = one(rendered(MATRIX["a gateway of its own"]), "HTTPRoute")["spec"]["rules"]
        assert "timeouts" not in rule

    def test_of_the_own_gateway_are_attached_to_it(self) -> None:
        objects = rendered(MATRIX["a gateway of its own"])
        gateway = one(objects, "Gateway")
        assert one(objects, "HTTPRoute")["spec"]["parentRefs"] == [{"name": gateway["metadata"]["name"]}]
        (listener,) = gateway["spec"]["listeners"]
        assert (listener["protocol"], listener["tls"]["mode"]) == ("HTTPS", "Terminate")


class TestMonitoring:
    @pytest.fixture
    def objects(self) -> list[Object]:
        return rendered(MATRIX["monitoring"])

    def test_has_the_alerts_and_the_dashboard_of_this_repository(self, objects: list[Object]) -> None:
        alerts = (DEPLOY / "prometheus/alerts.yml").read_text().replace('job="ken-serve"', 'job="default/k-ken-serve"')
        assert one(objects, "PrometheusRule")["spec"] == yaml.safe_load(alerts)
        dashboard = json.loads((DEPLOY / "grafana/ken-serve.json").read_text())
        assert json.loads(one(objects, "ConfigMap")["data"]["ken-serve.json"]) == dashboard

    @pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
    def test_has_rules_that_prometheus_takes(self, objects: list[Object], tmp_path: Path) -> None:
        (tmp_path / "rules.yml").write_text(yaml.safe_dump(one(objects, "PrometheusRule")["spec"]))
        done = subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_scrapes_each_replicas_own_port_under_the_name_that_alerts_watch(self, objects: list[Object]) -> None:
        (endpoint,) = one(objects, "PodMonitor")["spec"]["podMetricsEndpoints"]
        ports = {port["name"]: port["containerPort"] for port in ray(specs(objects)["worker"])["ports"]}
        (application,) = serve_config(objects)["applications"]
        assert ports[endpoint["port"]] == application["args"]["metrics_port"]
        (job,) = (rule["replacement"] for rule in endpoint["relabelings"] if rule.get("targetLabel") == "job")
        assert f'up{{job="{job}"}}' in json.dumps(one(objects, "PrometheusRule")["spec"]).replace("\\", "")

    def test_watches_the_job_of_another_scrape_where_it_is_named(self) -> None:
        rule = {"prometheusRule": {"enabled": True, "job": "pods"}}
        found = json.dumps(one(rendered({"monitoring": rule}), "PrometheusRule")["spec"]).replace("\\", "")
        assert 'up{job="pods"}' in found
        assert 'job="ken-serve"' not in found

    def test_leaves_out_workers_without_a_replica(self, objects: list[Object]) -> None:
        (endpoint,) = one(objects, "PodMonitor")["spec"]["podMetricsEndpoints"]
        kept = {"sourceLabels": ["__meta_kubernetes_pod_ready"], "regex": "true", "action": "keep"}
        assert kept in endpoint["relabelings"]

    def test_is_not_scraped_twice(self, objects: list[Object]) -> None:
        worker = templates(one(objects, "RayService"))["worker"]
        assert "annotations" not in worker["metadata"]
        assert "prometheus.io/scrape" in templates(one(rendered({}), "RayService"))["worker"]["metadata"]["annotations"]


class TestTheNetwork:
    def test_of_the_release_is_shut_and_that_of_others_is_not(self) -> None:
        shut = one(rendered({}), "NetworkPolicy", "default-deny")["spec"]["podSelector"]
        (expression,) = shut["matchExpressions"]
        apps = {t["metadata"]["labels"]["app"] for o in rendered({}) for t in templates(o).values()}
        assert apps <= set(expression["values"])
        assert (
            one(rendered({"networkPolicy": {"wholeNamespace": True}}), "NetworkPolicy", "default-deny")["spec"][
                "podSelector"
            ]
            == {}
        )

    def test_opens_what_values_name_and_no_more(self) -> None:
        def leaves(row: str) -> set[int]:
            rules = one(rendered(MATRIX[row]), "NetworkPolicy", "-ray")["spec"]["egress"]
            return {port["port"] for rule in rules for port in rule.get("ports", [])}

        assert leaves("defaults") == {6379}
        assert leaves("traces") == {6379, 4318}
        assert leaves("stores elsewhere") == {6379, 6380}

    @pytest.mark.parametrize("empty", [[], None])
    def test_lets_nobody_in_or_out_by_an_empty_list(self, empty: list[Object] | None) -> None:
        """To Kubernetes, an empty list of peers is everybody."""
        sides = {"clients": "from", "prometheus": "from", "operator": "from"}
        sides |= dict.fromkeys(("dns", "apiServer", "hub", "otlp", "externalRedis"), "to")
        policies = {name: {side: empty} for name, side in sides.items()}
        objects = rendered({"base": {"download": DOWNLOAD}, "networkPolicy": policies})
        for policy in all_of(objects, "NetworkPolicy"):
            rules = [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]
            assert all(rule.get("from") or rule.get("to") for rule in rules), policy
        assert one(objects, "NetworkPolicy", "operator")["spec"]["ingress"] == []

    def test_opens_the_hub_to_the_download_alone(self) -> None:
        policy = one(rendered(MATRIX["a base from a hub"]), "NetworkPolicy", "base-download")["spec"]
        pod = one(rendered(MATRIX["a base from a hub"]), "Job")["spec"]["template"]["metadata"]["labels"]
        assert policy["podSelector"]["matchLabels"].items() <= pod.items()
        assert (
            not one(rendered({}), "NetworkPolicy", "-ray")["spec"]["podSelector"]["matchLabels"].items() <= pod.items()
        )


class TestTwoReleasesInOneNamespace:
    def test_share_no_names_and_no_pods(self) -> None:
        first, second = (rendered(MATRIX["monitoring"], release) for release in ("blue", "green"))
        names = [{(o["kind"], o["metadata"]["name"]) for o in objects} for objects in (first, second)]
        assert not names[0] & names[1]
        pods = [t["metadata"]["labels"] for o in second for t in templates(o).values()]
        for labels in selectors(first):
            assert not labels or not any(labels.items() <= pod.items() for pod in pods)

    def test_are_named_after_the_chart_only_once(self) -> None:
        assert one(rendered({}, "ken-serve"), "RayService")["metadata"]["name"] == "ken-serve"


class TestImages:
    def test_are_named_by_digest(self) -> None:
        pods = specs(rendered(MATRIX["images by digest"]))
        ours = {c["image"] for name, spec in pods.items() if "redis" not in name for c in containers(spec)}
        assert ours == {f"registry.example.org/ken@{DIGEST}"}
        assert ray(pods["k-ken-serve-redis"])["image"] == f"redis@{DIGEST}"

    def test_are_never_the_latest(self) -> None:
        pods = specs(rendered({}))
        assert all(c["image"].rpartition(":")[2] not in ("", "latest") for s in pods.values() for c in containers(s))

    def test_hold_the_version_of_ray_that_kuberay_is_told(self) -> None:
        (pinned,) = re.findall(r"^ray==(\S+)$", (DEPLOY.parent / "constraints.txt").read_text(), re.MULTILINE)
        assert one(rendered({}), "RayService")["spec"]["rayClusterConfig"]["rayVersion"] == pinned


class TestTheNotes:
    """What helm says after an installation."""

    @pytest.mark.parametrize("row", ["defaults", "a claim that exists", "images by digest", "a claim of a class"])
    def test_have_a_pod_for_the_checkpoint_unless_a_job_gets_it(self, row: str) -> None:
        values = MATRIX[row]
        found = re.search(r"<<'END'\n(.*?)\nEND\n", notes(values), re.DOTALL)
        if "download" in values.get("base", {}):
            assert found is None
            return
        assert found is not None
        pod = yaml.safe_load(found[1])
        assert (problems(pod), weaknesses(pod["spec"])) == ([], [])
        assert volume_claims(pod["spec"]) == volume_claims(specs(rendered(values))["worker"])
        (mount,) = ray(pod["spec"])["volumeMounts"]
        assert "readOnly" not in mount
        assert f"{pod['metadata']['name']}:{mount['mountPath']}/$file" in notes(values)

    def test_name_the_number_of_replicas(self) -> None:
        assert "2 to 8 replicas on cpu" in notes({})
        assert "2 replica(s) on cpu" in notes({"autoscaling": {"enabled": False}})

    @pytest.mark.parametrize("row", ["an ingress", "a route of a gateway", "an update in steps"])
    def test_let_in_what_clients_come_through(self, row: str) -> None:
        peers = yaml.safe_load((CHART / "values.yaml").read_text())["networkPolicy"]["clients"]["from"]
        (labels,) = (p["namespaceSelector"]["matchLabels"] for p in peers if "namespaceSelector" in p)
        ((name, value),) = labels.items()
        said = f"kubectl label namespace NAMESPACE {name}={value}"
        assert said in notes(MATRIX[row])
        assert said not in notes({**MATRIX[row], "networkPolicy": {"enabled": False}})
        assert said not in notes({})

    def test_warn_of_a_claim_that_one_node_has(self) -> None:
        assert "the one node that has the claim" in notes(MATRIX["a claim of one node"])
        assert "the one node that has the claim" not in notes({"base": {"download": DOWNLOAD}})


def volume_claims(spec: Object) -> dict[str, str]:
    found = ((v["name"], v.get("persistentVolumeClaim")) for v in spec["volumes"])
    return {name: claim["claimName"] for name, claim in found if claim}


class TestTheSchema:
    def test_knows_every_value_and_no_other(self) -> None:
        schema = json.loads((CHART / "values.schema.json").read_text())
        values = yaml.safe_load((CHART / "values.yaml").read_text())
        assert differing(values, schema) == []

    def test_explains_every_value_that_has_an_explanation(self) -> None:
        text = (CHART / "values.yaml").read_text()
        described = json.dumps(json.loads((CHART / "values.schema.json").read_text()), ensure_ascii=False)
        explained = re.findall(r"^ *# -- (.+)$", text, re.MULTILINE)
        assert len(explained) > 50
        assert [line for line in explained if json.dumps(line, ensure_ascii=False)[1:-1] not in described] == []


class TestTheManual:
    def test_names_values_that_exist(self) -> None:
        values = yaml.safe_load((CHART / "values.yaml").read_text())
        manual = (DEPLOY / "README.md").read_text()
        kubernetes = manual[manual.index("## Kubernetes") : manual.index("## Secrets")]
        quoted = re.findall(r"`([a-zA-Z]+(?:\.[a-zA-Z]+)*)(?:=[^`]*)?`", kubernetes)
        named = [path.split(".") for path in quoted if path.partition(".")[0] in values]
        assert len(named) > 40
        assert [path for path in named if not exists(values, path)] == []

    def test_leaves_out_no_value(self) -> None:
        manual = (DEPLOY / "README.md").read_text()
        table = "".join(line for line in manual.splitlines() if line.startswith("| `"))
        names = set(yaml.safe_load((CHART / "values.yaml").read_text()))
        rarely_changed = {"fullnameOverride", "names", "commonLabels", "commonAnnotations"}
        assert {name for name in names - rarely_changed if f"`{name}" not in table} == set()


def exists(values: Any, path: list[str]) -> bool:
    for step in path:
        if not isinstance(values, dict) or step not in values:
            return False
        values = values[step]
    return True


def differing(values: Object, schema: Object, path: str = "") -> list[str]:
    """The paths at which values and schema do not have the same names. Free maps, such as labels, have none."""
    known = schema.get("properties")
    if known is None or path in (".names", ".settings") or not isinstance(values, dict):
        return []
    found = [f"{path}.{name}" for name in set(values) ^ (set(known) - {"global"})]
    for name in set(values) & set(known):
        found += differing(values[name], known[name], f"{path}.{name}")
    return found


def test_the_release_is_small_enough_for_helm_to_keep() -> None:
    """Helm keeps a release in a Secret, which holds a MiB at most."""
    size = sum(path.stat().st_size for path in CHART.rglob("*") if path.is_file())
    assert size + len(run("template", MATRIX["monitoring"]).stdout) < 1 << 20


@pytest.mark.skipif(not CRD.is_file(), reason="no shared/crds beside the repository")
def test_a_mistake_in_a_ray_service_is_found() -> None:
    service = one(rendered({}), "RayService")
    service["spec"]["rayClusterConfig"]["autoscalerOptions"]["idleTimeout"] = 60
    assert "idleTimeout" in " ".join(problems(service))


@pytest.mark.parametrize(
    ("row", "kind", "harm"),
    [
        ("monitoring", "PodMonitor", lambda spec: spec.update(podMetricEndpoints=[])),
        ("monitoring", "PrometheusRule", lambda spec: spec["groups"][0]["rules"][0].pop("expr")),
        ("a route of a gateway", "HTTPRoute", lambda spec: spec["rules"][0]["backendRefs"][0].update(port="8000")),
        ("a gateway of its own", "Gateway", lambda spec: spec["listeners"][0]["tls"].pop("certificateRefs")),
        ("an ingress", "Ingress", lambda spec: spec["rules"][0]["http"]["paths"][0].pop("pathType")),
    ],
    ids=lambda value: value if isinstance(value, str) and value[0].isupper() else "",
)
def test_a_mistake_in_an_object_is_found(row: str, kind: str, harm: Any) -> None:
    found = one(rendered(MATRIX[row]), kind)
    assert problems(found) == []
    harm(found["spec"])
    assert problems(found)


def test_the_settings_of_the_schema_are_those_of_the_server() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]["settings"]["properties"]) < set(Settings.model_fields)
