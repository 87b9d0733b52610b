"""The OpenAPI document tells all that the routes do, and the routes do nothing else.

`schemathesis` sends what the document allows and what it does not, and compares the answers with it: thousands of
requests of all operations. It does not check that what a form allows is answered with 200: parameters depend on
the task's kind, which no form of a route can say.
"""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis import Case, GenerationMode, checks
from schemathesis.config import (
    ChecksConfig,
    GenerationConfig,
    NotAServerErrorConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
)
from schemathesis.core.failures import FailureGroup

from ken_core import DeltaFile
from serving import errors
from serving.api import create_app
from serving.api.application import protocol_of
from serving.api.failures import Failure
from serving.config import load_settings
from serving.errors import ServingError
from serving.routing.routes import Route
from serving.security.keys import Key, new_key
from serving.service import Service
from tests.tiny_checkpoints import Tiny
from tests.tiny_language_tasks import LanguageTasks

MANY = "/v1/predict"
WRITING = {
    "POST /models/{task}/v1/chat/completions",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/tasks/{task}/generate",
}
"""Operations that only a language model answers."""
ADMIN = {"Authorization": "Bearer of-the-admin"}
OPEN = {
    "/healthz", "/readyz", "/metrics", "/metrics/targets", "/v1/session", "/v2", "/v2/health/live", "/v2/health/ready",
}  # fmt: skip
WAITING = {"/v1/events", "/v1/overlap"}
"""Paths of operations that are no predictions, of which so many are answered at once."""
ENDLESS = {"GET /v1/events"}
"""Operations whose answers have no end."""
SIGNING_IN = "POST /v1/session"
FITTING = {"embed": "search", "embeddings": "vectors", "rerank": "ranks"}
"""The task that a route is asked about, by the end of its path; others ask `emotion`."""
IN_OTHER_WORDS = {
    "/v1/chat/completions": {"422", "501"},
    "/v1/completions": {"422", "501"},
    "/v1/embeddings": {"422", "501"},
    "/v1/rerank": {"501"},
    "/v2/rerank": {"501"},
    MANY: {"404", "501"},
}
"""Failures of predictions that a route answers with another status, or within its answer."""
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.unsupported_method,
    checks.allow_header_conformance,
]
_GENERATION = GenerationConfig(with_security_parameters=False)
_LATE = ChecksConfig(not_a_server_error=NotAServerErrorConfig(expected_statuses=["2xx", "4xx", "504"]))
_EXAMPLES = settings(
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True)
class Closed:
    """A service that answers nobody without a key, what its tasks are, and a later version of `emotion`."""

    service: Service
    app: Any
    tasks: Mapping[str, DeltaFile]
    later: DeltaFile
    key: Key = field(default_factory=lambda: new_key("somebody", ["predict"])[0])

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(json.dumps(self.app.openapi()))

    def restore(self) -> None:
        """Every task back; `emotion` with versions and routes to return to; a key to revoke."""
        store = self.service.store
        store.keys.put(self.key.id, self.key.record())
        for name, file in self.tasks.items():
            known = store.tasks.get(name)
            if not known or known.aliases.get("live") != file.digest:
                store.tasks.publish(name, file)
        store.tasks.publish("emotion", self.later, "canary")
        store.tasks.promote("emotion", self.later.digest)
        store.tasks.promote("emotion", self.tasks["emotion"].digest)
        store.tasks.set_route("emotion", Route({"live": 1}))
        assert not store.replicas.wait(store.tasks.set_route("emotion", Route({"live": 90, "canary": 10})), 10).pending


@pytest.fixture(scope="module")
def closed(
    tiny: Tiny, of_every_kind: dict[str, DeltaFile], embedded_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Closed]:
    namespace = f"openapi-{uuid.uuid4().hex[:12]}"
    chosen = {"base": str(tiny.base_folder), "data_dir": tmp_path_factory.mktemp("openapi"), "namespace": namespace}
    service = Service(load_settings(**chosen, threads=1, max_tokens=4096, admin_token="of-the-admin"), embedded_url)
    service.start()
    later = tiny.delta(tiny.tuned("emotion-later", ["anger", "joy", "fear"], seed=77))
    yield Closed(service, create_app(service), of_every_kind, later)
    service.stop()


@pytest.fixture
def closed_writer(embedded_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    """The same with language models, which may write little, and for a fifth of a second."""
    language_tasks = LanguageTasks(tmp_path_factory.mktemp("writers"), positions=48)
    namespace = f"openapi-{uuid.uuid4().hex[:12]}"
    chosen = {"base": str(language_tasks.path), "data_dir": tmp_path_factory.mktemp("openapi"), "namespace": namespace}
    settings = load_settings(
        **chosen, threads=1, max_tokens=4096, admin_token="of-the-admin", generation_timeout_seconds=0.2
    )
    service = Service(settings, embedded_url)
    service.start()
    tasks = {"emotion": language_tasks.language_model("emotion")}
    yield Closed(service, create_app(service), tasks, language_tasks.language_model("emotion-later"))
    service.stop()


@pytest.fixture
def operations(closed: Closed) -> list[Operation]:
    """Everything the document names."""
    return [
        Operation(method, path, told)
        for path, methods in closed.document["paths"].items()
        for method, told in methods.items()
    ]


@dataclass(frozen=True)
class Operation:
    method: str
    path: str
    told: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.method.upper()} {self.path}"

    def content(self, status: str) -> Any:
        return self.told["responses"][status].get("content", {})


# What it says


def test_every_operation_has_an_id_of_its_own_a_summary_a_description_and_tags_that_are_described(
    closed: Closed, operations: list[Operation]
) -> None:
    assert len(operations) == 62
    described = {tag["name"] for tag in closed.document["tags"] if tag["description"]}
    for operation in operations:
        assert operation.told["summary"], operation
        assert operation.told["description"], operation
        assert operation.told["tags"], operation
    assert {tag for operation in operations for tag in operation.told["tags"]} == described
    assert len({operation.told["operationId"] for operation in operations}) == len(operations)


def test_every_reference_leads_somewhere(closed: Closed) -> None:
    document = closed.document
    assert not {"HTTPValidationError", "ValidationError"} & document["components"]["schemas"].keys()
    for reference in re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)):
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in place, reference
            place = place[part]


def test_every_json_body_has_an_example_that_fits_its_form(operations: list[Operation]) -> None:
    bodies = [(o, o.told["requestBody"]["content"]) for o in operations if "requestBody" in o.told]
    assert len(bodies) == 25
    for operation, content in bodies:
        if "application/json" in content:
            form = content["application/json"]["schema"]
            assert form["examples"], operation
            for example in form["examples"]:
                Draft202012Validator(form).validate(example)


def test_every_answer_has_an_example_that_fits_its_form(closed: Closed, operations: list[Operation]) -> None:
    forms = {"components": closed.document["components"]}

    def examples_of(form: Mapping[str, Any]) -> list[Any]:
        if "$ref" in form:
            return examples_of(forms["components"]["schemas"][form["$ref"].rpartition("/")[2]])
        inner = [form["items"]] if "items" in form else form.get("anyOf", [])
        return form.get("examples") or [example for part in inner for example in examples_of(part)]

    for operation in operations:
        for answer in (operation.content(status) for status in operation.told["responses"] if status < "300"):
            if "application/json" not in answer:
                continue
            form = answer["application/json"]["schema"]
            shown = answer["application/json"].get("example")
            assert shown or examples_of(form), operation
            if shown:
                Draft202012Validator({**form, **forms}).validate(shown)
    for name, form in forms["components"]["schemas"].items():
        for example in form.get("examples", ()):
            assert Draft202012Validator({**form, **forms}).is_valid(example), name


def test_failures_are_described_in_the_form_of_the_protocol_whose_path_it_is(operations: list[Operation]) -> None:
    for operation in operations:
        for status, answer in operation.told["responses"].items():
            if status < "300":
                continue
            [(media_type, described)] = answer["content"].items()
            made = protocol_of(operation.path).shape(Failure(int(status), "Title", "detail", "some-id"))
            assert made.headers["content-type"] == media_type, operation
            assert json.loads(made.body).keys() == described["schema"]["properties"].keys(), operation
            Draft202012Validator(described["schema"]).validate(json.loads(made.body))


def test_whatever_may_go_wrong_with_a_prediction_is_among_its_failures(operations: list[Operation]) -> None:
    raised = {
        made.status for made in vars(errors).values() if isinstance(made, type) and issubclass(made, ServingError)
    }
    may = {str(status) for status in raised - {errors.ConflictError.status, errors.StoreFullError.status}}
    predictions = [operation for operation in operations if "504" in operation.told["responses"]]
    assert len(predictions) == 18
    for operation in predictions:
        ours = {made for made in operation.told["responses"] if made >= "400"} - {"405"}
        assert ours == may - IN_OTHER_WORDS.get(operation.path, set()), operation


def test_failures_that_many_operations_share_are_named_where_they_apply(operations: list[Operation]) -> None:
    for operation in operations:
        failures = operation.told["responses"].keys()
        assert {"405", "500"} <= failures, operation
        keyed = operation.path not in OPEN or str(operation) == SIGNING_IN
        assert ({"401", "403", "503"} <= failures) == keyed, operation
        assert ({"400", "408", "413"} <= failures) == ("requestBody" in operation.told), operation
        assert ("429" in failures) == ("504" in failures or operation.path in WAITING), operation
        assert "404" in failures or "{" not in operation.path, operation


def test_headers_are_named_where_they_are_read_and_where_they_are_sent(operations: list[Operation]) -> None:
    for operation in operations:
        taken = {p["name"] for p in operation.told.get("parameters", ()) if p["in"] == "header"}
        predicts = "504" in operation.told["responses"]
        assert "X-Request-Id" in taken, operation
        assert ({"X-Ken-Key", "X-Request-Timeout-Ms"} <= taken) == predicts, operation
        pins = {"X-Ken-Delta", "X-Request-Timeout-Ms"}
        assert (pins <= taken) == (predicts and operation.path != MANY), operation
        assert operation.path != MANY or "X-Ken-Delta" not in taken, operation
        assert ("X-Ken-Task" in taken) == (operation.path in ("/embed", "/predict", "/rerank")), operation
        for status, answer in operation.told["responses"].items():
            sent = answer["headers"].keys()
            assert "X-Request-Id" in sent, operation
            assert ("Server-Timing" in sent) == (predicts and status == "200"), operation
            assert ("X-Ken-Delta" in sent) == ("Server-Timing" in sent and operation.path != MANY), operation
            assert ("Retry-After" in sent) == (status in ("429", "503")), operation
            assert ("WWW-Authenticate" in sent) == (status == "401"), operation


def test_a_key_is_declared_where_one_is_needed_and_nowhere_else(
    closed: Closed, operations: list[Operation], talk: Callable[..., Any]
) -> None:
    assert closed.document["components"]["securitySchemes"].keys() == {"bearer", "apiKey", "session"}

    async def conversation(client: httpx.AsyncClient) -> dict[Operation, int]:
        filled = {str(o): o.path.format_map(_Somewhere()) for o in operations}
        return {str(o): (await client.request(o.method, filled[str(o)])).status_code for o in operations}

    answered = talk(closed.service, conversation)
    for operation in operations:
        assert (answered[str(operation)] == 401) == (operation.path not in OPEN), operation
        assert bool(operation.told.get("security")) == (operation.path not in OPEN), operation


class _Somewhere(dict[str, str]):
    """A value for each parameter of a path."""

    def __missing__(self, name: str) -> str:
        return {"digest": "0" * 64, "index": "0", "key": "0" * 12}.get(name, "spam")


# What is so


@dataclass
class Conversation:
    """Requests about every operation, of somebody with all keys and of somebody with none."""

    closed: Closed
    examples: int
    """How many an operation, beside those that its form gives."""
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def hold(self, only: Callable[[str], bool]) -> None:
        """Ask about one operation after the other, and note where answers are not as documented.

        Args:
            only: says of an operation's label whether it is asked about.
        """
        project = ProjectConfig(generation=_GENERATION, checks=_LATE)
        told = schemathesis.openapi.from_dict(
            seeded(self.closed),
            config=SchemathesisConfig(seed=1, projects=ProjectsConfig(default=project)),
        )
        told.app = self.closed.app
        for found in told.get_all_operations():
            operation = found.ok()
            if not only(operation.label):
                continue
            self.closed.restore()
            try:
                self._about(operation)
            except FailureGroup as group:
                self.broken.append("\n".join([operation.label, group.message, *map(str, group.exceptions)]))

    def _about(self, operation: Any) -> None:
        """First what is shown as examples, then every border of every form, then whatever else comes to mind."""
        body, parameters = _body(operation.definition.raw), operation.definition.raw["parameters"]
        named = {p["name"]: p["schema"]["enum"][0] for p in parameters if p["in"] == "path" and "enum" in p["schema"]}
        for example in body.get("examples", ()):
            self._ask(operation.Case(path_parameters=named, body=example, media_type="application/json"), ADMIN)
        modes = list(GenerationMode)
        for case in operation.schema.iter_coverage_cases(
            operation, generation_modes=modes, generation_config=_GENERATION
        ):
            self._ask(case, ADMIN)

        @settings(_EXAMPLES, max_examples=self.examples)
        @given(st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes]))
        def whatever(case: Case) -> None:
            for caller in (ADMIN, {}):
                self._ask(case, caller)

        whatever()

    def _ask(self, case: Case, headers: Mapping[str, str]) -> None:
        response = case.call(headers=dict(headers))
        self.answered[case.operation.label, response.status_code] += 1
        case.validate_response(response, checks=CHECKS)


def seeded(closed: Closed) -> dict[str, Any]:
    """The document with what there is in place of all that might be: tasks, versions, a key, parameters of kinds."""
    document = closed.document
    for path, methods in document["paths"].items():
        task = FITTING.get(path.rpartition("/")[2], "emotion")
        task = task if task in closed.tasks else "emotion"
        digest = closed.tasks[task].digest
        there: dict[str, list[Any]] = {
            "task": [task],
            "model": [task],
            "version": ["live", digest],
            "digest": [digest],
            "key": ["of-the-admin" if path == "/v1/session" else closed.key.id],
            "alias": ["live", "canary"],
            "parameters": [{}, {"truncation": True}],
            "X-Ken-Task": [task],
            "X-Ken-Delta": [digest],
            "X-Request-Timeout-Ms": [20_000, 1],
            **({"tasks": ["emotion,spam"]} if path == "/v1/overlap" else {}),
        }
        for told in methods.values():
            for parameter in told["parameters"]:
                _narrow({parameter["name"]: parameter["schema"]}, there)
            body = _body(told)
            _narrow(body.get("properties", {}), there)
            for example in body.get("examples", ()):
                example.update({part: there[part][0] for part in ("model", "digest") if part in example})
    return document


def _narrow(forms: Mapping[str, dict[str, Any]], there: Mapping[str, list[Any]]) -> None:
    for name in forms.keys() & there.keys():
        forms[name]["enum"] = there[name]


def _body(told: Mapping[str, Any]) -> dict[str, Any]:
    """The form of an operation's JSON body; empty where it has none."""
    content = told.get("requestBody", {}).get("content", {})
    form: dict[str, Any] = content.get("application/json", {}).get("schema", {})
    return form


@pytest.mark.parametrize("examples", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_nobody_gets_an_answer_that_is_not_documented(
    examples: int, closed: Closed, operations: list[Operation]
) -> None:
    told = Conversation(closed, examples)
    told.hold(lambda label: label not in WRITING | ENDLESS)
    assert not told.broken, "\n\n".join(told.broken)
    done = {label for label, status in told.answered if status < 300}
    impossible = {"POST /v1/store/adopt"}  # while the store is the one that the replica knows
    assert done == {str(operation) for operation in operations} - impossible - WRITING - ENDLESS


@pytest.mark.parametrize("examples", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_nobody_gets_a_text_that_is_not_documented(examples: int, closed_writer: Closed) -> None:
    told = Conversation(closed_writer, examples)
    told.hold(lambda label: label in WRITING)
    assert not told.broken, "\n\n".join(told.broken)
    assert {label for label, status in told.answered if status < 300} == WRITING
