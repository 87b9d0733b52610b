"""Every page of the console in a real browser, on a real replica: what it shows, changes, refuses and hides."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from browsing import Console
from over_http import Served

from ken_core import DeltaFile
from serving.routing.kinds import KINDS
from tests.tiny_checkpoints import Deltas, Tiny
from tests.tiny_language_tasks import LanguageTasks

pytestmark = pytest.mark.slow

Serve = Callable[..., Served]
Open = Callable[..., Console]
ADMIN = "of-the-admin"
FILES = Path(__file__).resolve().parents[3] / "serving" / "console"
MOST_BYTES = 150_000
PAGES = ("tasks", "tasks/spam", "playground?task=spam&with=emotion", "overlap", "replicas", "keys")
MARKUP = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def every_kind(serve: Serve, of_every_kind: dict[str, DeltaFile]) -> Served:
    return serve({task: {"live": file} for task, file in of_every_kind.items()})


@pytest.fixture(scope="module")
def with_keys(serve: Serve, deltas: Deltas) -> Served:
    tasks = {"spam": {"live": deltas.spam, "canary": deltas.spam_2}, "emotion": {"live": deltas.emotion}}
    return serve(tasks, auth="on", admin_token=ADMIN)


@pytest.fixture
def console(small: Served, console_of: Open) -> Console:
    return console_of(small.url)


def key_for(served: Served, **body: Any) -> str:
    """A new key of a server whose admin token is `ADMIN`."""
    answer = served.post("/v1/keys", json={"name": "somebody", **body}, headers={"X-Api-Key": ADMIN})
    assert answer.status_code == 201, answer.text
    token: str = answer.json()["token"]
    return token


def task_of(served: Served, name: str) -> Any:
    return served.get(f"/v1/tasks/{name}").json()


def playground_answer(console: Console, task: str, kind: str | None = None) -> str:
    """What the playground shows when a task is asked."""
    console.open(f"playground?task={task}")
    console.page.locator("textarea").first.wait_for()
    if kind:
        console.page.get_by_label("Ask for").select_option(kind)
    console.press("Ask")
    output = console.page.locator(".output")
    output.wait_for()
    shown: str = output.inner_text()
    return shown


# What may not be missed


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_page(
    small: Served, with_keys: Served, every_kind: Served, console_of: Open, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python").Axe()

    def check(console: Console) -> None:
        found = axe.run(console.page).response["violations"]
        assert [(console.page.url, one["id"], one["nodes"][0]["html"][:200]) for one in found] == []

    console = console_of(small.url, color_scheme=scheme)
    for place in PAGES:
        console.open(place)
        check(console)
    console.open("tasks/spam")
    console.press("Roll back…: live")
    check(console)
    for task in ("answers", "tags", "search"):
        console = console_of(every_kind.url, color_scheme=scheme)
        playground_answer(console, task)
        check(console)
    console = console_of(with_keys.url, color_scheme=scheme)
    console.open()
    console.sign_in("ken_wrong")
    console.sees("Unauthorized")
    check(console)


@pytest.mark.parametrize("place", PAGES)
def test_no_page_scrolls_sideways_at_360_pixels(small: Served, console_of: Open, place: str) -> None:
    console = console_of(small.url, viewport={"width": 360, "height": 740})
    console.open(place)
    assert console.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_it_loads_nothing_from_elsewhere_and_is_small(small: Served, console_of: Open) -> None:
    console = console_of(small.url)
    asked: list[str] = []
    console.page.on("request", lambda request: asked.append(request.url))
    console.open("tasks")
    assert asked
    assert [url for url in asked if not url.startswith((small.url, "data:"))] == []
    assert sum(file.stat().st_size for file in FILES.iterdir()) < MOST_BYTES


def test_markup_in_labels_and_texts_is_shown_as_text(serve: Serve, tiny: Tiny, console_of: Open) -> None:
    file = tiny.delta(tiny.tuned("markup", [MARKUP, "plain"], seed=41))
    console = console_of(serve({"markup": {"live": file}}).url)
    console.open("playground?task=markup")
    console.page.get_by_label("Text", exact=True).fill(MARKUP)
    console.press("Ask")
    console.sees(MARKUP)
    assert console.page.locator("main img").count() == 0
    assert console.page.title() == "Playground · ken-serve"


def test_it_says_so_when_the_server_is_out_of_reach_and_goes_on_after_that(console: Console) -> None:
    console.open("tasks")
    console.page.context.set_offline(True)
    trouble = console.page.locator("#trouble .notice")
    trouble.get_by_text("The server cannot be reached").wait_for()
    console.page.context.set_offline(False)
    trouble.wait_for(state="detached")


def test_skipping_to_the_content_stays_on_the_page(console: Console) -> None:
    console.open("replicas")
    console.page.get_by_role("link", name="Skip to content").focus()
    console.page.keyboard.press("Enter")
    console.page.locator("main:focus", has_text="Base and placement").wait_for()
    assert console.page.url.endswith("#/replicas")


def test_all_of_it_works_by_keyboard(console: Console) -> None:
    console.open("tasks")
    page = console.page
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement.textContent") != "spam":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("h1:focus", has_text="spam").wait_for()
    page.get_by_role("button", name="Roll back…: live").focus()
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="detached")
    assert page.evaluate("document.activeElement.ariaLabel") == "Roll back…: live"


def test_it_copes_with_a_server_of_an_older_version(console: Console) -> None:
    for path in ("session", "activity", "events"):
        console.page.route(f"**/v1/{path}", lambda route: route.fulfill(status=404, json={"title": "Not found"}))
    with console.page.expect_response("**/v1/activity"):
        console.open("tasks")
    console.page.get_by_role("link", name="spam").click()
    console.sees("What a delta keeps")
    assert console.page.locator(".notice").count() == 0
    assert "no key needed" not in console.page.locator("#who").inner_text()


# Tasks


def test_a_server_without_tasks_says_how_to_publish_one(serve: Serve, console_of: Open) -> None:
    console = console_of(serve({}).url)
    console.open("tasks")
    console.sees("ken publish trec trec.ken")


def test_200_tasks_are_shown_in_parts_and_searched(serve: Serve, deltas: Deltas, console_of: Open) -> None:
    console = console_of(serve({f"customer-{i:03}": {"live": deltas.spam} for i in range(200)}).url)
    console.open("tasks")
    rows = console.page.locator("tbody tr")
    console.sees("200 tasks, the first 50 shown")
    assert rows.count() == 50
    console.press("Show more")
    assert rows.count() == 100
    console.page.get_by_label("Search").fill("19")
    console.sees("12 of 200 tasks")
    assert rows.count() == 12


def test_a_task_published_meanwhile_appears_by_itself(serve: Serve, deltas: Deltas, console_of: Open) -> None:
    served = serve({"spam": {"live": deltas.spam}})
    console = console_of(served.url)
    console.open("tasks")
    served.service.store.tasks.publish("emotion", deltas.emotion)
    console.page.get_by_role("link", name="emotion").wait_for()


# One task


@pytest.mark.parametrize(
    "weights", [{"live": 1}, {"live": 90, "canary": 10}, {"a": 1, "b": 1, "c": 1}, {"a": 999_999, "b": 1}]
)
def test_shares_add_up_however_a_slider_is_moved(console: Console, weights: dict[str, int]) -> None:
    found = console.run(
        "shares.js",
        """(shares, weights) => [0, 1, 333, 1000].map((share) => {
            const made = shares.withShare(shares.sharesOf(weights), Object.keys(weights).at(-1), share);
            return [shares.sharesOf(weights), made, shares.weightsOf(made)];
        })""",
        weights,
    )
    for before, after, sent in found:
        assert sum(before.values()) == sum(after.values()) == 1000
        assert min(before.values()) >= 1
        assert min(after.values()) >= 0
        assert {target: share / 1000 for target, share in after.items() if share} == pytest.approx(
            {target: weight / sum(sent.values()) for target, weight in sent.items()}
        )


def test_patterns_of_tasks_mean_what_they_mean_to_the_server(console: Console) -> None:
    names = ["spam", "spam.1", "Spam", "sp", "topic-a", "topic-b", "a+b"]
    patterns = ["*", "sp*", "s?am", "spam.*", "topic-[ab]", "topic-[!a]", "[z-a]", "[", "a+b", "topic"]
    found = console.run(
        "session.js",
        "(session, [patterns, names]) => patterns.map((p) => names.map((n) => session.matches(p, n)))",
        [patterns, names],
    )
    assert found == [[fnmatch.fnmatchcase(name, pattern) for name in names] for pattern in patterns]


def test_a_version_is_made_live_and_rolled_back(small: Served, console: Console, deltas: Deltas) -> None:
    console.open("tasks/spam")
    console.press(f"Make live: {deltas.spam_2.digest[:12]}")
    console.agree()
    assert task_of(small, "spam")["aliases"]["live"] == deltas.spam_2.digest
    console.page.locator("h1:focus").wait_for()
    console.page.locator("#announcer", has_text=f"live points at {deltas.spam_2.digest[:12]} now").wait_for()
    console.sees("Promoted")
    console.press("Roll back…: live")
    console.agree()
    assert task_of(small, "spam")["aliases"]["live"] == deltas.spam.digest
    console.sees("Rolled back")
    console.page.locator("#announcer", has_text="live is rolled back").wait_for()
    assert console.run(
        "ask.js",
        """async (ask) => {
            const place = document.getElementById("announcer");
            const said = new Promise((heard) => new MutationObserver(() =>
                heard([place.textContent, document.querySelectorAll("dialog").length])
            ).observe(place, { childList: true }));
            ask.confirmed({ title: "Sure?", does: "Do it", work: async () => "It is done" });
            document.querySelector("dialog form").requestSubmit();
            return said;
        }""",
        None,
    ) == ["It is done", 0], "what is said while a modal dialog is open is not read out"


def test_what_somebody_changed_meanwhile_is_not_rolled_back(serve: Serve, deltas: Deltas, console_of: Open) -> None:
    served = serve({"spam": {"live": deltas.spam, "canary": deltas.spam_2}})
    console = console_of(served.url)
    console.open("tasks/spam")
    console.press("Roll back…: live")
    promotion = {"digest": deltas.spam_2.digest, "wait": 10}
    assert httpx.post(f"{served.url}/v1/tasks/spam/promote", json=promotion).status_code == 200
    console.page.locator("dialog button[type=submit]").click()
    console.sees("Changed meanwhile")
    assert task_of(served, "spam")["aliases"]["live"] == deltas.spam_2.digest
    console.press("Cancel")
    console.press("Roll back…: live")
    console.sees(f"live points at {deltas.spam_2.digest[:12]} now")
    console.agree()
    assert task_of(served, "spam")["aliases"]["live"] == deltas.spam.digest


def test_focus_and_scroll_position_outlast_what_is_new(serve: Serve, deltas: Deltas, console_of: Open) -> None:
    served = serve({"spam": {"live": deltas.spam, "canary": deltas.spam_2}})
    console = console_of(served.url, viewport={"width": 360, "height": 740})
    page = console.page
    console.open("tasks/spam")
    for name in (f"Alias…: {deltas.spam.digest[:12]}", "Roll back…: live"):
        page.get_by_role("button", name=name).focus()
        served.service.store.tasks.publish("spam", deltas.spam_3, f"by-{len(name)}")
        page.locator("td .chip", has_text=f"by-{len(name)}").wait_for()
        assert page.evaluate("document.activeElement.ariaLabel") == name
    console.open("replicas")
    load = page.get_by_role("region", name="Load of the replicas")
    load.focus()
    load.evaluate("(one) => (one.scrollLeft = 200)")
    for _ in range(2):
        with page.expect_response("**/v1/activity"):
            pass
    assert page.evaluate("[document.activeElement.ariaLabel, document.activeElement.scrollLeft]") == [
        "Load of the replicas",
        200,
    ]


def test_requests_are_split_and_copied_and_all_sent_to_live_again(small: Served, console: Console) -> None:
    console.open("tasks/spam")
    page = console.page
    page.get_by_label("Add a version to the split").select_option("canary")
    share = page.get_by_label("Per cent of requests to canary")
    share.fill("12.5")
    share.press("Tab")
    assert page.get_by_label("Per cent of requests to live").input_value() == "87.5"
    page.get_by_label("Shadow").select_option("next")
    console.press("Apply")
    console.agree()
    found = task_of(small, "spam")
    assert (found["route"], found["shadow"]) == ({"live": 7, "canary": 1}, "next")
    console.press("Send all to live…")
    console.agree()
    assert task_of(small, "spam")["route"] is None


def test_a_share_that_nobody_moved_stays_exactly_as_it_was(serve: Serve, deltas: Deltas, console_of: Open) -> None:
    served = serve({"spam": {"live": deltas.spam, "canary": deltas.spam_2}})
    route = {"live": 9999, "canary": 1}
    assert httpx.put(f"{served.url}/v1/tasks/spam/route?wait=10", json={"weights": route}).status_code == 200
    console = console_of(served.url)
    console.open("tasks/spam")
    assert console.page.get_by_label("Per cent of requests to canary").get_attribute("placeholder") == "< 0.1"
    console.page.get_by_label("Shadow").select_option("canary")
    console.press("Apply")
    for part in ("live > 99.9 %", "canary < 0.1 %", "copies to canary"):
        console.sees(part)
    console.agree()
    found = task_of(served, "spam")
    assert (found["route"], found["shadow"]) == (route, "canary")


def test_a_shadows_agreement_is_counted_while_requests_are_copied(
    serve: Serve, deltas: Deltas, console_of: Open
) -> None:
    served = serve({"spam": {"live": deltas.spam, "next": deltas.spam_2}})
    assert httpx.put(f"{served.url}/v1/tasks/spam/route?wait=10", json={"shadow": "next"}).status_code == 200
    served.native("spam", ["rain", "the city", "what is it"])
    console = console_of(served.url)
    console.open("tasks/spam")
    console.sees("of 3 inputs compared")


def test_a_refusal_is_in_the_servers_words_and_can_be_insisted_on(
    serve: Serve, deltas: Deltas, console_of: Open
) -> None:
    served = serve({"spam": {"live": deltas.spam, "canary": deltas.spam_2}})
    console = console_of(served.url)
    console.open("tasks/spam")
    console.press(f"Delete…: {deltas.spam_2.digest[:12]}")
    console.page.locator("dialog button[type=submit]").click()
    alert = console.page.locator("dialog [role=alert]")
    alert.wait_for()
    refused = httpx.delete(f"{served.url}/v1/tasks/spam/versions/{deltas.spam_2.digest}").json()["detail"]
    assert refused.replace("`", "") in alert.inner_text()
    console.press("Delete it all the same")
    console.page.locator("dialog").wait_for(state="detached")
    assert task_of(served, "spam")["versions"] == [deltas.spam.digest]


def test_what_a_delta_keeps_is_counted_layer_by_layer(small: Served, console: Console) -> None:
    kept = small.get("/v1/tasks/spam/kept").json()["layers"]
    console.open("tasks/spam")
    console.page.get_by_text("Count it, layer by layer").click()
    lines = console.page.get_by_role("region", name="Kept by layer").locator("tbody tr")
    lines.first.wait_for()
    shown = [line.split() for line in lines.all_inner_texts()]
    assert [line[0] for line in shown] == [one["module"] for one in kept if one["layer"] == 0]
    first = [one for one in kept if one["module"] == shown[0][0]]
    assert [float(share) for share in shown[0][1::2]] == [pytest.approx(100 * one["share"], abs=0.06) for one in first]


# Overlap


def test_overlap_stands_beside_what_chance_gives(small: Served, console: Console) -> None:
    found = small.get("/v1/overlap?tasks=emotion,spam").json()
    console.open("overlap?tasks=emotion,spam")
    console.press("Compare")
    cell = console.page.locator("td.tint").first
    cell.wait_for()
    assert cell.inner_text().split() == [f"{found[name][0][1]:.3f}" for name in ("shared", "by_chance")]


def test_too_few_tasks_cannot_be_compared_or_asked(console: Console) -> None:
    page = console.page
    console.open("overlap?tasks=spam,gone")
    console.sees("1 task ticked. Tick 2 to 32.")
    compare = page.get_by_role("button", name="Compare")
    assert compare.is_disabled()
    page.get_by_label("emotion").check()
    assert compare.is_enabled()
    console.open("playground")
    page.get_by_label("Many at once").check()
    console.press("Untick all")
    ask = page.get_by_role("button", name="Ask")
    assert ask.is_disabled()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.method == "POST" else None)
    page.get_by_label("Text", exact=True).press("Control+Enter")
    page.get_by_label("spam").check()
    assert ask.is_enabled()
    ask.click()
    page.locator(".answers tbody th").wait_for()
    assert len(asked) == 1


# Replicas


def test_swaps_are_shown_as_they_happen(serve: Serve, deltas: Deltas, console_of: Open) -> None:
    served = serve({"spam": {"live": deltas.spam}, "emotion": {"live": deltas.emotion}}, mixed="off")
    console = console_of(served.url)
    with console.page.expect_response("**/v1/events"):
        console.open("replicas")
    for task in ("spam", "emotion", "spam"):
        served.native(task, "rain")
    row = console.page.locator("tr", has_text=re.compile(r"emotion\s*spam"))
    row.wait_for()
    assert served.service.replica in row.inner_text()


# The playground


def test_it_knows_every_kind_of_the_server(console: Console) -> None:
    assert set(console.run("kinds.js", "(kinds) => Object.keys(kinds.KINDS)", None)) == set(KINDS)


@pytest.mark.parametrize(
    ("task", "kind", "expected"),
    [
        ("spam", None, r"spam\s+0\.\d{3}"),
        ("entailment", "zero-shot-classification", r"weather\s+0\.\d{3}"),
        ("ranks", "rerank", r"Denver is 200 miles away\.\s+0\.\d{3}"),
        ("tags", None, r"(?s)PER|LOC|No entities"),
        ("answers", None, r"The road is long"),
        ("search", None, r"(?s)Nearest to.*I like rain\.\s+-?\d\.\d{3}"),
        ("vectors", "feature-extraction", r"(?s)Nearest to.*one a token: \d+, \d+, \d+"),
    ],
)
def test_the_playground_shows_an_answer_of_each_kind(
    every_kind: Served, console_of: Open, task: str, kind: str | None, expected: str
) -> None:
    assert re.search(expected, playground_answer(console_of(every_kind.url), task, kind))


def test_marks_are_where_the_server_says_beside_letters_of_two_halves(every_kind: Served, console_of: Open) -> None:
    text = "👍 how far is the mountain from the city?"
    entities = every_kind.native("tags", text, {"aggregation_strategy": "simple"})[0]
    console = console_of(every_kind.url)
    console.open("playground?task=tags")
    console.page.get_by_label("Text", exact=True).fill(text)
    console.press("Ask")
    console.page.locator("mark").first.wait_for()
    marked = console.page.locator("mark").evaluate_all("all => all.map((one) => one.firstChild.textContent)")
    assert marked == [text[one["start"] : one["end"]] for one in entities]


def test_two_versions_answer_side_by_side(small: Served, console: Console, deltas: Deltas) -> None:
    console.open("playground?task=spam&with=spam@canary")
    console.press("Ask")
    console.page.locator(".output").nth(1).wait_for()
    versions = console.page.locator(".facts code").all_inner_texts()
    assert versions == [deltas.spam.digest[:12], deltas.spam_2.digest[:12]]


def test_a_wrong_number_among_folded_parameters_is_shown(console: Console) -> None:
    console.open("playground?task=spam")
    page = console.page
    parameters = page.get_by_text("Parameters", exact=True)
    parameters.click()
    page.get_by_label("Labels to show").fill("0")
    parameters.click()
    assert page.get_by_label("Labels to show").is_hidden()
    console.press("Ask")
    page.locator("input:focus:invalid").wait_for()


def test_the_version_that_an_address_names_is_asked(small: Served, console: Console, deltas: Deltas) -> None:
    for digits in (8, 12, 64):
        console.open(f"playground?task=spam@{deltas.spam_2.digest[:digits]}")
        console.page.reload()
        console.press("Ask")
        assert console.page.locator(".facts code").inner_text() == deltas.spam_2.digest[:12]
    console.open("playground?task=spam@gone&with=spam@gone")
    console.page.reload()
    for nth in (0, 1):  # of the first at once, of both when they are asked
        console.page.locator(".answers").get_by_text("has no alias").nth(nth).wait_for()
        assert console.page.url.endswith("task=spam%40gone&with=spam%40gone")
        console.press("Ask")


def test_many_tasks_answer_at_once_and_one_that_cannot_says_why(every_kind: Served, console_of: Open) -> None:
    console = console_of(every_kind.url)
    console.open("playground")
    console.page.get_by_label("Many at once").check()
    console.press("Ask")
    console.page.locator(".answers tbody tr").first.wait_for()
    rows = console.page.locator(".answers tbody tr").all_inner_texts()
    assert len(rows) == 8
    assert [row.split()[0] for row in rows if "Invalid input" in row] == ["answers"]


def test_a_chat_is_streamed_and_goes_on(
    serve: Serve, language_tasks: LanguageTasks, language_deltas: dict[str, DeltaFile], console_of: Open
) -> None:
    served = serve({"poems": {"live": language_deltas["poems"]}}, base=str(language_tasks.path))
    console = console_of(served.url)
    console.open("playground?task=poems")
    page = console.page
    page.get_by_text("Parameters", exact=True).click()
    page.get_by_label("Most tokens").fill("8")
    for message in ("the rain", "again"):
        page.get_by_label("Message", exact=True).fill(message)
        console.press("Ask")
        page.locator(".facts", has_text="8 tokens").wait_for()
        page.locator(".turn[aria-busy]").wait_for(state="detached")
    assert page.locator(".turn").count() == 4
    page.get_by_text("Copy as curl or Python").click()
    curl = shlex.split(page.get_by_label("The request for curl").inner_text())
    said = page.locator(".turn .text").nth(1).text_content()
    assert json.loads(curl[-1])["prompt"]["messages"] == [
        {"role": "user", "content": "the rain"},
        {"role": "assistant", "content": said},
        {"role": "user", "content": "again"},
    ]
    page.get_by_label("As", exact=True).select_option("completion")
    page.get_by_label("Prompt", exact=True).fill("the rain")
    console.press("Ask")
    page.locator(".turn .text", has_text=re.compile("the rain.+")).wait_for()


def test_the_code_to_copy_does_what_the_page_did(small: Served, console: Console, tmp_path: Path) -> None:
    console.open("playground?task=spam")
    console.page.get_by_label("Text", exact=True).fill('it\'s "far" \\ 👍')
    console.page.get_by_text("Copy as curl or Python").click()
    curl, python = (console.page.locator("pre code").nth(i).inner_text() for i in range(2))
    printed: list[Any] = []
    exec(compile(python, "copied", "exec"), {"print": printed.append})
    (outputs,) = printed
    assert outputs == small.native("spam", 'it\'s "far" \\ 👍')
    said = subprocess.run(["bash", "-c", f"{curl} --silent"], capture_output=True, text=True, check=True).stdout
    assert json.loads(said)["outputs"] == outputs


def test_names_are_whole_and_nothing_lies_over_code_at_360_pixels(every_kind: Served, console_of: Open) -> None:
    console = console_of(every_kind.url, viewport={"width": 360, "height": 740})
    console.open("playground")
    page = console.page
    page.get_by_label("Many at once").check()
    console.press("Ask")
    page.locator(".answers tbody th").first.wait_for()
    page.get_by_text("Copy as curl or Python").click()
    lines = page.locator(".answers tbody th").evaluate_all(
        "all => all.map((one) => { const range = document.createRange(); range.selectNodeContents(one);"
        " return range.getClientRects().length; })"
    )
    assert set(lines) == {1}
    block, copy = page.locator(".code pre").first.bounding_box(), page.locator(".code button").first.bounding_box()
    assert block["x"] + block["width"] <= copy["x"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


# Keys


def test_a_wrong_key_is_refused_and_a_right_one_is_taken(with_keys: Served, console_of: Open) -> None:
    console = console_of(with_keys.url)
    console.open("tasks/spam")
    console.sign_in("ken_wrong")
    console.sees("Unauthorized")
    assert console.page.get_by_role("navigation").get_by_role("link").count() == 0
    console.sign_in(ADMIN)
    console.sees("Versions")
    console.press("Sign out")
    console.sees("This server needs a key")


def test_a_sign_out_that_fails_says_so(with_keys: Served, console_of: Open) -> None:
    console = console_of(with_keys.url)
    console.open("keys")
    console.sign_in(ADMIN)
    console.sees("Make a key")
    console.page.context.set_offline(True)
    console.press("Sign out")
    console.page.get_by_role("alert").get_by_text("You may still be signed in").wait_for()
    console.page.context.set_offline(False)
    console.press("Sign out")
    console.sees("This server needs a key")
    assert console.page.get_by_role("alert").count() == 0


def test_what_a_key_may_not_do_is_not_offered(with_keys: Served, console_of: Open) -> None:
    console = console_of(with_keys.url)
    console.open("tasks")
    console.sign_in(key_for(with_keys, scopes=["predict"], tasks=["sp*"]))
    console.sees("spam")
    assert console.page.get_by_role("link", name="emotion").count() == 0
    assert console.page.get_by_role("link", name="Keys").count() == 0
    console.open("tasks/spam")
    console.sees("Versions")
    for name in ("Make live", "Roll back", "Apply", "Delete"):
        assert console.page.get_by_role("button", name=name).count() == 0


def test_a_question_is_closed_with_its_page(with_keys: Served, console_of: Open) -> None:
    console = console_of(with_keys.url)
    console.open("tasks")
    console.sign_in(ADMIN)
    console.page.get_by_role("link", name="spam").click()
    console.press("Roll back…: live")
    console.page.go_back()
    console.page.locator("dialog").wait_for(state="detached")
    console.page.go_forward()
    console.press("Roll back…: live")
    console.page.context.clear_cookies()
    console.sees("This server needs a key")
    assert console.page.locator("dialog").count() == 0


def test_a_key_is_shown_once_signs_in_and_ends_its_session_when_revoked(with_keys: Served, console_of: Open) -> None:
    console = console_of(with_keys.url)
    console.open("keys")
    console.sign_in(ADMIN)
    console.page.get_by_label("Name").fill("second admin")
    console.page.get_by_label("Scope").select_option("admin")
    console.press("Make a key")
    token = console.page.locator("dialog code").inner_text()
    assert console.page.evaluate("document.activeElement.textContent") == "Copy"
    for _ in range(3):
        console.page.keyboard.press("Escape")
    assert console.page.locator("dialog code").inner_text() == token
    console.press("I have kept it")
    console.sees("second admin")
    assert token not in console.page.content()
    console.press("Sign out")
    console.sign_in(token)
    console.press("Revoke…: second admin")
    console.agree()
    console.sees("This server needs a key")
