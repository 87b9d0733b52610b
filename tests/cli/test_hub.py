"""`ken push` and `ken pull` against a stand-in of the Hugging Face Hub, with huggingface_hub itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, constants

from serving.hub import card
from tests.cli.running import Ken, facts
from tests.hub_stand_in import HubStandIn, Repo
from tests.serving.listening import listening

REPO = "me/deltas"


@pytest.fixture
def hub() -> HubStandIn:
    return HubStandIn()


@pytest.fixture(autouse=True)
def hub_url(hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """huggingface_hub reads the environment when it is imported, so its constants are set here."""
    with listening(hub.app) as url:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 120)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 120)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
        monkeypatch.setenv("HF_TOKEN", "me-token")
        yield url


@pytest.fixture(scope="module")
def delta(ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("deltas") / "mood.ken"
    ended = ken("extract", "--base", tiny_base, "--tuned", tiny_tuned["mood"], "--out", file, "--keep", "0.1")
    assert ended.returncode == 0, ended.stderr
    return file


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that commands run in."""
    made = tmp_path / "work"
    made.mkdir()
    monkeypatch.chdir(made)
    return made


def files_in(hub: HubStandIn) -> dict[str, bytes]:
    return dict(hub.repos[REPO].commits[-1][1])


def test_a_delta_that_was_pushed_is_pulled_bit_for_bit(ken: Ken, hub: HubStandIn, delta: Path, folder: Path) -> None:
    pushed = facts(ken("push", delta, REPO, "--base-model", "org/base", "--json"))
    assert files_in(hub)["mood.ken"] == delta.read_bytes()
    pulled = facts(ken("pull", REPO, "--json"))
    assert [path.name for path in folder.iterdir()] == ["mood.ken"]
    assert (folder / "mood.ken").read_bytes() == delta.read_bytes()
    assert pulled["commit"] == pushed["commit"] == hub.repos[REPO].commits[-1][0]
    assert pulled["digest"] == pushed["digest"]


def test_the_card_tells_the_hub_and_people_what_the_delta_is(ken: Ken, hub: HubStandIn, delta: Path) -> None:
    options = ("--base-model", "org/base", "--license", "apache-2.0", "--private")
    assert ken("push", delta, REPO, *options).returncode == 0
    assert hub.repos[REPO].private
    card = ModelCard(files_in(hub)["README.md"].decode())
    assert card.data.to_dict() == {
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "library_name": "ken-serve",
        "license": "apache-2.0",
        "pipeline_tag": "text-classification",
        "tags": ["ken-serve", "delta", "magnitude"],
    }
    found = facts(ken("inspect", delta, "--json"))
    for told in (
        str(found["digest"]),
        f"fingerprint {found['fingerprint']}",
        "| method | magnitude, scope global, fraction 0.1 |",
        "| measured loss | not measured: ken calibrate measures it",
        "ken pull me/deltas mood.ken",
        "ken serve --base org/base",
    ):
        assert told in card.text


def test_only_the_deltas_own_section_of_a_card_is_replaced(ken: Ken, hub: HubStandIn, delta: Path) -> None:
    ken("push", delta, REPO, "--name", "a.ken")
    before = files_in(hub)["README.md"].decode()
    assert "## a.ken" in before
    repo = hub.repos[REPO]
    mine = before.replace("ken-serve\n", "my-library\n", 1).replace("# deltas", "# My own title") + "\nMy own words.\n"
    repo.commit({**files_in(hub), "README.md": mine.encode()})
    ken("push", delta, REPO, "--name", "b.ken")
    ken("push", delta, REPO, "--name", "a.ken", "--base-model", "org/base")
    text = files_in(hub)["README.md"].decode()
    assert [text.count(part) for part in ("# My own title", "My own words.", "## a.ken", "## b.ken")] == [1, 1, 1, 1]
    assert text.index("## a.ken") < text.index("My own words.") < text.index("## b.ken")
    data = ModelCard(text).data
    assert (data.library_name, data.base_model) == ("my-library", "org/base")


@pytest.mark.parametrize("metadata", [b"tags: [", b"base_model: 5", b"- a list"])
def test_a_card_that_cannot_be_read_stays_as_it_is(ken: Ken, hub: HubStandIn, delta: Path, metadata: bytes) -> None:
    hub.repos[REPO] = Repo(private=False)
    hub.repos[REPO].commit({"README.md": b"---\n%s\n---\n" % metadata})
    ended = ken("push", delta, REPO, "--base-model", "org/base")
    assert ended.returncode == 1
    assert "the metadata at the top of README.md cannot be read" in ended.stderr
    assert set(files_in(hub)) == {"README.md"}


class TestCard:
    """Text and metadata that the card has already, whoever wrote them, stay."""

    ABOUT = card.About("org/base", "finetune", "text-classification", "svd")

    def pushed(self, text: str, section: str = "new") -> str:
        return card.card_with(text, "title", "a.ken", section, self.ABOUT)

    @pytest.mark.parametrize("orphan", ["<!-- ken-serve: a.ken -->", "<!-- /ken-serve: a.ken -->"])
    def test_a_comment_without_its_other_half_takes_no_text_with_it(self, orphan: str) -> None:
        twice = self.pushed(self.pushed(f"{orphan}\nmy own text\n", "old"))
        assert "my own text" in twice
        assert "new" in twice
        assert "old" not in twice

    def test_of_two_sections_of_a_delta_one_is_left(self) -> None:
        once = self.pushed("# mine\n", "old")
        double = once + once[once.index("<!-- ken-serve") :] + "end\n"
        twice = self.pushed(double)
        assert (twice.count("new"), twice.count("old"), twice.count("# mine"), twice.count("end\n")) == (1, 0, 1, 1)

    def test_metadata_keeps_its_comments_where_nothing_in_it_changes(self) -> None:
        text = "---\nlanguage: en  # as spoken\nlibrary_name: mine\n---\n\n# mine\n"
        made = self.pushed(text)
        assert "language: en  # as spoken\nlibrary_name: mine\nbase_model: org/base\n" in made
        assert self.pushed(made) == made

    @pytest.mark.parametrize(
        "block", ["{language: en}", "tags: mine", "language: en\ntags:\n- mine\nbase_model: [org/b]"]
    )
    def test_metadata_in_any_style_keeps_its_values(self, block: str) -> None:
        before = yaml.safe_load(block)
        data = ModelCard(self.pushed(f"---\n{block}\n---\ntext\n")).data.to_dict()
        assert data.get("language") == before.get("language")
        assert data["library_name"] == "ken-serve"
        assert data["tags"] == [*(["mine"] if "tags" in before else []), "ken-serve", "delta", "svd"]
        assert data["base_model"] == (["org/b", "org/base"] if "base_model" in before else "org/base")

    def test_a_card_without_metadata_gets_some_and_keeps_its_text(self) -> None:
        made = self.pushed("# mine\n\nwords\n")
        assert ModelCard(made).data.base_model == "org/base"
        assert "\n# mine\n\nwords\n\n<!-- ken-serve: a.ken -->\nnew\n" in made


def test_a_task_of_the_store_is_pushed_with_its_signatures(
    ken: Ken, hub: HubStandIn, delta: Path, folder: Path
) -> None:
    signed = folder / "signed.ken"
    signed.write_bytes(delta.read_bytes())
    key = folder / "key.pem"
    public = ken("signing-key", "create", key).stdout.strip()
    assert ken("sign", signed, "--key", key).returncode == 0
    assert ken("publish", "mood", signed).returncode == 0
    assert ken("push", "mood", REPO).returncode == 0
    assert set(files_in(hub)) >= {"mood.ken", "mood.ken.sig"}
    ended = ken("pull", REPO, "--trusted-keys", f"ours={public}")
    assert ended.returncode == 0, ended.stderr
    assert "signed by ours" in " ".join(ended.stderr.split())
    assert (folder / "mood.ken.sig").is_file()

    assert ken("push", delta, REPO).returncode == 0  # the same name without signatures
    assert "mood.ken.sig" not in files_in(hub)
    refused = ken("pull", REPO, "--trusted-keys", f"ours={public}", "--overwrite", "--out", folder / "other.ken")
    assert refused.returncode == 1
    assert "is not signed" in refused.stderr
    assert not (folder / "other.ken").exists()


def test_a_revision_is_what_it_was(ken: Ken, hub: HubStandIn, delta: Path, folder: Path) -> None:
    first = facts(ken("push", delta, REPO, "--json"))
    hub.repos[REPO].commit({**files_in(hub), "mood.ken": b"something else"})
    assert ken("pull", REPO).returncode == 1
    assert list(folder.iterdir()) == []
    pulled = facts(ken("pull", REPO, "--revision", first["commit"], "--json"))
    assert (pulled["commit"], pulled["digest"]) == (first["commit"], first["digest"])
    ended = ken("pull", REPO, "--revision", "0" * 40, "--overwrite")
    assert ended.returncode == 1
    assert "has no such revision" in ended.stderr


def test_a_file_that_is_there_is_replaced_only_when_told_to(ken: Ken, delta: Path, folder: Path) -> None:
    ken("push", delta, REPO)
    mine = folder / "mood.ken"
    mine.write_text("mine")
    assert ken("pull", REPO).returncode == ken("pull", REPO, "mood.ken").returncode == 2
    assert mine.read_text() == "mine"
    assert ken("pull", REPO, "--overwrite").returncode == 0
    assert hashlib.sha256(mine.read_bytes()).digest() == hashlib.sha256(delta.read_bytes()).digest()


def test_signatures_that_are_there_are_replaced_only_when_told_to(ken: Ken, delta: Path, folder: Path) -> None:
    ken("push", delta, REPO)
    mine = folder / "mood.ken.sig"
    mine.write_text("mine")
    assert ken("pull", REPO).returncode == ken("pull", REPO, "mood.ken").returncode == 2
    assert mine.read_text() == "mine"
    assert ken("pull", REPO, "--overwrite").returncode == 0
    assert [path.name for path in folder.iterdir()] == ["mood.ken"]


def test_of_several_deltas_one_is_named(ken: Ken, hub: HubStandIn, delta: Path, folder: Path) -> None:
    ken("push", delta, REPO, "--name", "a.ken")
    ken("push", delta, REPO, "--name", "b.ken")
    ended = ken("pull", REPO)
    assert ended.returncode == 1
    assert "holds 2 deltas (a.ken, b.ken); name one of them" in ended.stderr
    assert ken("pull", REPO, "b.ken").returncode == 0
    assert [path.name for path in folder.iterdir()] == ["b.ken"]


@pytest.mark.parametrize("name", ["../mood.ken", "/tmp/mood.ken", "folder/mood.ken", ".ken", "mood.safetensors"])
def test_names_that_leave_the_folder_are_refused(
    ken: Ken, hub: HubStandIn, delta: Path, folder: Path, name: str
) -> None:
    hub.repos[REPO] = Repo(private=False)
    hub.repos[REPO].commit({name: delta.read_bytes()})
    for ended in (ken("pull", REPO, name), ken("pull", REPO), ken("push", delta, REPO, "--name", name)):
        assert ended.returncode in (1, 2)
        assert "expected letters" in ended.stderr or "holds no delta" in ended.stderr or "no folder" in ended.stderr
    assert list(folder.iterdir()) == []


def test_what_is_too_large_or_no_delta_leaves_nothing_behind(
    ken: Ken, hub: HubStandIn, delta: Path, folder: Path
) -> None:
    ken("push", delta, REPO)
    hub.repos[REPO].commit({"mood.ken": delta.read_bytes()[:-1]})
    ended = ken("pull", REPO)
    assert ended.returncode == 1
    assert "mood.ken" in ended.stderr
    hub.lies["mood.ken"] = 1 << 40
    ended = ken("pull", REPO)
    assert ended.returncode == 1
    assert "has 1,099,511,627,776 bytes, and at most" in ended.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("repo", "token", "told"),
    [
        ("me/deltas", None, "set HF_TOKEN, or log in with `hf auth login`"),
        ("other/deltas", "me-token", "the token may not do this"),
        ("a/b/c", "me-token", "expected owner/name"),
    ],
)
def test_a_push_that_the_hub_refuses_says_why_and_never_the_token(
    ken: Ken, delta: Path, monkeypatch: pytest.MonkeyPatch, repo: str, token: str | None, told: str
) -> None:
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    ended = ken("push", delta, repo)
    assert ended.returncode == 1
    assert told in " ".join(ended.stderr.split())
    assert "me-token" not in ended.stderr + ended.stdout


def test_what_was_to_be_private_is_not_pushed_to_a_public_repository(ken: Ken, hub: HubStandIn, delta: Path) -> None:
    ken("push", delta, REPO)
    before = len(hub.repos[REPO].commits)
    ended = ken("push", delta, REPO, "--private", "--name", "secret.ken")
    assert ended.returncode == 1
    assert "is public: make it private on the Hub first, or leave --private out" in " ".join(ended.stderr.split())
    assert len(hub.repos[REPO].commits) == before


def test_a_repository_without_its_owner_is_refused_before_anything_is_made(
    ken: Ken, hub: HubStandIn, delta: Path
) -> None:
    for ended in (ken("push", delta, "deltas"), ken("pull", "deltas")):
        assert ended.returncode == 1
        assert "found the repository 'deltas'; expected owner/name" in ended.stderr
    assert hub.repos == {}


def test_a_private_repository_is_not_there_for_others(
    ken: Ken, delta: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ken("push", delta, REPO, "--private")
    for token in ("other-token", ""):
        monkeypatch.setenv("HF_TOKEN", token)
        ended = ken("pull", REPO)
        assert ended.returncode == 1
        assert "or this account may not see it" in ended.stderr


def test_a_change_meanwhile_is_not_overwritten(ken: Ken, hub: HubStandIn, delta: Path) -> None:
    ken("push", delta, REPO)
    hub.before_commit = lambda repo: repo.commit({"notes.txt": b"theirs"})
    ended = ken("push", delta, REPO, "--name", "other.ken")
    assert ended.returncode == 1
    assert "the repository was changed meanwhile: try again" in " ".join(ended.stderr.split())
    assert files_in(hub) == {"notes.txt": b"theirs"}


def test_a_hub_that_does_not_answer_is_named(ken: Ken, delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    ended = ken("push", delta, REPO)
    assert ended.returncode == 1
    assert "http://127.0.0.1:9 did not answer as expected for me/deltas" in ended.stderr


@pytest.mark.parametrize("token", ["t\xe9-token", "a b"])
def test_a_token_that_cannot_be_one_is_named_and_not_shown(
    ken: Ken, delta: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    ended = ken("push", delta, REPO)
    assert ended.returncode == 1
    assert "the Hub's token (HF_TOKEN, or that of `hf auth login`) holds characters" in ended.stderr
    assert token not in ended.stderr


def test_a_password_in_the_hubs_url_is_never_printed(
    ken: Ken, hub_url: str, delta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_password = hub_url.replace("://", "://me:hunter2@")
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(hub_url, with_password)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", with_password)
    told = [ken("push", delta, REPO), ken("push", delta, "other/deltas"), ken("pull", "me/nothing")]
    monkeypatch.setattr(constants, "ENDPOINT", "http://me:hunter2@127.0.0.1:9")
    told.append(ken("push", delta, REPO))
    assert hub_url in told[0].stderr
    assert "hunter2" not in "".join(ended.stderr + ended.stdout for ended in told)


def test_without_a_store_a_name_is_no_delta(ken: Ken, tmp_path: Path) -> None:
    ended = ken("push", "mood", REPO, "--data-dir", tmp_path / "none")
    assert ended.returncode == 1
    assert "mood is no delta file (.ken), and there is no store" in " ".join(ended.stderr.split())


def test_a_cell_of_the_card_is_one_line_without_markup_and_not_too_long() -> None:
    told = card.section("mood.ken", REPO, {"labels": "[a](http://b) | <c>\n`d`", "many": "x" * 5000}, None)
    assert r"| labels | \[a\](http://b) \| \<c\> \`d\` |" in told
    assert f"| many | {'x' * 1000}… |" in told
    assert "ken serve --base BASE" in told
