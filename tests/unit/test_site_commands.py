"""What people copy from the pages and from the head of an example is right, by the parsers of the programs themselves.

kubectl and helm are asked on a real control plane, in tests/chart/test_pages.py: here are the files that they name.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import typer
import yaml

from gemmatune_cli.local.folders import cache_dir
from gemmatune_cli.local.model import NAME as DEMO_MODEL
from gemmatune_cli.main import COMMANDS, Commands
from gemmatune_operator import options
from tests.support.blocks import EXAMPLES, ROOT, Command, blocks, commands, mentions
from tools.images import CONTAINERFILES, image_name

MAKEFILE = (ROOT / "Makefile").read_text()
GCLOUD = {
    "artifacts repositories create": (1, "--project --location --repository-format"),
    "auth configure-docker": (1, ""),
    "container clusters create": (1, "--project --location --num-nodes --machine-type --workload-pool"),
    "container clusters delete": (1, "--project --location"),
    "container clusters get-credentials": (1, "--project --location"),
    "container node-pools create": (
        1,
        "--project --cluster --location --machine-type --accelerator --num-nodes --enable-autoscaling --min-nodes "
        "--max-nodes --workload-metadata",
    ),
    "projects describe": (1, "--format"),
    "storage buckets add-iam-policy-binding": (1, "--role --member"),
    "storage buckets create": (1, "--project --location --uniform-bucket-level-access --soft-delete-duration"),
    "storage cp": (2, "--recursive"),
}
"""What the pages may ask of gcloud: how many names, and which options. It is no package of Python's, so that CI has
none: these were looked up in the command tree that Google Cloud SDK 528 brings. Look up what is added, too.
"""
DOCKER = {"tag": 2, "push": 1}


def of(program: str, page: str = "") -> list[Command]:
    """The commands of a program, on all pages or on one."""
    return [found for found in commands() if found.program == program and page in ("", found.page)]


# --- what each program makes of its words ---


def is_there(command: Command, name: str) -> None:
    """A file of the project, one that the page shows with its content, or a word in capitals that stands for one."""
    page = ROOT / command.page
    shown = {f"{found}.yaml" for text in blocks(page, "yaml") for found in re.findall(r"metadata: {name: (\S+)}", text)}
    assert (ROOT / name).exists() or name in shown or name.isupper(), f"{command}: there is no {name}"


def gft(command: Command) -> None:
    name, *arguments = command.words[1:]
    assert name in COMMANDS, command
    try:
        found = Commands(name="gft").get_command(None, name).make_context(name, arguments)  # runs nothing
    except typer.TyperException as error:
        raise AssertionError(f"{command}: {error}") from error
    for value in found.params.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and (item.endswith((".yaml", ".json")) or "/" in item) and "://" not in item:
                is_there(command, item)


def operator(command: Command) -> None:
    try:
        options.read(command.words[1:], {})
    except SystemExit as error:
        raise AssertionError(f"{command}: {error}") from error


def make(command: Command) -> None:
    for word in command.words[1:]:
        name, sign, value = word.partition("=")
        assert re.search(rf"(?m)^{re.escape(name)}{' [?:]?=' if sign else ':'}", MAKEFILE), f"{command}: {name}"
        assert name != "IMAGES" or set(value.split()) <= CONTAINERFILES.keys(), command


def asked_for_help(command: Command, *words: str) -> None:
    """A program that reads its options before it helps."""
    done = subprocess.run([*words, "--help"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, f"{command}: {done.stderr}"


@cache
def the_uv() -> str:
    return subprocess.run(["tools/uv.sh"], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()


def uv(command: Command) -> None:
    words = command.whole[1:]
    if words[0] == "run":
        words = ["run", *command.uv_options]
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for option, value in pairwise(words):
            assert option != "--extra" or value in extras, command
    asked_for_help(command, the_uv(), *words)
    if words[:2] == ["tool", "install"]:
        assert (ROOT / words[2] / "pyproject.toml").exists(), command


def pip(command: Command) -> None:
    (venv,) = of("venv", command.page)
    assert command.words == [f"{venv.words[1]}/bin/pip", "install", "."], command


def kubectl(command: Command) -> None:
    words = command.words
    for option, value in pairwise(words):
        if option in ("-f", "--filename"):
            is_there(command, value)


def helm(command: Command) -> None:
    words = command.words[1:]
    if words[0] in ("install", "upgrade"):
        assert (ROOT / words[2] / "Chart.yaml").exists(), command
    values = yaml.safe_load((ROOT / "charts/gemmatune/values.yaml").read_text())
    for option, value in pairwise(words):
        if option == "--set":
            place = values
            for part in value.partition("=")[0].split("."):
                assert part in place, f"{command}: {value}"
                place = place[part]


def gcloud(command: Command) -> None:
    known = [name for name in GCLOUD if command.words[1:][: len(name.split())] == name.split()]
    assert known, command
    names, flags = GCLOUD[known[0]]
    given = command.words[1 + len(known[0].split()) :]
    assert {word.partition("=")[0] for word in given if word.startswith("-")} <= set(flags.split()), command
    assert len([word for word in given if not word.startswith("-")]) == names, command


def docker(command: Command) -> None:
    verb, *names = command.words[1:]
    assert DOCKER.get(verb) == len(names), command
    assert not any(name.startswith("-") for name in names), command


def of_coreutils(command: Command) -> None:
    asked_for_help(command, *command.words)


def export(command: Command) -> None:
    """Names with values; a command in a value is one as any other."""
    for inner in re.findall(r"\$\((.+)\)", command.line):
        check(Command(command.page, inner))
    assert re.match(r"export( [A-Z]+=(\$\(.+\)|\S+))+$", command.line), command


def tensorboard(command: Command) -> None:
    option, folder = command.words[1:]
    example = yaml.safe_load((ROOT / command.page).read_text())["spec"]
    assert (option, folder) == ("--logdir", f"{example['output']['uri']}/report/tensorboard"), command


CHECKS: dict[str, Callable[[Command], None]] = {
    "docker": docker,
    "export": export,
    "gcloud": gcloud,
    "gemmatune_operator": operator,
    "gft": gft,
    "helm": helm,
    "kubectl": kubectl,
    "ln": of_coreutils,
    "make": make,
    "mkdir": of_coreutils,
    "tensorboard": tensorboard,
    "uv": uv,
    "venv": lambda command: None,  # it is really made, below
    "~/gft/bin/pip": pip,
}


def check(command: Command) -> None:
    """Errors: AssertionError: the command cannot work."""
    assert command.program in CHECKS, command
    CHECKS[command.program](command)
    if command.uv_options and command.program != "uv":
        uv(command)


# --- all that stands on the pages ---


def test_commands_are_found() -> None:
    assert len(commands()) > 70
    assert {command.program for command in commands()} == CHECKS.keys(), "and none is checked that nobody writes"
    assert {"README.md", "docs/quickstart.md", "docs/install.md", "docs/operations.md"} < {
        command.page for command in commands()
    }
    assert len([page for page in EXAMPLES if f"{page.relative_to(ROOT)}" in {found.page for found in commands()}]) > 8


@pytest.mark.parametrize("command", commands(), ids=str)
def test_a_command_is_right(command: Command) -> None:
    check(command)


@pytest.mark.parametrize("command", commands(), ids=str)
def test_a_shell_reads_every_command(command: Command) -> None:
    done = subprocess.run(["bash", "-n", "-c", command.line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "make demoo",
        'make image IMAGES="operator torhc"',
        "make image IMAGE=operator",
        "uv tol install .",
        "uv tool install --edible .",
        "uv tool install api",
        "uv run --extra torch gft runn examples/quotes-cpu.yaml",
        "uv run --extra torch gft run examples/no-such.yaml",
        "uv run --extra torhc gft run examples/quotes-cpu.yaml",
        "uv run --extar torch gft run examples/quotes-cpu.yaml",
        "gft plan --no-such-option quotes.yaml",
        "gft plan",
        "gft validate quote.yaml",
        "KUBECONFIG=~/.kube/config uv run --extra operator python -m gemmatune_operator --trainer-imagee IMAGE",
        "KUBECONFIG=~/.kube/config uv run --extra operator python -m gemmatune_operatr --trainer-image IMAGE",
        "kubectl apply -f crdz/",
        "kubectl apply -f quote.yaml",
        "helm install gemmatune charts/gemmatun",
        "helm install gemmatune charts/gemmatune --set image.repositry=x",
        "gcloud container clusters creat gemmatune",
        "gcloud container clusters create gemmatune --locatoin=$REGION-a",
        "gcloud storage cp gs://$BUCKET/quotes/adapter",
        "docker tg gemmatune-operator:latest x",
        "docker push",
        "ln --no-such-option x y",
        "export 1",
        "export NUMBER=$(gcloud projects descibe x)",
        "npm install",
    ],
)
def test_a_wrong_command_is_seen(line: str) -> None:
    with pytest.raises(AssertionError):
        check(Command("README.md", line))


@pytest.mark.parametrize("mentioned", mentions(), ids=str)
def test_what_the_text_mentions_exists(mentioned: Command) -> None:
    """Often without what it needs besides; so may words in capitals, which stand for something."""
    program, *words = mentioned.words
    if program == "gft":
        command = Commands(name="gft").get_command(None, words[0])
        assert command is not None, mentioned
        try:
            command.make_context(words[0], words[1:])
        except typer.BadParameter as error:
            assert "Missing parameter" in str(error), mentioned  # noqa: PT017
    elif program in ("make", "uv"):
        CHECKS[program](mentioned)
    elif program not in ("kubectl", "helm"):
        assert find_spec(program) is not None, mentioned


# --- between commands ---


def variables(line: str) -> Iterator[str]:
    yield from (name for name in re.findall(r"\$\{?([A-Za-z_]\w*)", line) if name not in ("HOME", "PATH", "PWD"))


@pytest.mark.parametrize("page", sorted({command.page for command in commands()}))
def test_a_variable_is_set_before_it_is_used(page: str) -> None:
    """On the page itself; README, which sends its readers there first, has those of quickstart."""
    exports = "docs/quickstart.md" if page == "README.md" else page
    known = {} if exports == page else dict.fromkeys(_exported(*of("export", exports)))
    for command in commands():
        if command.page == page:
            assert set(variables(command.line)) <= known.keys(), command
            known |= dict.fromkeys(_exported(command))


def _exported(*found: Command) -> list[str]:
    return [name for command in found if command.program == "export" for name in re.findall(r" (\w+)=", command.line)]


@pytest.mark.parametrize("command", [found for found in of("kubectl") if found.words[1] == "wait"], ids=str)
def test_a_wait_says_how_long(command: Command) -> None:
    """kubectl's own 30 seconds are over before any run is."""
    assert any(word.startswith("--timeout=") for word in command.words)


def namespaced() -> list[Command]:
    """The commands of quickstart that ask for something in a namespace."""
    programs = r"(kubectl (?!create namespace|delete crd)|gft (?!validate|plan))"
    return [found for found in commands() if found.page == "docs/quickstart.md" and re.match(programs, found.line)]


@pytest.mark.parametrize("command", namespaced(), ids=str)
def test_quickstart_names_its_namespace(command: Command) -> None:
    """It is not that of the kubeconfig."""
    assert "-n" in command.words


def test_images_are_pushed_by_the_names_that_are_pulled() -> None:
    """Built as `make image` names them, with the tag that the chart asks for; what is installed was pushed."""
    version = yaml.safe_load((ROOT / "charts/gemmatune/Chart.yaml").read_text())["appVersion"]
    page = "docs/quickstart.md"
    built, pushed = zip(*[found.words[2:] for found in of("docker", page) if found.words[1] == "tag"], strict=True)
    assert set(built) <= {image_name(name) for name in CONTAINERFILES}
    assert [found.words[2] for found in of("docker", page) if found.words[1] == "push"] == list(pushed)
    assert all(name.endswith(f":{version}") for name in pushed)
    words = [word for name in ("README.md", page) for found in of("helm", name) for word in found.words]
    installed = {word.partition("=")[2] for word in words if re.match(r"(image.repository|trainer.image)=\$", word)}
    assert installed == {pushed[0].removesuffix(f":{version}"), pushed[1]}


@pytest.mark.parametrize("page", ["README.md", "examples/quotes-cpu.yaml"])
def test_the_links_lead_where_the_example_looks(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    place = "/tmp/gemmatune-example"
    for command in (*of("mkdir", page), *of("ln", page)):
        here = command.line.replace(place, str(tmp_path / "example"))
        subprocess.run(["bash", "-c", here], cwd=ROOT, check=True)
    spec = yaml.safe_load((ROOT / "examples/quotes-cpu.yaml").read_text())["spec"]
    model, data = (
        Path(spec[name]["uri"].removeprefix("file://").replace(place, str(tmp_path / "example")))
        for name in ("model", "dataset")
    )
    assert data.is_file()
    assert model.readlink() == cache_dir() / "models" / DEMO_MODEL


def test_the_environment_of_pip_is_on_path(tmp_path: Path) -> None:
    page = "docs/quickstart.md"
    (venv,) = of("venv", page)
    module = venv.line.removeprefix("python3 ")
    line = f"{shlex.quote(sys.executable)} {module} --without-pip"
    subprocess.run(["bash", "-c", line], env={**os.environ, "HOME": str(tmp_path)}, check=True)
    (made,) = tmp_path.iterdir()
    (path,) = [found.words[1] for found in of("export", page) if found.words[1].startswith("PATH=")]
    assert path == f"PATH=~/{made.name}/bin:$PATH"
    assert (made / "bin/python").exists()
