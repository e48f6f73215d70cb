"""Our proto/ agrees with containerd's own files on every message that it has.

Needs no daemon, only Debian's golang-github-containerd-containerd-dev and this checkout.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (  # noqa: TID253 - a test
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

from testing.repository import REPOSITORY

OURS = sorted((REPOSITORY / "proto/runtimes/containerd/api").glob("*.proto"))
GOCODE = Path("/usr/share/gocode/src")
THEIRS = GOCODE / "github.com/containerd/containerd/api"

Facts = dict[str, object]


def _compile(root: Path, files: list[Path], target: Path) -> FileDescriptorSet:
    argv = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={root}", "--include_imports"]
    subprocess.run([*argv, f"--descriptor_set_out={target}", *map(str, files)], check=True)
    return FileDescriptorSet.FromString(target.read_bytes())


def _theirs(folder: Path) -> FileDescriptorSet:
    """Compile containerd's files, without the gogoproto options that protoc cannot read here."""
    copy = folder / "github.com/containerd/containerd/api"
    files = []
    for source in sorted(THEIRS.rglob("*.proto")):
        target = copy / source.relative_to(THEIRS)
        if target.name in ("introspection.proto",):  # not ours, and imports google/rpc
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_without_gogo(source.read_text()))
        files.append(target)
    return _compile(folder, files, folder / "theirs.pb")


def _without_gogo(text: str) -> str:
    text = re.sub(r'^import (weak )?"(gogoproto|.*/protobuf/plugin)/.*$', "", text, flags=re.M)
    text = re.sub(r"^\s*option \((gogoproto|containerd\.plugin)[^;]*;$", "", text, flags=re.M)
    return re.sub(r"\s*\[[^\]]*gogoproto[^\]]*\]", "", text)


def _facts(files: FileDescriptorSet) -> Facts:
    facts: Facts = {}
    for file in files.file:
        if file.package.startswith("containerd."):
            _add_file(facts, file)
    return facts


def _add_file(facts: Facts, file: FileDescriptorProto) -> None:
    for message in file.message_type:
        _add_message(facts, f".{file.package}", message)
    for enum in file.enum_type:
        _add_enum(facts, f".{file.package}", enum)
    for service in file.service:
        for method in service.method:
            name = f".{file.package}.{service.name}/{method.name}"
            streams = (method.client_streaming, method.server_streaming)
            facts[name] = (method.input_type, method.output_type, streams)


def _add_message(facts: Facts, scope: str, message: DescriptorProto) -> None:
    name = f"{scope}.{message.name}"
    for field in message.field:
        facts[f"{name}.{field.name}"] = _field(field)
    for nested in message.nested_type:
        _add_message(facts, name, nested)


def _add_enum(facts: Facts, scope: str, enum: EnumDescriptorProto) -> None:
    for value in enum.value:
        facts[f"{scope}.{enum.name}.{value.name}"] = value.number


def _field(field: FieldDescriptorProto) -> object:
    return (field.number, field.type, field.label, field.type_name)


def test_every_fact_of_ours_is_containerds(tmp_path: Path) -> None:
    if not THEIRS.is_dir():
        pytest.skip("golang-github-containerd-containerd-dev is not installed; `make test` does it")
    ours = _facts(_compile(REPOSITORY / "proto", OURS, tmp_path / "ours.pb"))
    theirs = _facts(_theirs(tmp_path))
    assert len(ours) > 100
    different = {name: (fact, theirs.get(name)) for name, fact in ours.items()
                 if theirs.get(name) != fact}  # fmt: skip
    assert different == {}
