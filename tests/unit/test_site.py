"""What people copy from README and quickstart works as far as it can without Google Cloud; no link is dead."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from gemmatune_api import validate, yamlio
from gemmatune_cli.main import COMMANDS, Commands
from tests.support.blocks import ROOT, commands, resources
from tools.images import CONTAINERFILES, image_name

COMMON = {"cd", "mkdir", "ln", "export", "gcloud", "kubectl", "helm", "make", "gft", "uv", "KUBECONFIG=~/.kube/config"}
COMMON |= {"python3", "~/gft/bin/pip", "docker"}
MAKEFILE = (ROOT / "Makefile").read_text()


def of(program: str) -> list[list[str]]:
    """The words of the commands of a program."""
    return [words[1:] for _, line in commands() if (words := shlex.split(line))[0] == program]


def test_commands_are_found() -> None:
    assert len(commands()) > 25
    assert {shlex.split(line)[0] for _, line in commands()} <= COMMON


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_shell_reads_every_command(page: str, line: str) -> None:
    done = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{page}: {line}: {done.stderr}"


@pytest.mark.parametrize("words", of("gft"), ids=" ".join)
def test_gft_has_the_command_and_its_options(words: list[str]) -> None:
    name, *arguments = words
    assert name in COMMANDS
    command = Commands(name="gft").get_command(None, name)
    command.make_context(name, list(arguments))  # reads the arguments, and runs nothing


@pytest.mark.parametrize("words", of("make"), ids=" ".join)
def test_make_has_the_target(words: list[str]) -> None:
    assert re.search(rf"(?m)^{re.escape(words[0])}:", MAKEFILE)


@pytest.mark.parametrize("words", [words for words in of("kubectl") if words[0] == "wait"], ids=" ".join)
def test_a_wait_says_how_long(words: list[str]) -> None:
    """kubectl's own 30 seconds are over before any run is."""
    assert any(word.startswith("--timeout=") for word in words)


def namespaced() -> list[str]:
    """The commands of quickstart that ask for something in a namespace."""
    programs = r"(kubectl (?!create namespace|delete crd)|gft (?!validate|plan))"
    return [line for page, line in commands() if page == "quickstart.md" and re.match(programs, line)]


@pytest.mark.parametrize("line", namespaced())
def test_quickstart_names_its_namespace(line: str) -> None:
    """It is not that of the kubeconfig."""
    assert "-n" in shlex.split(line)


@pytest.mark.parametrize("words", of("helm"), ids=" ".join)
def test_the_chart_has_the_values_that_are_set(words: list[str]) -> None:
    values = yaml.safe_load((ROOT / "charts/gemmatune/values.yaml").read_text())
    for number, word in enumerate(words):
        if word == "--set":
            place = values
            for part in words[number + 1].partition("=")[0].split("."):
                assert part in place, words[number + 1]
                place = place[part]


def test_images_are_pushed_by_the_names_that_are_pulled() -> None:
    """Built as `make image` names them, with the tag that the chart asks for; what is installed was pushed."""
    version = yaml.safe_load((ROOT / "charts/gemmatune/Chart.yaml").read_text())["appVersion"]
    built, pushed = zip(*[words[1:] for words in of("docker") if words[0] == "tag"], strict=True)
    assert set(built) <= {image_name(name) for name in CONTAINERFILES}
    assert [words[1] for words in of("docker") if words[0] == "push"] == list(pushed)
    assert all(name.endswith(f":{version}") for name in pushed)
    installed = {word.partition("=")[2] for words in of("helm") for word in words if ".repository=$" in word}
    installed |= {word.partition("=")[2] for words in of("helm") for word in words if "trainer.image=$" in word}
    assert installed == {pushed[0].removesuffix(f":{version}"), pushed[1]}


@pytest.mark.parametrize("text", resources())
def test_resources_are_valid(text: str) -> None:
    (document,) = yamlio.load_all(text)
    assert isinstance(document, dict)
    assert validate.parse(document).spec.output.uri


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_dead(page: Path) -> None:
    """Those of the pages to files of the project; what is on the network is not asked."""
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"(?s)```.*?```", "", page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in _anchors(file)):
            dead.append(target)
    assert dead == []


def _anchors(file: Path) -> set[str]:
    headings = re.findall(r"(?m)^#+ (.+)$", file.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_tests_that_the_threats_name_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", (ROOT / "docs/security.md").read_text())
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in menu] == []
